//! How a command ends: the exit codes that scripts rely on, and the one line on stderr that says what to do.

use std::fmt;
use std::io;
use std::path::Path;

use ringmain_client::raw::protocol::ErrorCode;
use ringmain_client::{ClientError, Closed, ReceiveError, SendError};
use serde::{Deserialize, Serialize};

/// Exit codes as of sysexits(3). 0 is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    /// The command line is wrong.
    Usage = 64,
    /// The input is bad, or what it names does not exist.
    Data = 65,
    /// No daemon answers.
    Unavailable = 69,
    /// A bug or a broken promise.
    Internal = 70,
    /// It exists already.
    Exists = 73,
    /// The operating system refused to read, write or map.
    Io = 74,
    /// A time-out, a limit that is reached, or somebody in the way: the same command may succeed later.
    Temporary = 75,
    /// A right is missing.
    NotPermitted = 77,
    /// What is asked for does not fit how the queue, the daemon or the host is set up.
    Config = 78,
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// One line for people, one code for scripts.
    Message {
        /// The code.
        exit: Exit,
        /// The line.
        message: String,
    },
    /// Nobody reads the output any more. Not an error, and nothing is printed.
    BrokenPipe,
    /// A signal asked the command to stop, and it has cleaned up. The process ends by that signal.
    Signal(i32),
}

/// What every step of a command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with this code and line. Line breaks become `; `.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let lines: Vec<&str> =
            message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Self::Message { exit, message: lines.join("; ") }
    }

    /// Wrong arguments.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something that cannot be.
    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        Self::new(Exit::Internal, message)
    }

    /// A failed operation on a file.
    pub(crate) fn file(path: &Path, doing: &str, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData => Exit::Data,
            io::ErrorKind::PermissionDenied => Exit::NotPermitted,
            _ => Exit::Io,
        };
        Self::new(exit, format_args!("cannot {doing} {}: {error}", path.display()))
    }

    /// A failed write to stdout.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::new(Exit::Io, format_args!("cannot write to stdout: {error}"))
        }
    }

    /// A failed system call that concerns no file of the user.
    pub(crate) fn system(doing: &str, error: impl fmt::Display) -> Self {
        Self::new(Exit::Io, format_args!("cannot {doing}: {error}"))
    }

    /// What the client library reports while it asks for something about this queue.
    pub(crate) fn queue(name: &str, error: ClientError) -> Self {
        match error {
            ClientError::Refused { code: ErrorCode::NotFound, .. } => Self::new(
                Exit::Data,
                format_args!(
                    "queue {name} does not exist; see 'ringmain queue list', or create it with \
                     'ringmain queue create {name}'"
                ),
            ),
            other => other.into(),
        }
    }

    /// What a send on this queue reports. Full and time-out are the caller's to explain.
    pub(crate) fn send(name: &str, error: &SendError) -> Self {
        match error {
            SendError::Closed(closed) => Self::closed(name, *closed),
            SendError::Full | SendError::Timeout => {
                Self::new(Exit::Temporary, format_args!("queue {name} is full"))
            }
            SendError::TooLarge { length, max } => Self::new(
                Exit::Data,
                format_args!("a message of {length} bytes: queue {name} takes at most {max}"),
            ),
            SendError::QueueFull => {
                Self::new(Exit::Temporary, format_args!("queue {name}: {error}"))
            }
            SendError::Lost => Self::new(Exit::Unavailable, format_args!("queue {name}: {error}")),
            SendError::Fenced => Self::new(Exit::Temporary, format_args!("queue {name}: {error}")),
            SendError::JournalFailed { .. } => {
                Self::new(Exit::Io, format_args!("queue {name}: {error}"))
            }
            other => Self::new(Exit::Data, format_args!("queue {name}: {other}")),
        }
    }

    /// What a receive on this queue reports.
    pub(crate) fn receive(name: &str, error: &ReceiveError) -> Self {
        match error {
            ReceiveError::Closed(closed) => Self::closed(name, *closed),
            ReceiveError::Empty | ReceiveError::Timeout => {
                Self::new(Exit::Temporary, format_args!("queue {name} is empty"))
            }
            ReceiveError::Lost => {
                Self::new(Exit::Unavailable, format_args!("queue {name}: {error}"))
            }
            other => Self::new(Exit::Data, format_args!("queue {name}: {other}")),
        }
    }

    fn closed(name: &str, closed: Closed) -> Self {
        match closed {
            Closed::Deleted => Self::new(Exit::Data, format_args!("queue {name} was deleted")),
            Closed::GroupDeleted => {
                Self::new(Exit::Data, format_args!("queue {name}: the group was deleted"))
            }
            Closed::Draining => Self::new(
                Exit::Unavailable,
                format_args!("queue {name} is being drained: the daemon stops"),
            ),
            Closed::Fault => Self::new(
                Exit::Data,
                format_args!(
                    "queue {name} was closed because a member damaged its memory; delete it and \
                     create it again"
                ),
            ),
            other => Self::new(Exit::Data, format_args!("queue {name} is closed: {other}")),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Io(source) if source.raw_os_error() == Some(libc::EMFILE) => {
                return Self::new(
                    Exit::Temporary,
                    format_args!("{source}: this process needs more descriptors (ulimit -n)"),
                );
            }
            ClientError::Unavailable { socket, source }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                let socket = socket.display();
                return Self::new(
                    Exit::NotPermitted,
                    format_args!(
                        "no right to connect to {socket}: {source}; its folder must let you in"
                    ),
                );
            }
            ClientError::Unavailable { .. } => Exit::Unavailable,
            ClientError::Refused { code, .. } => exit_of(*code),
            ClientError::Io(_) => Exit::Io,
            _ => Exit::Internal,
        };
        Self::new(exit, error)
    }
}

fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::Invalid => Exit::Usage,
        ErrorCode::Version => Exit::Config,
        ErrorCode::NotFound | ErrorCode::Closed => Exit::Data,
        ErrorCode::Exists => Exit::Exists,
        ErrorCode::NotPermitted => Exit::NotPermitted,
        ErrorCode::Limit | ErrorCode::Busy => Exit::Temporary,
        ErrorCode::Io => Exit::Io,
        ErrorCode::Internal => Exit::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        let Failure::Message { message, exit } = Failure::usage("first\n  second\n\nthird") else {
            panic!("no message");
        };
        assert_eq!((message.as_str(), exit as i32), ("first; second; third", 64));
    }

    #[test]
    fn broken_pipe_is_quiet() {
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(Failure::stdout(&error), Failure::BrokenPipe));
    }
}
