//! A pair of datagram sockets as a signal: the bridge from a doorbell to `poll`, `epoll` and async runtimes.
//!
//! The owner keeps one end to itself, those who signal share the other. An eventfd would do but for one thing: it has a
//! single file description, so that anybody who has it can make it block and fill it, and hold up the next one who
//! writes or reads. Here every call says itself that it does not wait, and nobody but the owner has the end that is read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SockType as SockTypeOption;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, getsockname,
    getsockopt, recv, send, socketpair,
};

/// Most signals that one call takes: whoever signals without end does not keep the owner.
const DRAINED_MAX: usize = 1024;

/// The owner's end: readable while there is a signal.
#[derive(Debug)]
pub struct SignalReceiver(OwnedFd);

/// The end of those who signal. Never blocks, whatever others do with theirs.
#[derive(Debug)]
pub struct SignalSender(OwnedFd);

/// Both ends, closed on exec.
///
/// # Errors
/// The process or the host has no descriptor left.
pub fn signal_pair() -> io::Result<(SignalReceiver, SignalSender)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (own, shared) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags)?;
    Ok((SignalReceiver(own), SignalSender(shared)))
}

impl SignalReceiver {
    /// Takes the signals that are there; whether there was one.
    pub fn drain(&self) -> bool {
        let mut any = false;
        for _ in 0..DRAINED_MAX {
            match recv(self.0.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT) {
                Ok(_) => any = true,
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        any
    }
}

impl SignalSender {
    /// Takes a descriptor that came from another process.
    ///
    /// # Errors
    /// It is no datagram socket of this host.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let is_unix = getsockname::<SockaddrStorage>(descriptor.as_raw_fd())
            .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
        if !is_unix || getsockopt(&descriptor, SockTypeOption) != Ok(SockType::Datagram) {
            let text = "descriptor is no Unix datagram socket";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self(descriptor))
    }

    /// Makes the owner's end readable. One that is full is readable already, and one that is closed has nobody to wait.
    pub fn signal(&self) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(self.0.as_raw_fd(), &[1], flags);
    }
}

impl AsFd for SignalReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for SignalSender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<SignalSender> for OwnedFd {
    fn from(sender: SignalSender) -> Self {
        sender.0
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;

    fn pair() -> (SignalReceiver, SignalSender) {
        signal_pair().expect("descriptors are left")
    }

    #[test]
    fn a_signal_stays_until_it_is_drained() {
        let (own, shared) = pair();
        assert!(!own.drain());
        shared.signal();
        shared.signal();
        assert!(own.drain());
        assert!(!own.drain());
        drop(own);
        shared.signal();
    }

    /// Runs it in a thread of its own; whether it came to an end.
    fn ends(what: impl FnOnce() + Send + 'static) -> bool {
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            what();
            let _ = done.send(());
        });
        ended.recv_timeout(std::time::Duration::from_secs(5)).is_ok()
    }

    #[test]
    fn whoever_makes_it_block_holds_nobody_up() {
        let (own, shared) = pair();
        let descriptor = OwnedFd::from(shared);
        let hostile = descriptor.try_clone().expect("a descriptor is left");
        fcntl(&hostile, FcntlArg::F_SETFL(OFlag::empty())).expect("it is ours");
        let shared = SignalSender::from_descriptor(descriptor).expect("a datagram socket");
        // Many more than it holds.
        assert!(ends(move || (0..10_000).for_each(|_| shared.signal())));
        // Its other end stays as it was made, also when the shared one is shut down.
        shutdown(hostile.as_raw_fd(), Shutdown::Both).expect("it is connected");
        assert!(own.drain());
        assert!(ends(move || assert!(!own.drain())));
    }

    #[test]
    fn only_a_datagram_socket_is_taken() {
        let file = std::fs::File::open("/dev/null").expect("it is always there");
        assert!(SignalSender::from_descriptor(file.into()).is_err());
        let flags = SockFlag::SOCK_CLOEXEC;
        let (stream, _) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
            .expect("descriptors are left");
        assert!(SignalSender::from_descriptor(stream).is_err());
        let internet = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port is left");
        assert!(SignalSender::from_descriptor(internet.into()).is_err());
        assert!(SignalSender::from_descriptor(pair().1.into()).is_ok());
    }
}
