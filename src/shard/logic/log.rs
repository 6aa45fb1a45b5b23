//! What the logic needs of a journal.

/// Number of a record, dense from 1.
pub type Lsn = u64;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// Epoch of the segment; grows with every segment that is begun.
    pub segment: u64,
    /// Block of the batch in the segment.
    pub batch: u32,
    /// Byte offset of the record in the batch.
    pub record: u32,
}

/// A record to be written. Its body are the parts, joined.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// See [`super::record::kind`].
    pub kind: u8,
    /// [`FLAG_MESSAGE`] or 0.
    pub flags: u8,
    /// Queue id, or 0.
    pub queue: u64,
    /// Sequence of a message, or 0.
    pub sequence: u64,
    /// Body.
    pub parts: &'a [&'a [u8]],
}

/// A record that was read back.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// Its number.
    pub lsn: Lsn,
    /// Where it lies.
    pub location: Location,
    /// As in [`RecordRef`].
    pub kind: u8,
    /// As in [`RecordRef`].
    pub flags: u8,
    /// As in [`RecordRef`].
    pub queue: u64,
    /// As in [`RecordRef`].
    pub sequence: u64,
    /// As in [`RecordRef`].
    pub body: &'a [u8],
}

/// The record is a message of (queue, sequence).
pub const FLAG_MESSAGE: u8 = 1;

/// Takes what recovery finds, in the order of the log.
pub trait Replay {
    /// The records up to [`Self::checkpoint_end`] are the state at this point; what was replayed before does not count.
    fn checkpoint_begin(&mut self);
    /// A record.
    fn record(&mut self, record: Stored<'_>) -> Result<(), String>;
    /// The checkpoint is complete.
    fn checkpoint_end(&mut self);
}

/// Gives the state that a segment begins with.
pub trait Snapshot {
    /// Emits the records of a checkpoint.
    fn write(&self, emit: &mut dyn FnMut(RecordRef<'_>));
    /// Whether this segment holds messages that are still needed.
    fn is_live(&self, segment: u64) -> bool;
}

/// Why a record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendError {
    /// No room now: try again later.
    Full,
    /// It will never fit; at most so many bytes do.
    TooLarge(u64),
    /// The journal failed, for good.
    Failed,
}

/// A message as the log has it.
#[derive(Debug)]
pub enum Message<'a> {
    /// The body of its record.
    Ready(&'a [u8]),
    /// It is being read: ask again later.
    Pending,
    /// It cannot be read: what, where and why.
    Lost(String),
}

/// A journal.
pub trait Log {
    /// Begins an atomic group of at most this many records with at most this many bytes in their bodies. After `Ok`, that many
    /// can be appended without an error (but a failure of the journal).
    fn begin(&mut self, records: usize, bytes: usize) -> Result<(), AppendError>;
    /// Adds a record.
    fn append(&mut self, record: RecordRef<'_>) -> Result<(Lsn, Location), AppendError>;
    /// Ends the group.
    fn commit(&mut self);
    /// A message that was appended earlier.
    fn message(&mut self, queue: u64, sequence: u64) -> Message<'_>;
    /// Messages of this queue below this sequence are never asked for again.
    fn forget(&mut self, queue: u64, below: u64);
}
