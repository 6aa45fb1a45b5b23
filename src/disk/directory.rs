//! A folder of the file system: what all backends that have real files do in the same way, with plain system calls.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::geteuid;

use super::error::{failed, invalid};
use super::{BLOCK_BYTES, Buffer, FileId, SyncMode, check_place, transfer};

/// How long a lock of a dying process is waited for: the kernel holds its files until what it had in flight has landed.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// One write of zeros.
const ZEROS_BYTES: usize = 1 << 20;

/// Ending of the hidden name under which a file is made.
const MAKING: &str = ".new";

/// An open, locked file.
#[derive(Debug, Clone)]
pub(super) struct OpenFile {
    /// Whoever has an operation in flight keeps it open.
    pub(super) file: Arc<Flock<File>>,
    pub(super) name: Arc<str>,
    pub(super) bytes: u64,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
    /// Whether files bypass the page cache. Set to false, with the reason, by the first file that cannot.
    direct: Mutex<Result<(), String>>,
    lock_wait: Duration,
}

impl Directory {
    /// Opens a folder that exists.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let text = path.display().to_string();
        let path = fs::canonicalize(path).map_err(|error| failed("open", &text, error))?;
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(&path)
            .map_err(|error| failed("open", &text, error))?;
        let directory = Self { path, handle, direct: Mutex::new(Ok(())), lock_wait: LOCK_WAIT };
        // The folder's own name. Where the parent may not be read it was somebody else who made it durable.
        if let Some(parent) = directory.path.parent()
            && let Ok(parent) = File::open(parent)
        {
            parent.sync_all().map_err(|error| failed("sync the parent of", &text, error))?;
        }
        Ok(directory)
    }

    /// Removes what a killed process was making. Only for whoever owns the folder; what a living process is making is locked and stays.
    pub(super) fn tidy(&self) -> io::Result<()> {
        for entry in self.entries()? {
            if let Some(name) = entry.file_name().to_str()
                && name.starts_with('.')
                && name.ends_with(MAKING)
                && let Ok(file) = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                    .open(entry.path())
                && Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok()
            {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Why files do not bypass the page cache, if they do not.
    pub(super) fn buffered_because(&self) -> Option<String> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner).clone().err()
    }

    /// From now on files go through the page cache.
    pub(super) fn go_buffered(&self, why: &str) {
        self.stay_buffered(format!("the file system of {} {why}", self.text()));
    }

    /// As [`Self::go_buffered`], with the whole reason.
    pub(super) fn stay_buffered(&self, why: String) {
        *self.direct.lock().unwrap_or_else(PoisonError::into_inner) = Err(why);
    }

    /// Whether the file system lies in memory.
    pub(super) fn is_volatile(&self) -> bool {
        fstatfs(&self.handle)
            .is_ok_and(|status| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&status.filesystem_type()))
    }

    /// See [`super::Disk::free_bytes`].
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let status = fstatvfs(&self.handle).ok()?;
        // What the file system keeps for root is there for root.
        let free =
            if geteuid().is_root() { status.blocks_free() } else { status.blocks_available() };
        // A file system without a limit of its own, such as a tmpfs of any size, has zeros there.
        (status.blocks() > 0).then(|| free.saturating_mul(status.fragment_size()))
    }

    fn text(&self) -> String {
        self.path.display().to_string()
    }

    fn entries(&self) -> io::Result<Vec<fs::DirEntry>> {
        fs::read_dir(&self.path)
            .and_then(Iterator::collect)
            .map_err(|error| failed("list", &self.text(), error))
    }

    pub(super) fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in self.entries()? {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("stat", &name, error)),
            };
            if metadata.is_file() && !name.starts_with('.') {
                files.push((name, metadata.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    /// Path of a file of this folder: nothing else can be named.
    fn file_path(&self, call: &'static str, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(invalid(call, name, "this is no name for a file of the journal"));
        }
        Ok(self.path.join(name))
    }

    /// Opens with these options, past the page cache where the file system can.
    fn open_direct(&self, options: &OpenOptions, path: &Path) -> io::Result<File> {
        let flags = libc::O_CLOEXEC | libc::O_NOFOLLOW;
        if self.buffered_because().is_none() {
            match options.clone().custom_flags(flags | libc::O_DIRECT).open(path) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.go_buffered("refuses O_DIRECT");
                }
                other => return other,
            }
        }
        options.clone().custom_flags(flags).open(path)
    }

    pub(super) fn open_file(&self, name: &str) -> io::Result<OpenFile> {
        let path = self.file_path("open", name)?;
        let file = self
            .open_direct(OpenOptions::new().read(true).write(true), &path)
            .map_err(|error| failed("open", name, error))?;
        let file = self.lock(file, name)?;
        let metadata = file.metadata().map_err(|error| failed("stat", name, error))?;
        if !metadata.is_file() {
            return Err(invalid("open", name, "it is no regular file"));
        }
        Ok(OpenFile { file: Arc::new(file), name: Arc::from(name), bytes: metadata.len() })
    }

    fn lock(&self, mut file: File, name: &str) -> io::Result<Flock<File>> {
        let deadline = Instant::now() + self.lock_wait;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Ok(locked),
                Err((unlocked, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => {
                    file = unlocked;
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err((_, errno)) => return Err(failed("lock", name, errno.into())),
            }
        }
    }

    /// Makes a file of zeros under a hidden name and gives it its name when it is whole: a crash leaves all or nothing.
    pub(super) fn create(&self, name: &str, bytes: u64) -> io::Result<OpenFile> {
        let path = self.file_path("create", name)?;
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(invalid("create", name, "the length is no multiple of a block"));
        }
        // The folder has one owner: what is not there now is not there when the file is made.
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("stat", name, error)),
            Ok(_) => return Err(failed("create", name, Errno::EEXIST.into())),
        }
        let hidden = self.path.join(format!(".{name}{MAKING}"));
        let made = self.make(&hidden, name, bytes).and_then(|file| {
            fs::rename(&hidden, &path).map_err(|error| failed("rename", name, error))?;
            Ok(file)
        });
        let file = made.inspect_err(|_| {
            let _ = fs::remove_file(&hidden);
        })?;
        self.sync().inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })?;
        Ok(OpenFile { file: Arc::new(file), name: Arc::from(name), bytes })
    }

    fn make(&self, hidden: &Path, name: &str, bytes: u64) -> io::Result<Flock<File>> {
        let _ = fs::remove_file(hidden);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file =
            self.open_direct(&options, hidden).map_err(|error| failed("create", name, error))?;
        let file = self.lock(file, name)?;
        fill(&file, bytes).map_err(|error| failed("fill", name, error))?;
        file.sync_all().map_err(|error| failed("sync", name, error))?;
        Ok(file)
    }

    /// An open file of zeros without a name: it goes when it is closed.
    pub(super) fn scratch(&self, bytes: u64) -> io::Result<OpenFile> {
        let name = format!(".scratch-{}-{:?}", std::process::id(), std::thread::current().id());
        let hidden = self.path.join(format!("{name}{MAKING}"));
        let made = self.make(&hidden, &name, bytes);
        let _ = fs::remove_file(&hidden);
        Ok(OpenFile { file: Arc::new(made?), name: Arc::from(name), bytes })
    }

    /// Unlinks, durably.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.file_path("remove", name)?;
        fs::remove_file(path).map_err(|error| failed("remove", name, error))?;
        self.sync()
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (source, target) = (self.file_path("rename", from)?, self.file_path("rename", to)?);
        fs::rename(source, target).map_err(|error| failed("rename", from, error))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.handle.sync_all().map_err(|error| failed("sync", &self.text(), error))
    }
}

