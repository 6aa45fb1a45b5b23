//! One daemon for a socket, one for a data folder.
//!
//! The lock is an flock on a file that names its holder. It ends with the process, so a killed daemon leaves nothing
//! that blocks the next one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::DaemonError;

/// How often the holder's pid is looked for: it is written right after the lock is taken.
const PID_READS: u32 = 20;

/// A lock that this process holds until it drops it.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    /// The file stays behind: on a disk that is full by then there would be no room for another one.
    stays: bool,
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock at `path`; `what` is what it stands for, in the error text. The file is removed in the end, unless it `stays`.
    pub(super) fn take(path: &Path, what: &str, stays: bool) -> Result<Self, DaemonError> {
        let failed = |error: &io::Error| match error.kind() {
            // The folder is there: on a file system such as /proc nobody can make files.
            io::ErrorKind::NotFound => DaemonError::Config(format!(
                "{what}: no file can be made there ({}: {error}); choose another path",
                path.display()
            )),
            _ => DaemonError::io(format_args!("{what}: lock file {}", path.display()), error),
        };
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
                .open(path)
                .map_err(|error| failed(&error))?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let pid = holder(&mut file);
                    return Err(DaemonError::Held { what: what.to_owned(), pid });
                }
                Err((_, errno)) => return Err(failed(&errno.into())),
            };
            // The holder before us may have removed the file between our open and our lock: then this is nobody's lock.
            let ours = file.metadata().map_err(|error| failed(&error))?;
            match std::fs::symlink_metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&error)),
            }
            // Only who asks in vain reads it: a full disk is no reason not to start. What the file has of the disk it keeps.
            let text = format!("{}\n", std::process::id());
            let _ = file.write_all(text.as_bytes()).and_then(|()| file.set_len(text.len() as u64));
            return Ok(Self { path: path.to_owned(), stays, _file: file });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked here: whoever opened the file before notices that it is gone.
        if !self.stays {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn holder(file: &mut File) -> Option<u32> {
    for _ in 0..PID_READS {
        let mut text = String::new();
        let read =
            file.rewind().and_then(|()| Read::by_ref(file).take(32).read_to_string(&mut text));
        if read.is_ok()
            && text.ends_with('\n')
            && let Ok(pid) = text.trim().parse()
        {
            return Some(pid);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_the_pid_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path, "the thing", false).unwrap();
        let error = Lock::take(&path, "the thing", false).unwrap_err();
        assert_eq!(error.exit_code(), 73);
        let text = error.to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        drop(first);
        assert!(!path.exists());
        Lock::take(&path, "the thing", false).unwrap();
    }

    #[test]
    fn a_lock_file_left_behind_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::fs::write(&path, "999999999\n and more").unwrap();
        let _lock = Lock::take(&path, "the thing", false).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::os::unix::fs::symlink(folder.path().join("target"), &path).unwrap();
        assert!(Lock::take(&path, "the thing", false).is_err());
    }
}
