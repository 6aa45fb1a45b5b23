//! The turn of a shard's thread.
//!
//! ```text
//! requests of the control thread ─┐
//! READY words ──► submissions ────┤
//!                 lanes ──────────┼──► Logic ──► Journal::append ──► submit ──► disk
//! clock ──────────────────────────┘      ▲
//!                                        └── on_durable ◄── reap ◄── completions of the disk
//! Logic ──► completions, deliveries, answers ──► rings towards the clients ──► wake-ups
//! ```
//!
//! Nothing in a turn waits for a client or for the disk, and each handle has a bounded share of it. When there is nothing to
//! do the thread says so on its page, looks once more, and sleeps until the disk, a client or the control thread has something.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use ringmain_client::layout::control;
use ringmain_client::protocol::{Role, WakeMode};
use ringmain_client::ring::Kernel;
use ringmain_client::sys::clock::{monotonic_ns, realtime_ns};
use ringmain_client::sys::eventfd::EventFd;
use ringmain_client::sys::kernel::HostKernel;
use ringmain_client::wire::{Outcome, Up};
use std::os::fd::AsFd;

use super::control::{FromShard, Outbox, ToShard};
use super::handles::Handles;
use super::logic::{Logic, Now, Refusal};
use super::memory::{PageMemory, deliverable_bytes, is_deliverable};
use super::spin::Spin;
use crate::disk::Disk;
use crate::journal::{Journal, Ready};

/// Messages of one handle in a turn.
const TAKEN_AT_ONCE: usize = 256;
/// Bytes of one handle in a turn.
const TAKEN_BYTES_AT_ONCE: usize = 256 << 10;
/// Rounds of giving out messages in a turn.
const DISPATCHES_AT_ONCE: usize = 4;
/// Requests of the control thread in a turn.
const REQUESTS_AT_ONCE: usize = 64;
/// How long a stop waits for the disk.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(6);

/// A shard. Everything in it belongs to one thread.
#[derive(Debug)]
pub(super) struct Shard<D: Disk> {
    pub(super) number: u32,
    pub(super) page: PageMemory,
    kernel: HostKernel,
    inbox: Receiver<ToShard>,
    bell: Arc<EventFd>,
    pub(super) outbox: Outbox<FromShard>,
    pub(super) journal: Journal<D>,
    pub(super) logic: Logic,
    pub(super) handles: Handles,
    /// A request that the journal had no room for; those behind it wait.
    pub(super) stalled: VecDeque<ToShard>,
    /// Deletions under way: request and queue.
    pub(super) deleting: Vec<(u64, u64)>,
    /// Everything is adopted.
    pub(super) is_started: bool,
    /// The journal failed, and everybody was told.
    failed_errno: Option<i32>,
    /// No room for the journal, and that was logged.
    is_full: bool,
    pub(super) stopping: Option<Stopping>,
    spin: Spin,
    metadata: Vec<u8>,
    payload: Vec<u8>,
    /// Producers that wait for the journal.
    is_journal_full: bool,
}

/// The end of a shard.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) close: bool,
    pub(super) deadline: Instant,
}

