//! What the kernel and the limits of this process allow. Nothing here changes anything.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use ringmain::disk::{self, Availability};
use ringmain_client::raw::sys::{membarrier, memory};
use serde::Serialize;

use crate::cli::private::SOCKET_PATH_MAX;

/// All probes.
#[derive(Debug, Serialize)]
pub(super) struct Probes {
    pub(super) io_uring: IoUring,
    pub(super) membarrier: Membarrier,
    pub(super) processes: Processes,
    pub(super) memory_files: MemoryFiles,
    pub(super) memory: Memory,
    pub(super) socket: SocketPath,
}

/// Asynchronous I/O, for the journal of durable queues.
#[derive(Debug, Serialize)]
pub(super) struct IoUring {
    pub(super) available: bool,
    pub(super) detail: String,
}

/// The barrier that sleepers run for publishers.
#[derive(Debug, Serialize)]
pub(super) struct Membarrier {
    pub(super) global_expedited: bool,
}

/// How processes are told apart and their deaths seen.
#[derive(Debug, Serialize)]
pub(super) struct Processes {
    pub(super) pidfd: bool,
    pub(super) peer_pidfd: bool,
}

/// What rings are made of.
#[derive(Debug, Serialize)]
pub(super) struct MemoryFiles {
    pub(super) sealing: bool,
    pub(super) noexec_seal: bool,
}

/// Bytes; nothing where there is no limit.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) available_bytes: Option<u64>,
    pub(super) cgroup_max_bytes: Option<u64>,
    pub(super) memlock_soft_bytes: Option<u64>,
    memlock_hard_bytes: Option<u64>,
    pub(super) file_size_bytes: Option<u64>,
    address_space_bytes: Option<u64>,
}

/// Where the daemon listens.
#[derive(Debug, Serialize)]
pub(super) struct SocketPath {
    pub(super) path: String,
    pub(super) length: usize,
    pub(super) max: usize,
    pub(super) fits: bool,
}

impl Probes {
    pub(super) fn look(socket: &Path) -> Self {
        Self {
            io_uring: io_uring(),
            membarrier: Membarrier { global_expedited: membarrier::register() },
            processes: Processes { pidfd: pidfd(), peer_pidfd: peer_pidfd() },
            memory_files: MemoryFiles {
                sealing: memory::create_sealed("ringmain-doctor", 4096).is_ok(),
                noexec_seal: noexec_seal(),
            },
            memory: Memory::look(),
            socket: SocketPath {
                path: socket.display().to_string(),
                length: socket.as_os_str().len(),
                max: SOCKET_PATH_MAX,
                fits: socket.as_os_str().len() <= SOCKET_PATH_MAX,
            },
        }
    }
}

impl Membarrier {
    pub(super) fn problem(&self) -> &'static str {
        if self.global_expedited { "none" } else { "the kernel or a seccomp profile refuses it" }
    }
}

fn io_uring() -> IoUring {
    match disk::availability() {
        Availability::Allowed => IoUring { available: true, detail: "available".to_string() },
        refused => IoUring { available: false, detail: refused.to_string() },
    }
}

/// Takes over the descriptor that a system call returned, if it did.
fn own(result: libc::c_long) -> Option<OwnedFd> {
    let descriptor = i32::try_from(result).ok().filter(|descriptor| *descriptor >= 0)?;
    // SAFETY: the kernel has just made this descriptor for the caller; nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn pidfd() -> bool {
    // SAFETY: pidfd_open takes no pointer.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) }).is_some()
}

fn peer_pidfd() -> bool {
    /// Linux 6.5; the same number on x86-64 and aarch64.
    const SO_PEERPIDFD: libc::c_int = 77;
    let Ok((socket, _peer)) = UnixStream::pair() else {
        return false;
    };
    let mut descriptor: libc::c_int = -1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: `descriptor` is four writable bytes, as `length` says, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut descriptor).cast(),
            &raw mut length,
        )
    };
    result == 0 && own(descriptor.into()).is_some()
}

fn noexec_seal() -> bool {
    /// Linux 6.3.
    const MFD_NOEXEC_SEAL: libc::c_uint = 8;
    // SAFETY: the name is a string with its terminator and lives for ever.
    own(unsafe {
        libc::syscall(
            libc::SYS_memfd_create,
            c"ringmain-doctor".as_ptr(),
            libc::MFD_CLOEXEC | MFD_NOEXEC_SEAL,
        )
    })
    .is_some()
}

impl Memory {
    fn look() -> Self {
        let limit = |resource| {
            let (soft, hard) = getrlimit(resource).ok()?;
            let finite = |value: u64| Some(value).filter(|value| *value != libc::RLIM_INFINITY);
            Some((finite(soft), finite(hard)))
        };
        let soft = |resource| limit(resource).and_then(|(soft, _)| soft);
        Self {
            available_bytes: available(),
            cgroup_max_bytes: cgroup_max(),
            memlock_soft_bytes: soft(Resource::RLIMIT_MEMLOCK),
            memlock_hard_bytes: limit(Resource::RLIMIT_MEMLOCK).and_then(|(_, hard)| hard),
            file_size_bytes: soft(Resource::RLIMIT_FSIZE),
            address_space_bytes: soft(Resource::RLIMIT_AS),
        }
    }
}

fn available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The lowest limit from the own cgroup up to the root; version 2 only.
fn cgroup_max() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let folder = root.join(path);
    let limits = folder.ancestors().take_while(|folder| folder.starts_with(root));
    limits
        .filter_map(|folder| fs::read_to_string(folder.join("memory.max")).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_answer_whatever_the_host() {
        let long = "/".repeat(200);
        let probes = Probes::look(Path::new(&long));
        assert!(!probes.socket.fits);
        assert!(!probes.io_uring.detail.is_empty());
        assert!(probes.memory.available_bytes.is_some());
        assert!(Probes::look(Path::new("/run/x.sock")).socket.fits);
    }
}
