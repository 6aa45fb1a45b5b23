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
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::control::{FromShard, Outbox, ToShard, Trouble};
use super::far::FarShare;
use super::figures::Figures;
use super::handle::Handle;
use super::handles::Handles;
use super::logic::{Logic, Lsn, Now};
use super::memory::PageMemory;
use super::spin::{Courtesy, Spin};
use super::take::Taken;
use crate::disk::Disk;
use crate::journal::{FarTurn, Journal, Ready};
use ringmain_client::layout::control;
use ringmain_client::protocol::{HandleKey, Role, WakeMode};
use ringmain_client::ring::Kernel;
use ringmain_client::sys::clock::{monotonic_ns, realtime_ns};
use ringmain_client::sys::eventfd::EventFd;
use ringmain_client::sys::kernel::HostKernel;

/// Rounds of giving out messages in a turn.
const DISPATCHES_AT_ONCE: usize = 4;
/// Requests of the control thread in a turn.
const REQUESTS_AT_ONCE: usize = 64;
/// How long acknowledgements that nobody waits for wait for other records, in nanoseconds.
const PATIENCE_NS: u64 = 1_000_000;
/// How long the closing of the journal waits for the disk at least, whatever came before.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a stop waits for the disk.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(6);

/// A shard. Everything in it belongs to one thread.
#[derive(Debug)]
pub(super) struct Shard<D: Disk> {
    pub(super) number: u32,
    pub(super) page: PageMemory,
    kernel: HostKernel,
    /// Watched as long as it is open.
    _bell: Arc<EventFd>,
    pub(super) outbox: Outbox<FromShard>,
    pub(super) journal: Journal<D>,
    pub(super) logic: Logic,
    pub(super) handles: Handles,
    /// The journal's folder; `None`: it is in memory.
    pub(super) place: Option<PathBuf>,
    /// Requests that wait for the journal: for room, or for something to be read. Others do not wait for them.
    pub(super) stalled: VecDeque<ToShard>,
    /// Deletions under way: request and queue.
    pub(super) deleting: Vec<(u64, u64)>,
    /// Answers to clients whose groups are new, and the records that create these.
    pub(super) attaching: Vec<(Lsn, FromShard)>,
    /// Named producers whose attachment is not durable yet: request and handle.
    pub(super) naming: Vec<(u64, HandleKey)>,
    /// Everything is adopted.
    pub(super) is_started: bool,
    /// The journal failed, and everybody was told.
    failed_errno: Option<i32>,
    /// No room for the journal, and that was logged.
    is_full: bool,
    pub(super) stopping: Option<Stopping>,
    /// A wait failed, and that was logged.
    is_sleepless: bool,
    spin: Spin,
    courtesy: Courtesy,
    /// Clients that were woken since the last look.
    woke: u32,
    far: FarShare,
    /// Messages came out of lanes in this turn.
    pub(super) has_published: bool,
    /// A consumer waits until its submissions are stored.
    pub(super) is_flush_wanted: bool,
    /// Since when acknowledgements wait for other records, in nanoseconds.
    patient_since_ns: Option<u64>,
    /// What was taken last.
    pub(super) taken: Taken,
    /// The journal takes nothing in this turn any more.
    pub(super) is_journal_full: bool,
}

/// What a shard is made of.
#[derive(Debug)]
pub(super) struct Parts<D: Disk> {
    pub(super) number: u32,
    pub(super) page: PageMemory,
    pub(super) outbox: Outbox<FromShard>,
    pub(super) journal: Journal<D>,
    pub(super) logic: Logic,
    /// The journal's folder; `None`: it is in memory.
    pub(super) place: Option<PathBuf>,
}

/// The end of a shard.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) close: bool,
    pub(super) deadline: Instant,
}

