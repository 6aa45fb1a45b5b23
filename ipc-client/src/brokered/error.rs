//! What can become of a message that was sent, and of an acknowledgement.

use crate::ring::{Closed, Fault};

/// Why a message is not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfirmError {
    /// Not confirmed in time. It may be later: the receipt stays valid.
    #[error("not confirmed until the time-out")]
    Timeout,
    /// The journal failed. The message may or may not be there after a repair.
    #[error(
        "the journal failed (errno {errno}): the message may or may not be stored; check the disk, then restart the daemon"
    )]
    JournalFailed {
        /// What the disk said.
        errno: i32,
    },
    /// The queue was deleted before the message was stored.
    #[error("the queue was deleted")]
    QueueDeleted,
    /// The message is longer than a batch of the journal takes. It is not stored.
    #[error("the message is too long for the journal: at most {max} bytes are possible")]
    TooLarge {
        /// Bytes possible.
        max: u64,
    },
    /// The queue has reached its limit and rejects. The message is not stored.
    #[error("the queue has reached its limit: the message was rejected")]
    QueueFull,
    /// Somebody else has attached under the producer's name: this message and all later ones of this handle are not stored.
    #[error(
        "another producer has attached under this name: the message is not stored; only one at a time may use a name"
    )]
    Fenced,
    /// Transactions: a lease was over, so that its message is with somebody else or done with. Nothing of the transaction is done.
    #[error("a message of the transaction is not this consumer's any more: nothing of it is done")]
    LeaseLost,
    /// Transactions: a handle in it is not served together with the others. Nothing of the transaction is done.
    #[error("a handle of the transaction is gone or belongs elsewhere: nothing of it is done")]
    CrossShard,
    /// The daemon refused the message for another reason. It is not stored.
    #[error("the daemon rejected the message")]
    Rejected,
    /// Nothing will be confirmed any more: the queue was deleted or the daemon stopped. The message may or may not be stored.
    #[error("the queue is closed: {0}; the message may or may not be stored")]
    Closed(Closed),
    /// The daemon that had this handle is gone, and the one that answers now does not know it. The message may or may not be stored.
    #[error(
        "the daemon was started anew and does not know this handle: the message may or may not be stored; attach again"
    )]
    Lost,
    /// The daemon violated an invariant of the shared memory.
    #[error("the memory of this handle is damaged: {0}; attach again")]
    PeerFault(Fault),
    /// The receipt is not one of this producer.
    #[error("the receipt belongs to another producer")]
    ForeignReceipt,
    /// So much was confirmed since that the producer has forgotten what became of this message.
    #[error("the receipt is too old: what became of its message is forgotten")]
    Forgotten,
    /// The async runtime that watches this handle has stopped (async forms only).
    #[error("the async runtime of this handle has stopped")]
    RuntimeStopped,
    /// The handle was made in another process: a forked child connects anew.
    #[error("this handle was made before fork; a child process connects and attaches anew")]
    UsedAfterFork,
}

/// Why an acknowledgement, or one of its relatives, was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AckError {
    /// Not answered in time. It may still be carried out.
    #[error("not answered until the time-out")]
    Timeout,
    /// The lease is over: the message was given to another consumer, acknowledged or moved.
    #[error("the lease is over: the message was given to another consumer, acknowledged or moved")]
    LeaseLost,
    /// The journal failed: the message may be delivered again.
    #[error(
        "the journal failed (errno {errno}): the message may be delivered again; check the disk, then restart the daemon"
    )]
    JournalFailed {
        /// What the disk said.
        errno: i32,
    },
    /// The daemon refused the request.
    #[error("the daemon rejected the request")]
    Rejected,
    /// The message was only shown (`browse`): there is nothing to acknowledge.
    #[error("the message was only shown, not delivered: there is nothing to acknowledge")]
    NotLeased,
    /// The delivery is not one of this consumer.
    #[error("the delivery belongs to another consumer")]
    ForeignDelivery,
    /// Nothing is taken any more: the queue was deleted or the daemon stopped.
    #[error("the queue is closed: {0}")]
    Closed(Closed),
    /// The daemon that had this handle is gone, and the one that answers now does not know it.
    #[error("the daemon was started anew and does not know this handle; attach again")]
    Lost,
    /// The daemon violated an invariant of the shared memory.
    #[error("the memory of this handle is damaged: {0}; attach again")]
    PeerFault(Fault),
    /// The async runtime that watches this handle has stopped (async forms only).
    #[error("the async runtime of this handle has stopped")]
    RuntimeStopped,
    /// The handle was made in another process: a forked child connects anew.
    #[error("this handle was made before fork; a child process connects and attaches anew")]
    UsedAfterFork,
}
