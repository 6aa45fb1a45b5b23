//! The disk on io_uring: the only file that knows it.
//!
//! It does not make a single write faster than a system call would; it keeps the caller from ever blocking, and several writes in flight.
//!
//! The ring is made by the first operation and belongs to that thread. An operation's buffer lies in the table of flights from its submission until
//! its last completion, whatever happens to the rest: the kernel may write to it all that time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{Builder, EnterFlags, IoUring, Probe, opcode, squeue};

use super::availability::{Availability, classify};
use super::directory::{Directory, Files, OpenFile};
use super::error::failed;
use super::open::{self, Refused};
use super::sleeper::Sleeper;
use super::transfer::{CALL_BYTES, Direction, Progress, Step};
use super::workers::{Job, Workers};
use super::{
    Buffer, Completed, DROP_WAIT, Disk, Done, Durability, FileId, Operation, SyncMode, Ticket,
    Waker,
};

/// Places in the submission queue; the completion queue has twice as many.
const ENTRIES: u32 = 64;

/// Operations in the kernel at a time: with two entries each and the poll they fit both queues.
const FLIGHTS: usize = 31;

/// The completion of the poll for wakes.
const POLL: u64 = u64::MAX;

/// Makes a ring, does nothing with it once, and throws it away.
#[must_use]
pub fn availability() -> Availability {
    match build().and_then(|mut ring| exercise(&mut ring)) {
        Ok(()) => Availability::Allowed,
        Err(error) => classify(error.raw_os_error().unwrap_or(libc::ENOSYS)),
    }
}

