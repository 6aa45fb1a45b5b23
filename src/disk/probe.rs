//! What the disk costs: the self-test that chooses the sync mode, and the raw durable write that everything else is compared with.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::error::failed;
use super::open::OnFiles;
use super::uring::{self, UringDisk};
use super::{
    Availability, BLOCK_BYTES, Backend, BlockingDisk, Buffer, Durability, FileId, Operation,
    SyncMode, Ticket, errno, transfer,
};

/// The self-test stops after this time, and after one write of each kind at the earliest.
const TEST_TIME: Duration = Duration::from_millis(150);
const TEST_BYTES: u64 = 1 << 20;

/// On a disk that is nearly full this much has to do.
const TEST_BYTES_LEAST: u64 = 4 * BLOCK_BYTES as u64;

/// Below this many writes the figures only decide if they are far apart.
const ENOUGH: usize = 8;

/// Latency of a write, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Writes measured.
    pub samples: usize,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// 999 of 1000 took no longer.
    pub p999_ns: u64,
}

impl Latency {
    /// Of these times; zeros if there are none.
    #[must_use]
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |permille: usize| {
            let index = (times.len() * permille).div_ceil(1000).saturating_sub(1);
            let time = times.get(index).copied().unwrap_or_default();
            u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
        };
        Self { samples: times.len(), p50_ns: at(500), p99_ns: at(990), p999_ns: at(999) }
    }
}

/// What the self-test measured with one block at a time, and what follows from it. Without a sample where the disk had no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncFigures {
    /// A write that is durable by itself (`RWF_DSYNC`); none where the file system refuses it.
    pub dsync: Option<Latency>,
    /// A write and `fdatasync`.
    pub fdatasync: Latency,
    /// The faster one.
    pub chosen: SyncMode,
}

impl fmt::Display for SyncFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |latency: Latency| latency.p50_ns / 1000;
        let later = micros(self.fdatasync);
        if self.fdatasync.samples == 0 {
            return f
                .write_str("no room for a self-test, so write + fdatasync, which always works");
        }
        match self.dsync {
            None => write!(f, "RWF_DSYNC is refused here, write + fdatasync takes {later} us"),
            Some(dsync) => write!(
                f,
                "RWF_DSYNC takes {} us, write + fdatasync {later} us (p50 of {})",
                micros(dsync),
                dsync.samples
            ),
        }
    }
}

/// Measures both ways of making a write durable in a folder that exists; leaves nothing there.
///
/// # Errors
/// The folder cannot be written.
pub fn probe_sync_modes(path: &Path) -> io::Result<SyncFigures> {
    measure(&Directory::open(path)?)
}

pub(super) fn measure(directory: &Directory) -> io::Result<SyncFigures> {
    let tried = directory.scratch(TEST_BYTES).or_else(|error| match errno(&error) {
        libc::ENOSPC | libc::EDQUOT => directory.scratch(TEST_BYTES_LEAST),
        _ => Err(error),
    });
    let scratch = match tried {
        Ok(scratch) => scratch,
        // A full disk is no reason not to start.
        Err(error) if matches!(errno(&error), libc::ENOSPC | libc::EDQUOT) => {
            let (dsync, fdatasync) = (None, Latency::default());
            return Ok(SyncFigures { dsync, fdatasync, chosen: SyncMode::Fdatasync });
        }
        Err(error) => return Err(error),
    };
    let buffer = Buffer::new(BLOCK_BYTES);
    let start = Instant::now();
    let mut offset = 0;
    let mut write = |mode| {
        let begin = Instant::now();
        let written = transfer::write(&scratch.file, offset, &buffer, Some(mode));
        offset = (offset + BLOCK_BYTES as u64) % scratch.bytes;
        written.map(|()| begin.elapsed())
    };
    let (mut dsync, mut fdatasync) = (Some(Vec::new()), Vec::new());
    // By turns, so that both see the same load.
    while fdatasync.is_empty() || start.elapsed() < TEST_TIME {
        if let Some(times) = &mut dsync {
            match write(SyncMode::Dsync) {
                Ok(time) => times.push(time),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => dsync = None,
                    _ => return Err(failed("probe", "the folder of the journal", error)),
                },
            }
        }
        let time = write(SyncMode::Fdatasync);
        fdatasync.push(time.map_err(|error| failed("probe", "the folder of the journal", error))?);
    }
    let (dsync, fdatasync) = (dsync.map(Latency::of), Latency::of(fdatasync));
    Ok(SyncFigures { dsync, fdatasync, chosen: choose(dsync, fdatasync) })
}

