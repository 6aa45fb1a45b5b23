//! What the self-test of the sync modes found, kept in the folder for the next broker of the same daemon.
//!
//! It is a cache: whatever is wrong with the file, the self-test is made again.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::statfs::statfs;
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use super::probe::SyncFigures;

/// Hidden: it is no file of the journal.
const FILE: &str = ".sync-mode";
/// Under this name it is made; what a killed process leaves of it is tidied away.
const MAKING: &str = ".sync-mode.new";
/// More than it ever has.
const BYTES_MAX: u64 = 4096;

/// What the choice depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// Number of the device that the folder lies on.
    device: u64,
    /// Magic number of the file system.
    file_system: i64,
    /// Release of the kernel.
    kernel: String,
    /// Version of this program.
    program: String,
}

impl Place {
    fn of(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            device: fs::metadata(folder)?.dev(),
            file_system: statfs(folder)?.filesystem_type().0,
            kernel: uname()?.release().to_string_lossy().into_owned(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

/// The result of a self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) figures: SyncFigures,
    /// Why writes go through the page cache, if they do.
    pub(super) buffered_because: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    place: Place,
    kept: Kept,
}

/// What was kept in this folder, if everything that it depends on is as it was.
pub(super) fn read(folder: &Path) -> Option<Kept> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(folder.join(FILE))
        .ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return None;
    }
    let text = io::read_to_string(file).ok()?;
    let record: Record = serde_json::from_str(&text).ok()?;
    (record.place == Place::of(folder).ok()?).then_some(record.kept)
}

/// Keeps it. Nothing is synced: a file that a power cut has damaged is not understood, and the self-test is made again.
///
/// # Errors
/// The kernel's. Then nothing is kept, which costs time and nothing else.
pub(super) fn write(folder: &Path, kept: &Kept) -> io::Result<()> {
    let making = folder.join(MAKING);
    let written =
        write_to(folder, &making, kept).and_then(|()| fs::rename(&making, folder.join(FILE)));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&making);
    })
}

fn write_to(folder: &Path, making: &Path, kept: &Kept) -> io::Result<()> {
    let record = Record { place: Place::of(folder)?, kept: kept.clone() };
    let text = serde_json::to_string(&record)?;
    let _ = fs::remove_file(making);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(making)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Latency, SyncMode};

    fn kept() -> Kept {
        let latency = |p50_ns| Latency { samples: 90, p50_ns, p99_ns: 900, p999_ns: 1000 };
        let figures = SyncFigures {
            dsync: Some(latency(300)),
            fdatasync: latency(200),
            chosen: SyncMode::Fdatasync,
        };
        Kept { figures, buffered_because: None }
    }

    fn changed(folder: &Path, change: impl FnOnce(&mut Place)) -> Option<Kept> {
        let mut record = Record { place: Place::of(folder).unwrap(), kept: kept() };
        change(&mut record.place);
        fs::write(folder.join(FILE), serde_json::to_string(&record).unwrap()).unwrap();
        read(folder)
    }

    #[test]
    fn it_counts_as_long_as_nothing_that_it_depends_on_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(read(path), None);
        write(path, &kept()).unwrap();
        assert_eq!(read(path), Some(kept()));
        assert_eq!(fs::read_dir(path).unwrap().count(), 1);
        assert_eq!(changed(path, |_| {}), Some(kept()));
        assert_eq!(changed(path, |place| place.device += 1), None);
        assert_eq!(changed(path, |place| place.file_system += 1), None);
        assert_eq!(changed(path, |place| place.kernel.push('x')), None);
        assert_eq!(changed(path, |place| place.program.push('x')), None);
    }

    #[test]
    fn what_is_damaged_or_no_file_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        write(folder.path(), &kept()).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        for length in 0..text.len() {
            fs::write(&file, &text[..length]).unwrap();
            assert_eq!(read(folder.path()), None, "{length} bytes");
        }
        fs::write(&file, format!("{text}{}", " ".repeat(5000))).unwrap();
        assert_eq!(read(folder.path()), None);
        fs::remove_file(&file).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, &text).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert_eq!(read(folder.path()), None);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(read(folder.path()), None);
        assert!(write(folder.path(), &kept()).is_err());
    }
}
