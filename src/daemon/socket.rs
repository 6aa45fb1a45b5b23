//! The listening socket and what a killed daemon left in its place.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
};

use super::DaemonError;

/// How long a broker that outlived its keeper may take to leave.
const LEFTOVER: Duration = Duration::from_secs(3);

/// Connections that wait for the broker, for example while it is replaced.
const BACKLOG: i32 = 1024;

/// Creates the directory of the socket if it is missing: for others to pass, for us to write.
pub(super) fn prepare_directory(path: &Path) -> Result<(), DaemonError> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    match DirBuilder::new().mode(0o755).create(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DaemonError::Config(format!(
            "the folder of the socket {} cannot be made, the one above is missing: make it, or choose another path by --socket",
            path.display()
        ))),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(DaemonError::io(format_args!("directory {}", parent.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Checks the path before anything is touched.
pub(super) fn check_path(path: &Path) -> Result<UnixAddr, DaemonError> {
    let bytes = path.as_os_str().as_bytes();
    // An empty path or one with a zero byte would mean something else to the kernel.
    if bytes.is_empty() || bytes.contains(&0) {
        let text =
            format!("socket path {path:?}: name a file, for example /run/ringmain/ringmain.sock");
        return Err(DaemonError::Config(text));
    }
    UnixAddr::new(path).map_err(|_| {
        DaemonError::Config(format!(
            "socket path {} has {} bytes: Unix sockets allow at most 107; choose a shorter one",
            path.display(),
            bytes.len()
        ))
    })
}

/// Binds and listens. Only the holder of the lock may call this: it removes a socket that nobody listens on.
pub(super) fn listen_at(path: &Path) -> Result<OwnedFd, DaemonError> {
    let address = check_path(path)?;
    let failed =
        |errno: Errno| DaemonError::io(format_args!("socket {}", path.display()), &errno.into());
    remove_stale(path, &address)?;
    let listener = new_socket().map_err(failed)?;
    bind(listener.as_raw_fd(), &address).map_err(failed)?;
    // Everybody may ask; each queue has its own rights.
    std::fs::set_permissions(path, Permissions::from_mode(0o666))
        .map_err(|error| DaemonError::io(format_args!("socket {}", path.display()), &error))?;
    Backlog::new(BACKLOG).and_then(|backlog| listen(&listener, backlog)).map_err(failed)?;
    Ok(listener)
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

/// Removes the socket of a daemon that is gone. Whatever else lies there stays.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), DaemonError> {
    let failed =
        |error: &io::Error| DaemonError::io(format_args!("socket {}", path.display()), error);
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {}
        Ok(_) => {
            return Err(DaemonError::Config(format!(
                "{} exists and is no socket: remove it, or choose another socket path",
                path.display()
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(&error)),
    }
    // A broker leaves a moment after its keeper was killed; until then its socket still answers.
    let deadline = Instant::now() + LEFTOVER;
    loop {
        let probe = new_socket().map_err(|errno| failed(&errno.into()))?;
        match connect(probe.as_raw_fd(), address) {
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => break,
            // A listener of another type, or one whose backlog is full, is somebody all the same.
            Ok(()) | Err(Errno::EPROTOTYPE | Errno::EAGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(()) => {
                let pid = getsockopt(&probe, PeerCredentials)
                    .ok()
                    .and_then(|credentials| u32::try_from(credentials.pid()).ok())
                    .filter(|pid| *pid != 0);
                return Err(DaemonError::Held { what: format!("socket {}", path.display()), pid });
            }
            Err(Errno::EPROTOTYPE | Errno::EAGAIN) => {
                return Err(DaemonError::Held {
                    what: format!("socket {}", path.display()),
                    pid: None,
                });
            }
            Err(errno) => return Err(failed(&errno.into())),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_mean_something_else_are_refused() {
        for bad in ["", "a\0b", &"x".repeat(108)] {
            assert_eq!(check_path(Path::new(bad)).unwrap_err().exit_code(), 78, "{bad:?}");
        }
        assert!(check_path(Path::new(&"x".repeat(107))).is_ok());
    }
}
