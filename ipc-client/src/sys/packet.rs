//! Packets with descriptors over a Unix `SOCK_SEQPACKET` socket.
//!
//! Every descriptor that arrives is owned from the first moment and close-on-exec, so that nothing leaks on any path
//! out of here, whatever the peer sent.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Most descriptors of one packet.
pub const DESCRIPTORS_MAX: usize = 8;

/// The kernel's own limit (`SCM_MAX_FD`): with room for that many, a packet cannot hide descriptors from us.
const KERNEL_DESCRIPTORS_MAX: usize = 253;

/// Control bytes for [`KERNEL_DESCRIPTORS_MAX`] descriptors and for what a peer may add (credentials), in words so
/// that the buffer is aligned for `cmsghdr`.
const CONTROL_WORDS: usize = 160;

/// Whether a call waits for the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// Waits, as long as the socket's own time-out allows.
    Wait,
    /// Returns [`io::ErrorKind::WouldBlock`] instead.
    Return,
}

impl Blocking {
    fn flags(self) -> MsgFlags {
        match self {
            Self::Wait => MsgFlags::empty(),
            Self::Return => MsgFlags::MSG_DONTWAIT,
        }
    }
}

/// Why no packet came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The peer closed the connection (or sent an empty packet, which no peer of ours does).
    #[error("the peer closed the connection")]
    Closed,
    /// Nothing there, and the caller did not want to wait (or its time-out passed).
    #[error("no packet within the time-out")]
    WouldBlock,
    /// The packet is longer than the buffer.
    #[error("packet of {length} bytes: at most {max} are taken")]
    TooLong {
        /// Bytes in the packet.
        length: usize,
        /// Bytes in the buffer.
        max: usize,
    },
    /// More descriptors than [`DESCRIPTORS_MAX`]; all were closed.
    #[error("packet with {0} descriptors: at most {max} are taken", max = DESCRIPTORS_MAX)]
    TooManyDescriptors(usize),
    /// The kernel could not install all descriptors (usually `RLIMIT_NOFILE`); those that arrived were closed.
    #[error("descriptors of a packet were lost: raise the limit of open files (ulimit -n)")]
    DescriptorsLost,
    /// The operating system refused.
    #[error(transparent)]
    Io(io::Error),
}

/// A packet that came: its bytes lie in the caller's buffer.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the packet, from the start of the buffer.
    pub length: usize,
    /// What came along, at most [`DESCRIPTORS_MAX`].
    pub descriptors: Vec<OwnedFd>,
}

/// Sends one packet with its descriptors. It is delivered whole or not at all.
///
/// # Errors
/// `InvalidInput` for more than [`DESCRIPTORS_MAX`] descriptors, `WouldBlock`, `BrokenPipe` or what the kernel says.
pub fn send_packet(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    blocking: Blocking,
) -> io::Result<()> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | blocking.flags();
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(sent) => {
                let text = format!("{sent} of {} bytes were sent", bytes.len());
                return Err(io::Error::new(io::ErrorKind::WriteZero, text));
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Takes one packet into `buffer`.
///
/// # Errors
/// See [`ReceiveError`]; the packet is gone then, and its descriptors are closed.
pub fn receive_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    blocking: Blocking,
) -> Result<Received, ReceiveError> {
    let mut control = [0_u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data for which all zeros is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    // MSG_TRUNC: the return value is the packet's real length.
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC | blocking.flags().bits();
    let mut was_reset = false;
    let length = loop {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        // SAFETY: `header` points at `part` and `control`, both live and writable for the stated lengths, and `part`
        // at `buffer`, which is borrowed for the call.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        match Errno::result(result) {
            Ok(length) => break length.unsigned_abs(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(ReceiveError::WouldBlock),
            // The peer closed without reading all of ours. What it sent before, perhaps the reason, is still there.
            Err(Errno::ECONNRESET) if !was_reset => was_reset = true,
            Err(Errno::ECONNRESET) => return Err(ReceiveError::Closed),
            Err(errno) => return Err(ReceiveError::Io(errno.into())),
        }
    };
    // First of all own what came: every return from here on closes it.
    let descriptors = take_descriptors(&header);
    if length == 0 {
        return Err(ReceiveError::Closed);
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(ReceiveError::DescriptorsLost);
    }
    if header.msg_flags & libc::MSG_TRUNC != 0 || length > buffer.len() {
        return Err(ReceiveError::TooLong { length, max: buffer.len() });
    }
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(ReceiveError::TooManyDescriptors(descriptors.len()));
    }
    Ok(Received { length, descriptors })
}

