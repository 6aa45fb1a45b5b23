//! Processes as descriptors: pidfds, the broker as the keeper's child.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair};
use nix::sys::time::TimeVal;

/// Longest time the keeper tries to hand a message to its broker, in seconds.
const SEND_TIMEOUT_S: i64 = 5;

/// A descriptor of a process, by its pid. The caller makes sure that the pid is still the process it means.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = i32::try_from(result).map_err(io::Error::other)?;
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Whether the process of a pidfd has exited. When in doubt, it lives.
pub(super) fn has_exited(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(1..))
        && polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN))
}

/// Whether a process is stopped (SIGSTOP, a debugger): its state in `/proc/PID/stat`.
pub(super) fn is_stopped(pid: u32) -> bool {
    let Ok(text) = std::fs::read(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The state follows the command in parentheses, which may itself contain any byte.
    let Some(end) = text.iter().rposition(|byte| *byte == b')') else {
        return false;
    };
    matches!(text.get(end + 2), Some(b'T' | b't'))
}

/// A binary that is kept open: replacing or removing its file does not matter any more.
#[derive(Debug)]
pub(super) struct Binary {
    file: File,
    /// Its path when it was opened.
    pub(super) name: String,
}

impl Binary {
    /// The binary of this process.
    pub(super) fn own() -> io::Result<Self> {
        let name = std::fs::read_link("/proc/self/exe")?.display().to_string();
        Ok(Self { file: open_path(Path::new("/proc/self/exe"))?, name })
    }

    /// Another one. The error says what is wrong with it.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        if !path.is_absolute() {
            return Err(format!("{}: an absolute path is needed", path.display()));
        }
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let file = open_path(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            return Err(format!("{}: not an executable file", path.display()));
        }
        Ok(Self { file, name: path.display().to_string() })
    }

    /// What is at its path now: an installation puts a new file there. The old one if there is nothing to start.
    pub(super) fn renewed(&self) -> io::Result<Self> {
        Self::open(Path::new(&self.name)).or_else(|_| self.try_clone())
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, name: self.name.clone() })
    }
}

fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}

/// A broker and our end of its socket. Dropping it kills it.
#[derive(Debug)]
pub(super) struct BrokerProcess {
    child: Child,
    pidfd: OwnedFd,
    socket: OwnedFd,
}

impl BrokerProcess {
    /// Starts `ringmain broker`, with its end of the socket pair as its standard input.
    pub(super) fn spawn(binary: &Binary) -> io::Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&ours, SendTimeout, &TimeVal::new(SEND_TIMEOUT_S, 0))?;
        let mut child = Command::new(format!("/proc/self/fd/{}", binary.file.as_raw_fd()))
            .arg0("ringmain")
            .arg("broker")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        // Not reaped before `child` is waited for, so the pid is this process.
        match pidfd_open(child.id()) {
            Ok(pidfd) => Ok(Self { child, pidfd, socket: ours }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Reaps it, once its pidfd has said that it exited; says how it ended.
    pub(super) fn reap(mut self) -> String {
        match self.child.wait() {
            Ok(status) => match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => format!("exit code {}", status.code().unwrap_or(-1)),
            },
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_shows_and_a_stop_is_none() {
        let mut child = Command::new("/bin/sleep").arg("100").spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        assert!(!has_exited(pidfd.as_fd()));
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        while !is_stopped(child.id()) {
            std::thread::yield_now();
        }
        assert!(!has_exited(pidfd.as_fd()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_exited(pidfd.as_fd()));
        assert!(!is_stopped(std::process::id()));
    }

    #[test]
    fn wrong_binaries_are_told_apart() {
        let of = |path: &str| Binary::open(Path::new(path)).unwrap_err();
        assert!(of("bin/true").contains("absolute"));
        assert!(of("/no/such/file").contains("No such file"));
        assert!(of("/etc/passwd").contains("not an executable"));
        assert!(of("/tmp").contains("not an executable"));
    }
}