/// One command to the disk is preferred to two, unless two are clearly faster.
fn choose(dsync: Option<Latency>, fdatasync: Latency) -> SyncMode {
    let Some(dsync) = dsync else { return SyncMode::Fdatasync };
    let percent = if dsync.samples < ENOUGH { 200 } else { 115 };
    if dsync.p50_ns > fdatasync.p50_ns.saturating_mul(percent) / 100 {
        SyncMode::Fdatasync
    } else {
        SyncMode::Dsync
    }
}

/// Durable writes with nothing around them, through the backend that a journal in this folder would use.
pub struct RawWrites {
    disk: Box<dyn OnFiles>,
    file: FileId,
    buffers: Vec<Buffer>,
    file_bytes: u64,
    offset: u64,
    next: u64,
}

impl fmt::Debug for RawWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawWrites").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl RawWrites {
    /// Of `bytes` each, rounded up to whole blocks, `depth` at a time, into a file without a name in a folder that exists. With [`Backend::Auto`]: io_uring if it is
    /// available.
    ///
    /// # Errors
    /// The folder cannot be written, or has no room for 16 MiB or sixteen writes.
    pub fn new(
        path: &Path,
        backend: Backend,
        mode: SyncMode,
        bytes: usize,
        depth: usize,
    ) -> io::Result<Self> {
        let directory = Arc::new(Directory::open(path)?);
        let buffers: Vec<Buffer> = (0..depth.max(1)).map(|_| Buffer::new(bytes)).collect();
        let length = buffers[0].len() as u64;
        let file_bytes = (16 << 20_u64).max(length * 16) / length * length;
        let scratch = directory.scratch(file_bytes)?;
        let uring = match backend {
            Backend::Auto => uring::availability() == Availability::Allowed,
            Backend::Uring => true,
            Backend::Blocking => false,
        };
        let mut disk: Box<dyn OnFiles> = if uring {
            Box::new(UringDisk::on(directory, mode)?)
        } else {
            Box::new(BlockingDisk::on(directory, mode)?)
        };
        let file = disk.adopt(scratch);
        Ok(Self { disk, file, buffers, file_bytes, offset: 0, next: 0 })
    }

    /// Begins as many writes as the depth allows, waits for one, and says how long one took on average: with a depth of one, how long this one took.
    ///
    /// # Errors
    /// A write failed.
    pub fn sample(&mut self) -> io::Result<Duration> {
        let count = u32::try_from(self.buffers.len()).unwrap_or(u32::MAX);
        let begin = Instant::now();
        for buffer in self.buffers.drain(..) {
            let (file, offset) = (self.file, self.offset);
            self.offset = (self.offset + buffer.len() as u64) % self.file_bytes;
            let durability = Durability::Durable;
            let write = Operation::Write { file, offset, buffer, durability };
            self.disk.submit(Ticket(self.next), write);
            self.next += 1;
        }
        self.disk.flush();
        let (mut completed, mut done) = (Vec::new(), 0);
        let mut failure = None;
        while done < count {
            self.disk.wait(None)?;
            self.disk.reap(&mut completed);
            for one in completed.drain(..) {
                done += 1;
                self.buffers.extend(one.buffer);
                failure = failure.or_else(|| one.result.err());
            }
        }
        match failure {
            None => Ok(begin.elapsed() / count),
            Some(error) => Err(error),
        }
    }
}

