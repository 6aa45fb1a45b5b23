//! Sleeping until any of several eventfds is written to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use ringmain_client::sys::eventfd::EventFd;

use super::{Waker, error};

/// An epoll over a waker and the watched eventfds. All are edge-triggered and none is ever read: a write is an event, a counter that is not
/// zero is not.
#[derive(Debug)]
pub(super) struct Sleeper {
    epoll: Epoll,
    waker: Arc<EventFd>,
}

impl Sleeper {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let waker = Arc::new(EventFd::new()?);
        let sleeper = Self { epoll, waker };
        sleeper.watch(sleeper.waker.as_fd())?;
        Ok(sleeper)
    }

    pub(super) fn waker(&self) -> Waker {
        Waker::new(self.waker.clone())
    }

    pub(super) fn watch(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        self.epoll
            .add(eventfd, event)
            .map_err(|errno| error::failed("watch", "an eventfd", errno.into()))
    }

    pub(super) fn unwatch(&self, eventfd: BorrowedFd<'_>) {
        let _ = self.epoll.delete(eventfd);
    }

    /// Until an eventfd is written to or was since the last [`Self::drain`]; `None`: for ever. Drains.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut ready = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut ready, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(Errno::EINTR) => {
                self.drain();
                Ok(())
            }
            Err(errno) => Err(error::failed("wait for", "events", errno.into())),
        }
    }

    /// Takes the events so far: whoever comes after this ends the next wait. Whether there were any.
    pub(super) fn drain(&self) -> bool {
        let mut events = [EpollEvent::empty(); 32];
        let mut found = false;
        while let Ok(count) = self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            found |= count > 0;
            if count < events.len() {
                break;
            }
        }
        found
    }
}

impl AsFd for Sleeper {
    /// Readable while there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
