//! Where a journal lies: a folder of files, written in whole blocks, with the guarantees that the journal builds on.
//!
//! Three backends behind one trait: `uring` never blocks the shard, `blocking` does the same with worker threads
//! where io_uring is not allowed, `simulated` remembers what a power cut could leave. A fourth, `memory`, keeps the files of
//! in-memory queues in memory files that outlive the broker.
//!
//! # What a write promises
//! A completed write with [`Durability::Durable`] is on stable storage, and so is nothing else: a write that has not
//! completed may be there in any part, sector by sector. A file that [`Disk::create`] or
//! [`Operation::Create`] has made is durable with its name and its zeros; while it is made, a crash leaves all of it or nothing.
//! A failed write or sync is final for its file: the caller never tries it again.

mod availability;
mod blocking;
mod boxed;
mod buffer;
mod directory;
mod error;
mod kept;
mod memory;
mod open;
mod probe;
pub mod simulated;
mod sleeper;
mod transfer;
mod uring;
mod workers;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use ringmain_client::sys::eventfd::EventFd;
use serde::{Deserialize, Serialize};

pub use availability::Availability;
pub use blocking::BlockingDisk;
pub use buffer::Buffer;
pub use error::errno;
pub use memory::{CreateMemory, FreeMemory, MemoryDisk, RemoveMemory};
pub use open::{Backend, Description, SelfTest, open_disk, open_disk_after};
pub use probe::{DiskReport, Latency, RawWrites, SyncFigures, probe_sync_modes, report};
pub use uring::{UringDisk, availability};

/// Files are written in multiples of this many bytes, at multiples of it.
pub const BLOCK_BYTES: usize = 4096;

/// How long a dropped disk waits for what is in flight.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// A file of a [`Disk`], from [`Disk::open`] or a completed [`Operation::Create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// The caller's name for an operation in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Whether a write must be on stable storage when it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It must.
    Durable,
    /// A later `sync` sees to it.
    Later,
}

/// How a write becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// By itself: `RWF_DSYNC`.
    Dsync,
    /// A write, then `fdatasync`.
    Fdatasync,
}

impl fmt::Display for SyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dsync => "RWF_DSYNC",
            Self::Fdatasync => "write + fdatasync",
        })
    }
}

/// What a disk does while its caller goes on.
#[derive(Debug)]
pub enum Operation {
    /// Writes the whole buffer.
    Write {
        /// Where.
        file: FileId,
        /// A multiple of [`BLOCK_BYTES`].
        offset: u64,
        /// A multiple of [`BLOCK_BYTES`] long. It comes back with the completion.
        buffer: Buffer,
        /// When it counts as complete.
        durability: Durability,
    },
    /// Fills the whole buffer.
    Read {
        /// Where from.
        file: FileId,
        /// A multiple of [`BLOCK_BYTES`].
        offset: u64,
        /// It comes back with the completion.
        buffer: Buffer,
    },
    /// Makes a file of this length, full of zeros, durable together with its name. Off the caller's thread.
    Create {
        /// Must not exist. No `/`, no `.` at the beginning.
        name: String,
        /// A multiple of [`BLOCK_BYTES`].
        bytes: u64,
    },
    /// Removes a file, durably. Off the caller's thread.
    Remove {
        /// It is closed first.
        file: FileId,
    },
}

/// An operation that came to its end.
#[derive(Debug)]
pub struct Completed {
    /// From [`Disk::submit`].
    pub ticket: Ticket,
    /// What came of it; a short read or write is an error ([`io::ErrorKind::UnexpectedEof`],
    /// [`io::ErrorKind::WriteZero`]).
    pub result: io::Result<Done>,
    /// The operation's buffer, if it had one. After an error it may be missing: the kernel may still use it.
    pub buffer: Option<Buffer>,
}

/// What a completed operation leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Read, written or removed.
    Whole,
    /// Created.
    Created(FileId),
}

/// Refuses what is not at a block's beginning.
fn check_place(call: &'static str, file: &str, offset: u64) -> io::Result<()> {
    if offset.is_multiple_of(BLOCK_BYTES as u64) {
        return Ok(());
    }
    Err(error::invalid(call, file, "the offset is no multiple of a block"))
}

/// A folder of files.
///
/// The first group of methods blocks and serves to open a journal; the second never blocks on the disk. All errors are the
/// kernel's, with the name of the file and the call in the text; [`errno`] has the kernel's number.
pub trait Disk {
    /// Names and lengths of the files, sorted.
    fn list(&mut self) -> io::Result<Vec<(String, u64)>>;
    /// Opens a file for reading and writing and locks it. A lock that a dying process still holds is waited for, some
    /// seconds; then [`io::ErrorKind::WouldBlock`].
    fn open(&mut self, name: &str) -> io::Result<FileId>;
    /// Length in bytes.
    fn length(&mut self, file: FileId) -> io::Result<u64>;
    /// Fills the whole buffer from a multiple of [`BLOCK_BYTES`].
    fn read(&mut self, file: FileId, offset: u64, buffer: &mut Buffer) -> io::Result<()>;
    /// Writes the whole buffer, durably.
    fn write(&mut self, file: FileId, offset: u64, buffer: &Buffer) -> io::Result<()>;
    /// As [`Operation::Create`], and waits for it.
    fn create(&mut self, name: &str, bytes: u64) -> io::Result<FileId>;
    /// Renames a file, open or not; durable after [`Self::sync_directory`]. A file that has the new name is replaced.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Makes what was written to a file durable, also by a process that died.
    fn sync(&mut self, file: FileId) -> io::Result<()>;
    /// Makes names durable.
    fn sync_directory(&mut self) -> io::Result<()>;
    /// Bytes that new files may still take, as the file system says; `None`: it does not say. Does not wait for the disk.
    fn free_bytes(&self) -> Option<u64> {
        None
    }
    /// Closes a file.
    fn close(&mut self, file: FileId);

    /// Begins an operation.
    fn submit(&mut self, ticket: Ticket, operation: Operation);
    /// Hands the begun operations over to the kernel; to be called once after a group of [`Self::submit`].
    fn flush(&mut self);
    /// Appends what has completed.
    fn reap(&mut self, completed: &mut Vec<Completed>);
    /// Sleeps until something completes, [`Waker::wake`] is called or was called since the last return, or the time is over
    /// (`None`: for ever). May return early.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// Ends a [`Self::wait`], from any thread.
    fn waker(&self) -> Waker;
    /// From now on a write to this eventfd ends a [`Self::wait`] as well. Every write counts once; what is in the counter
    /// does not matter, so that whoever else has the descriptor can neither keep the caller awake nor take a wake from
    /// another descriptor.
    fn watch(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()>;
    /// Ends that, before the descriptor is closed.
    fn unwatch(&mut self, eventfd: BorrowedFd<'_>);
}

/// Ends a [`Disk::wait`].
#[derive(Debug, Clone)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Of a disk that watches this eventfd.
    #[must_use]
    pub fn new(eventfd: Arc<EventFd>) -> Self {
        Self(eventfd)
    }

    /// The wait that is under way, or else the next one, returns.
    pub fn wake(&self) {
        self.0.signal();
    }
}