/// Flags that make it cheaper, by steps of the kernels that know them; a kernel that refuses one gets the next.
fn build() -> io::Result<IoUring> {
    type Flags = fn(&mut Builder) -> &mut Builder;
    let ladder: [Flags; 5] = [
        // 6.1: completions are processed when this thread asks, and at no other time.
        |to| to.setup_submit_all().setup_taskrun_flag().setup_single_issuer().setup_defer_taskrun(),
        |to| to.setup_submit_all().setup_taskrun_flag().setup_single_issuer().setup_coop_taskrun(),
        |to| to.setup_submit_all().setup_taskrun_flag().setup_coop_taskrun(),
        |to| to.setup_submit_all(),
        |to| to,
    ];
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for flags in ladder {
        let mut builder = IoUring::builder();
        flags(builder.dontfork());
        match builder.build(ENTRIES) {
            Ok(ring) => return Ok(ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Whether all that is needed works, not only the set-up.
fn exercise(ring: &mut IoUring) -> io::Result<()> {
    let unsupported = || io::Error::from_raw_os_error(libc::ENOSYS);
    if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
        return Err(unsupported());
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed =
        [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::PollAdd::CODE];
    if !needed.into_iter().all(|code| probe.is_supported(code)) {
        return Err(unsupported());
    }
    // SAFETY: the operation has no memory.
    unsafe { ring.submission().push(&opcode::Nop::new().build()) }
        .map_err(|_| io::Error::from_raw_os_error(libc::EAGAIN))?;
    ring.submit_and_wait(1)?;
    Ok(())
}

/// An operation between its submission and its last completion.
struct Flight {
    ticket: Ticket,
    file: OpenFile,
    offset: u64,
    buffer: Buffer,
    direction: Direction,
    durable: bool,
    progress: Progress,
    /// Completions that the kernel still owes.
    owed: u8,
    transferred: Option<i32>,
    synced: Option<i32>,
}

impl Flight {
    /// What to do now that all completions are there.
    fn judge(&mut self) -> Step {
        if let Some(result) = self.transferred.take() {
            let result = usize::try_from(result).map_err(|_| result.saturating_neg());
            match self.progress.advance(result, self.buffer.len(), self.direction) {
                Step::Finished => {}
                other => {
                    self.synced = None;
                    return other;
                }
            }
        }
        match self.synced.take() {
            Some(result) if result < 0 => {
                let errno = result.saturating_neg();
                if self.progress.retry_sync(errno) {
                    Step::Again
                } else {
                    Step::Failed(io::Error::from_raw_os_error(errno))
                }
            }
            _ => Step::Finished,
        }
    }
}

struct Ring {
    /// First, so that the ring is gone before the buffers.
    uring: IoUring,
    flights: BTreeMap<u64, Flight>,
    next: u64,
    /// Flights that wait for a place in the kernel.
    queued: VecDeque<u64>,
    in_kernel: usize,
    polling: bool,
    mode: SyncMode,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} in flight)", self.flights.len())
    }
}

impl Ring {
    fn new(mode: SyncMode) -> io::Result<Self> {
        let uring = build()?;
        // Syncs and buffered writes go to kernel threads: a few are enough. A kernel that cannot be told has its own limits.
        let _ = uring.submitter().register_iowq_max_workers(&mut [4, 1]);
        let (flights, queued) = (BTreeMap::new(), VecDeque::new());
        Ok(Self { uring, flights, next: 0, queued, in_kernel: 0, polling: false, mode })
    }

    fn begin(&mut self, flight: Flight) {
        self.flights.insert(self.next, flight);
        self.queued.push_back(self.next);
        self.next += 1;
    }

    /// Puts queued flights into the submission queue as far as there is room.
    fn fill(&mut self) {
        while self.in_kernel < FLIGHTS
            && let Some(key) = self.queued.pop_front()
        {
            let Some(flight) = self.flights.get_mut(&key) else { continue };
            let entries = Self::entries(flight, key, self.mode);
            // SAFETY: buffer and descriptor are in the table of flights, which keeps them until the last completion.
            if unsafe { self.uring.submission().push_multiple(&entries) }.is_err() {
                self.queued.push_front(key);
                return;
            }
            flight.owed = if entries.len() == 2 { 2 } else { 1 };
            self.in_kernel += 1;
        }
    }

    /// One entry, or a write and a sync that starts when all of it is written.
    fn entries(flight: &mut Flight, key: u64, mode: SyncMode) -> Vec<squeue::Entry> {
        let descriptor = Fd(flight.file.file.as_raw_fd());
        let sync = || {
            let sync = opcode::Fsync::new(descriptor).flags(FsyncFlags::DATASYNC);
            sync.build().user_data(key << 1 | 1)
        };
        let rest = &mut flight.buffer[flight.progress.done..];
        if rest.is_empty() {
            return vec![sync()];
        }
        // No longer than CALL_BYTES, which fits.
        let length = u32::try_from(rest.len().min(CALL_BYTES)).unwrap_or(u32::MAX);
        let offset = flight.offset + flight.progress.done as u64;
        let durable = flight.durable.then_some(mode);
        match (flight.direction, durable) {
            (Direction::Read, _) => {
                let read = opcode::Read::new(descriptor, rest.as_mut_ptr(), length);
                vec![read.offset(offset).build().user_data(key << 1)]
            }
            (Direction::Write, None | Some(SyncMode::Dsync)) => {
                let flags = if durable.is_some() { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Write::new(descriptor, rest.as_ptr(), length);
                vec![write.offset(offset).rw_flags(flags).build().user_data(key << 1)]
            }
            (Direction::Write, Some(SyncMode::Fdatasync)) => {
                let write = opcode::Write::new(descriptor, rest.as_ptr(), length);
                let write = write.offset(offset).build().user_data(key << 1);
                vec![write.flags(squeue::Flags::IO_LINK), sync()]
            }
        }
    }

    /// Hands over what is queued and lets the kernel deliver what has completed. What it cannot take now it gets with the next call.
    fn enter(&mut self) -> io::Result<()> {
        self.fill();
        let pending = self.uring.submission().len();
        let pending = u32::try_from(pending).unwrap_or(u32::MAX);
        // SAFETY: no argument structure; the entries' memory is in the table of flights.
        let entered = unsafe {
            let flags = EnterFlags::GETEVENTS.bits();
            self.uring.submitter().enter::<libc::sigset_t>(pending, 0, flags, None)
        };
        transient(entered.map(|_| ()))
    }

    /// Whether a look at the completion queue alone would miss something.
    fn needs_enter(&mut self) -> bool {
        if self.in_kernel < FLIGHTS && !self.queued.is_empty() {
            return true;
        }
        let submission = self.uring.submission();
        submission.taskrun() || submission.cq_overflow() || !submission.is_empty()
    }

    /// Takes completions. Whether the poll for wakes was among them.
    fn collect(&mut self, completed: &mut Vec<Completed>) -> bool {
        let mut woken = false;
        loop {
            let Some(entry) = self.uring.completion().next() else { return woken };
            let (key, result) = (entry.user_data(), entry.result());
            if key == POLL {
                self.polling = false;
                woken = true;
                continue;
            }
            let Some(flight) = self.flights.get_mut(&(key >> 1)) else { continue };
            if key & 1 == 0 {
                flight.transferred = Some(result);
            } else {
                flight.synced = Some(result);
            }
            flight.owed = flight.owed.saturating_sub(1);
            if flight.owed == 0 {
                self.in_kernel -= 1;
                self.judge(key >> 1, completed);
            }
        }
    }

    fn judge(&mut self, key: u64, completed: &mut Vec<Completed>) {
        let Some(flight) = self.flights.get_mut(&key) else { return };
        let result = match flight.judge() {
            Step::Again => {
                self.queued.push_back(key);
                return;
            }
            Step::Finished => Ok(Done::Whole),
            Step::Failed(error) => Err(error),
        };
        if let Some(Flight { ticket, file, buffer, direction, .. }) = self.flights.remove(&key) {
            let call = if direction == Direction::Read { "read" } else { "write" };
            let result = result.map_err(|error| failed(call, &file.name, error));
            completed.push(Completed { ticket, result, buffer: Some(buffer) });
        }
    }

    /// Sleeps until a completion or an event of the sleeper.
    fn wait(&mut self, sleeper: &Sleeper, timeout: Option<Duration>) -> io::Result<()> {
        if !self.polling {
            let events = u32::from(libc::POLLIN.unsigned_abs());
            let poll = opcode::PollAdd::new(Fd(sleeper.as_fd().as_raw_fd()), events);
            // SAFETY: the operation has no memory; the descriptor lives as long as the ring does.
            let pushed =
                unsafe { self.uring.submission().push(&poll.build().user_data(POLL)) }.is_ok();
            if !pushed {
                return self.enter();
            }
            self.polling = true;
        }
        self.fill();
        let waited = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timeout = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
                let arguments = SubmitArgs::new().timespec(&timeout);
                self.uring.submitter().submit_with_args(1, &arguments)
            }
        };
        transient(waited.map(|_| ()))
    }
}

