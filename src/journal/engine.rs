//! The open journal: what is staged, what is closed, what is in flight.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use super::batch::{Batch, Sealed};
use super::cache::Cache;
use super::canary::{Canary, planted};
use super::clean::Cleaner;
use super::format::{self, CLEAN, FRONTIER, Header};
use super::frontier::Frontier;
use super::index::{Index, Run};
use super::lengths::Limits;
use super::read::{FarTurn, WaitingReads};
use super::space::{Head, Segment, Spare, Torn};
use super::types::{
    AppendError, Config, Damage, Failure, JournalStatistics, Location, Lsn, Ready, RecordRef,
    Snapshot,
};
use crate::disk::{BLOCK_BYTES, Completed, Disk, Durability, FileId, Operation, Ticket};

/// Free files that messages leave to acks when no more can be made.
pub(super) const RESERVE: usize = 3;
/// Kept free behind the batches: the last block of a footer, and a last witness.
pub(super) const TAIL_BYTES: u64 = 2 * BLOCK_BYTES as u64;

/// What an operation in flight is for.
#[derive(Debug)]
pub(super) enum Task {
    Batch { header: Header, runs: Vec<Run>, file_number: u64 },
    Footer { epoch: u64, offset: u64 },
    Read { segment: u64, block: u32, lsn: Lsn, bytes: usize },
    Create { number: u64, bytes: u64 },
    Void { file: FileId, number: u64 },
    Remove,
}

/// A batch that is on stable storage, and its memory.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) header: Header,
    pub(super) runs: Vec<Run>,
    pub(super) buffer: Option<crate::disk::Buffer>,
}

/// What all batches have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) journal_id: u128,
    pub(super) incarnation: u64,
    pub(super) shard: u32,
}

/// An open journal. See the module.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    pub(super) disk: D,
    pub(super) config: Config,
    pub(super) identity: Identity,
    pub(super) next_epoch: u64,
    pub(super) next_file: u64,
    /// Number of the next record while nothing is staged.
    pub(super) next_lsn: Lsn,
    /// Chain value of the last closed batch.
    pub(super) chain: u64,
    pub(super) head: Option<Head>,
    pub(super) staging: Option<Batch>,
    /// Closed, and waiting for a place in flight.
    pub(super) closed: VecDeque<Sealed>,
    /// Of the last one, without its padding.
    closed_bytes: usize,
    pub(super) frontier: Frontier<Written>,
    pub(super) tasks: HashMap<Ticket, Task>,
    next_ticket: u64,
    pub(super) completed: Vec<Completed>,
    /// Oldest first.
    pub(super) segments: Vec<Segment>,
    pub(super) spares: Vec<Spare>,
    /// Free files beyond those held ready.
    pub(super) surplus: Vec<Spare>,
    /// When the next of these are removed, and how many there were at least since the last time.
    pub(super) surplus_due: Option<Instant>,
    pub(super) surplus_least: usize,
    /// Free files with the torn beginning of something that was never confirmed.
    pub(super) torn: Torn,
    /// The next segment file must have this many bytes at least.
    pub(super) wanted_bytes: u64,
    /// The same of a segment that is begun on a full disk.
    pub(super) least_bytes: u64,
    pub(super) no_space: Option<(i32, String)>,
    pub(super) retry_at: Option<Instant>,
    pub(super) index: Index,
    pub(super) cache: Cache,
    pub(super) damaged: HashMap<(u64, u32), Damage>,
    pub(super) failure: Option<Failure>,
    pub(super) now: Instant,
    pub(super) witness_due: Option<Instant>,
    pub(super) reads_done: u32,
    pub(super) waiting_reads: WaitingReads,
    pub(super) far: FarTurn,
    /// Bytes that had been read when readers were last looked at for silent ones.
    pub(super) readers_looked_at: u64,
    pub(super) unflushed: bool,
    /// Free segments are looked for.
    pub(super) look_for_free: bool,
    /// No file could be made: the last segment may be longer than there is room for.
    pub(super) look_at_head: bool,
    pub(super) cleaner: Cleaner,
    pub(super) figures: JournalStatistics,
}

/// What a journal starts with.
pub(super) struct Start {
    pub(super) identity: Identity,
    pub(super) next_epoch: u64,
    pub(super) next_file: u64,
    pub(super) end_lsn: Lsn,
    pub(super) witnessed: Lsn,
    pub(super) chain: u64,
    pub(super) segments: Vec<Segment>,
    pub(super) spares: Vec<Spare>,
    pub(super) surplus: Vec<Spare>,
    pub(super) torn: Torn,
    pub(super) index: Index,
}

