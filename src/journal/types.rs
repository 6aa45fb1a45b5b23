//! What goes into a journal, what comes out of it, and what may go wrong.

use std::time::Duration;

use crate::disk::BLOCK_BYTES;

/// Number of a record: dense, from 1.
pub type Lsn = u64;

/// The record is a message: it can be found again by its queue and sequence.
pub const FLAG_MESSAGE: u8 = 1;

/// A message that the cleaner has copied: it was there before, and says nothing new. A replay does not show it.
pub const FLAG_COPY: u8 = 0x80;

/// Kinds from here on belong to the journal itself.
pub const KIND_RESERVED: u8 = 0xf0;

/// Where a record lies. It stays there until its segment is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Epoch of the segment.
    pub segment: u64,
    /// Offset of the batch in its segment, in blocks of [`BLOCK_BYTES`].
    pub batch: u32,
    /// Offset of the record in the batch, in bytes.
    pub record: u32,
}

/// A record to be written. The journal copies it.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// The caller's; below [`KIND_RESERVED`].
    pub kind: u8,
    /// [`FLAG_MESSAGE`]; [`FLAG_COPY`] is the journal's own; the other bits are the caller's.
    pub flags: u8,
    /// Queue that it belongs to.
    pub queue: u64,
    /// Sequence in the queue, or what the caller likes if it is no message.
    pub sequence: u64,
    /// The body: these, joined.
    pub parts: &'a [&'a [u8]],
}

/// A record that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// Its number.
    pub lsn: Lsn,
    /// Its place.
    pub location: Location,
    /// As in [`RecordRef`].
    pub kind: u8,
    /// As in [`RecordRef`].
    pub flags: u8,
    /// As in [`RecordRef`].
    pub queue: u64,
    /// As in [`RecordRef`].
    pub sequence: u64,
    /// As in [`RecordRef`], joined.
    pub body: &'a [u8],
}

/// Takes what a journal knows when it is opened: one checkpoint (none if the journal is new), then every record after it, in order.
pub trait Replay {
    /// The records that follow were written by [`Snapshot::write`].
    fn checkpoint_begin(&mut self);
    /// One record. An error text makes the journal corrupt at this record.
    fn record(&mut self, record: Stored<'_>) -> Result<(), String>;
    /// The records that follow were written by `append`.
    fn checkpoint_end(&mut self);
}

/// What the journal asks its owner for.
///
/// The state is the one in which *all appended* records have had their effect, durable or not.
pub trait Snapshot {
    /// Writes the whole state, except messages, as records.
    fn write(&self, emit: &mut dyn FnMut(RecordRef<'_>));
    /// Whether any of these messages of this queue, both ends included, may be asked for again. Asked of runs of messages
    /// that lie in one segment: a segment without a needed message is freed.
    fn is_needed(&self, queue: u64, first: u64, last: u64) -> bool;
    /// Which of these messages those are: appends the parts of the range, in order, and stops after about `limit` of them. What it
    /// returns is behind everything that has been told, and behind `last` at the end. What is not needed once never is again.
    fn needed(
        &self,
        queue: u64,
        first: u64,
        last: u64,
        limit: usize,
        parts: &mut Vec<(u64, u64)>,
    ) -> u64;
}

/// How a journal is kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// Length of a new segment file in bytes: a multiple of [`BLOCK_BYTES`], at least [`Self::SEGMENT_BYTES_MIN`].
    pub segment_bytes: u64,
    /// A batch that has this many bytes waits for nothing but a place in flight.
    pub batch_bytes: usize,
    /// Batches in flight at the same time.
    pub depth: usize,
    /// How long after the last confirm a batch is written that bears witness of it, if nothing else is.
    pub frontier_delay: Duration,
    /// Memory for batches that were written or read lately, in bytes.
    pub cache_bytes: usize,
    /// Segment files held ready. One more is made whenever there are fewer; see [`Self::kept`].
    pub spares: usize,
    /// Freed files that are kept beside those at most, for use again, as long as they are needed within a second: to fill a new one with zeros
    /// is as much writing as to fill it with messages.
    pub kept: usize,
    /// Number of the shard, written into each batch.
    pub shard: u32,
    /// Id of a new journal; 0 for a random one.
    pub journal_id: u128,
}

impl Config {
    /// Shortest segment in bytes.
    pub const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
    /// Longest segment in bytes.
    pub const SEGMENT_BYTES_MAX: u64 = 4 << 30;
    /// Longest group of records in bytes, each with its header.
    pub const GROUP_BYTES_MAX: usize = 4 << 20;

    /// Longest group of records in bytes, each with its header, for these settings.
    #[must_use]
    pub fn group_bytes_max(&self) -> usize {
        let segment = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX);
        Self::GROUP_BYTES_MAX.min(segment / 4)
    }

    /// The settings, bounded so that a journal can work with them.
    #[must_use]
    pub(super) fn bounded(mut self) -> Self {
        let block = BLOCK_BYTES as u64;
        self.segment_bytes =
            self.segment_bytes.clamp(Self::SEGMENT_BYTES_MIN, Self::SEGMENT_BYTES_MAX);
        self.segment_bytes -= self.segment_bytes % block;
        let most = self.group_bytes_max();
        self.batch_bytes = self.batch_bytes.clamp(BLOCK_BYTES, most);
        self.depth = self.depth.clamp(1, 8);
        self.spares = self.spares.clamp(1, 64);
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            batch_bytes: 256 << 10,
            depth: 2,
            frontier_delay: Duration::from_millis(10),
            cache_bytes: 64 << 20,
            spares: 3,
            kept: 8,
            shard: 0,
            journal_id: 0,
        }
    }
}

