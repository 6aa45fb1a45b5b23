//! Errors that name the call and the file and still know the kernel's number.

use std::error::Error;
use std::fmt;
use std::io;

#[derive(Debug)]
struct CallError {
    call: &'static str,
    file: String,
    source: io::Error,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.call, self.file, self.source)
    }
}

impl Error for CallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Puts call and file in front of an error.
pub(super) fn failed(call: &'static str, file: &str, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), CallError { call, file: file.to_owned(), source })
}

/// A request that no disk takes: its caller is wrong.
pub(super) fn invalid(call: &'static str, file: &str, what: &str) -> io::Error {
    failed(call, file, io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// The kernel's number of an error that a [`super::Disk`] returned; EIO where the kernel gave none, as for a short write.
#[must_use]
pub fn errno(error: &io::Error) -> i32 {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<CallError>());
    match (error.raw_os_error(), inner) {
        (Some(errno), _) => errno,
        (None, Some(inner)) => errno(&inner.source),
        (None, None) => match error.kind() {
            io::ErrorKind::InvalidInput => libc::EINVAL,
            io::ErrorKind::WouldBlock => libc::EWOULDBLOCK,
            io::ErrorKind::NotFound => libc::ENOENT,
            io::ErrorKind::AlreadyExists => libc::EEXIST,
            io::ErrorKind::StorageFull => libc::ENOSPC,
            _ => libc::EIO,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_survives_the_text() {
        let error = failed("write", "3.journal", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(errno(&error), libc::ENOSPC);
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("write 3.journal: No space left"), "{error}");
        assert_eq!(errno(&io::Error::from(io::ErrorKind::WriteZero)), libc::EIO);
        assert_eq!(errno(&invalid("read", "x", "offset is no multiple of a block")), libc::EINVAL);
    }
}