impl<D: Disk> Journal<D> {
    pub(super) fn start(disk: D, config: Config, start: Start) -> Self {
        let staging_bytes = config.batch_bytes + (64 << 10).min(config.group_bytes_max());
        Self {
            disk,
            identity: start.identity,
            next_epoch: start.next_epoch,
            next_file: start.next_file,
            next_lsn: start.end_lsn,
            chain: start.chain,
            head: None,
            staging: None,
            closed: VecDeque::new(),
            closed_bytes: 0,
            frontier: Frontier::new(start.end_lsn - 1, start.witnessed),
            tasks: HashMap::new(),
            next_ticket: 0,
            completed: Vec::new(),
            segments: start.segments,
            spares: start.spares,
            surplus: start.surplus,
            surplus_due: None,
            surplus_least: 0,
            torn: start.torn,
            wanted_bytes: config.segment_bytes,
            least_bytes: Config::SEGMENT_BYTES_MIN,
            no_space: None,
            retry_at: None,
            index: start.index,
            cache: Cache::new(config.cache_bytes, staging_bytes),
            damaged: HashMap::new(),
            failure: None,
            now: Instant::now(),
            witness_due: None,
            reads_done: 0,
            waiting_reads: WaitingReads::default(),
            far: FarTurn::UNLIMITED,
            readers_looked_at: 0,
            unflushed: false,
            look_for_free: true,
            look_at_head: false,
            cleaner: Cleaner::default(),
            figures: JournalStatistics::default(),
            config,
        }
    }

    // --- appending

    /// Whether a message can be appended now. Acks and the like, which make room in the end, may be appended longer: see
    /// [`Self::has_room`].
    pub fn is_ready(&self) -> Ready {
        if let Some(failure) = &self.failure {
            return Ready::Failed(failure.clone());
        }
        // Messages may be in the last segment already when it shows that the disk is full. Acks, of which each may take a block
        // and which free nothing for long, then go into two more by turns: whichever is full holds nothing but acks.
        if let Some((errno, detail)) = &self.no_space
            && (!self.has_reserve() || self.is_head_short())
        {
            return Ready::NoSpace { errno: *errno, detail: detail.clone() };
        }
        // After a start on a full disk that does not show before the first attempt to make a file.
        let reserve = self.config.spares.min(RESERVE);
        if self.is_head_short() || !self.segments.is_empty() && self.spares.len() + 1 < reserve {
            return Ready::Full;
        }
        match &self.staging {
            Some(staging) if staging.bytes() < self.limits().batch_bytes => Ready::Ready,
            _ => Ready::Full,
        }
    }

    /// Whether a group of the greatest length could be appended now. On a disk with no room for segments of the full length that may be less
    /// than [`Self::group_bytes_max`]; what is longer waits.
    pub fn has_room(&self) -> bool {
        let most = self.limits().batch_bytes;
        self.failure.is_none() && self.staging.as_ref().is_some_and(|one| one.bytes() <= most)
    }

    /// Longest group of records in bytes, each with its header.
    pub fn group_bytes_max(&self) -> usize {
        self.config.group_bytes_max()
    }

    /// Begins a group: the records up to `commit` are there all or not at all. Groups do not nest.
    pub fn begin(&mut self) {
        if let Some(staging) = &mut self.staging {
            staging.begin();
        }
    }

    /// Ends the group.
    pub fn commit(&mut self) {
        if let Some(staging) = &mut self.staging {
            staging.commit();
        }
    }

    /// Takes the records of the group back; their LSNs are given again.
    pub fn abort(&mut self) {
        if let Some(staging) = &mut self.staging {
            staging.abort();
        }
    }

    /// Copies a record. Outside a group it is a group of its own. After an error within a group: `abort`.
    pub fn append(&mut self, record: RecordRef<'_>) -> Result<(Lsn, Location), AppendError> {
        if let Some(failure) = &self.failure {
            return Err(AppendError::Failed { errno: failure.errno });
        }
        let limit_bytes = self.config.group_bytes_max();
        let Limits { group_bytes, .. } = self.limits();
        let most = self.limits().batch_bytes_max();
        let Some(staging) = &mut self.staging else { return Err(AppendError::Full) };
        let body: usize = record.parts.iter().map(|part| part.len()).sum();
        let bytes = format::record_bytes(body.min(limit_bytes));
        let length = u32::try_from(body).ok();
        let Some(length) = length.filter(|_| staging.group_bytes() + bytes <= limit_bytes) else {
            return Err(AppendError::TooLarge { limit_bytes });
        };
        // A short segment takes shorter groups: it waits for a longer one.
        if staging.bytes() + bytes > most || staging.group_bytes() + bytes > group_bytes {
            return Err(AppendError::Full);
        }
        Ok(staging.append(&record, length))
    }

    /// Whether records wait for the end of a write.
    pub fn is_gathering(&self) -> bool {
        self.staging.as_ref().is_some_and(|staging| !staging.is_empty())
    }

