//! Raw durable writes: as many bytes as the journal writes at once, by the same backend, in the same sync mode, on the same file system.

use std::time::Duration;

use ringmain::disk::{
    Backend, Buffer, Disk, Durability, FileId, Operation, SelfTest, Ticket, open_disk_after,
};
use ringmain_client::raw::sys::clock::monotonic_ns;
use serde::Serialize;

use super::place::DurablePlace;
use super::publish::nanoseconds;
use crate::cli::args::BackendArg;
use crate::cli::exit::{Failure, Outcome};
use crate::cli::signals;
use crate::cli::statistics::Samples;

/// Length of the file that is written over and over, as the segments of a journal are.
const FILE_BYTES: u64 = 64 << 20;

/// Batches that the journal has in flight.
const DEPTH: usize = 2;

/// How writes reach the disk.
#[derive(Debug, Clone, Serialize)]
pub(in crate::cli::bench) struct Journal {
    pub(in crate::cli::bench) sync_mode: String,
    pub(in crate::cli::bench) backend: String,
    /// Past the page cache.
    pub(in crate::cli::bench) direct: bool,
    /// Why it is so.
    pub(in crate::cli::bench) reasons: Vec<String>,
    #[serde(skip)]
    pub(in crate::cli::bench) completion: &'static str,
}

/// A file and a way to write it.
pub(in crate::cli::bench) struct RawWriter {
    disk: Box<dyn Disk>,
    file: FileId,
    length: u64,
    offset: u64,
    bytes: usize,
    free: Vec<Buffer>,
    ticket: u64,
    journal: Journal,
}

impl RawWriter {
    /// In the sync mode of this place's daemon, if that can be told.
    pub(in crate::cli::bench) fn open(
        place: &DurablePlace,
        backend: Option<BackendArg>,
        bytes: u64,
    ) -> Outcome<Self> {
        let (folder, journal) = (place.folder(), place.journal());
        let backend = match backend.unwrap_or(BackendArg::Auto) {
            BackendArg::Auto => Backend::Auto,
            BackendArg::Uring => Backend::Uring,
            BackendArg::Blocking => Backend::Blocking,
        };
        let fail = |error| Failure::file(folder, "write durably to", &error);
        let (mut disk, description) =
            open_disk_after(SelfTest::Of(&journal), folder, backend).map_err(fail)?;
        let length = FILE_BYTES.next_multiple_of(bytes);
        let file = disk.create("raw", length).map_err(fail)?;
        let bytes = usize::try_from(bytes).map_err(Failure::internal)?;
        let free = (0..DEPTH).map(|_| filled(bytes)).collect();
        let journal = Journal {
            completion: if description.backend.contains("uring") {
                "io_uring completion"
            } else {
                "eventfd of a worker thread"
            },
            sync_mode: description.sync_mode.to_string(),
            backend: description.backend.to_string(),
            direct: description.direct,
            reasons: description.reasons,
        };
        Ok(Self { disk, file, length, offset: 0, bytes, free, ticket: 0, journal })
    }

    /// Of each write.
    pub(in crate::cli::bench) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    pub(in crate::cli::bench) fn description(&self) -> Journal {
        self.journal.clone()
    }

    /// One write at a time for this long, at least one; the median of this window.
    pub(in crate::cli::bench) fn sample(
        &mut self,
        duration: Duration,
        all: &mut Samples,
    ) -> Outcome<Option<u64>> {
        let mut samples = Samples::new();
        let end_ns = monotonic_ns() + nanoseconds(duration);
        loop {
            let start_ns = monotonic_ns();
            self.submit()?;
            while self.reap()? == 0 {
                self.wait()?;
            }
            let now_ns = monotonic_ns();
            samples.record(now_ns - start_ns);
            if now_ns >= end_ns {
                break;
            }
            signals::check()?;
        }
        all.add(&samples);
        Ok(Some(samples.at(0.5)))
    }

    /// As many writes at a time as the journal has in flight, for this long.
    #[allow(clippy::cast_precision_loss)] // a rate
    pub(in crate::cli::bench) fn bytes_per_s(&mut self, duration: Duration) -> Outcome<f64> {
        let start_ns = monotonic_ns();
        let end_ns = start_ns + nanoseconds(duration);
        let mut written = 0;
        while self.free.len() < DEPTH || monotonic_ns() < end_ns {
            if monotonic_ns() < end_ns {
                while !self.free.is_empty() {
                    self.submit()?;
                }
            }
            match self.reap()? {
                0 => self.wait()?,
                writes => written += writes as u64 * self.bytes as u64,
            }
            signals::check()?;
        }
        Ok(written as f64 / ((monotonic_ns() - start_ns).max(1) as f64 / 1e9))
    }

    fn submit(&mut self) -> Outcome {
        let buffer = self.free.pop().ok_or_else(|| Failure::internal("no buffer"))?;
        if self.offset + self.bytes as u64 > self.length {
            self.offset = 0;
        }
        self.ticket += 1;
        let (file, offset) = (self.file, self.offset);
        let write = Operation::Write { file, offset, buffer, durability: Durability::Durable };
        self.disk.submit(Ticket(self.ticket), write);
        self.disk.flush();
        self.offset += self.bytes as u64;
        Ok(())
    }

    /// Completed writes.
    fn reap(&mut self) -> Outcome<usize> {
        let mut completed = Vec::new();
        self.disk.reap(&mut completed);
        for one in &mut completed {
            self.free.extend(one.buffer.take());
            if let Err(error) = &one.result {
                return Err(Failure::system("write durably", error));
            }
        }
        Ok(completed.len())
    }

    fn wait(&mut self) -> Outcome {
        self.disk.wait(None).map_err(|error| Failure::system("wait for the disk", error))
    }
}

/// Bytes that no disk takes for a hole.
fn filled(bytes: usize) -> Buffer {
    let mut buffer = Buffer::new(bytes);
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = (index % 251).to_le_bytes()[0];
    }
    buffer
}
