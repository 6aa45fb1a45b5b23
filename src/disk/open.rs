//! Which backend a folder gets, and why.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::directory::{Directory, OpenFile};
use super::kept::{self, Kept};
use super::probe::{self, SyncFigures};
use super::uring::{self, UringDisk};
use super::{Availability, BlockingDisk, Buffer, Disk, FileId, SyncMode, errno};

/// Who does the writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// io_uring where it is allowed, else threads.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads.
    Blocking,
}

/// What was chosen, for one line of the log and for `doctor`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// `uring` or `blocking`.
    pub backend: &'static str,
    /// How a write becomes durable.
    pub sync_mode: SyncMode,
    /// Whether writes bypass the page cache.
    pub direct: bool,
    /// What the self-test of the sync modes measured.
    pub figures: SyncFigures,
    /// Why it is as it is, one sentence each, with the remedy where there is one.
    pub reasons: Vec<String>,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = if self.direct { "O_DIRECT" } else { "through the page cache" };
        write!(f, "disk backend {}, {}, {cache}", self.backend, self.sync_mode)?;
        let mut separator = ": ";
        for reason in &self.reasons {
            write!(f, "{separator}{reason}")?;
            separator = "; ";
        }
        Ok(())
    }
}

/// Where the sync mode of a disk comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SelfTest<'a> {
    /// A self-test of at most some 200 ms. Nothing of it is kept.
    #[default]
    Made,
    /// A self-test whose result is kept in the folder.
    Kept,
    /// What was kept in the folder, if neither device, file system, kernel nor program have changed since; else as [`Self::Kept`].
    Again,
    /// What was kept in this other folder, for writes beside its journal that are made in the same way; else as [`Self::Made`].
    Of(&'a Path),
}

/// [`open_disk_after`] with a self-test of which nothing is kept.
///
/// # Errors
/// As there.
pub fn open_disk(path: &Path, backend: Backend) -> io::Result<(Box<dyn Disk + Send>, Description)> {
    open_disk_after(SelfTest::Made, path, backend)
}

/// Opens a folder that exists, after a self-test that chooses how writes are made durable. The caller logs the description.
///
/// The disk may be opened in one thread and used in another; from its first operation on it belongs to the thread that uses it.
///
/// # Errors
/// The folder cannot be opened or written; for [`Backend::Uring`] also that io_uring is not available, with the remedy.
pub fn open_disk_after(
    test: SelfTest<'_>,
    path: &Path,
    backend: Backend,
) -> io::Result<(Box<dyn Disk + Send>, Description)> {
    let directory = Arc::new(Directory::open(path)?);
    directory.tidy()?;
    let mut reasons = Vec::new();
    let uring = match backend {
        Backend::Blocking => {
            reasons.push("threads were asked for".to_owned());
            false
        }
        Backend::Auto | Backend::Uring => match uring::availability() {
            Availability::Allowed => true,
            refused if backend == Backend::Uring => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, refused.to_string()));
            }
            refused => {
                reasons.push(refused.to_string());
                false
            }
        },
    };
    let figures = match earlier(test, path) {
        Some(Kept { figures, buffered_because }) => {
            if let Some(why) = buffered_because {
                directory.stay_buffered(why);
            }
            reasons.push(format!("{figures}, as the self-test before found"));
            figures
        }
        None => {
            let figures = tested(&directory)?;
            // A disk that was full has told nothing. What cannot be kept is found out again.
            if matches!(test, SelfTest::Kept | SelfTest::Again) && figures.fdatasync.samples > 0 {
                let _ = kept::write(
                    path,
                    &Kept { figures, buffered_because: directory.buffered_because() },
                );
            }
            reasons.push(figures.to_string());
            figures
        }
    };
    if directory.is_volatile() {
        reasons.push("this file system is in memory: nothing here survives a power cut".to_owned());
    }
    let buffered = directory.buffered_because();
    let description = Description {
        backend: if uring { "uring" } else { "blocking" },
        sync_mode: figures.chosen,
        direct: buffered.is_none(),
        reasons: reasons.into_iter().chain(buffered).collect(),
        figures,
    };
    let mode = description.sync_mode;
    let disk: Box<dyn Disk + Send> = if uring {
        Box::new(UringDisk::on(directory, mode)?)
    } else {
        Box::new(BlockingDisk::on(directory, mode)?)
    };
    Ok((disk, description))
}

/// What an earlier self-test found.
fn earlier(test: SelfTest<'_>, path: &Path) -> Option<Kept> {
    match test {
        SelfTest::Made | SelfTest::Kept => None,
        SelfTest::Again => kept::read(path),
        SelfTest::Of(journal) => kept::read(journal),
    }
}

fn tested(directory: &Directory) -> io::Result<SyncFigures> {
    match probe::measure(directory) {
        Err(error) if errno(&error) == libc::EINVAL && directory.buffered_because().is_none() => {
            directory.go_buffered("refuses direct writes of 4096 bytes");
            probe::measure(directory)
        }
        measured => measured,
    }
}

/// An operation that was not begun, with its buffer.
pub(super) type Refused = (io::Error, Option<Buffer>);

/// A disk over [`super::directory::Files`].
pub(super) trait OnFiles: Disk {
    /// Takes in a file that no name leads to.
    fn adopt(&mut self, file: OpenFile) -> FileId;
}

/// The blocking half of [`Disk`], for a backend with a field `files`.
macro_rules! file_methods {
    () => {
        fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
            self.files.directory.list()
        }

        fn open(&mut self, name: &str) -> io::Result<FileId> {
            self.files.open(name)
        }

        fn length(&mut self, file: FileId) -> io::Result<u64> {
            self.files.length(file)
        }

        fn read(&mut self, file: FileId, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
            self.files.read(file, offset, buffer)
        }

        fn write(&mut self, file: FileId, offset: u64, buffer: &Buffer) -> io::Result<()> {
            self.files.write(file, offset, buffer)
        }

        fn create(&mut self, name: &str, bytes: u64) -> io::Result<FileId> {
            self.files.create(name, bytes)
        }

        fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
            self.files.rename(from, to)
        }

        fn sync(&mut self, file: FileId) -> io::Result<()> {
            self.files.sync(file)
        }

        fn free_bytes(&self) -> Option<u64> {
            self.files.directory.free_bytes()
        }
        fn sync_directory(&mut self) -> io::Result<()> {
            self.files.directory.sync()
        }

        fn close(&mut self, file: FileId) {
            self.files.close(file);
        }
    };
}
pub(super) use file_methods;