    /// Last record appended.
    pub fn last_lsn(&self) -> Lsn {
        self.staging.as_ref().map_or(self.next_lsn, Batch::next_lsn) - 1
    }

    // --- writing

    /// Starts the writes that may start, begins a new segment when the old one is full, frees segments. Not within a group.
    pub fn submit(&mut self, snapshot: &dyn Snapshot, now: Instant) {
        self.now = now;
        let in_group = self.staging.as_ref().is_some_and(Batch::in_group);
        debug_assert!(!in_group, "submit within a group");
        if self.failure.is_some() || in_group {
            return;
        }
        self.free_segments(snapshot);
        self.close_batch();
        self.start_writes();
        self.begin_segment(snapshot);
        if self.clean(snapshot) {
            self.close_batch();
        }
        self.write_witness(now);
        self.start_writes();
        self.write_footers();
        self.keep_spares(now);
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        if std::mem::take(&mut self.unflushed) {
            self.disk.flush();
        }
    }

    /// Closed batches, waiting and in flight.
    pub(super) fn busy(&self) -> usize {
        self.closed.len() + self.frontier.in_flight()
    }

    /// The first record goes at once; what follows is gathered while that is in flight, until there is enough of it: as much as in the
    /// batch before. Else those who send again when they are answered would be split for good by whoever of them came first: half
    /// of them would wait for the write of the other half, every time.
    fn close_batch(&mut self) {
        let Some(staging) = &self.staging else { return };
        let busy = self.busy();
        let enough = staging.bytes() >= self.limits().batch_bytes.min(self.closed_bytes);
        if !staging.is_empty() && (busy == 0 || enough && busy < self.config.depth) {
            self.close_staged(0);
        }
    }

    /// Closes the staged batch and begins the next one, if the segment has room for it.
    fn close_staged(&mut self, flags: u16) {
        let Some(staging) = self.staging.take() else { return };
        if flags == 0 {
            self.closed_bytes = staging.bytes();
        }
        let records = staging.bytes() - format::HEADER_BYTES;
        let bytes = staging.bytes().next_multiple_of(BLOCK_BYTES);
        self.cleaner.note_closed(records, bytes, self.config.segment_bytes, self.now);
        self.next_lsn = staging.next_lsn();
        let file_bytes = self.head.as_ref().map_or(0, |head| head.bytes);
        let sealed = self.seal(staging, flags, file_bytes);
        let next = sealed.header.end_offset();
        self.closed.push_back(sealed);
        if let Some(head) = &mut self.head {
            head.next_offset = next;
        }
        self.stage();
    }

    pub(super) fn seal(&mut self, batch: Batch, flags: u16, file_bytes: u64) -> Sealed {
        let header = Header {
            flags,
            shard: self.identity.shard,
            journal_id: self.identity.journal_id,
            incarnation: self.identity.incarnation,
            durable_lsn: self.frontier.durable(),
            previous: self.chain,
            file_blocks: super::batch::block_number(file_bytes),
            ..Header::default()
        };
        let sealed = batch.seal(header);
        self.chain = sealed.header.chain();
        sealed
    }

    /// Begins a batch at the end of the segment, if there is room for a long one.
    pub(super) fn stage(&mut self) {
        let Some(head) = &self.head else { return };
        if head.next_offset + head.limits.room_bytes() > head.bytes {
            return;
        }
        let (epoch, offset) = (head.epoch, head.next_offset);
        let buffer = self.cache.staging();
        self.staging = Some(Batch::new(buffer, epoch, offset, self.next_lsn));
    }

