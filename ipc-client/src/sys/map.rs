//! The only file that maps memory.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// What the holder of a mapping may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A write is a fault of the processor: never hand out a path to one.
    ReadOnly,
    /// Both.
    ReadWrite,
}

/// When the pages get their entries in the page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Populate {
    /// At once: no page fault later, on a path that must be fast.
    Now,
    /// When they are touched: for the daemon, which maps every ring and touches few.
    OnTouch,
}

/// Shared memory in this address space until it is dropped. A forked child does not have it.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    access: Access,
}

// SAFETY: a mapping is an address range that belongs to the whole process; all access goes through atomics or volatile
// copies made by the rings, never through this type.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods only return copies of the fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a memory file whose size and seals were verified (see [`super::memory::verify_sealed`]).
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` for a length of zero.
    pub fn map(
        memory: BorrowedFd<'_>,
        len: usize,
        access: Access,
        populate: Populate,
    ) -> io::Result<Self> {
        let protection = match access {
            Access::ReadOnly => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        let flags = match populate {
            Populate::Now => MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
            Populate::OnTouch => MapFlags::MAP_SHARED,
        };
        let length = non_zero(len)?;
        // SAFETY: the kernel chooses a free range; nothing that exists is replaced.
        let base = unsafe { mmap(None, length, protection, flags, memory, 0) }?.cast();
        let mapping = Self { base, len, access };
        mapping.advise(MmapAdvise::MADV_DONTFORK)?;
        Ok(mapping)
    }

    /// Private zeroed memory of one page that reads as zeros again in a forked child.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wiped_on_fork() -> io::Result<Self> {
        let len = crate::layout::PAGE_BYTES;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses a free range; nothing that exists is replaced.
        let base =
            unsafe { mmap_anonymous(None, non_zero(len)?, protection, MapFlags::MAP_PRIVATE) }?
                .cast();
        let mapping = Self { base, len, access: Access::ReadWrite };
        mapping.advise(MmapAdvise::MADV_WIPEONFORK)?;
        Ok(mapping)
    }

    /// First byte; page-aligned, valid for [`Self::len`] bytes until `self` is dropped.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it may be written.
    #[inline]
    pub fn access(&self) -> Access {
        self.access
    }

    fn advise(&self, advice: MmapAdvise) -> io::Result<()> {
        // SAFETY: the range is the one this mapping owns; neither advice changes its contents in this process.
        unsafe { madvise(self.base.cast(), self.len, advice) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value and is unmapped once. In a forked child the range of a shared
        // mapping does not exist and unmapping nothing is allowed; whoever maps something else there in the child
        // must not drop the parent's mapping, which the handles see to.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

fn non_zero(len: usize) -> io::Result<NonZeroUsize> {
    NonZeroUsize::new(len).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sync::atomic::{AtomicU64, Ordering};
    use crate::sys::memory::{create_sealed, reopen_read_only};

    fn word(mapping: &Mapping, offset: usize) -> &AtomicU64 {
        assert!(offset + 8 <= mapping.len());
        // SAFETY: in bounds (checked), aligned (offsets are multiples of 8), alive as long as the mapping.
        unsafe { &*mapping.base().add(offset).cast::<AtomicU64>() }
    }

    #[test]
    fn two_mappings_see_the_same_memory() {
        let memory = create_sealed("ringmain-test", 8192).unwrap();
        let read_only = reopen_read_only(memory.as_fd()).unwrap();
        let writer = Mapping::map(memory.as_fd(), 8192, Access::ReadWrite, Populate::Now).unwrap();
        let reader =
            Mapping::map(read_only.as_fd(), 8192, Access::ReadOnly, Populate::OnTouch).unwrap();
        word(&writer, 4096).store(42, Ordering::SeqCst);
        assert_eq!(word(&reader, 4096).load(Ordering::SeqCst), 42);
        assert_eq!((reader.len(), reader.access()), (8192, Access::ReadOnly));
    }

    #[test]
    fn a_read_only_descriptor_cannot_be_mapped_writable() {
        let memory = create_sealed("ringmain-test", 4096).unwrap();
        let read_only = reopen_read_only(memory.as_fd()).unwrap();
        let refused = Mapping::map(read_only.as_fd(), 4096, Access::ReadWrite, Populate::Now);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let empty = Mapping::map(read_only.as_fd(), 0, Access::ReadOnly, Populate::Now);
        assert_eq!(empty.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_private_page_starts_with_zeros() {
        let page = Mapping::wiped_on_fork().unwrap();
        assert_eq!(word(&page, 0).load(Ordering::SeqCst), 0);
    }
}
