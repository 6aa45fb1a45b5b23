//! One journal for all queues of a shard: what it confirms is on stable storage.
//!
//! Records are copied into a batch, batches are written in order into segment files of a [`Disk`](crate::disk::Disk), and a record is durable
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

mod batch;
mod cache;
pub mod canary;
mod clean;
mod completion;
mod contents;
mod copy;
mod engine;
mod footer;
pub mod format;
mod frontier;
mod index;
mod lengths;
mod open;
mod read;
mod recovery;
mod repair;
mod room;
mod scan;
mod space;
mod table;
mod types;
mod verify;

#[cfg(test)]
mod tests;

pub use engine::Journal;
pub use read::FarTurn;
pub use repair::{RepairReport, repair};
pub use types::{
    AppendError, Config, Damage, FLAG_COPY, FLAG_MESSAGE, Failure, Fetch, JournalStatistics,
    KIND_RESERVED, Location, Lsn, NoRoom, OpenError, OpenReport, Progress, Ready, RecordRef,
    Replay, Room, Snapshot, Stored,
};
pub use verify::{Inspection, SegmentInfo, VerifyReport, inspect, verify};