/// Whether a record can be appended now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// It can.
    Ready,
    /// Not before `submit` and, if that does not help, the next completion.
    Full,
    /// Not before a segment file could be made; the journal tries again by itself each second.
    NoSpace {
        /// The kernel's answer: errno, 0 if it has none.
        errno: i32,
        /// The same in words, with the file.
        detail: String,
    },
    /// Never again.
    Failed(Failure),
}

/// Segment files that are missing, and for which there is no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    /// How many.
    pub files: u64,
    /// Bytes of each.
    pub file_bytes: u64,
    /// Bytes that are free where they are to lie; `None`: that cannot be told.
    pub free_bytes: Option<u64>,
    /// The kernel's answer in words, with the file, when one was to be made; `None`: none was yet.
    pub detail: Option<String>,
}

/// Whether messages find room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// As far as can be told.
    Enough,
    /// That shows when the file that is being made is there.
    Unclear,
    /// They do not.
    Lacking(NoRoom),
}

/// A write failed: nothing is confirmed any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "journal failed: LSN {lsn} cannot be written to {file} at byte {offset}: {detail}; find the cause on the disk, then start the daemon again"
)]
pub struct Failure {
    /// The kernel's answer: errno, 0 if it has none.
    pub errno: i32,
    /// First record that is not durable.
    pub lsn: Lsn,
    /// File.
    pub file: String,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// The kernel's answer in words.
    pub detail: String,
}

/// Why a record was not appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The record, or the group that it belongs to, is too long for a batch.
    #[error("longer than a batch of the journal takes: {limit_bytes} bytes")]
    TooLarge {
        /// Bytes that a group may have, each record with [`super::format::RECORD_HEADER_BYTES`].
        limit_bytes: usize,
    },
    /// There is no room until `submit` or a completion makes some; see `is_ready`.
    #[error("the journal has no room at the moment")]
    Full,
    /// The journal has failed.
    #[error("the journal has failed (errno {errno})")]
    Failed {
        /// See [`Failure`].
        errno: i32,
    },
}

/// A place in a journal that does not hold what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("journal corrupt at LSN {lsn}: {file}, byte {offset}: {what}")]
pub struct Damage {
    /// First record that is lost; 0 if nothing tells.
    pub lsn: Lsn,
    /// File.
    pub file: String,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// Why a journal cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something that must be there is not.
    #[error("{0}; see `ringmain journal verify` and `ringmain journal repair`")]
    Corrupt(Damage),
    /// Another process has it.
    #[error("{file} is locked: another daemon uses this data folder")]
    Locked {
        /// File.
        file: String,
    },
    /// Written by another version of this program.
    #[error(
        "{file} has journal format {found}, this program knows {known}; use the version that wrote it"
    )]
    Version {
        /// File.
        file: String,
        /// In the file.
        found: u16,
        /// In this program.
        known: u16,
    },
    /// The disk does not answer. Never taken for an end of the journal.
    #[error("{call} {file} at byte {offset}: {error}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// File; empty for the folder.
        file: String,
        /// Offset in the file in bytes.
        offset: u64,
        /// The kernel's answer.
        error: std::io::Error,
    },
}

/// What was found when a journal was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Id of the journal.
    pub journal_id: u128,
    /// How often it was opened and written to, this time included.
    pub incarnation: u64,
    /// Last record.
    pub last_lsn: Lsn,
    /// Last record known to have been durable, from its witnesses.
    pub witnessed_lsn: Lsn,
    /// It was closed cleanly.
    pub clean: bool,
    /// Torn batches behind the last record that were cut off: those with a whole header.
    pub cut_batches: u32,
    /// Segments with records.
    pub segments: usize,
    /// Bytes read to find all this.
    pub scanned_bytes: u64,
}

/// What came of [`super::Journal::reap`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Every record up to this one is on stable storage.
    pub durable: Lsn,
    /// That has changed.
    pub advanced: bool,
    /// Reads of [`super::Journal::message`] that have ended: ask again.
    pub reads: u32,
    /// Set from the failure on.
    pub failed: Option<Failure>,
}

/// A message, if it can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch<'a> {
    /// Here it is.
    Ready(Stored<'a>),
    /// It is being read: ask again when [`super::Journal::reap`] reports reads.
    Pending,
    /// The journal has no such message: nobody stored it, it was forgotten, or a repair gave it up.
    Missing,
    /// It is there and cannot be read. Stays so until the journal is opened again.
    Failed(Damage),
}

/// Figures of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalStatistics {
    /// Segments with records.
    pub segments: usize,
    /// Segment files held ready.
    pub spares: usize,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Bytes of the segments that are needed, as of the cleaner's last look; one that it has not looked at counts whole.
    pub live_bytes: u64,
    /// Bytes written since it was opened, in whole blocks.
    pub written_bytes: u64,
    /// Batches written since it was opened.
    pub batches: u64,
    /// Of these, batches that only bear witness.
    pub frontier_batches: u64,
    /// Checkpoints written since it was opened.
    pub checkpoints: u64,
    /// Segments freed since it was opened.
    pub freed: u64,
    /// Of these, segments of which the cleaner has copied what was needed.
    pub cleaned: u64,
    /// Bytes of records that it has copied for that.
    pub copied_bytes: u64,
    /// Reads of far messages since it was opened.
    pub reads: u64,
    /// Of these, reads that were begun before anybody asked.
    pub reads_ahead: u64,
    /// Bytes of batches in memory.
    pub cached_bytes: usize,
    /// Runs of messages in the index.
    pub index_runs: usize,
}
