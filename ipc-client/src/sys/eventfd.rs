//! `eventfd(2)`: a signal that `poll`, `epoll` and async runtimes can wait for, between the threads of one process or from a
//! client to its shard.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A counter in the kernel that is readable while it is not zero. Never blocks, as long as nobody who has it makes it
/// block: it stays in its process, or between a client and a shard, which neither reads nor writes it but watches it.
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

    /// Takes a descriptor that came from the daemon.
    ///
    /// # Errors
    /// The descriptor is no eventfd.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
        if name.to_str() != Some("anon_inode:[eventfd]") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptor is no eventfd"));
        }
        Ok(Self(descriptor))
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

impl From<EventFd> for OwnedFd {
    fn from(eventfd: EventFd) -> Self {
        eventfd.0
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
