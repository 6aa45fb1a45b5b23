//! Notices that the process is a forked child, at the price of one load.
//!
//! The kernel presents a page with `MADV_WIPEONFORK` as zeros to the child, whatever call created it. It holds one mark
//! for the life of the process.

use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::map::Mapping;

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
        let page = Mapping::wiped_on_fork()?;
        let mark = NonNull::new(page.base().cast::<u32>())
            .ok_or_else(|| io::Error::other("page at address zero"))?;
        // The page stays for the life of the process.
        std::mem::forget(page);
        // SAFETY: the page is large enough, aligned, and still known to this thread alone.
        unsafe { mark.as_ptr().write_volatile(HERE) };
        Ok(Self { mark })
    }
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