/// Writes zeros: blocks that were only allocated cost a change of metadata at their first write.
fn fill(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // A full disk shows here, before anything is written.
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, length) {
            Err(Errno::EINTR) => {}
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let zeros = Buffer::new(ZEROS_BYTES);
    let mut offset = 0;
    while offset < bytes {
        let step = usize::try_from(bytes - offset).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
        transfer::write(file, offset, &zeros[..step], None)?;
        offset += step as u64;
    }
    Ok(())
}

/// The open files of a backend, by number.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) directory: Arc<Directory>,
    pub(super) mode: SyncMode,
    open: BTreeMap<FileId, OpenFile>,
    next: u32,
}

impl Files {
    pub(super) fn new(directory: Arc<Directory>, mode: SyncMode) -> Self {
        Self { directory, mode, open: BTreeMap::new(), next: 0 }
    }

    pub(super) fn insert(&mut self, file: OpenFile) -> FileId {
        self.next += 1;
        let id = FileId(self.next);
        self.open.insert(id, file);
        id
    }

    pub(super) fn get(&self, file: FileId, call: &'static str) -> io::Result<&OpenFile> {
        self.open.get(&file).ok_or_else(|| invalid(call, &format!("file {}", file.0), "not open"))
    }

    /// The file, if this part of it can be written.
    pub(super) fn writable(
        &self,
        file: FileId,
        offset: u64,
        bytes: usize,
    ) -> io::Result<&OpenFile> {
        let open = self.get(file, "write")?;
        check_place("write", &open.name, offset)?;
        if offset.checked_add(bytes as u64).is_none_or(|end| end > open.bytes) {
            return Err(invalid("write", &open.name, "it would go beyond the end of the file"));
        }
        Ok(open)
    }

