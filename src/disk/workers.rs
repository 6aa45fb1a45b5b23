//! Threads that do with plain system calls what would block the caller.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::directory::{Directory, OpenFile};
use super::error::failed;
use super::{Buffer, Completed, DROP_WAIT, Done, SyncMode, Ticket, Waker, transfer};

#[derive(Debug)]
pub(super) enum Job {
    Write { file: OpenFile, offset: u64, buffer: Buffer, durable: Option<SyncMode> },
    Read { file: OpenFile, offset: u64, buffer: Buffer },
    Create { name: String, bytes: u64 },
    Remove { file: OpenFile },
}

#[derive(Debug)]
enum Outcome {
    Whole,
    Created(OpenFile),
}

#[derive(Debug)]
struct Finished {
    ticket: Ticket,
    result: io::Result<Outcome>,
    buffer: Option<Buffer>,
}

/// Threads that share one queue of jobs; started with the first job, joined when dropped, after the
/// jobs are done. Jobs that are not done in time are left to their threads.
#[derive(Debug)]
pub(super) struct Workers {
    count: usize,
    name: &'static str,
    directory: Arc<Directory>,
    waker: Waker,
    jobs: Option<Sender<(Ticket, Job)>>,
    threads: Vec<JoinHandle<()>>,
    finish: Sender<Finished>,
    finished: Receiver<Finished>,
    /// Given and not collected.
    outstanding: usize,
}

impl Workers {
    /// The waker is woken after every job.
    pub(super) fn new(
        count: usize,
        name: &'static str,
        directory: Arc<Directory>,
        waker: Waker,
    ) -> Self {
        let (finish, finished) = mpsc::channel();
        let threads = Vec::new();
        Self {
            count,
            name,
            directory,
            waker,
            jobs: None,
            threads,
            finish,
            finished,
            outstanding: 0,
        }
    }

    pub(super) fn begin(&mut self, ticket: Ticket, job: Job) {
        self.outstanding += 1;
        let refused = match self.start() {
            Ok(jobs) => match jobs.send((ticket, job)) {
                Ok(()) => return,
                Err(mpsc::SendError((_, job))) => {
                    (io::Error::other("the threads of the disk are gone"), job)
                }
            },
            Err(error) => (error, job),
        };
        let (error, job) = refused;
        let result = Err(failed("start a thread for", "the disk", error));
        let _ = self.finish.send(Finished { ticket, result, buffer: job.into_buffer() });
        self.waker.wake();
    }

    fn start(&mut self) -> io::Result<&Sender<(Ticket, Job)>> {
        if self.jobs.is_none() {
            let (jobs, queue) = mpsc::channel();
            let queue = Arc::new(Mutex::new(queue));
            for number in 0..self.count {
                let (queue, directory) = (queue.clone(), self.directory.clone());
                let (finish, waker) = (self.finish.clone(), self.waker.clone());
                let spawned = thread::Builder::new()
                    .name(format!("{}-{number}", self.name))
                    .spawn(move || run(&queue, &directory, &finish, &waker));
                match spawned {
                    Ok(thread) => self.threads.push(thread),
                    // Fewer are enough.
                    Err(_) if !self.threads.is_empty() => break,
                    Err(error) => return Err(error),
                }
            }
            self.jobs = Some(jobs);
        }
        self.jobs.as_ref().ok_or_else(|| io::Error::other("no thread"))
    }

    /// Appends what has finished. `created` gives a new file its number.
    pub(super) fn collect(
        &mut self,
        completed: &mut Vec<Completed>,
        mut created: impl FnMut(OpenFile) -> super::FileId,
    ) {
        if self.outstanding == 0 {
            return;
        }
        while let Ok(Finished { ticket, result, buffer }) = self.finished.try_recv() {
            self.outstanding -= 1;
            let result = result.map(|outcome| match outcome {
                Outcome::Whole => Done::Whole,
                Outcome::Created(file) => Done::Created(created(file)),
            });
            completed.push(Completed { ticket, result, buffer });
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        let deadline = Instant::now() + DROP_WAIT;
        while self.outstanding > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.finished.recv_timeout(left) {
                Ok(_) => self.outstanding -= 1,
                // A disk that does not answer: the threads own what they work on, and end with the process.
                Err(_) => return,
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run(
    queue: &Mutex<Receiver<(Ticket, Job)>>,
    directory: &Directory,
    finish: &Sender<Finished>,
    waker: &Waker,
) {
    loop {
        // Whoever waits for a job holds the lock; the others wait for the lock.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((ticket, job)) = job else { return };
        let (result, buffer) = job.run(directory);
        if finish.send(Finished { ticket, result, buffer }).is_err() {
            return;
        }
        waker.wake();
    }
}

impl Job {
    fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Write { buffer, .. } | Self::Read { buffer, .. } => Some(buffer),
            Self::Create { .. } | Self::Remove { .. } => None,
        }
    }

    fn run(self, directory: &Directory) -> (io::Result<Outcome>, Option<Buffer>) {
        match self {
            Self::Write { file, offset, buffer, durable } => {
                let result = transfer::write(&file.file, offset, &buffer, durable)
                    .map_err(|error| failed("write", &file.name, error));
                (result.map(|()| Outcome::Whole), Some(buffer))
            }
            Self::Read { file, offset, mut buffer } => {
                let result = transfer::read(&file.file, offset, &mut buffer)
                    .map_err(|error| failed("read", &file.name, error));
                (result.map(|()| Outcome::Whole), Some(buffer))
            }
            Self::Create { name, bytes } => {
                (directory.create(&name, bytes).map(Outcome::Created), None)
            }
            Self::Remove { file } => {
                let name = file.name.clone();
                drop(file);
                (directory.remove(&name).map(|()| Outcome::Whole), None)
            }
        }
    }
}
