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
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Buffer, Completed, Done, Durability, FileId, Operation, Ticket, error};
use history::{Action, Certainty, Event};
use image::{Content, Image, SECTOR_BYTES};
use random::Random;

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

#[derive(Debug)]
struct Pending {
    about: InFlight,
    /// Place of its `Begin` in the history; reads leave no trace.
    begin: Option<usize>,
    content: usize,
    kind: PendingKind,
    fault: Option<Fault>,
    flushed: bool,
}

#[derive(Debug)]
enum PendingKind {
    Write {
        buffer: Buffer,
    },
    Read {
        buffer: Buffer,
    },
    Create,
    Remove,
    /// Refused at once: its result waits for the reap.
    Refused(io::Error, Option<Buffer>),
}

#[derive(Debug, Default)]
struct State {
    initial: Image,
    /// As a process sees it.
    live: Image,
    history: Vec<Event>,
    /// Content of each open file; an open file is locked.
    open: BTreeMap<FileId, usize>,
    next_file: u32,
    /// Of the process that may use the disk; a killed one has an older number.
    process: u64,
    pending: Vec<Pending>,
    completed: Vec<Completed>,
    held: bool,
    order: Option<Random>,
    faults: Faults,
    unreadable: Vec<(String, Range<u64>)>,
    capacity: Option<u64>,
}