/// What goes away by itself is no error of a disk.
fn transient(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => Ok(()),
            _ => Err(error),
        },
        Ok(()) => Ok(()),
    }
}

/// A folder whose files are read and written through io_uring. Files are made and removed on a thread of their own.
#[derive(Debug)]
pub struct UringDisk {
    /// First, so that the poll ends before what it looks at.
    ring: Option<Ring>,
    files: Files,
    sleeper: Sleeper,
    makers: Workers,
    completed: Vec<Completed>,
    /// Somebody called for the next [`Disk::wait`] to end, and that was seen outside of one.
    woken: bool,
}

impl UringDisk {
    /// A folder that exists. Whether io_uring is allowed shows [`availability`].
    ///
    /// # Errors
    /// The kernel's, of opening the folder or of what it takes to wait.
    pub fn new(path: &Path, mode: SyncMode) -> io::Result<Self> {
        Self::on(Arc::new(Directory::open(path)?), mode)
    }

    pub(super) fn on(directory: Arc<Directory>, mode: SyncMode) -> io::Result<Self> {
        let sleeper = Sleeper::new()?;
        let makers = Workers::new(1, "disk-files", directory.clone(), sleeper.waker());
        let files = Files::new(directory, mode);
        Ok(Self { ring: None, files, sleeper, makers, completed: Vec::new(), woken: false })
    }

    fn begin(&mut self, ticket: Ticket, operation: Operation) -> Result<(), Refused> {
        let (file, offset, buffer, direction, durable) = match operation {
            Operation::Create { name, bytes } => {
                self.makers.begin(ticket, Job::Create { name, bytes });
                return Ok(());
            }
            Operation::Remove { file } => {
                let file = self.files.take(file, "remove").map_err(|error| (error, None))?;
                self.makers.begin(ticket, Job::Remove { file });
                return Ok(());
            }
            Operation::Write { file, offset, buffer, durability } => {
                let durable = durability == Durability::Durable;
                (file, offset, buffer, Direction::Write, durable)
            }
            Operation::Read { file, offset, buffer } => {
                (file, offset, buffer, Direction::Read, false)
            }
        };
        let open = match direction {
            Direction::Write => self.files.writable(file, offset, buffer.len()),
            Direction::Read => self.files.readable(file, offset),
        };
        let file = match open {
            Ok(open) => open.clone(),
            Err(error) => return Err((error, Some(buffer))),
        };
        if self.ring.is_none() {
            match Ring::new(self.files.mode) {
                Ok(ring) => self.ring = Some(ring),
                Err(error) => {
                    let error = failed("set up io_uring for", &file.name, error);
                    return Err((error, Some(buffer)));
                }
            }
        }
        if let Some(ring) = &mut self.ring {
            let progress = Progress::default();
            let (owed, transferred, synced) = (0, None, None);
            ring.begin(Flight {
                ticket,
                file,
                offset,
                buffer,
                direction,
                durable,
                progress,
                owed,
                transferred,
                synced,
            });
        }
        Ok(())
    }

