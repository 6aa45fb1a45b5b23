//! Sealed memfds: memory that exists from the start and that nobody can take away again.
//!
//! Size and seals are what a mapping relies on: with both verified, no access to it can end in SIGBUS.

use std::ffi::CString;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{SFlag, fstat};

/// Linux 6.3: never executable, and sealed so. Older kernels refuse it, which is not held against them.
const MFD_NOEXEC_SEAL: libc::c_uint = 8;

/// Why memory was not created or not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// There is not that much memory, or a limit on file sizes or memory stands in the way.
    #[error("{bytes} bytes of shared memory: {source}")]
    NoRoom {
        /// Asked for.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// No regular memory file.
    #[error("descriptor is no memory file")]
    Kind,
    /// Another size than agreed.
    #[error("memory file has {actual} bytes, {expected} were agreed")]
    Size {
        /// Agreed.
        expected: usize,
        /// Found.
        actual: i64,
    },
    /// It could shrink, grow or lose its seals.
    #[error("memory file is not sealed (seals {0:#x})")]
    Seals(i32),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// Which call.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn io_error(what: &'static str) -> impl Fn(Errno) -> MemoryError {
    move |errno| MemoryError::Io { what, source: errno.into() }
}

/// Seals without which nothing is mapped.
fn required_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// New zero-filled memory of this many bytes, all of it allocated, readable and writable through the descriptor and
/// sealed against every change of size. The name shows up in `/proc/PID/maps`; at most 200 bytes of it are used.
///
/// # Errors
/// [`MemoryError::NoRoom`] if the host or a limit does not allow it, else [`MemoryError::Io`].
pub fn create_sealed(name: &str, bytes: usize) -> Result<OwnedFd, MemoryError> {
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(200).collect();
    let name = CString::new(name)
        .map_err(|error| MemoryError::Io { what: "memfd_create", source: error.into() })?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let strict = flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL);
    let memory = match memfd_create(name.as_c_str(), strict) {
        Err(Errno::EINVAL) => memfd_create(name.as_c_str(), flags),
        result => result,
    }
    .map_err(io_error("memfd_create"))?;
    let memory = File::from(memory);
    memory
        .set_permissions(Permissions::from_mode(0o600))
        .map_err(|source| MemoryError::Io { what: "fchmod", source })?;
    let length = i64::try_from(bytes)
        .map_err(|_| MemoryError::NoRoom { bytes, source: Errno::EFBIG.into() })?;
    // One call sets the size and allocates every page, so that no later access can run out of memory.
    loop {
        match fallocate(&memory, FallocateFlags::empty(), 0, length) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(errno @ (Errno::ENOSPC | Errno::ENOMEM | Errno::EFBIG)) => {
                return Err(MemoryError::NoRoom { bytes, source: errno.into() });
            }
            Err(errno) => return Err(io_error("fallocate")(errno)),
        }
    }
    fcntl(&memory, FcntlArg::F_ADD_SEALS(required_seals())).map_err(io_error("F_ADD_SEALS"))?;
    Ok(memory.into())
}

/// The same memory through a descriptor that cannot write and cannot be mapped writable.
///
/// # Errors
/// [`MemoryError::Io`]; `/proc` must be mounted.
pub fn reopen_read_only(memory: BorrowedFd<'_>) -> Result<OwnedFd, MemoryError> {
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| MemoryError::Io { what: "open /proc/self/fd", source })?;
    Ok(file.into())
}

/// Checks that the memory has exactly this size and that nobody can change it.
///
/// # Errors
/// [`MemoryError::Kind`], [`MemoryError::Size`], [`MemoryError::Seals`].
pub fn verify_sealed(memory: BorrowedFd<'_>, bytes: usize) -> Result<(), MemoryError> {
    let status = fstat(memory.as_fd()).map_err(io_error("fstat"))?;
    if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(MemoryError::Kind);
    }
    if usize::try_from(status.st_size) != Ok(bytes) {
        return Err(MemoryError::Size { expected: bytes, actual: status.st_size });
    }
    // Only memory files have seals at all.
    let seals = fcntl(memory.as_fd(), FcntlArg::F_GET_SEALS).map_err(|_| MemoryError::Kind)?;
    if !SealFlag::from_bits_retain(seals).contains(required_seals()) {
        return Err(MemoryError::Seals(seals));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_memory_is_what_is_verified() {
        let memory = create_sealed("ringmain-test", 8192).unwrap();
        verify_sealed(memory.as_fd(), 8192).unwrap();
        let wrong = verify_sealed(memory.as_fd(), 4096);
        assert!(matches!(wrong, Err(MemoryError::Size { expected: 4096, actual: 8192 })));
        let file = File::from(memory.try_clone().unwrap());
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(16384).is_err());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let seal = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE);
        assert!(fcntl(&memory, seal).is_err());
        let read_only = reopen_read_only(memory.as_fd()).unwrap();
        verify_sealed(read_only.as_fd(), 8192).unwrap();
        assert!(nix::unistd::write(&read_only, b"x").is_err());
    }

    #[test]
    fn foreign_descriptors_are_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(verify_sealed(null.as_fd(), 0), Err(MemoryError::Kind)));
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(verify_sealed(file.as_fd(), 4096).is_err());
        let open =
            memfd_create("open", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&open, 4096).unwrap();
        assert!(matches!(verify_sealed(open.as_fd(), 4096), Err(MemoryError::Seals(0))));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let result = create_sealed("ringmain-test", usize::MAX);
        assert!(matches!(result, Err(MemoryError::NoRoom { .. })), "{result:?}");
    }
}
