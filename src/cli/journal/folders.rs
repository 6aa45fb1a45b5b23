//! Which journals a folder has.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::notice;

/// Of one journal.
pub(super) struct Folder {
    pub(super) path: PathBuf,
}

impl Folder {
    /// Before its files are opened, which waits for their locks: refuses at once what a running daemon has, and says who is waited
    /// for otherwise. A killed daemon's locks end when its last writes have landed.
    pub(super) fn look_for_holder(&self) -> Outcome {
        let Some(busy) = self.busy_file() else { return Ok(()) };
        let path = self.path.display();
        if let Some(pid) = self.path.parent().and_then(daemon_of) {
            return Err(Failure::new(
                Exit::Temporary,
                format_args!("{path} belongs to a running daemon (pid {pid}): stop it first"),
            ));
        }
        notice(&format!("{path}: waiting for another process to let go of {busy}"));
        Ok(())
    }

    /// A file that somebody has locked. What cannot be looked at is for whoever opens it to report.
    fn busy_file(&self) -> Option<String> {
        let entries = fs::read_dir(&self.path).ok()?;
        let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.find(|name| is_segment(name) && is_locked(&self.path.join(name)))
    }
}

/// The process that holds the lock of a data folder.
fn daemon_of(data: &Path) -> Option<u32> {
    let lock = data.join("ringmain.lock");
    if !is_locked(&lock) {
        return None;
    }
    fs::read_to_string(lock).ok()?.trim().parse().ok()
}

/// Whether another process has this lock: nobody who takes it waits in vain for the moment that this one takes.
fn is_locked(path: &Path) -> bool {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let locked = file.map(|file| Flock::lock(file, FlockArg::LockSharedNonblock));
    matches!(locked, Ok(Err((_, Errno::EWOULDBLOCK))))
}

/// The journals of a daemon's data folder, or the one that this folder is.
pub(super) fn journals(folder: &Path) -> Outcome<Vec<Folder>> {
    let fail = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotADirectory => none(folder),
        _ => Failure::file(folder, "look into", error),
    };
    let (mut shards, mut files) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).map_err(|error| fail(&error))? {
        let entry = entry.map_err(|error| fail(&error))?;
        let kind = entry.file_type().map_err(|error| fail(&error))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if kind.is_dir() && name.strip_prefix("shard-").is_some_and(is_number) {
            let mut inside = fs::read_dir(entry.path()).map_err(|error| fail(&error))?;
            // Without a file nothing could be said of it, least of all that it is whole.
            if !inside
                .any(|file| file.is_ok_and(|file| is_segment(&file.file_name().to_string_lossy())))
            {
                return Err(none(&entry.path()));
            }
            shards.push(Folder { path: entry.path() });
        }
        files += u32::from(kind.is_file() && is_segment(&name));
    }
    shards.sort_by(|a, b| a.path.cmp(&b.path));
    match (shards.is_empty(), files) {
        (false, _) => Ok(shards),
        (true, 1..) => Ok(vec![Folder { path: folder.to_path_buf() }]),
        (true, 0) => Err(none(folder)),
    }
}

fn none(folder: &Path) -> Failure {
    Failure::new(
        Exit::Data,
        format_args!(
            "{} has no journal: name the --data-dir of a daemon, or a folder shard-N in it",
            folder.display()
        ),
    )
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_segment(name: &str) -> bool {
    let number = name.strip_prefix("segment-").and_then(|rest| rest.strip_suffix(".journal"));
    number.is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_and_a_journal_folder_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(journals(folder.path()).is_err());
        for name in ["shard-1", "shard-0", "shard-x", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert!(journals(folder.path()).is_err(), "folders without a file");
        for name in ["shard-1", "shard-0"] {
            fs::write(folder.path().join(name).join("segment-00000001.journal"), "").unwrap();
        }
        let found = journals(folder.path()).unwrap();
        let names: Vec<_> = found.iter().filter_map(|f| f.path.file_name()?.to_str()).collect();
        assert_eq!(names, ["shard-0", "shard-1"]);
    }
}
