//! One journal for all queues of a shard: what it confirms is on stable storage.
//!
//! Records are copied into a batch, batches are written in order into segment files of a [`Disk`], and a record is durable
//! when its batch and all before it are. `docs/journal.md` has the reasons, `docs/journal-format.md` the bytes.
//!
//! The turn of the owner, one thread, which never blocks here:
//!
//! ```text
//! journal.submit(&state, now)             once after `open`: begins the first segment with a checkpoint of the state
//! loop {
//!     while journal.is_ready() == Ready::Ready { journal.append(..)  or  begin, append.., commit; change the state }
//!     journal.submit(&state, now);        starts what may start
//!     let progress = journal.reap();      confirms what is durable
//!     journal.wait(until next_deadline)   if there is nothing to do
//! }
//! ```

mod types;

pub use types::{
    AppendError, Config, Damage, FLAG_MESSAGE, Failure, Fetch, JournalStatistics, KIND_RESERVED,
    Location, Lsn, OpenError, OpenReport, Progress, Ready, RecordRef, Replay, Snapshot, Stored,
};

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use crate::disk::Disk;

pub mod format {
    /// Bytes in front of the body of each record.
    pub const RECORD_HEADER_BYTES: usize = 24;
}

/// An open journal. See the module.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    disk: D,
}

impl<D: Disk> Journal<D> {
    /// Reads the journal of a disk; writes nothing before the first [`Self::submit`]. Until then [`Self::is_ready`] is `Full`.
    pub fn open(
        disk: D,
        config: Config,
        replay: &mut dyn Replay,
    ) -> Result<(Self, OpenReport), OpenError> {
        todo!()
    }
    /// Whether a record can be appended now.
    pub fn is_ready(&self) -> Ready {
        todo!()
    }
    /// Begins a group: the records up to `commit` are there all or not at all. Groups do not nest.
    pub fn begin(&mut self) {
        todo!()
    }
    /// Copies a record. Outside a group it is a group of its own. After an error within a group: `abort`.
    pub fn append(&mut self, record: RecordRef<'_>) -> Result<(Lsn, Location), AppendError> {
        todo!()
    }
    /// Ends the group.
    pub fn commit(&mut self) {
        todo!()
    }
    /// Takes the records of the group back; their LSNs are given again.
    pub fn abort(&mut self) {
        todo!()
    }
    /// Everything of this lane below this position has been appended, or is not wanted. Becomes durable with the records appended so far.
    pub fn lane(&mut self, lane: u64, position: u64) {
        todo!()
    }
    /// The lane will not be asked for again.
    pub fn lane_closed(&mut self, lane: u64) {
        todo!()
    }
    /// Positions of all lanes, as far as appended (after `open`: as far as durable).
    pub fn lanes(&self) -> &BTreeMap<u64, u64> {
        todo!()
    }
    /// Starts the writes that may start, begins a new segment when the old one is full, frees segments.
    pub fn submit(&mut self, snapshot: &dyn Snapshot, now: Instant) {
        todo!()
    }
    /// Takes what the disk has done.
    pub fn reap(&mut self) -> Progress {
        todo!()
    }
    /// Every record up to this one is on stable storage.
    pub fn durable(&self) -> Lsn {
        todo!()
    }
    /// Last record appended.
    pub fn last_lsn(&self) -> Lsn {
        todo!()
    }
    /// When `submit` has something to do although nothing happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        todo!()
    }
    /// A durable message.
    pub fn message(&mut self, queue: u64, sequence: u64) -> Fetch<'_> {
        todo!()
    }
    /// The record at a place that `append` or a replay has told.
    pub fn read(&mut self, location: Location) -> Fetch<'_> {
        todo!()
    }
    /// Segment and batch of a durable message.
    pub fn locate(&mut self, queue: u64, sequence: u64) -> Option<Location> {
        todo!()
    }
    /// Messages of this queue below this sequence will not be asked for again; `u64::MAX` for a deleted queue.
    pub fn forget(&mut self, queue: u64, below: u64) {
        todo!()
    }
    /// Figures.
    pub fn statistics(&self) -> JournalStatistics {
        todo!()
    }
    /// See [`Disk::wait`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.disk.wait(timeout)
    }
    /// For [`Disk::watch`], [`Disk::unwatch`] and [`Disk::waker`].
    pub fn disk(&mut self) -> &mut D {
        &mut self.disk
    }
    /// Writes and waits for everything that was appended, then the last witness. Gives the disk back.
    pub fn close(self, snapshot: &dyn Snapshot) -> Result<D, Failure> {
        todo!()
    }
}