/// Owns every descriptor in the control messages that `recvmsg` left in `header`.
fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: `header` was filled by a successful recvmsg: msg_control is valid for msg_controllen bytes.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header inside the control buffer.
        let (level, kind, length) =
            unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: takes no pointer, computes a size.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = length.saturating_sub(overhead) / size_of::<RawFd>();
            for index in 0..count.min(KERNEL_DESCRIPTORS_MAX) {
                // SAFETY: the kernel wrote `count` descriptors behind the header, inside the control buffer; they may
                // be unaligned. Each is new, open, and nobody else knows it.
                descriptors.push(unsafe {
                    let raw = libc::CMSG_DATA(message).cast::<RawFd>().add(index);
                    OwnedFd::from_raw_fd(raw.read_unaligned())
                });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `message` is the current header of the same buffer.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    descriptors
}

const _: () = {
    assert!(CONTROL_WORDS * 8 >= KERNEL_DESCRIPTORS_MAX * 4 + 64);
};

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn bytes_and_descriptors_arrive() {
        let (left, right) = pair();
        let file = File::open("/dev/null").unwrap();
        send_packet(left.as_fd(), b"hello", &[file.as_fd(), left.as_fd()], Blocking::Wait).unwrap();
        let mut buffer = [0; 16];
        let received = receive_packet(right.as_fd(), &mut buffer, Blocking::Wait).unwrap();
        assert_eq!(&buffer[..received.length], b"hello");
        assert_eq!(received.descriptors.len(), 2);
        let flags = nix::fcntl::fcntl(&received.descriptors[0], nix::fcntl::FcntlArg::F_GETFD);
        assert_eq!(flags.unwrap() & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }

    #[test]
    fn nothing_there_and_closed_are_told_apart() {
        let (left, right) = pair();
        let mut buffer = [0; 16];
        let empty = receive_packet(right.as_fd(), &mut buffer, Blocking::Return);
        assert!(matches!(empty, Err(ReceiveError::WouldBlock)), "{empty:?}");
        drop(left);
        let closed = receive_packet(right.as_fd(), &mut buffer, Blocking::Return);
        assert!(matches!(closed, Err(ReceiveError::Closed)), "{closed:?}");
        let broken = send_packet(right.as_fd(), b"x", &[], Blocking::Wait).unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn last_words_are_heard_although_the_peer_did_not_read() {
        let (left, right) = pair();
        send_packet(right.as_fd(), b"never read", &[], Blocking::Wait).unwrap();
        send_packet(left.as_fd(), b"go away", &[], Blocking::Wait).unwrap();
        drop(left);
        let mut buffer = [0; 16];
        let received = receive_packet(right.as_fd(), &mut buffer, Blocking::Wait).unwrap();
        assert_eq!(&buffer[..received.length], b"go away");
        let end = receive_packet(right.as_fd(), &mut buffer, Blocking::Wait);
        assert!(matches!(end, Err(ReceiveError::Closed)), "{end:?}");
    }

    #[test]
    fn a_long_packet_is_an_error_with_its_length() {
        let (left, right) = pair();
        send_packet(left.as_fd(), &[7; 100], &[], Blocking::Wait).unwrap();
        let mut buffer = [0; 16];
        let long = receive_packet(right.as_fd(), &mut buffer, Blocking::Wait);
        assert!(matches!(long, Err(ReceiveError::TooLong { length: 100, max: 16 })), "{long:?}");
    }

    #[test]
    fn too_many_descriptors_are_refused_on_both_sides() {
        let (left, right) = pair();
        let many = vec![left.as_fd(); DESCRIPTORS_MAX + 1];
        let refused = send_packet(left.as_fd(), b"x", &many, Blocking::Wait).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        // Past our own check: 200 descriptors in one packet.
        let raw = vec![left.as_raw_fd(); 200];
        let rights = [ControlMessage::ScmRights(&raw)];
        let bytes = [IoSlice::new(b"x")];
        sendmsg::<()>(left.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
        let mut buffer = [0; 16];
        let received = receive_packet(right.as_fd(), &mut buffer, Blocking::Wait);
        assert!(matches!(received, Err(ReceiveError::TooManyDescriptors(200))), "{received:?}");
        drop(received);
        // Other tests of this binary open a few descriptors at the same time, never two hundred.
        assert!(open_descriptors() < 150, "descriptors leaked");
    }
}