    /// Takes what the ring has completed, and gives it what has to be done again.
    fn turn(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        loop {
            let mut failure = None;
            if ring.needs_enter() {
                failure = ring.enter().err();
            }
            if ring.collect(&mut self.completed) {
                // The caller may have looked for what it is woken for before that, and not look again. Where nothing is left a
                // sleep outside of the ring has taken it, after which the caller has looked.
                self.woken |= self.sleeper.drain();
            }
            if let Some(error) = failure {
                self.abandon(&error);
                return;
            }
            if ring.in_kernel >= FLIGHTS || ring.queued.is_empty() {
                return;
            }
        }
    }

    /// The kernel refuses to work on the ring: everything in flight has failed, and memory that it may still use is given up.
    fn abandon(&mut self, error: &io::Error) {
        let Some(mut ring) = self.ring.take() else { return };
        for (_, flight) in std::mem::take(&mut ring.flights) {
            let error = io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO));
            let result = Err(failed("enter io_uring for", &flight.file.name, error));
            self.completed.push(Completed { ticket: flight.ticket, result, buffer: None });
            // The descriptor may go: the kernel has its own hold on the file, and the lock lasts as long.
            std::mem::forget(flight.buffer);
        }
    }
}

impl open::OnFiles for UringDisk {
    fn adopt(&mut self, file: OpenFile) -> FileId {
        self.files.insert(file)
    }
}

impl Disk for UringDisk {
    open::file_methods!();

    fn submit(&mut self, ticket: Ticket, operation: Operation) {
        if let Err((error, buffer)) = self.begin(ticket, operation) {
            self.completed.push(Completed { ticket, result: Err(error), buffer });
        }
    }

    fn flush(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        if ring.queued.is_empty() && ring.uring.submission().is_empty() {
            return;
        }
        if let Err(error) = ring.enter() {
            self.abandon(&error);
        }
    }

