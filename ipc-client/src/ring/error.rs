//! What a ring operation can answer besides success.

use core::fmt;

/// An invariant that a peer violated. The ring is no longer usable by its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which one.
    pub invariant: Invariant,
    /// Position (in slots since creation) at which it was seen.
    pub position: u64,
    /// The offending value as it was read.
    pub value: u64,
}

/// What must hold in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invariant {
    /// A word has one of the known states, and one that can occur where it was found.
    WordState,
    /// A word's lap is the one of the position or an earlier one.
    WordLap,
    /// A claim spans at least one slot and at most a quarter of the ring.
    ClaimLength,
    /// Metadata and payload fit the slots of their claim, and the payload is no longer than the queue allows.
    MessageLength,
    /// Head and tail lie at most one ring apart and never go back.
    Positions,
    /// An operation comes to an end because others make progress, not because they write at random.
    Progress,
    /// The memory is as long as the geometry says.
    RegionLength,
    /// Another member saw a violation and closed the ring.
    SeenByMember,
    /// A record of the daemon can be understood, and fits what it answers to.
    Record,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.invariant {
            Invariant::WordState => "impossible state in a slot's word",
            Invariant::WordLap => "a slot's word is ahead of its position",
            Invariant::ClaimLength => "impossible number of slots in a word",
            Invariant::MessageLength => "message lengths do not fit their slots",
            Invariant::Positions => "impossible head or tail",
            Invariant::Progress => "no progress: positions and words contradict each other",
            Invariant::RegionLength => "shared memory is shorter than the queue's geometry",
            Invariant::SeenByMember => "another member reported a violated invariant",
            Invariant::Record => "a record of the daemon is malformed or answers to nothing",
        };
        write!(f, "{what} (position {}, value {:#x})", self.position, self.value)
    }
}

impl std::error::Error for Fault {}

/// Why a queue takes or gives nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closed {
    /// The daemon stops: producers are refused, consumers have received everything that was left.
    Draining,
    /// The queue was deleted.
    Deleted,
    /// A member violated an invariant.
    Fault,
    /// The consumer's group was deleted.
    GroupDeleted,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Closed::Draining => "the daemon has stopped",
            Closed::Deleted => "the queue was deleted",
            Closed::GroupDeleted => "the group of this consumer was deleted",
            Closed::Fault => {
                "the queue was closed because one of its members violated an invariant"
            }
        })
    }
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrySendError {
    /// No room now.
    Full,
    /// No room ever again.
    Closed(Closed),
    /// Longer than the queue allows.
    TooLarge {
        /// Bytes, metadata included if that is what does not fit.
        length: usize,
        /// Bytes that are possible.
        max: usize,
    },
    /// A peer violated an invariant.
    Fault(Fault),
}

/// Why nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryReceiveError {
    /// Nothing there now.
    Empty,
    /// Nothing there, and nothing will come.
    Closed(Closed),
    /// A peer violated an invariant.
    Fault(Fault),
}

impl From<Fault> for TrySendError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Fault> for TryReceiveError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}
