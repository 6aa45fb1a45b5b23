//! Notices that the process is a forked child, at the price of one load.
//!
//! The kernel presents a page with `MADV_WIPEONFORK` as zeros to the child, whatever call created it. The page comes
//! from the allocator and is never freed: it holds one mark for the life of the process.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::layout::PAGE_BYTES;

const HERE: u32 = 1;

/// Remembers the process in which it was made.
#[derive(Debug, Clone, Copy)]
pub struct ForkMark {
    mark: NonNull<u32>,
}

// SAFETY: the mark points to a page that is never freed, and no thread writes to it after it was set.
unsafe impl Send for ForkMark {}
// SAFETY: as above, all access is reading.
unsafe impl Sync for ForkMark {}

impl ForkMark {
    /// The mark of this process.
    ///
    /// # Errors
    /// The kernel has no `MADV_WIPEONFORK` (before Linux 4.14), or the process is a forked child in which the mark
    /// cannot be set again.
    pub fn get() -> io::Result<Self> {
        static CURRENT: OnceLock<std::sync::Mutex<Option<ForkMark>>> = OnceLock::new();
        let current = CURRENT.get_or_init(|| std::sync::Mutex::new(None));
        // A child may inherit the lock in any state; it must not wait for a thread that does not exist here.
        let mut current = match current.try_lock() {
            Ok(current) => current,
            Err(_) => return Self::make(),
        };
        match *current {
            Some(mark) if !mark.is_forked() => Ok(mark),
            _ => {
                let mark = Self::make()?;
                *current = Some(mark);
                Ok(mark)
            }
        }
    }

    /// Whether this is a forked child of the process that made the mark.
    #[inline]
    #[must_use]
    pub fn is_forked(self) -> bool {
        // SAFETY: the page is never freed or unmapped. Volatile, because the kernel changes it behind the compiler's
        // back; no thread writes to it.
        unsafe { self.mark.as_ptr().read_volatile() != HERE }
    }

    fn make() -> io::Result<Self> {
        let layout = Layout::from_size_align(PAGE_BYTES, page_bytes())
            .map_err(io::Error::other)?
            .pad_to_align();
        // SAFETY: the layout has a size above zero.
        let page = unsafe { alloc_zeroed(layout) };
        let Some(mark) = NonNull::new(page.cast::<u32>()) else {
            handle_alloc_error(layout)
        };
        // SAFETY: the range is whole pages of the allocation above; the advice changes nothing in this process.
        let advised = unsafe { libc::madvise(page.cast(), layout.size(), libc::MADV_WIPEONFORK) };
        if advised != 0 {
            // The page stays allocated: an allocator may not get back what the kernel might wipe.
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the page is large enough, aligned, and still known to this thread alone.
        unsafe { mark.as_ptr().write_volatile(HERE) };
        Ok(Self { mark })
    }
}

fn page_bytes() -> usize {
    // SAFETY: sysconf takes no pointer.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| bytes.is_power_of_two())
        .unwrap_or(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_is_noticed() {
        let mark = ForkMark::get().expect("the kernel has MADV_WIPEONFORK");
        assert!(!mark.is_forked());
        // SAFETY: the child calls nothing that is not async-signal-safe: it reads one word and leaves.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: _exit runs no destructor of the parent's state.
            unsafe { libc::_exit(if mark.is_forked() { 42 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the child is ours and `status` is a valid place.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child);
        assert!(libc::WIFEXITED(status));
        assert_eq!(libc::WEXITSTATUS(status), 42);
        assert!(!mark.is_forked(), "the parent is not its child");
    }
}