    fn reap(&mut self, completed: &mut Vec<Completed>) {
        self.turn();
        completed.append(&mut self.completed);
        self.makers.collect(completed, |file| self.files.insert(file));
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.turn();
        if std::mem::take(&mut self.woken) || !self.completed.is_empty() {
            return Ok(());
        }
        // With nothing in flight the ring is left alone: a sleep in it counts as waiting for a disk.
        let waited = match &mut self.ring {
            Some(ring) if !ring.flights.is_empty() => ring.wait(&self.sleeper, timeout),
            _ => return self.sleeper.wait(timeout),
        };
        match waited {
            Ok(()) => self.turn(),
            Err(error) => self.abandon(&error),
        }
        // This wait is the one that ends.
        self.woken = false;
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    fn watch(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.sleeper.watch(eventfd)
    }

    fn unwatch(&mut self, eventfd: BorrowedFd<'_>) {
        self.sleeper.unwatch(eventfd);
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_WAIT;
        while let Some(ring) = &mut self.ring
            && !ring.flights.is_empty()
            && Instant::now() < deadline
        {
            let waited = ring.wait(&self.sleeper, Some(Duration::from_millis(100)));
            match waited {
                Ok(()) => self.turn(),
                Err(error) => self.abandon(&error),
            }
        }
        // Memory is leaked: the kernel may still use it.
        self.abandon(&io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(directory: &Directory, blocks: usize) -> Flight {
        Flight {
            ticket: Ticket(1),
            file: directory.scratch(1 << 16).unwrap(),
            offset: 0,
            buffer: Buffer::new(blocks * 4096),
            direction: Direction::Write,
            durable: true,
            progress: Progress::default(),
            owed: 0,
            transferred: None,
            synced: None,
        }
    }

    fn judge(flight: &mut Flight, written: i32, synced: Option<i32>) -> Step {
        flight.transferred = Some(written);
        flight.synced = synced;
        flight.judge()
    }

    #[test]
    fn a_short_write_and_its_cancelled_sync_are_both_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let mut flight = flight(&directory, 4);
        assert_eq!(Ring::entries(&mut flight, 1, SyncMode::Fdatasync).len(), 2);
        assert!(matches!(judge(&mut flight, 5000, Some(-libc::ECANCELED)), Step::Again));
        assert_eq!(flight.progress.done, 4096);
        assert_eq!(Ring::entries(&mut flight, 1, SyncMode::Fdatasync).len(), 2);
        // All is written, the sync was not tried: the sync alone.
        assert!(matches!(judge(&mut flight, 3 * 4096, Some(-libc::EINTR)), Step::Again));
        assert_eq!(Ring::entries(&mut flight, 1, SyncMode::Fdatasync).len(), 1);
        flight.synced = Some(0);
        assert!(matches!(flight.judge(), Step::Finished));
    }

    /// The sleep with something in flight, which is one in the ring: here with an operation that never ends.
    #[test]
    fn the_ring_hears_wakes_and_time_outs() {
        if availability() != Availability::Allowed {
            eprintln!("skipped: {}", availability());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut disk = UringDisk::new(folder.path(), SyncMode::Dsync).unwrap();
        let mut ring = Ring::new(SyncMode::Dsync).unwrap();
        ring.flights.insert(7, flight(&disk.files.directory, 1));
        disk.ring = Some(ring);
        let begin = Instant::now();
        disk.wait(Some(Duration::from_millis(10))).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(10));
        let (go, gone) = std::sync::mpsc::channel();
        let (waker, eventfd) = (disk.waker(), std::sync::Arc::new(eventfd()));
        disk.watch(eventfd.as_fd()).unwrap();
        let other = eventfd.clone();
        let thread = std::thread::spawn(move || {
            for pause in gone {
                std::thread::sleep(Duration::from_micros(pause % 7 * 50));
                if pause % 2 == 0 { waker.wake() } else { other.signal() }
            }
        });
        for round in 0..200_u64 {
            go.send(round).unwrap();
            // One wake ends one wait, and no wait ends without one: else this hangs, or the next one would not sleep.
            disk.wait(None).unwrap();
        }
        drop(go);
        thread.join().unwrap();
        let begin = Instant::now();
        disk.wait(Some(Duration::from_millis(10))).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(10));
        disk.submit(Ticket(3), Operation::Create { name: "a".to_owned(), bytes: 4096 });
        let mut completed = Vec::new();
        while completed.is_empty() {
            disk.wait(None).unwrap();
            disk.reap(&mut completed);
        }
        assert!(matches!(completed[0].result, Ok(Done::Created(_))));
        if let Some(ring) = &mut disk.ring {
            ring.flights.clear();
        }
    }

    /// The caller looked for work, found none, took completions, and sleeps: a wake from in between must end that sleep.
    #[test]
    fn a_wake_that_is_seen_while_completions_are_taken_is_not_lost() {
        if availability() != Availability::Allowed {
            eprintln!("skipped: {}", availability());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut disk = UringDisk::new(folder.path(), SyncMode::Dsync).unwrap();
        let mut ring = Ring::new(SyncMode::Dsync).unwrap();
        ring.flights.insert(7, flight(&disk.files.directory, 1));
        disk.ring = Some(ring);
        // From now on the ring watches for wakes.
        disk.wait(Some(Duration::from_millis(1))).unwrap();
        for in_flight in [true, false] {
            disk.waker().wake();
            let mut completed = Vec::new();
            for _ in 0..100 {
                disk.reap(&mut completed);
            }
            if !in_flight && let Some(ring) = &mut disk.ring {
                ring.flights.clear();
            }
            // Else this hangs.
            disk.wait(None).unwrap();
            if in_flight {
                disk.wait(Some(Duration::from_millis(1))).unwrap();
            }
        }
    }

    fn eventfd() -> ringmain_client::sys::eventfd::EventFd {
        ringmain_client::sys::eventfd::EventFd::new().unwrap()
    }

    #[test]
    fn a_failed_write_or_sync_is_final() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let errno = |step| match step {
            Step::Failed(error) => error.raw_os_error(),
            other => panic!("{other:?}"),
        };
        let mut first = flight(&directory, 1);
        let step = judge(&mut first, -libc::EIO, Some(-libc::ECANCELED));
        assert_eq!(errno(step), Some(libc::EIO));
        let mut second = flight(&directory, 1);
        assert_eq!(errno(judge(&mut second, 4096, Some(-libc::EIO))), Some(libc::EIO));
        let mut third = flight(&directory, 1);
        let Step::Failed(error) = judge(&mut third, 0, None) else { panic!("zero is an error") };
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
