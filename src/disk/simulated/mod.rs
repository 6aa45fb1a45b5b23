//! A disk in memory that remembers everything, and that fails and loses power when a test wants it to.
//!
//! A [`Simulation`] is the hardware: it stays in the test's hands. A [`SimulatedDisk`] is how one process sees it. There are no threads and no clock: an
//! operation completes at once when it is flushed, or, after [`Simulation::hold`], when the test lets it go. Every operation is recorded with its
//! beginning and its end; [`Simulation::crash_states`] gives the disks that a power cut could leave at any point of that history.

mod crash;
mod faults;
mod history;
mod image;
mod random;
mod state;
#[cfg(test)]
mod tests;
mod view;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Ticket;
use history::{Certainty, Event};
use image::{Content, Image};
use random::Random;
use state::{State, index};

pub use crash::{CrashOptions, CrashStates};
pub use faults::{Fault, Site};
pub use view::SimulatedDisk;

/// The hardware. Copies are the same disk.
#[derive(Debug, Clone)]
pub struct Simulation(Arc<Mutex<State>>);

/// An operation that was submitted and has not completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The submitter's name for it.
    pub ticket: Ticket,
    /// One of the `Begin` sites.
    pub site: Site,
    /// The file's name.
    pub file: String,
    /// Bytes; zero for a file that is created or removed.
    pub offset: u64,
    /// Length of what is written or read, or of the new file.
    pub bytes: u64,
}

impl Default for Simulation {
    fn default() -> Self {
        Self::new()
    }
}

impl Simulation {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::from_image(Image::default())
    }

    fn from_image(image: Image) -> Self {
        Self(Arc::new(Mutex::new(State {
            initial: image.clone(),
            live: image,
            ..State::default()
        })))
    }

    /// How a new process sees it. A process that still uses the disk is killed, as by [`Self::kill`] with seed 0.
    #[must_use]
    pub fn disk(&self) -> SimulatedDisk {
        self.kill(0);
        SimulatedDisk::new(self.clone(), self.state().process)
    }

    /// A copy whose contents are as a process sees them now, all durable, with an empty history.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self::from_image(self.state().live.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- completions

    /// From now on operations complete when a method below says so, or one for each `wait`.
    pub fn hold(&self) {
        self.state().held = true;
    }

    /// From now on nothing completes, whatever is waited for: the disk does not answer any more.
    pub fn fall_silent(&self) {
        let mut state = self.state();
        (state.held, state.silent) = (true, true);
    }

    /// Ends that: what is held completes, and what comes completes when it is flushed.
    pub fn flow(&self) {
        {
            let mut state = self.state();
            (state.held, state.silent) = (false, false);
        }
        self.release_all();
    }

    /// Lets `wait` choose among the held operations by this seed, not the oldest.
    pub fn shuffle(&self, seed: u64) {
        self.state().order = Some(Random::new(seed));
    }

    /// What is held and was flushed, oldest first.
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        let state = self.state();
        state.pending.iter().filter(|one| one.flushed).map(|one| one.about.clone()).collect()
    }

    /// What was submitted and never flushed.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.state().pending.iter().filter(|one| !one.flushed).count()
    }

    /// Completes one operation; whether it was in flight.
    pub fn release(&self, ticket: Ticket) -> bool {
        let mut state = self.state();
        let index = state.pending.iter().position(|one| one.flushed && one.about.ticket == ticket);
        index.map(|index| state.complete(index)).is_some()
    }

    /// Completes the oldest operation; whether there was one.
    pub fn release_next(&self) -> bool {
        let mut state = self.state();
        let index = state.pending.iter().position(|one| one.flushed);
        index.map(|index| state.complete(index)).is_some()
    }

    /// Completes all, oldest first.
    pub fn release_all(&self) {
        while self.release_next() {}
    }

    // --- faults

    /// The `nth` call of this site from the beginning, counted from 1, fails.
    pub fn fail(&self, site: Site, nth: u64, fault: Fault) {
        self.state().faults.plan(site, nth, fault);
    }

    /// The `nth` call of any site from the beginning, counted from 1, fails.
    pub fn fail_call(&self, nth: u64, fault: Fault) {
        self.state().faults.plan_call(nth, fault);
    }

    /// How often a site was called.
    #[must_use]
    pub fn calls(&self, site: Site) -> u64 {
        self.state().faults.calls(site)
    }

    /// How often any site was called.
    #[must_use]
    pub fn total_calls(&self) -> u64 {
        self.state().faults.total()
    }

    /// The faults that came to pass: site, which of its calls, fault.
    #[must_use]
    pub fn fired(&self) -> Vec<(Site, u64, Fault)> {
        self.state().faults.fired().to_vec()
    }

    /// Every read that touches these bytes of a file fails with EIO.
    pub fn make_unreadable(&self, name: &str, bytes: Range<u64>) {
        self.state().unreadable.push((name.to_owned(), bytes));
    }

    /// Files may take this many bytes together; creating more fails with ENOSPC. `None`: as many as memory has.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    // --- contents

    /// Names and lengths, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<(String, u64)> {
        self.state().files()
    }

    /// What a process would read from a whole file.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let content = state.live.named(name)?;
        let mut bytes = vec![0; content.length()];
        content.read(0, &mut bytes);
        Some(bytes)
    }

    /// Puts a file there, durably and behind everybody's back; replaces what had the name.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.state().behind(|image| {
            let content = Arc::new(Content::from_bytes(bytes));
            image.names.insert(name.to_owned(), image.contents.len());
            image.contents.push(content);
        });
    }

    /// Flips bits of one byte, durably and behind everybody's back: rot. Nothing happens outside the file.
    pub fn flip(&self, name: &str, offset: u64, bits: u8) {
        self.state().alter(name, |content| {
            let mut byte = [0];
            let offset = index(offset);
            if content.read(offset, &mut byte) == 1 {
                content.write(offset, &[byte[0] ^ bits]);
            }
        });
    }

    /// Shortens a file, durably and behind everybody's back.
    pub fn truncate(&self, name: &str, bytes: u64) {
        self.state().alter(name, |content| content.truncate(index(bytes)));
    }

    // --- crashes

    /// How many things have happened so far. A crash at this point comes after all of them; at zero, before the first.
    #[must_use]
    pub fn point(&self) -> usize {
        self.state().history.len()
    }

    /// What a power cut could leave after the first `point` things of the history. Each is a disk with an empty history.
    #[must_use]
    pub fn crash_states(&self, point: usize, options: CrashOptions) -> CrashStates {
        let state = self.state();
        let history = &state.history[..point.min(state.history.len())];
        CrashStates::new(Certainty::of(&state.initial, history), options)
    }

    /// SIGKILL: of what is in flight any part, chosen by the seed, still lands; the rest never does. Files are closed, locks are gone, and
    /// the disk of the killed process answers every call with an error. What was written and not synced is still there, still not synced.
    pub fn kill(&self, seed: u64) {
        let mut state = self.state();
        let mut random = Random::new(seed);
        for pending in std::mem::take(&mut state.pending) {
            state.die(pending, &mut random);
        }
        state.completed.clear();
        state.open.clear();
        state.process += 1;
        if !state.history.is_empty() {
            state.history.push(Event::Restart);
        }
    }
}