impl<D: Disk> Shard<D> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        number: u32,
        page: PageMemory,
        wake_mode: WakeMode,
        inbox: Receiver<ToShard>,
        bell: Arc<EventFd>,
        outbox: Outbox<FromShard>,
        mut journal: Journal<D>,
        logic: Logic,
    ) -> io::Result<Self> {
        journal.disk().watch(bell.as_fd())?;
        page.page.set_asleep(false);
        Ok(Self {
            number,
            page,
            kernel: HostKernel::new(wake_mode),
            inbox,
            bell,
            outbox,
            journal,
            logic,
            handles: Handles::default(),
            stalled: VecDeque::new(),
            deleting: Vec::new(),
            is_started: false,
            failed_errno: None,
            is_full: false,
            stopping: None,
            spin: Spin::new(),
            metadata: Vec::new(),
            payload: Vec::new(),
            is_journal_full: false,
        })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            let busy = self.turn();
            if self.stopping.is_some() && self.is_stopped(busy) {
                break;
            }
            if !busy {
                self.idle();
            }
        }
        self.end();
    }

    /// One turn; whether there is more to do at once.
    fn turn(&mut self) -> bool {
        let mut busy = self.requests();
        busy |= self.handles.look();
        if !self.is_started {
            return busy;
        }
        let now = now();
        self.is_journal_full = !self.is_journal_ready();
        self.take_all(Role::Consume, now);
        self.take_all(Role::Produce, now);
        if self.logic.next_deadline().is_some_and(|due| due <= now.monotonic_ns) {
            self.logic.on_time(&mut self.handles, now);
        }
        self.dispatch(now);
        if self.logic.flush(&mut self.journal) {
            self.submissions_appended();
        }
        self.journal.submit(&self.logic, Instant::now());
        busy |= self.reap(now);
        busy |= self.dispatch(now);
        if self.logic.flush(&mut self.journal) {
            self.submissions_appended();
        }
        self.journal.submit(&self.logic, Instant::now());
        busy |= self.tend();
        self.answer_requests();
        let has_work = self.handles.listed(Role::Consume) + self.handles.listed(Role::Produce) > 0;
        busy | (has_work && self.is_journal_ready())
    }

    fn is_journal_ready(&self) -> bool {
        // A journal that failed takes nothing, but what is sent to it is to be answered.
        matches!(self.journal.is_ready(), Ready::Ready | Ready::Failed(_))
    }

    fn requests(&mut self) -> bool {
        for done in 0..REQUESTS_AT_ONCE {
            let request = match self.stalled.pop_front() {
                Some(request) => request,
                None => match self.inbox.try_recv() {
                    Ok(request) => request,
                    Err(TryRecvError::Empty) => return done > 0,
                    // The control thread is gone, and the process with it in a moment.
                    Err(TryRecvError::Disconnected) => {
                        self.stopping.get_or_insert_with(|| Stopping::now(false));
                        return false;
                    }
                },
            };
            if let Some(request) = self.carry_out(request) {
                self.stalled.push_front(request);
                return done > 0;
            }
        }
        true
    }

    /// Takes what the handles of this role have, a share from each.
    fn take_all(&mut self, role: Role, now: Now) {
        for _ in 0..self.handles.listed(role) {
            let Some(place) = self.handles.next_listed(role) else { return };
            let more = match role {
                Role::Produce => self.take_lane(place, now),
                Role::Consume => self.take_submissions(place, now),
            };
            self.handles.touch(place);
            if more {
                self.handles.list(place);
            }
        }
    }

    /// Whether there may be more in the lane.
    fn take_lane(&mut self, place: usize, now: Now) -> bool {
        let (mut metadata, mut payload) =
            (std::mem::take(&mut self.metadata), std::mem::take(&mut self.payload));
        let mut bytes = 0;
        let mut more = true;
        for _ in 0..TAKEN_AT_ONCE {
            if self.is_journal_full || bytes > TAKEN_BYTES_AT_ONCE {
                break;
            }
            let Some(handle) = self.handles.get_mut(place) else {
                more = false;
                break;
            };
            // A client that does not take its completions waits by itself.
            if handle.fault.is_some() || (handle.is_blocked() && handle.closing.is_none()) {
                more = false;
                break;
            }
            let (position, next, flags) = match handle.take(&mut metadata, &mut payload) {
                Ok(Some(taken)) => taken,
                Ok(None) => {
                    handle.is_drained = true;
                    more = false;
                    break;
                }
                Err(fault) => {
                    handle.fault = Some(fault.to_string());
                    more = false;
                    break;
                }
            };
            let key = handle.key;
            let published = if is_deliverable(handle.memory.pair.geometry(), metadata.len(), payload.len()) {
                self.logic.publish(
                    &mut self.journal,
                    key,
                    position,
                    next,
                    flags,
                    &metadata,
                    &payload,
                    now,
                )
            } else {
                let limit = deliverable_bytes(handle.memory.pair.geometry());
                self.logic.refuse(key, position, Outcome::TooLarge, limit);
                Ok(())
            };
            match (published, self.handles.get_mut(place)) {
                (Ok(()), Some(handle)) => {
                    handle.messages += 1;
                    handle.bytes += payload.len() as u64;
                    bytes += payload.len() + metadata.len();
                }
                (Err(Refusal::Full | Refusal::JournalFailed(_)), Some(handle)) => {
                    handle.refused = true;
                    self.is_journal_full = true;
                }
                (Err(Refusal::Unknown), Some(handle)) => {
                    handle.fault = Some("the shard does not know this handle".to_owned());
                    more = false;
                    break;
                }
                (_, None) => break,
            }
        }
        (self.metadata, self.payload) = (metadata, payload);
        more
    }

    /// Whether there may be more submissions.
    fn take_submissions(&mut self, place: usize, now: Now) -> bool {
        let (mut metadata, mut payload) =
            (std::mem::take(&mut self.metadata), std::mem::take(&mut self.payload));
        let mut more = true;
        for _ in 0..TAKEN_AT_ONCE {
            let Some(handle) = self.handles.get_mut(place) else {
                more = false;
                break;
            };
            if handle.fault.is_some() {
                more = false;
                break;
            }
            let position = match handle.take(&mut metadata, &mut payload) {
                Ok(Some((position, _, _))) => position,
                Ok(None) => {
                    handle.is_drained = true;
                    more = false;
                    break;
                }
                Err(fault) => {
                    handle.fault = Some(fault.to_string());
                    more = false;
                    break;
                }
            };
            let (key, again) = (handle.key, handle.is_again(position));
            let up = match Up::decode(&payload) {
                Ok(up) => up,
                Err(error) => {
                    handle.fault = Some(error.to_string());
                    more = false;
                    break;
                }
            };
            if let Up::Credit { credit } = up {
                let credit = credit.min(handle.memory.pair.geometry().leases());
                handle.memory.pair.status().set_credit(u64::from(credit));
            }
            match self.logic.submission(&mut self.handles, key, up, again, now) {
                Ok(()) => {
                    if let (Up::Flush { request }, Some(handle)) =
                        (up, self.handles.get_mut(place))
                    {
                        handle.answer_when_stored(request);
                    }
                    self.handles.submitting.push(place);
                }
                Err(Refusal::Full | Refusal::JournalFailed(_)) => {
                    if let Some(handle) = self.handles.get_mut(place) {
                        handle.refused = true;
                    }
                    break;
                }
                Err(Refusal::Unknown) => {
                    if let Some(handle) = self.handles.get_mut(place) {
                        handle.fault = Some("the shard does not know this handle".to_owned());
                    }
                    more = false;
                    break;
                }
            }
        }
        (self.metadata, self.payload) = (metadata, payload);
        more
    }

    /// What follows from all submissions is appended: their slots are released when that is durable.
    fn submissions_appended(&mut self) {
        let lsn = self.journal.last_lsn();
        for place in std::mem::take(&mut self.handles.submitting) {
            if let Some(handle) = self.handles.get_mut(place) {
                handle.appended(lsn);
                self.handles.touch(place);
            }
        }
    }

    /// Gives messages out; whether there is more to give out at once.
    fn dispatch(&mut self, now: Now) -> bool {
        for _ in 0..DISPATCHES_AT_ONCE {
            if !self.logic.dispatch(&mut self.journal, &mut self.handles, now) {
                return false;
            }
        }
        true
    }

    /// Takes what the disk has done; whether there was anything.
    fn reap(&mut self, now: Now) -> bool {
        let progress = self.journal.reap();
        self.logic.on_durable(progress.durable, &mut self.handles, &mut self.journal, now);
        if let Some(failure) = &progress.failed
            && self.failed_errno.is_none()
        {
            self.failed_errno = Some(failure.errno);
            self.page.page.set_failed(failure.errno, failure.lsn);
            self.outbox
                .send(FromShard::Log { text: format!("shard {}: {failure}", self.number) });
            self.logic.on_failed(failure.errno, &mut self.handles);
            let places: Vec<usize> = self.handles.all().map(|(place, _)| place).collect();
            for place in places {
                self.handles.list(place);
                self.handles.touch(place);
                if let Some(handle) = self.handles.get_mut(place) {
                    handle.wake_all();
                }
            }
        }
        self.tell_of_room();
        progress.advanced || progress.reads > 0
    }

    /// A full disk is no failure: it is logged, and what was sent waits in its lane.
    fn tell_of_room(&mut self) {
        match self.journal.is_ready() {
            Ready::NoSpace { detail, .. } => {
                if !std::mem::replace(&mut self.is_full, true) {
                    let text = format!(
                        "shard {}: no room for the journal ({detail}): producers wait until there is some; free space, or \
                         acknowledge messages",
                        self.number
                    );
                    self.outbox.send(FromShard::Log { text });
                }
            }
            Ready::Ready if std::mem::take(&mut self.is_full) => {
                let text = format!("shard {}: there is room for the journal again", self.number);
                self.outbox.send(FromShard::Log { text });
            }
            _ => {}
        }
    }

    /// The end of a turn for every handle that something happened to: records, releases, wake-ups, ends. Whether there is more
    /// to do at once.
    fn tend(&mut self) -> bool {
        let durable = self.journal.durable();
        let touched = self.handles.take_touched();
        let mut again = false;
        for place in &touched {
            let Some(handle) = self.handles.get_mut(*place) else { continue };
            let key = handle.key;
            let has_room = handle.has_room_again();
            if handle.role == Role::Consume {
                handle.release_submissions(durable, self.failed_errno);
            }
            if handle.flush() {
                let position = handle.released_position();
                handle.memory.pair.status().set_taken(handle.up_position());
                self.logic.released(key, position);
            }
            let Some(handle) = self.handles.get_mut(*place) else { continue };
            if handle.role == Role::Consume {
                if !handle.has_waiting() && !handle.is_blocked() {
                    self.logic.room(key);
                    again |= has_room;
                }
            } else if has_room {
                again = true;
                self.handles.list(*place);
            }
            let Some(handle) = self.handles.get_mut(*place) else { continue };
            handle.wake();
            if handle.fault.is_some() {
                self.end_faulty(*place);
            } else if handle.closing.is_some() && handle.is_drained {
                self.end_closing(*place);
            }
        }
        // Submissions wait for the disk: they are looked at again when something is durable.
        for place in &touched {
            if let Some(handle) = self.handles.get(*place)
                && handle.role == Role::Consume
                && handle.held() > 0
            {
                self.handles.touch(*place);
            }
        }
        self.handles.reuse_touched(touched);
        again
    }

    /// Its client broke the rules: nothing more is taken, leases return, nobody else notices.
    fn end_faulty(&mut self, place: usize) {
        let Some(handle) = self.handles.get_mut(place) else { return };
        let key = handle.key;
        handle.close(control::CLOSED_FAULT);
        let what = handle.fault.clone().unwrap_or_default();
        self.logic.close_handle(&mut self.handles, key, now());
        self.forget(place);
        self.outbox.send(FromShard::Fault { key, what });
    }

    /// Everything that a handle sent was taken.
    fn end_closing(&mut self, place: usize) {
        let Some(handle) = self.handles.get(place) else { return };
        let key = handle.key;
        // What was in the lane is stored before anybody forgets the lane.
        if handle.role == Role::Produce && handle.held() > 0 && self.failed_errno.is_none() {
            return;
        }
        self.logic.close_handle(&mut self.handles, key, now());
        self.forget(place);
        self.outbox.send(FromShard::Released { key });
    }

    /// Takes a handle out of the tables.
    pub(super) fn forget(&mut self, place: usize) {
        if let Some((_, Some(session))) = self.handles.remove(place) {
            self.journal.disk().unwatch(session.bell.as_fd());
        }
    }

    /// Nothing to do: looks on for a moment if that has paid lately, then sleeps.
    fn idle(&mut self) {
        if self.stopping.is_none() && self.spin.look(|| self.handles.is_ready()) {
            return;
        }
        self.page.page.set_asleep(true);
        // Partner of the light barrier of every client between its READY word and its look at the page.
        self.kernel.heavy_barrier();
        let found = self.handles.is_ready() | self.handles.look_for_room();
        if !found {
            let timeout = self.timeout();
            if let Err(error) = self.journal.wait(timeout) {
                let text = format!("shard {}: it cannot sleep: {error}", self.number);
                self.outbox.send(FromShard::Log { text });
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.page.page.set_asleep(false);
    }

    /// When there is something to do although nothing happens.
    fn timeout(&mut self) -> Option<Duration> {
        let journal = self
            .journal
            .next_deadline()
            .map(|due| due.saturating_duration_since(Instant::now()));
        let logic = self
            .logic
            .next_deadline()
            .filter(|_| self.is_started)
            .map(|due| Duration::from_nanos(due.saturating_sub(monotonic_ns())));
        let stop = self
            .stopping
            .as_ref()
            .map(|stop| stop.deadline.saturating_duration_since(Instant::now()));
        [journal, logic, stop].into_iter().flatten().min()
    }

    /// Whether a shard that is to stop has nothing more to do.
    fn is_stopped(&mut self, busy: bool) -> bool {
        let Some(stopping) = &self.stopping else { return false };
        if Instant::now() >= stopping.deadline || self.failed_errno.is_some() || !self.is_started {
            return true;
        }
        let taken = !stopping.close
            || (self.handles.listed(Role::Produce) == 0 && self.handles.listed(Role::Consume) == 0);
        let stored = self.journal.durable() >= self.journal.last_lsn();
        !busy && taken && stored && self.handles.submitting.is_empty()
    }

    /// Closes the journal, and tells the clients if nobody takes over.
    fn end(mut self) {
        let mut messages = 0;
        let ids: Vec<u64> = self.logic.queues().map(|queue| queue.id).collect();
        for id in ids {
            messages += self.logic.info(id).map_or(0, |info| info.messages);
        }
        let places: Vec<usize> = self.handles.all().map(|(place, _)| place).collect();
        if self.stopping.as_ref().is_none_or(|stopping| stopping.close) {
            for place in places {
                if let Some(handle) = self.handles.get_mut(place) {
                    handle.close(control::CLOSED_DRAINING);
                }
            }
        }
        if let Err(failure) = self.journal.close(&self.logic) {
            let text = format!("shard {}: {failure}", self.number);
            self.outbox.send(FromShard::Log { text });
        }
        self.outbox.send(FromShard::Stopped { shard: self.number, messages });
    }
}

impl Stopping {
    pub(super) fn now(close: bool) -> Self {
        Self { close, deadline: Instant::now() + STOP_PATIENCE }
    }
}

/// The time.
pub(super) fn now() -> Now {
    Now { monotonic_ns: monotonic_ns(), realtime_ns: realtime_ns() }
}
