//! `eventfd(2)`: the bridge from a doorbell to `poll`, `epoll` and async runtimes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A counter in the kernel that is readable while it is not zero. Never blocks.
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

    /// Takes a descriptor that came from another process. It is made non-blocking.
    ///
    /// # Errors
    /// The descriptor is no eventfd.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
        if name.to_str() != Some("anon_inode:[eventfd]") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptor is no eventfd"));
        }
        // SAFETY: fcntl with F_GETFL takes no pointer.
        let flags = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        if flags & libc::O_NONBLOCK == 0 {
            // SAFETY: fcntl with F_SETFL takes an integer.
            let set = unsafe {
                libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
            };
            if set != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(descriptor))
    }

    /// Makes it readable. A counter that is full is readable already, so nothing is lost.
    ///
    /// Everybody who has the descriptor can make it block again. So it is asked first whether it would: only an owner
    /// that fills the counter between the question and the write can still hold the caller up.
    pub fn signal(&self) {
        let mut room = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        if matches!(poll(&mut room, PollTimeout::ZERO), Ok(0)) {
            return;
        }
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

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
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

    #[test]
    fn an_owner_that_fills_its_counter_and_blocks_holds_nobody_up() {
        // SAFETY: eventfd takes no pointer.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        assert!(raw >= 0);
        // SAFETY: the descriptor was just created and belongs to nobody else.
        let owner = unsafe { OwnedFd::from_raw_fd(raw) };
        let eventfd = EventFd::from_descriptor(owner.try_clone().expect("dup")).expect("one");
        let full = (u64::MAX - 1).to_ne_bytes();
        assert_eq!(nix::unistd::write(&owner, &full), Ok(8));
        // SAFETY: fcntl with F_SETFL takes an integer.
        assert_eq!(unsafe { libc::fcntl(owner.as_raw_fd(), libc::F_SETFL, 0) }, 0);
        let (done, signalled) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            eventfd.signal();
            let _ = done.send(());
        });
        assert!(signalled.recv_timeout(std::time::Duration::from_secs(5)).is_ok());
    }

    #[test]
    fn only_an_eventfd_is_taken() {
        let file = std::fs::File::open("/dev/null").expect("it is always there");
        assert!(EventFd::from_descriptor(file.into()).is_err());
        let eventfd = EventFd::new().expect("a descriptor is left");
        assert!(EventFd::from_descriptor(eventfd.into()).is_ok());
    }
}
