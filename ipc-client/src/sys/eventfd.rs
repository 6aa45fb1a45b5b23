//! `eventfd(2)`: a signal between the threads of one process that `poll`, `epoll` and async runtimes can wait for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A counter in the kernel that is readable while it is not zero. Never blocks, as long as it stays in its process:
/// whoever else had it could make it block.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, at zero, closed on exec.
    ///
    /// # Errors
    /// The process or the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointer.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Makes it readable. A counter that is full is readable already, so nothing is lost.
    pub fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the buffer is valid for eight bytes during the call.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Sets it back to zero; whether it was readable.
    pub fn drain(&self) -> bool {
        let mut count = [0_u8; 8];
        // SAFETY: the buffer is valid for eight bytes during the call.
        let read =
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        read == 8
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_stays_until_it_is_drained() {
        let eventfd = EventFd::new().expect("a descriptor is left");
        assert!(!eventfd.drain());
        eventfd.signal();
        eventfd.signal();
        assert!(eventfd.drain());
        assert!(!eventfd.drain());
    }
}
