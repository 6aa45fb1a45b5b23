//! Who is at the other end of a connection: user, groups, and the process as a pidfd.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use nix::sys::statfs::fstatfs;

use super::process::{has_exited, pidfd_open};

/// Type of the file system of pidfds since Linux 6.9, where each process has its own inode.
const PIDFS_MAGIC: i64 = 0x5049_4446;

/// More supplementary groups than this are not looked at.
const GROUPS_MAX: usize = 1024;

/// A user, as the kernel vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

impl Credentials {
    pub(super) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// The process that made a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) user: Credentials,
    /// In the daemon's pid namespace; 0 if it cannot be seen from there.
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
}

/// Why a peer is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// Nobody to tell.
    #[error("the peer is gone")]
    Gone,
    #[error(
        "your process is in another pid namespace, and this kernel has no SO_PEERPIDFD (Linux 6.5) to identify it: \
         run it in the daemon's pid namespace"
    )]
    ForeignNamespace,
    #[error("your process cannot be identified: {0}")]
    Io(#[from] io::Error),
}

impl Peer {
    /// Asks the kernel. `without_peer_pidfd` takes the way of kernels before 6.5.
    pub(super) fn of(socket: BorrowedFd<'_>, without_peer_pidfd: bool) -> Result<Self, PeerError> {
        let credentials = getsockopt(&socket, PeerCredentials).map_err(io::Error::from)?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        let user = Credentials {
            uid: credentials.uid(),
            gid: credentials.gid(),
            groups: peer_groups(socket)?,
        };
        let direct = if without_peer_pidfd {
            Err(Errno::ENOPROTOOPT)
        } else {
            getsockopt(&socket, PeerPidfd)
        };
        let pidfd = match direct {
            Ok(pidfd) => pidfd,
            Err(Errno::ENOPROTOOPT) => pidfd_by_pid(socket, pid, user.uid)?,
            // The process was reaped before we asked.
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => return Err(PeerError::Gone),
            Err(errno) => return Err(PeerError::Io(errno.into())),
        };
        Ok(Self { user, pid, pidfd })
    }
}

/// Before Linux 6.5: opens the pid, then makes sure that it still means the peer.
fn pidfd_by_pid(socket: BorrowedFd<'_>, pid: u32, uid: u32) -> Result<OwnedFd, PeerError> {
    if pid == 0 {
        return Err(PeerError::ForeignNamespace);
    }
    let pidfd = pidfd_open(pid).map_err(|_| PeerError::Gone)?;
    // A process that died before the pid was opened has closed its socket; one that got the same pid since then would
    // have to be of the same user and we would have to see the socket still open in somebody else's hands.
    let hung_up = {
        let mut polled = [PollFd::new(socket, PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).map_err(io::Error::from)? > 0
            && polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    };
    let owner = std::fs::metadata(format!("/proc/{pid}")).map(|metadata| metadata.uid());
    // The directory of a process that is not dumpable belongs to root.
    let same_user = matches!(owner, Ok(owner) if owner == uid || owner == 0);
    if hung_up || !same_user || has_exited(pidfd.as_fd()) {
        return Err(PeerError::Gone);
    }
    Ok(pidfd)
}

fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(0);
        // SAFETY: the buffer is valid for `bytes` bytes and the kernel writes at most that many.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<u32>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(Errno::ERANGE) if count > groups.len() && count <= GROUPS_MAX => {
                groups.resize(count, 0);
            }
            // No supplementary groups as far as rights go: less is granted, never more.
            Err(Errno::ENOPROTOOPT | Errno::ERANGE | Errno::ENODATA) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a new peer is the process of an older pidfd that is known to be alive by now.
pub(super) fn is_same_process(known_pid: u32, known: BorrowedFd<'_>, peer: &Peer) -> bool {
    if has_exited(known) {
        return false;
    }
    if known_pid != 0 || peer.pid != 0 {
        // The known process lives, so its pid cannot belong to anybody else.
        return known_pid == peer.pid;
    }
    // Neither is visible by pid: pidfs gives each process an inode of its own.
    match (pidfs_inode(known), pidfs_inode(peer.pidfd.as_fd())) {
        (Some(known), Some(new)) => known == new,
        _ => false,
    }
}

fn pidfs_inode(pidfd: BorrowedFd<'_>) -> Option<u64> {
    let status = fstatfs(pidfd).ok()?;
    if status.filesystem_type().0 != PIDFS_MAGIC {
        return None;
    }
    nix::sys::stat::fstat(pidfd).ok().map(|status| status.st_ino)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn both_ways_find_this_process() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (left, _right) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let old_way = Peer::of(left.as_fd(), true).unwrap();
        assert_eq!(old_way.pid, std::process::id());
        assert_eq!(old_way.user.uid, nix::unistd::getuid().as_raw());
        let new_way = Peer::of(left.as_fd(), false).unwrap();
        assert_eq!((new_way.pid, &new_way.user), (old_way.pid, &old_way.user));
        assert!(is_same_process(old_way.pid, old_way.pidfd.as_fd(), &new_way));
    }

    #[test]
    fn a_dead_process_is_nobody() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let (left, _right) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let mut peer = Peer::of(left.as_fd(), true).unwrap();
        peer.pid = pid;
        assert!(!is_same_process(pid, pidfd.as_fd(), &peer));
    }
}
