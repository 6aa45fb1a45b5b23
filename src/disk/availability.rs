//! Whether io_uring may be used here, and what to do if not.

use std::fmt;
use std::io;

/// Whether this process may use io_uring as this file does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// It may.
    Allowed,
    /// The kernel has it; somebody forbids it.
    Denied {
        /// What the kernel said.
        errno: i32,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel does not have it, or not enough of it.
    NotSupported {
        /// What the kernel said.
        errno: i32,
    },
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = |errno: i32| io::Error::from_raw_os_error(errno);
        match self {
            Self::Allowed => f.write_str("io_uring is available"),
            Self::Denied { errno, remedy } => {
                write!(f, "io_uring is not allowed ({}): {remedy}", reason(*errno))
            }
            Self::NotSupported { errno } => write!(
                f,
                "io_uring is not supported ({}): it takes Linux 5.11 or later and no seccomp filter that hides it",
                reason(*errno)
            ),
        }
    }
}

/// What an error of the set-up means.
pub(super) fn classify(errno: i32) -> Availability {
    let remedy = match errno {
        libc::EPERM | libc::EACCES => {
            let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            match switch.as_deref().map(str::trim) {
                Ok("1") => {
                    "sysctl kernel.io_uring_disabled=0, or put this user into kernel.io_uring_group"
                }
                Ok("2") => "sysctl kernel.io_uring_disabled=0",
                _ => {
                    "a seccomp profile or a security module forbids it: allow io_uring_setup, io_uring_enter and io_uring_register"
                }
            }
        }
        libc::ENOMEM => "raise the limit of locked memory (ulimit -l)",
        libc::EMFILE => "raise the limit of open files (ulimit -n)",
        libc::ENFILE => "the host has no descriptor left: raise fs.file-max",
        _ => return Availability::NotSupported { errno },
    };
    Availability::Denied { errno, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        for errno in [libc::EPERM, libc::EACCES, libc::ENOMEM, libc::EMFILE, libc::ENFILE] {
            let denied = classify(errno);
            assert!(matches!(denied, Availability::Denied { .. }), "{denied}");
            assert!(
                denied.to_string().len() > 60 && !denied.to_string().contains('\n'),
                "{denied}"
            );
        }
        for errno in [libc::ENOSYS, libc::EINVAL, libc::EOPNOTSUPP] {
            assert_eq!(classify(errno), Availability::NotSupported { errno });
        }
        assert!(classify(libc::ENOSYS).to_string().contains("5.11"));
    }
}
