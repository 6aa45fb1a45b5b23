//! The disk without io_uring: plain system calls on threads of their own.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::directory::{Directory, Files, OpenFile};
use super::sleeper::Sleeper;
use super::workers::{Job, Workers};
use super::{
    Buffer, Completed, Disk, Durability, FileId, Operation, SyncMode, Ticket, Waker, open,
};

/// Two writes fly by default, beside a read or two.
const THREADS: usize = 4;

/// Reads and writes on worker threads; files are made and removed on another, so that no write waits for that.
#[derive(Debug)]
pub struct BlockingDisk {
    files: Files,
    sleeper: Sleeper,
    transfers: Workers,
    makers: Workers,
    completed: Vec<Completed>,
}

impl BlockingDisk {
    /// A folder that exists. Nothing is tried out: it opens a full disk as well, and is right for looking at a journal offline.
    ///
    /// # Errors
    /// The kernel's, of opening the folder or of what it takes to wait.
    pub fn new(path: &Path, mode: SyncMode) -> io::Result<Self> {
        Self::on(Arc::new(Directory::open(path)?), mode)
    }

    pub(super) fn on(directory: Arc<Directory>, mode: SyncMode) -> io::Result<Self> {
        let sleeper = Sleeper::new()?;
        let workers = |count, name| Workers::new(count, name, directory.clone(), sleeper.waker());
        let (transfers, makers) = (workers(THREADS, "disk"), workers(1, "disk-files"));
        let files = Files::new(directory.clone(), mode);
        Ok(Self { files, sleeper, transfers, makers, completed: Vec::new() })
    }

    fn begin(&mut self, ticket: Ticket, operation: Operation) -> Result<(), open::Refused> {
        let mode = self.files.mode;
        match operation {
            Operation::Write { file, offset, buffer, durability } => {
                match self.files.writable(file, offset, buffer.len()) {
                    Err(error) => return Err((error, Some(buffer))),
                    Ok(open) => {
                        let durable = (durability == Durability::Durable).then_some(mode);
                        let job = Job::Write { file: open.clone(), offset, buffer, durable };
                        self.transfers.begin(ticket, job);
                    }
                }
            }
            Operation::Read { file, offset, buffer } => match self.files.readable(file, offset) {
                Err(error) => return Err((error, Some(buffer))),
                Ok(open) => {
                    self.transfers.begin(ticket, Job::Read { file: open.clone(), offset, buffer });
                }
            },
            Operation::Create { name, bytes } => {
                self.makers.begin(ticket, Job::Create { name, bytes });
            }
            Operation::Remove { file } => {
                let file = self.files.take(file, "remove").map_err(|error| (error, None))?;
                self.makers.begin(ticket, Job::Remove { file });
            }
        }
        Ok(())
    }
}

impl open::OnFiles for BlockingDisk {
    fn adopt(&mut self, file: OpenFile) -> FileId {
        self.files.insert(file)
    }
}

impl Disk for BlockingDisk {
    open::file_methods!();

    fn submit(&mut self, ticket: Ticket, operation: Operation) {
        if let Err((error, buffer)) = self.begin(ticket, operation) {
            self.completed.push(Completed { ticket, result: Err(error), buffer });
        }
    }

    fn flush(&mut self) {}

    fn reap(&mut self, completed: &mut Vec<Completed>) {
        completed.append(&mut self.completed);
        self.transfers.collect(completed, |file| self.files.insert(file));
        self.makers.collect(completed, |file| self.files.insert(file));
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.completed.is_empty() { self.sleeper.wait(timeout) } else { Ok(()) }
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
