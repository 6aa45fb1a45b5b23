//! What the logic needs of a journal.

use crate::journal::{AppendError, Location, Lsn, RecordRef};

/// A message as the log has it.
#[derive(Debug)]
pub enum Message<'a> {
    /// The body of its record: [`super::record::MessageBody::parse`] reads it.
    Ready(&'a [u8]),
    /// It is being read: ask again later.
    Pending,
    /// It cannot be read: what, where and why. After a repair it may be there.
    Lost(String),
    /// The log has no such message: a repair gave it up. It will not be there again.
    Gone,
}

/// A journal, as [`crate::journal::Journal`] has it.
pub trait Log {
    /// Longest atomic group, in bytes of records with their headers.
    fn group_bytes_max(&self) -> usize;
    /// Begins an atomic group.
    fn begin(&mut self);
    /// Adds a record. Outside a group it is a group of its own. After an error within a group comes [`Self::abort`].
    fn append(&mut self, record: RecordRef<'_>) -> Result<(Lsn, Location), AppendError>;
    /// Ends the group.
    fn commit(&mut self);
    /// Takes the records of the group back; their LSNs are given again.
    fn abort(&mut self);
    /// A durable message that was appended earlier.
    fn message(&mut self, queue: u64, sequence: u64) -> Message<'_>;
    /// The same, to be given out: of those that have to be read the log may say [`Message::Pending`] to who has earned none, and
    /// takes those that it gives off what he has earned.
    fn message_for_reader(&mut self, queue: u64, sequence: u64, earned: &mut u32) -> Message<'_> {
        let _ = earned;
        self.message(queue, sequence)
    }
    /// Messages of this queue below this sequence are never asked for again, not even after a restart.
    fn forget(&mut self, queue: u64, below: u64);
}