impl<D: Disk> Shard<D> {
    /// `bell` announces requests of the control thread.
    pub(super) fn new(
        mut parts: Parts<D>,
        wake_mode: WakeMode,
        bell: Arc<EventFd>,
    ) -> io::Result<Self> {
        parts.journal.disk().watch(bell.as_fd())?;
        parts.page.page.set_asleep(false);
        Ok(Self {
            number: parts.number,
            page: parts.page,
            kernel: HostKernel::new(wake_mode),
            _bell: bell,
            outbox: parts.outbox,
            journal: parts.journal,
            logic: parts.logic,
            handles: Handles::default(),
            place: parts.place,
            stalled: VecDeque::new(),
            deleting: Vec::new(),
            attaching: Vec::new(),
            naming: Vec::new(),
            is_started: false,
            failed_errno: None,
            is_full: false,
            stopping: None,
            is_sleepless: false,
            spin: Spin::new(),
            courtesy: Courtesy::default(),
            woke: 0,
            far: FarShare::default(),
            has_published: false,
            is_flush_wanted: false,
            patient_since_ns: None,
            taken: Taken::default(),
            is_journal_full: false,
        })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self, inbox: Receiver<ToShard>) {
        loop {
            let busy = self.turn(&inbox);
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
    pub(super) fn turn(&mut self, inbox: &Receiver<ToShard>) -> bool {
        let mut busy = self.requests(inbox);
        busy |= self.handles.look();
        if !self.is_started {
            return busy;
        }
        let now = now();
        self.is_journal_full = !self.is_journal_ready();
        self.take_all(Role::Consume, now);
        self.take_all(Role::Produce, now);
        if std::mem::take(&mut self.has_published) {
            self.far.published(now.monotonic_ns);
        }
        if self.logic.next_deadline().is_some_and(|due| due <= now.monotonic_ns) {
            self.logic.on_time(&mut self.handles, now);
        }
        // Those who are far behind come when what was published is on its way.
        self.dispatch(now, FarTurn::new(0, 0));
        self.flush(now);
        if self.stopping.is_some() {
            self.journal.rest();
        }
        self.journal.submit(&self.logic, Instant::now());
        busy |= self.reap(now);
        busy |= self.dispatch(now, self.far.turn(now.monotonic_ns));
        self.flush(now);
        self.journal.submit(&self.logic, Instant::now());
        busy |= self.far_may_go_on();
        busy |= self.tend();
        busy |= self.refuse_for_room();
        self.answer_requests();
        self.tell_of_stalls();
        self.go_on_below_limits();
        let has_work = self.handles.listed(Role::Consume) + self.handles.listed(Role::Produce) > 0;
        busy | (has_work && self.is_journal_ready())
    }

    fn is_journal_ready(&self) -> bool {
        // A journal that failed takes nothing, but what is sent to it is to be answered.
        matches!(self.journal.is_ready(), Ready::Ready | Ready::Failed(_))
    }

    fn requests(&mut self, inbox: &Receiver<ToShard>) -> bool {
        let stalled = self.stalled.len();
        let again = stalled.min(REQUESTS_AT_ONCE);
        for request in self.stalled.drain(..again).collect::<Vec<_>>() {
            self.carry_out(request);
        }
        let mut busy = self.stalled.len() < stalled;
        for _ in 0..REQUESTS_AT_ONCE {
            match inbox.try_recv() {
                Ok(request) => self.carry_out(request),
                Err(TryRecvError::Empty) => return busy,
                // The control thread is gone, and the process with it in a moment.
                Err(TryRecvError::Disconnected) => {
                    self.stopping.get_or_insert_with(|| Stopping::now(false));
                    return false;
                }
            }
            busy = true;
        }
        true
    }

    /// Gives messages out, of those that come from the disk at most so many; whether there is more to give out at once.
    fn dispatch(&mut self, now: Now, far: FarTurn) -> bool {
        self.journal.allow_far(far);
        let begun_ns = if far.unearned > 0 { monotonic_ns() } else { 0 };
        let mut more = true;
        for _ in 0..DISPATCHES_AT_ONCE {
            more = self.logic.dispatch(&mut self.journal, &mut self.handles, now);
            if !more {
                break;
            }
        }
        let left = self.journal.far();
        let unearned = far.unearned - left.unearned;
        if unearned > 0 {
            let took_ns = monotonic_ns().saturating_sub(begun_ns);
            let of_these_ns = took_ns * u64::from(unearned) / u64::from(far.all - left.all);
            self.far.given(of_these_ns, begun_ns + took_ns);
        }
        more
    }

    /// Has what was gathered appended. A few acknowledgements wait for company: a batch of their own would be a write that those have
    /// to wait for who publish next.
    fn flush(&mut self, now: Now) {
        if self.logic.is_patient()
            && !self.is_flush_wanted
            && self.stopping.is_none()
            && !self.is_journal_full
            && !self.journal.is_gathering()
        {
            let since_ns = *self.patient_since_ns.get_or_insert(now.monotonic_ns);
            if now.monotonic_ns.saturating_sub(since_ns) < PATIENCE_NS {
                return;
            }
        }
        self.patient_since_ns = None;
        if self.logic.flush(&mut self.journal) {
            self.is_flush_wanted = false;
            self.submissions_appended();
        } else if self.logic.is_patient() {
            // Company is of no use while nothing can be appended.
            self.is_journal_full = true;
        }
    }

    /// Whether somebody who is far behind was refused a message that he may have now.
    fn far_may_go_on(&self) -> bool {
        let far = self.journal.far();
        if far.refused_earned {
            return true;
        }
        let now_ns = monotonic_ns();
        far.refused_unearned && self.far.opens_at_ns(now_ns) <= now_ns
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
            let text = format!("shard {}: {failure}", self.number);
            self.tell_trouble(Some(Trouble::Failed(text)));
            self.logic.on_failed(failure.errno, &mut self.handles);
            let places: Vec<usize> = self.handles.all().map(|(place, _)| place).collect();
            for place in places {
                self.handles.list(place);
                self.handles.touch(place);
                if let Some(handle) = self.handles.get_mut(place) {
                    handle.wake_all();
                    ring_doorbells(&self.outbox, handle);
                }
            }
        }
        self.answer_attached(progress.durable);
        self.end_consumers();
        self.tell_of_room();
        progress.advanced || progress.reads > 0
    }

    /// A full disk is no failure: it is logged, and what was sent waits in its lane.
    fn tell_of_room(&mut self) {
        match self.journal.is_ready() {
            Ready::NoSpace { detail, .. } if !self.is_full => {
                self.is_full = true;
                let text = format!(
                    "shard {}: no room for the journal ({detail}): producers wait until there is some; free space, or \
                         acknowledge messages",
                    self.number
                );
                self.tell_trouble(Some(Trouble::Full(text)));
            }
            Ready::Ready if std::mem::take(&mut self.is_full) => {
                let text = format!("shard {}: there is room for the journal again", self.number);
                self.outbox.send(FromShard::Log { text });
                self.tell_trouble(None);
            }
            _ => {}
        }
    }

    fn tell_trouble(&self, trouble: Option<Trouble>) {
        self.outbox.send(FromShard::Trouble { shard: self.number, trouble });
    }

    /// A message that cannot be read holds up its group, and nobody would know why.
    fn tell_of_stalls(&mut self) {
        for what in self.logic.take_stalls() {
            let text = format!(
                "shard {}: {what}: a group of this queue gets nothing more until the journal is repaired \
                 (ringmain journal verify) or the queue is purged",
                self.number
            );
            self.outbox.send(FromShard::Log { text });
        }
        for what in self.logic.take_losses() {
            let text = format!(
                "shard {}: {what}: a repair gave it up, and perhaps more; what is gone counts as discarded",
                self.number
            );
            self.outbox.send(FromShard::Log { text });
        }
        if let Some(damage) = self.journal.take_damage() {
            let text = format!(
                "shard {}: {damage}: the space of this segment does not come back until its messages are done with; see \
                 ringmain journal verify",
                self.number
            );
            self.outbox.send(FromShard::Log { text });
        }
    }

    /// Lanes for which their queues have room again.
    fn go_on_below_limits(&mut self) {
        for key in self.logic.take_unblocked() {
            let Some(place) = self.handles.place(key) else { continue };
            if let Some(handle) = self.handles.get_mut(place) {
                handle.is_limited = false;
            }
            self.handles.list(place);
        }
    }

    /// The end of a turn for every handle that something happened to: records, releases, wake-ups, ends. Whether there is more
    /// to do at once.
    fn tend(&mut self) -> bool {
        let touched = self.handles.take_touched();
        let mut again = false;
        for place in &touched {
            again |= self.tend_one(*place);
        }
        // A client that is woken may run at once, on this very processor: by then all that there is for it lies in its rings.
        for place in &touched {
            self.wake(*place);
        }
        self.handles.reuse_touched(touched);
        again
    }

    fn wake(&mut self, place: usize) {
        let Some(handle) = self.handles.get_mut(place) else { return };
        self.woke += u32::from(handle.wake());
        ring_doorbells(&self.outbox, handle);
    }

    fn tend_one(&mut self, place: usize) -> bool {
        let durable = self.journal.durable();
        let Some(handle) = self.handles.get_mut(place) else { return false };
        let (key, role) = (handle.key, handle.role);
        let has_room = handle.has_room_again();
        if role == Role::Consume {
            handle.release_submissions(durable, self.failed_errno);
        }
        if handle.flush() {
            handle.memory.pair.status().set_taken(handle.up_position());
            self.logic.released(key, handle.released_position());
        }
        let is_open = !handle.has_waiting() && !handle.is_blocked();
        if handle.fault.is_some() {
            self.end_faulty(place);
            // What it held may be given out now.
            return true;
        }
        if handle.closing.is_some() && handle.is_drained {
            // What it held may be given out now.
            self.wake(place);
            return self.end_closing(place) | has_room;
        } else if role == Role::Consume && handle.held() > 0 {
            // Its submissions wait for the disk: looked at again in every turn until they are stored.
            self.handles.touch(place);
        }
        // It may have been blocked by nothing but records in front of the next delivery, which are in the ring now.
        let is_unblocked = role == Role::Consume && is_open && self.logic.room(key);
        if has_room {
            self.handles.list(place);
        }
        has_room | is_unblocked
    }

    /// Its client broke the rules: nothing more is taken, leases return, nobody else notices.
    fn end_faulty(&mut self, place: usize) {
        let Some(handle) = self.handles.get_mut(place) else { return };
        let key = handle.key;
        handle.close(control::CLOSED_FAULT);
        ring_doorbells(&self.outbox, handle);
        let what = handle.fault.clone().unwrap_or_default();
        self.logic.close_handle(&mut self.handles, key, now());
        self.forget(place);
        self.outbox.send(FromShard::Fault { key, what });
    }

    /// Everything that a handle sent was taken. Whether it has ended.
    fn end_closing(&mut self, place: usize) -> bool {
        let Some(handle) = self.handles.get(place) else { return false };
        let key = handle.key;
        // What was in the lane is stored before anybody forgets the lane.
        if handle.role == Role::Produce && handle.held() > 0 && self.failed_errno.is_none() {
            return false;
        }
        self.logic.close_handle(&mut self.handles, key, now());
        self.forget(place);
        self.outbox.send(FromShard::Released { key });
        true
    }

    /// Takes a handle out of the tables.
    pub(super) fn forget(&mut self, place: usize) {
        if let Some((_, Some(session))) = self.handles.remove(place) {
            self.journal.disk().unwatch(session.bell.as_fd());
        }
    }

    /// Nothing to do: looks on for a moment if that has paid lately, then sleeps.
    fn idle(&mut self) {
        let woke = std::mem::take(&mut self.woke);
        // Of several one is elsewhere, or will be.
        if woke == 1 && self.stopping.is_none() && self.courtesy.yields(|| self.handles.is_ready())
        {
            return;
        }
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
                if !std::mem::replace(&mut self.is_sleepless, true) {
                    let text = format!("shard {}: it cannot sleep: {error}", self.number);
                    self.outbox.send(FromShard::Log { text });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.page.page.set_asleep(false);
    }

    /// When there is something to do although nothing happens.
    fn timeout(&mut self) -> Option<Duration> {
        let journal =
            self.journal.next_deadline().map(|due| due.saturating_duration_since(Instant::now()));
        let logic = self
            .logic
            .next_deadline()
            .filter(|_| self.is_started)
            .map(|due| Duration::from_nanos(due.saturating_sub(monotonic_ns())));
        let far = self.journal.far().refused_unearned.then(|| {
            let now_ns = monotonic_ns();
            Duration::from_nanos(self.far.opens_at_ns(now_ns).saturating_sub(now_ns))
        });
        let patient = self.patient_since_ns.map(|since_ns| {
            Duration::from_nanos((since_ns + PATIENCE_NS).saturating_sub(monotonic_ns()))
        });
        let stop = self
            .stopping
            .as_ref()
            .map(|stop| stop.deadline.saturating_duration_since(Instant::now()));
        [journal, logic, far, patient, stop].into_iter().flatten().min()
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
                    ring_doorbells(&self.outbox, handle);
                }
            }
        }
        let left = self.stopping.as_ref().map_or(Duration::ZERO, |stopping| {
            stopping.deadline.saturating_duration_since(Instant::now())
        });
        let figures = Figures::of(&self.journal.statistics());
        let (disk, closed) = self.journal.close(&self.logic, left.max(CLOSE_PATIENCE));
        // A failure before was told.
        if let Err(failure) = closed
            && self.failed_errno.is_none()
        {
            let text = format!("shard {}: {failure}", self.number);
            self.outbox.send(FromShard::Log { text });
        }
        if figures.batches > 0 {
            self.outbox.send(FromShard::Log { text: figures.line(self.number) });
        }
        self.outbox.send(FromShard::Stopped { shard: self.number, messages });
        // Last: a disk that does not answer is waited for some more.
        drop(disk);
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

/// Has the doorbells rung on which the client of a handle sleeps.
pub(super) fn ring_doorbells(outbox: &Outbox<FromShard>, handle: &mut Handle) {
    let key = handle.key;
    for (doorbell, bit) in handle.take_rings() {
        outbox.send(FromShard::Ring { key, doorbell, bit });
    }
}