    /// The file, if this offset of it can be read.
    pub(super) fn readable(&self, file: FileId, offset: u64) -> io::Result<&OpenFile> {
        let open = self.get(file, "read")?;
        check_place("read", &open.name, offset)?;
        Ok(open)
    }

    /// Takes the file out; it closes when nothing is in flight on it.
    pub(super) fn take(&mut self, file: FileId, call: &'static str) -> io::Result<OpenFile> {
        self.get(file, call)?;
        self.open.remove(&file).ok_or_else(|| invalid(call, "a file", "not open"))
    }

    pub(super) fn open(&mut self, name: &str) -> io::Result<FileId> {
        let file = self.directory.open_file(name)?;
        Ok(self.insert(file))
    }

    pub(super) fn length(&self, file: FileId) -> io::Result<u64> {
        let open = self.get(file, "stat")?;
        let metadata = open.file.metadata().map_err(|error| failed("stat", &open.name, error))?;
        Ok(metadata.len())
    }

    pub(super) fn read(&self, file: FileId, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
        let open = self.readable(file, offset)?;
        transfer::read(&open.file, offset, buffer)
            .map_err(|error| failed("read", &open.name, error))
    }

    pub(super) fn write(&self, file: FileId, offset: u64, buffer: &Buffer) -> io::Result<()> {
        let open = self.writable(file, offset, buffer.len())?;
        transfer::write(&open.file, offset, buffer, Some(self.mode))
            .map_err(|error| failed("write", &open.name, error))
    }

    pub(super) fn create(&mut self, name: &str, bytes: u64) -> io::Result<FileId> {
        let file = self.directory.create(name, bytes)?;
        Ok(self.insert(file))
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.directory.rename(from, to)?;
        for open in self.open.values_mut().filter(|open| &*open.name == from) {
            open.name = Arc::from(to);
        }
        Ok(())
    }

    pub(super) fn sync(&self, file: FileId) -> io::Result<()> {
        let open = self.get(file, "sync")?;
        open.file.sync_all().map_err(|error| failed("sync", &open.name, error))
    }

    pub(super) fn close(&mut self, file: FileId) {
        self.open.remove(&file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folder_can_be_named() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b"] {
            assert!(directory.open_file(name).is_err(), "{name:?}");
            assert!(directory.create(name, 4096).is_err(), "{name:?}");
            assert!(directory.rename("a", name).is_err(), "{name:?}");
        }
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        assert!(directory.open_file("link").is_err());
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(directory.open_file("folder").is_err());
        assert_eq!(directory.list().unwrap(), []);
        assert!(Directory::open(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn what_a_killed_process_was_making_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".a.new"), b"half").unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        directory.tidy().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = directory.create("a", 8192).unwrap();
        assert_eq!(directory.list().unwrap(), [("a".to_owned(), 8192)]);
        let again = directory.create("a", 4096).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(file.file.metadata().unwrap().len(), 8192);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_lock_is_waited_for_and_then_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(folder.path()).unwrap();
        let held = directory.create("a", 4096).unwrap();
        directory.lock_wait = Duration::from_millis(20);
        let refused = directory.open_file("a").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        directory.lock_wait = LOCK_WAIT;
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(held);
        });
        directory.open_file("a").unwrap();
        release.join().unwrap();
    }

    #[test]
    fn a_scratch_file_leaves_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let scratch = directory.scratch(1 << 16).unwrap();
        assert_eq!(scratch.file.metadata().unwrap().len(), 1 << 16);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn impossible_lengths_are_refused_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        for bytes in [0, 1, 4095, u64::MAX, 1 << 62] {
            assert!(directory.create("a", bytes).is_err(), "{bytes}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
