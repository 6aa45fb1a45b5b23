//! What can go wrong, by kind of operation.

use std::io;
use std::path::PathBuf;

use crate::protocol::ErrorCode;
use crate::ring::{Closed, Fault};

/// Why a request to the daemon, or a set-up step in this process, did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody answers at the socket. Rings that are attached already go on without the daemon.
    #[error("no daemon answers at {socket}: {source}; {advice}", socket = .socket.display(), advice = advice(.source))]
    Unavailable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The daemon understood the request and refused it.
    #[error("{message}")]
    Refused {
        /// For programs.
        code: ErrorCode,
        /// For people: one line that says what to do.
        message: String,
    },
    /// The daemon answered something that does not fit the request: another version, or not a ringmain daemon.
    #[error("unexpected answer of the daemon: {0}; are client and daemon of the same version?")]
    Protocol(String),
    /// The operating system refused something in this process.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The client was made in another process: a forked child connects anew.
    #[error("this client was made before fork; a child process connects anew")]
    UsedAfterFork,
    /// The shared memory of the queue contradicts its geometry or its invariants.
    #[error("queue memory is damaged: {0}; delete the queue and create it again")]
    PeerFault(#[from] Fault),
}

impl ClientError {
    /// The daemon's error code, if it refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// No such queue.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(ErrorCode::NotFound)
    }

    /// A queue of that name exists.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.code() == Some(ErrorCode::Exists)
    }

    /// A right is missing.
    #[must_use]
    pub fn is_not_permitted(&self) -> bool {
        self.code() == Some(ErrorCode::NotPermitted)
    }

    /// The other side of an spsc queue is taken, or the queue is in use.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.code() == Some(ErrorCode::Busy)
    }

    /// A limit of the user, of the queue or of the host stands in the way.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        self.code() == Some(ErrorCode::Limit)
    }

    /// No daemon answers.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// What to do when no daemon answers: one that is there and takes too long needs no other one beside it.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::TimedOut => {
            "it is there and busy, what was asked for may still happen: see `ringmain status` and its log"
        }
        _ => "start one with `ringmain serve`, or name its socket with RINGMAIN_SOCKET",
    }
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No room now (`try_` forms only).
    #[error("the queue is full")]
    Full,
    /// No room came free in time.
    #[error("the queue stayed full until the time-out")]
    Timeout,
    /// No room now, and the queue's rule is to refuse what has none (forms that wait, on a direct queue with `overflow=reject`).
    /// Nothing of the message or the batch is sent. A brokered queue tells it with the confirmation.
    #[error("the queue is full: the message was rejected")]
    QueueFull,
    /// No room ever again.
    #[error("the queue is closed: {0}")]
    Closed(Closed),
    /// The message, the batch or the reservation is longer than possible. A time-out does not help.
    #[error("{length} bytes are too long: at most {max} are possible")]
    TooLarge {
        /// Bytes asked for.
        length: usize,
        /// Bytes possible.
        max: usize,
    },
    /// The metadata cannot be encoded.
    #[error(
        "invalid metadata: header names have 1 to 255 bytes, a key and a header value at most 65,000"
    )]
    InvalidMetadata,
    /// The metadata has a TTL or a delay, and the queue is direct: it gives out what is there.
    #[error("a direct queue knows neither TTL nor delay; use a brokered queue")]
    TimesOnDirect,
    /// Another member of the queue violated an invariant; the queue is unusable.
    #[error("the queue is damaged: {0}")]
    PeerFault(Fault),
    /// The daemon that had this handle is gone, and the one that answers now does not know it (brokered queues only).
    #[error("the daemon was started anew and does not know this handle; attach again")]
    Lost,
    /// The journal failed: nothing more is stored (brokered queues only).
    #[error("the journal failed (errno {errno}): check the disk, then restart the daemon")]
    JournalFailed {
        /// What the disk said.
        errno: i32,
    },
    /// The async runtime that watches this handle has stopped (async forms only).
    #[error("the async runtime of this handle has stopped")]
    RuntimeStopped,
    /// The handle was made in another process: a forked child connects anew.
    #[error("this handle was made before fork; a child process connects and attaches anew")]
    UsedAfterFork,
    /// Somebody else has attached under the producer's name (named producers only).
    #[error("another producer has attached under this name; only one at a time may use a name")]
    Fenced,
}

/// Why nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Nothing there now (`try_` forms only).
    #[error("the queue is empty")]
    Empty,
    /// Nothing came in time.
    #[error("the queue stayed empty until the time-out")]
    Timeout,
    /// Nothing there, and nothing will come.
    #[error("the queue is closed: {0}")]
    Closed(Closed),
    /// Another member of the queue violated an invariant; the queue is unusable.
    #[error("the queue is damaged: {0}")]
    PeerFault(Fault),
    /// The daemon that had this handle is gone, and the one that answers now does not know it (brokered queues only).
    #[error("the daemon was started anew and does not know this handle; attach again")]
    Lost,
    /// The message that comes next cannot be read: the journal is damaged (durable queues only). Nobody in this consumer's group gets
    /// anything until the journal is repaired or the queue purged; until then this error comes again.
    #[error(
        "message {sequence} cannot be read, the journal is damaged there: its group gets nothing until 'ringmain journal repair' or a \
         purge; 'ringmain queue info' says where"
    )]
    Unreadable {
        /// Its sequence.
        sequence: u64,
    },
    /// The async runtime that watches this handle has stopped (async forms only).
    #[error("the async runtime of this handle has stopped")]
    RuntimeStopped,
    /// The handle was made in another process: a forked child connects anew.
    #[error("this handle was made before fork; a child process connects and attaches anew")]
    UsedAfterFork,
}

impl From<crate::ring::TrySendError> for SendError {
    fn from(error: crate::ring::TrySendError) -> Self {
        use crate::ring::TrySendError as Ring;
        match error {
            Ring::Full => Self::Full,
            Ring::Closed(closed) => Self::Closed(closed),
            Ring::TooLarge { length, max } => Self::TooLarge { length, max },
            Ring::Fault(fault) => Self::PeerFault(fault),
        }
    }
}

impl From<crate::ring::TryReceiveError> for ReceiveError {
    fn from(error: crate::ring::TryReceiveError) -> Self {
        use crate::ring::TryReceiveError as Ring;
        match error {
            Ring::Empty => Self::Empty,
            Ring::Closed(closed) => Self::Closed(closed),
            Ring::Fault(fault) => Self::PeerFault(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_busy_is_not_started_again() {
        let text = |kind: io::ErrorKind| {
            let (socket, source) = (PathBuf::from("/run/s"), kind.into());
            ClientError::Unavailable { socket, source }.to_string()
        };
        let absent = text(io::ErrorKind::NotFound);
        assert!(absent.contains("/run/s") && absent.contains("ringmain serve"), "{absent}");
        let busy = text(io::ErrorKind::TimedOut);
        assert!(busy.contains("ringmain status") && !busy.contains("ringmain serve"), "{busy}");
    }
}