/// What `doctor` says about a folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskReport {
    /// The folder.
    pub path: String,
    /// `uring` or `blocking`.
    pub backend: &'static str,
    /// `available`, or why io_uring is not and what to do.
    pub io_uring: String,
    /// How a write becomes durable.
    pub sync_mode: SyncMode,
    /// Whether writes bypass the page cache.
    pub direct: bool,
    /// What the self-test measured.
    pub figures: SyncFigures,
    /// A durable write of 4 KiB through the backend.
    pub write_4k: Latency,
    /// A durable write of 256 KiB through the backend.
    pub write_256k: Latency,
    /// Durable writes of 256 KiB, two at a time: bytes a second.
    pub bytes_per_s: u64,
    /// Why it is as it is, one sentence each, with the remedy where there is one.
    pub reasons: Vec<String>,
}

/// Measures a folder that exists for about a second; leaves nothing there.
///
/// # Errors
/// As [`super::open_disk`] and [`RawWrites::new`].
pub fn report(path: &Path, backend: Backend) -> io::Result<DiskReport> {
    let (disk, description) = super::open_disk(path, backend)?;
    drop(disk);
    let available = uring::availability();
    let chosen = if description.backend == "uring" { Backend::Uring } else { Backend::Blocking };
    let sampled = |bytes, depth| -> io::Result<Vec<Duration>> {
        let mut writes = RawWrites::new(path, chosen, description.sync_mode, bytes, depth)?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.is_empty() || (times.len() < 1000 && start.elapsed() < TEST_TIME) {
            times.push(writes.sample()?);
        }
        Ok(times)
    };
    let pairs = sampled(256 << 10, 2)?;
    let seconds = pairs.iter().sum::<Duration>().as_secs_f64().max(1e-9);
    let bytes = (pairs.len() as f64) * f64::from(256 << 10);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // far below 2^63, not negative
    let bytes_per_s = (bytes / seconds) as u64;
    Ok(DiskReport {
        path: path.display().to_string(),
        backend: description.backend,
        io_uring: match available {
            Availability::Allowed => "available".to_owned(),
            refused => refused.to_string(),
        },
        sync_mode: description.sync_mode,
        direct: description.direct,
        figures: description.figures,
        write_4k: Latency::of(sampled(BLOCK_BYTES, 1)?),
        write_256k: Latency::of(sampled(256 << 10, 1)?),
        bytes_per_s,
        reasons: description.reasons,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(samples: usize, p50_ns: u64) -> Latency {
        Latency { samples, p50_ns, p99_ns: p50_ns, p999_ns: p50_ns }
    }

    #[test]
    fn the_faster_mode_is_chosen_and_one_command_when_in_doubt() {
        let dsync = |samples, p50_ns| Some(latency(samples, p50_ns));
        assert_eq!(choose(None, latency(100, 5)), SyncMode::Fdatasync);
        assert_eq!(choose(dsync(100, 110), latency(100, 100)), SyncMode::Dsync);
        assert_eq!(choose(dsync(100, 120), latency(100, 100)), SyncMode::Fdatasync);
        assert_eq!(choose(dsync(2, 120), latency(2, 100)), SyncMode::Dsync);
        assert_eq!(choose(dsync(2, 300), latency(2, 100)), SyncMode::Fdatasync);
    }

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times = (1..=1000).map(Duration::from_nanos).collect();
        let latency = Latency::of(times);
        assert_eq!((latency.p50_ns, latency.p99_ns, latency.p999_ns), (500, 990, 999));
        assert_eq!(Latency::of(Vec::new()), Latency::default());
        assert_eq!(Latency::of(vec![Duration::from_nanos(7)]).p50_ns, 7);
    }

    #[test]
    fn a_report_has_figures_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let report = report(folder.path(), Backend::Auto).unwrap();
        assert!(report.write_4k.p50_ns > 0 && report.bytes_per_s > 0, "{report:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(!report.reasons.is_empty());
    }
}
