//! A disk of memory files, for queues that may be lost with the machine but not with the broker.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ringmain_client::sys::map::{Access, Mapping, Populate};
use ringmain_client::sys::memory::verify_sealed;

use super::error::{failed, invalid};
use super::sleeper::Sleeper;
use super::{
    BLOCK_BYTES, Buffer, Completed, Disk, Done, FileId, Operation, Ticket, Waker, check_place,
};

/// Makes a memory file of zeros with this name and length, sealed, and keeps it where it outlives this process.
pub type CreateMemory = Box<dyn FnMut(&str, u64) -> io::Result<OwnedFd> + Send>;

/// Forgets a memory file.
pub type RemoveMemory = Box<dyn FnMut(&str) + Send>;

/// Bytes that new memory files may still take.
pub type FreeMemory = Box<dyn Fn() -> u64 + Send>;

/// Whoever holds the files also holds them when this process is dead. Everything completes at once.
pub struct MemoryDisk {
    files: BTreeMap<String, Mapping>,
    open: BTreeMap<FileId, String>,
    next: u32,
    create: CreateMemory,
    remove: RemoveMemory,
    free: Option<FreeMemory>,
    sleeper: Sleeper,
    completed: Vec<Completed>,
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

impl MemoryDisk {
    /// Over files that exist already, each sealed, and none shared with a process that is not trusted.
    ///
    /// # Errors
    /// A file is no sealed memory file or cannot be mapped.
    pub fn new(
        files: Vec<(String, OwnedFd)>,
        create: CreateMemory,
        remove: RemoveMemory,
    ) -> io::Result<Self> {
        let (mapped, open) = (BTreeMap::new(), BTreeMap::new());
        let (sleeper, completed) = (Sleeper::new()?, Vec::new());
        let free = None;
        let mut disk =
            Self { files: mapped, open, next: 0, create, remove, free, sleeper, completed };
        for (name, file) in files {
            disk.map(&name, file)?;
        }
        Ok(disk)
    }

    /// Says how much new files may take.
    #[must_use]
    pub fn limited(mut self, free: FreeMemory) -> Self {
        self.free = Some(free);
        self
    }

    fn map(&mut self, name: &str, file: OwnedFd) -> io::Result<()> {
        let status = nix::sys::stat::fstat(&file)?;
        let length = usize::try_from(status.st_size).unwrap_or(0);
        verify_sealed(file.as_fd(), length)
            .map_err(|error| invalid("map", name, &error.to_string()))?;
        let mapping = Mapping::map(file.as_fd(), length, Access::ReadWrite, Populate::OnTouch)
            .map_err(|error| failed("map", name, error))?;
        self.files.insert(name.to_owned(), mapping);
        Ok(())
    }

    fn insert(&mut self, name: &str) -> FileId {
        self.next += 1;
        let id = FileId(self.next);
        self.open.insert(id, name.to_owned());
        id
    }

    fn name(&self, file: FileId, call: &'static str) -> io::Result<&str> {
        let name = self.open.get(&file).map(String::as_str);
        name.ok_or_else(|| invalid(call, &format!("file {}", file.0), "not open"))
    }

    /// Where `bytes` bytes at `offset` of an open file are, if they are all inside it.
    fn place(
        &self,
        call: &'static str,
        file: FileId,
        offset: u64,
        bytes: usize,
    ) -> io::Result<Result<*mut u8, io::Error>> {
        let name = self.name(file, call)?;
        check_place(call, name, offset)?;
        let Some(mapping) = self.files.get(name) else {
            return Err(invalid(call, name, "it was removed"));
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if start.checked_add(bytes).is_none_or(|end| end > mapping.len()) {
            let end = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Ok(Err(failed(call, name, end)));
        }
        // SAFETY: the offset lies inside the mapping, checked above.
        Ok(Ok(unsafe { mapping.base().add(start) }))
    }

    fn copy_in(&self, file: FileId, offset: u64, source: &[u8]) -> io::Result<()> {
        let Ok(target) = self.place("write", file, offset, source.len())? else {
            let name = self.name(file, "write")?;
            return Err(invalid("write", name, "it would go beyond the end of the file"));
        };
        // SAFETY: `place` checked the length; a mapping does not overlap a private slice; only this thread writes.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target, source.len()) };
        Ok(())
    }

    fn copy_out(&self, file: FileId, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let source = self.place("read", file, offset, target.len())??;
        // SAFETY: `place` checked the length; a mapping does not overlap a private slice.
        unsafe { std::ptr::copy_nonoverlapping(source, target.as_mut_ptr(), target.len()) };
        Ok(())
    }

    fn delete(&mut self, file: FileId) -> io::Result<()> {
        let name = self.name(file, "remove")?.to_owned();
        self.open.remove(&file);
        self.files.remove(&name);
        (self.remove)(&name);
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let files = self.files.iter();
        Ok(files.map(|(name, mapping)| (name.clone(), mapping.len() as u64)).collect())
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        if !self.files.contains_key(name) {
            return Err(failed("open", name, io::Error::from_raw_os_error(libc::ENOENT)));
        }
        if self.open.values().any(|open| open == name) {
            return Err(failed("lock", name, io::Error::from_raw_os_error(libc::EWOULDBLOCK)));
        }
        Ok(self.insert(name))
    }

    fn length(&mut self, file: FileId) -> io::Result<u64> {
        let name = self.name(file, "length")?;
        Ok(self.files.get(name).map_or(0, |mapping| mapping.len() as u64))
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
        self.copy_out(file, offset, buffer)
    }

    fn write(&mut self, file: FileId, offset: u64, buffer: &Buffer) -> io::Result<()> {
        self.copy_in(file, offset, buffer)
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<FileId> {
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(invalid("create", name, "the length is no multiple of a block"));
        }
        if self.files.contains_key(name) {
            return Err(failed("create", name, io::Error::from_raw_os_error(libc::EEXIST)));
        }
        let file = (self.create)(name, bytes).map_err(|error| failed("create", name, error))?;
        self.map(name, file).inspect_err(|_| (self.remove)(name))?;
        Ok(self.insert(name))
    }

    /// Refused: whoever keeps the files knows them by name.
    fn rename(&mut self, from: &str, _to: &str) -> io::Result<()> {
        Err(failed("rename", from, io::Error::from_raw_os_error(libc::EOPNOTSUPP)))
    }

    fn sync(&mut self, file: FileId) -> io::Result<()> {
        self.name(file, "sync").map(|_| ())
    }

    fn free_bytes(&self) -> Option<u64> {
        self.free.as_ref().map(|free| free())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self, file: FileId) {
        self.open.remove(&file);
    }

    fn submit(&mut self, ticket: Ticket, operation: Operation) {
        let (result, buffer) = match operation {
            Operation::Write { file, offset, buffer, .. } => {
                (self.copy_in(file, offset, &buffer).map(|()| Done::Whole), Some(buffer))
            }
            Operation::Read { file, offset, mut buffer } => {
                (self.copy_out(file, offset, &mut buffer).map(|()| Done::Whole), Some(buffer))
            }
            Operation::Create { name, bytes } => {
                (self.create(&name, bytes).map(Done::Created), None)
            }
            Operation::Remove { file } => (self.delete(file).map(|()| Done::Whole), None),
        };
        self.completed.push(Completed { ticket, result, buffer });
    }

    fn flush(&mut self) {}

    fn reap(&mut self, completed: &mut Vec<Completed>) {
        completed.append(&mut self.completed);
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