    pub(super) fn ticket(&mut self, task: Task) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.tasks.insert(ticket, task);
        self.unflushed = true;
        ticket
    }

    fn start_writes(&mut self) {
        while self.frontier.in_flight() < self.config.depth {
            let Some(Sealed { buffer, header, runs }) = self.closed.pop_front() else { return };
            let Some((file, file_number)) = self.file_of(header.epoch) else { return };
            self.figures.batches += 1;
            self.figures.written_bytes += buffer.len() as u64;
            let ticket = self.ticket(Task::Batch { header, runs, file_number });
            self.frontier.started(ticket, header.end_lsn() - 1, header.durable_lsn);
            let durability = match planted(Canary::SkipSync) {
                true => Durability::Later,
                false => Durability::Durable,
            };
            let offset = header.offset;
            self.disk.submit(ticket, Operation::Write { file, offset, buffer, durability });
        }
    }

    /// File of the segment with this epoch, and the number in its name.
    pub(super) fn file_of(&self, epoch: u64) -> Option<(FileId, u64)> {
        if let Some(head) = &self.head
            && head.epoch == epoch
        {
            return Some((head.file, head.file_number));
        }
        let segment = self.segments.iter().find(|segment| segment.entry.epoch == epoch)?;
        Some((segment.file, segment.entry.file_number))
    }

    /// If nothing follows a confirm, one batch is written that bears witness of it.
    fn write_witness(&mut self, now: Instant) {
        let staged = self.staging.as_ref().is_some_and(|staging| !staging.is_empty());
        let wanted = self.frontier.durable() > self.frontier.witnessed()
            && self.head.is_some()
            && self.busy() == 0
            && !staged;
        if !wanted {
            self.witness_due = None;
            return;
        }
        let due = *self.witness_due.get_or_insert(now + self.config.frontier_delay);
        if now >= due {
            self.witness_due = None;
            self.write_empty_batch(FRONTIER);
        }
    }

    /// Also at the end of a full segment: one block is kept for it.
    fn write_empty_batch(&mut self, flags: u16) -> bool {
        if self.staging.is_none() {
            let Some(head) = &self.head else { return false };
            if head.next_offset + TAIL_BYTES > head.bytes {
                return false;
            }
            let (epoch, offset) = (head.epoch, head.next_offset);
            let buffer = self.cache.staging();
            self.staging = Some(Batch::new(buffer, epoch, offset, self.next_lsn));
        }
        self.figures.frontier_batches += 1;
        self.close_staged(flags);
        true
    }

    /// Every record up to this one is on stable storage.
    pub fn durable(&self) -> Lsn {
        self.frontier.durable()
    }

    /// When `submit` has something to do although nothing happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let dues = [self.witness_due, self.retry_at, self.cleaner.due, self.surplus_due];
        dues.into_iter().flatten().min()
    }

    /// Messages of this queue below this sequence will not be asked for again; `u64::MAX` for a deleted queue.
    pub fn forget(&mut self, queue: u64, below: u64) {
        self.index.forget(queue, below);
    }

    /// Figures.
    pub fn statistics(&self) -> JournalStatistics {
        let spares = self.spares.iter().chain(&self.surplus).map(|spare| spare.bytes);
        let segments = self.segments.iter().map(|segment| segment.bytes);
        let needed = self.segments.iter().filter(|one| one.freed.is_none() && one.copied.is_none());
        let sealed: u64 =
            needed.map(|one| one.live.map_or(one.entry.end_offset, |live| live.bytes)).sum();
        JournalStatistics {
            live_bytes: sealed + self.head.as_ref().map_or(0, |head| head.next_offset),
            segments: self.segments.len() + usize::from(self.head.is_some()),
            spares: self.spares.len(),
            file_bytes: spares.chain(segments).chain(self.head.iter().map(|head| head.bytes)).sum(),
            cached_bytes: self.cache.bytes(),
            index_runs: self.index.runs(),
            ..self.figures.clone()
        }
    }

    // --- waiting and ending

    /// See [`Disk::wait`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.disk.wait(timeout)
    }

    /// For [`Disk::watch`], [`Disk::unwatch`] and [`Disk::waker`].
    pub fn disk(&mut self) -> &mut D {
        &mut self.disk
    }

    /// Writes and waits for everything that was appended, then a last witness, but no longer than `patience`: the failure's
    /// errno is then `ETIMEDOUT`. Gives the disk back.
    pub fn close(
        mut self,
        snapshot: &dyn Snapshot,
        patience: Duration,
    ) -> (D, Result<(), Failure>) {
        let closed = self.finish(snapshot, Instant::now() + patience);
        (self.disk, closed)
    }

    fn finish(&mut self, snapshot: &dyn Snapshot, deadline: Instant) -> Result<(), Failure> {
        self.rest();
        let mut said_farewell = self.head.is_none();
        loop {
            if !said_farewell && self.busy() == 0 && self.staged_nothing() {
                said_farewell = true;
                self.write_empty_batch(FRONTIER | CLEAN);
                self.start_writes();
                self.flush();
            } else if !said_farewell {
                self.submit(snapshot, Instant::now());
            } else {
                self.start_writes();
                self.flush();
            }
            let progress = self.reap();
            if let Some(failure) = progress.failed {
                return Err(failure);
            }
            if said_farewell && self.tasks.is_empty() && self.closed.is_empty() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.silence());
            }
            if !self.tasks.is_empty() {
                // Its error has no consequence: the completion tells.
                let _ = self.disk.wait(Some(left.min(Duration::from_millis(100))));
            }
        }
    }

    /// The disk does not answer.
    fn silence(&self) -> Failure {
        let (file, offset) =
            self.head.as_ref().map_or((0, 0), |head| (head.file_number, head.next_offset));
        let error = io::Error::from_raw_os_error(libc::ETIMEDOUT);
        Failure {
            errno: libc::ETIMEDOUT,
            lsn: self.frontier.durable() + 1,
            file: super::table::file_name(file),
            offset,
            detail: error.to_string(),
        }
    }

    fn staged_nothing(&self) -> bool {
        self.staging.as_ref().is_none_or(Batch::is_empty)
    }
}