use faults::Faults;

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

    /// Ends that: what is held completes, and what comes completes when it is flushed.
    pub fn flow(&self) {
        self.state().held = false;
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

/// Files are far shorter than memory.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl State {
    fn files(&self) -> Vec<(String, u64)> {
        let names = self.live.names.iter();
        names
            .map(|(name, content)| (name.clone(), self.live.contents[*content].length() as u64))
            .collect()
    }

    fn alter(&mut self, name: &str, change: impl Fn(&mut Content)) {
        if let Some(number) = self.live.names.get(name).copied() {
            self.behind(|image| {
                if let Some(content) = image.contents.get_mut(number) {
                    change(Arc::make_mut(content));
                }
            });
        }
    }

    /// Changes what is and what was. Only sensible while nothing is in flight; the history then starts afresh.
    fn behind(&mut self, change: impl Fn(&mut Image)) {
        change(&mut self.live);
        self.initial = self.live.clone();
        self.history.clear();
    }

    fn begin(&mut self, action: Action) -> usize {
        self.history.push(Event::Begin(action));
        self.history.len() - 1
    }

    fn end(&mut self, begin: usize, well: bool) {
        self.history.push(Event::End { begin, well });
    }

    /// Name of an open file; empty if it has none any more.
    fn name(&self, content: usize) -> String {
        let named = self.live.names.iter().find(|(_, number)| **number == content);
        named.map(|(name, _)| name.clone()).unwrap_or_default()
    }

    fn opened(&self, file: FileId, call: &'static str) -> io::Result<usize> {
        let what = "the file is not open";
        self.open
            .get(&file)
            .copied()
            .ok_or_else(|| error::invalid(call, &format!("file {}", file.0), what))
    }

    fn open_content(&mut self, content: usize) -> FileId {
        self.next_file += 1;
        let file = FileId(self.next_file);
        self.open.insert(file, content);
        file
    }

    fn new_content(&mut self, length: usize) -> usize {
        self.live.contents.push(Arc::new(Content::zeros(length)));
        self.live.contents.len() - 1
    }

    /// Why a file of this name and length cannot be made.
    fn refuse_create(&self, name: &str, bytes: u64) -> Option<io::Error> {
        if self.live.names.contains_key(name) {
            return Some(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let creating: u64 = (self.pending.iter())
            .filter(|one| matches!(one.kind, PendingKind::Create))
            .map(|one| one.about.bytes)
            .sum();
        let used: u64 = self.files().iter().map(|(_, length)| length).sum();
        let wanted = used.saturating_add(creating).saturating_add(bytes);
        (self.capacity.is_some_and(|capacity| wanted > capacity))
            .then(|| io::Error::from_raw_os_error(libc::ENOSPC))
    }

    fn read(&self, content: usize, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let name = self.name(content);
        let wanted = offset..offset.saturating_add(target.len() as u64);
        let bad = |(file, bytes): &(String, Range<u64>)| {
            *file == name && bytes.start < wanted.end && wanted.start < bytes.end
        };
        if self.unreadable.iter().any(bad) {
            let eio = io::Error::from_raw_os_error(libc::EIO);
            return Err(error::failed("read", &name, eio));
        }
        let length = target.len();
        if self.live.contents[content].read(index(offset), target) < length {
            let short = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(error::failed("read", &name, short));
        }
        Ok(())
    }

    /// Writes as far as the fault lets it, and says so in the history.
    fn write(
        &mut self,
        content: usize,
        offset: usize,
        bytes: &[u8],
        begin: usize,
        fault: Option<Fault>,
    ) {
        match fault {
            None => self.live.write(content, offset, bytes),
            Some(Fault::Short) => self.live.write(content, offset, &bytes[..bytes.len() / 2]),
            Some(_) => {}
        }
        self.end(begin, fault.is_none());
    }

    fn submit(&mut self, ticket: Ticket, operation: Operation) {
        let site = match &operation {
            Operation::Write { .. } => Site::BeginWrite,
            Operation::Read { .. } => Site::BeginRead,
            Operation::Create { .. } => Site::BeginCreate,
            Operation::Remove { .. } => Site::BeginRemove,
        };
        let fault = self.faults.call(site);
        let mut about = InFlight { ticket, site, file: String::new(), offset: 0, bytes: 0 };
        let (content, begin, kind) = match operation {
            Operation::Write { file, offset, buffer, durability } => {
                about.offset = offset;
                about.bytes = buffer.len() as u64;
                match self.check(file, "write", offset, buffer.len()) {
                    Err(error) => (0, None, PendingKind::Refused(error, Some(buffer))),
                    Ok(content) => {
                        let durable = durability == Durability::Durable;
                        let bytes: Arc<[u8]> = Arc::from(&buffer[..]);
                        let begin =
                            Action::Write { content, offset: index(offset), bytes, durable };
                        (content, Some(begin), PendingKind::Write { buffer })
                    }
                }
            }
            Operation::Read { file, offset, buffer } => {
                about.offset = offset;
                about.bytes = buffer.len() as u64;
                match self.check(file, "read", offset, 0) {
                    Err(error) => (0, None, PendingKind::Refused(error, Some(buffer))),
                    Ok(content) => (content, None, PendingKind::Read { buffer }),
                }
            }
            Operation::Create { name, bytes } => {
                about.file.clone_from(&name);
                about.bytes = bytes;
                match self.refuse_create(&name, bytes) {
                    Some(why) => {
                        let error = error::failed("create", &name, why);
                        (0, None, PendingKind::Refused(error, None))
                    }
                    None => {
                        let length = index(bytes);
                        let content = self.new_content(length);
                        let begin = Action::Create { name, content, length };
                        (content, Some(begin), PendingKind::Create)
                    }
                }
            }
            Operation::Remove { file } => match self.open.remove(&file) {
                None => {
                    let error = error::invalid("remove", "a file", "it is not open");
                    (0, None, PendingKind::Refused(error, None))
                }
                Some(content) => {
                    let name = self.name(content);
                    (content, Some(Action::Remove { name }), PendingKind::Remove)
                }
            },
        };
        if about.file.is_empty() {
            about.file = self.name(content);
        }
        let begin = begin.map(|action| self.begin(action));
        self.pending.push(Pending { about, begin, content, kind, fault, flushed: false });
    }

    fn check(
        &self,
        file: FileId,
        call: &'static str,
        offset: u64,
        bytes: usize,
    ) -> io::Result<usize> {
        let content = self.opened(file, call)?;
        let name = self.name(content);
        super::check_place(call, &name, offset)?;
        let length = self.live.contents[content].length() as u64;
        if bytes != 0 && offset.saturating_add(bytes as u64) > length {
            return Err(error::invalid(call, &name, "it would go beyond the end of the file"));
        }
        Ok(content)
    }

    /// Brings one pending operation to its end.
    fn complete(&mut self, index_of: usize) {
        let Pending { about, begin, content, kind, fault, .. } = self.pending.remove(index_of);
        let site = about.site;
        let failure = |call, fault: Fault| error::failed(call, &about.file, fault.error(site));
        let begin = begin.unwrap_or(usize::MAX);
        let (result, buffer) = match kind {
            PendingKind::Refused(error, buffer) => (Err(error), buffer),
            PendingKind::Write { buffer } => {
                self.write(content, index(about.offset), &buffer, begin, fault);
                let result = fault.map_or(Ok(Done::Whole), |fault| Err(failure("write", fault)));
                (result, Some(buffer))
            }
            PendingKind::Read { mut buffer } => {
                let result = match fault {
                    Some(fault) => Err(failure("read", fault)),
                    None => self.read(content, about.offset, &mut buffer).map(|()| Done::Whole),
                };
                (result, Some(buffer))
            }
            PendingKind::Create => {
                self.end(begin, fault.is_none());
                match fault {
                    Some(fault) => (Err(failure("create", fault)), None),
                    None => {
                        self.live.names.insert(about.file.clone(), content);
                        (Ok(Done::Created(self.open_content(content))), None)
                    }
                }
            }
            PendingKind::Remove => {
                self.end(begin, fault.is_none());
                match fault {
                    Some(fault) => (Err(failure("remove", fault)), None),
                    None => {
                        self.live.names.remove(&about.file);
                        (Ok(Done::Whole), None)
                    }
                }
            }
        };
        self.completed.push(Completed { ticket: about.ticket, result, buffer });
    }

    /// One of the held operations, as time would.
    fn complete_any(&mut self) {
        let flushed: Vec<usize> =
            (0..self.pending.len()).filter(|at| self.pending[*at].flushed).collect();
        if flushed.is_empty() {
            return;
        }
        let chosen = self.order.as_mut().map_or(0, |random| random.below(flushed.len()));
        self.complete(flushed[chosen]);
    }

    /// What a killed process had in flight.
    fn die(&mut self, pending: Pending, random: &mut Random) {
        let Some(begin) = pending.begin else { return };
        self.history.push(Event::Abandon { begin });
        match pending.kind {
            PendingKind::Write { buffer } => {
                for start in (0..buffer.len()).step_by(SECTOR_BYTES) {
                    if random.below(2) == 1 {
                        let bytes = &buffer[start..(start + SECTOR_BYTES).min(buffer.len())];
                        let offset = index(pending.about.offset) + start;
                        let landed = Action::Write {
                            content: pending.content,
                            offset,
                            bytes: Arc::from(bytes),
                            durable: false,
                        };
                        let begin = self.begin(landed);
                        self.write(pending.content, offset, bytes, begin, None);
                    }
                }
            }
            PendingKind::Create if random.below(2) == 1 => {
                let name = pending.about.file;
                let from = format!("{name} being made");
                // Its content is there; its name is not durable yet.
                let (content, length) = (pending.content, index(pending.about.bytes));
                let create = self.begin(Action::Create { name: from.clone(), content, length });
                self.end(create, true);
                let rename = self.begin(Action::Rename { from, to: name.clone() });
                self.live.names.insert(name, content);
                self.end(rename, true);
            }
            PendingKind::Remove if random.below(2) == 1 => {
                let remove = self.begin(Action::Remove { name: pending.about.file.clone() });
                self.live.names.remove(&pending.about.file);
                self.end(remove, true);
            }
            _ => {}
        }
    }
}
