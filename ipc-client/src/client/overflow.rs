//! What a producer does that finds its ring full, by the rule of the queue. Nothing here is touched while there is room.

use super::attachment::Attachment;
use crate::protocol::Overflow;
use crate::ring::{self, TrySendError};

/// Why nothing was sent, and waiting is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// The ring is full and its rule is to reject.
    Rejected,
    /// The daemon does not know this handle any more.
    Lost,
    /// As the ring says.
    Ring(TrySendError),
}

/// Attempts to send. `None`: there is no room, and the rule is to wait for it.
pub(crate) fn look<T>(
    ring: &mut ring::Producer,
    attachment: &mut Attachment,
    mut attempt: impl FnMut(&mut ring::Producer) -> Result<T, TrySendError>,
) -> Option<Result<T, NotSent>> {
    match attempt(ring) {
        Err(TrySendError::Full) => by_rule(ring, attachment, attempt),
        result => Some(result.map_err(NotSent::Ring)),
    }
}

/// After an attempt that found the ring full; as [`look`].
pub(super) fn by_rule<T>(
    ring: &mut ring::Producer,
    attachment: &mut Attachment,
    attempt: impl FnMut(&mut ring::Producer) -> Result<T, TrySendError>,
) -> Option<Result<T, NotSent>> {
    match ring.overflow() {
        Overflow::Block => None,
        Overflow::Reject => Some(Err(NotSent::Rejected)),
        Overflow::DropOldest => drop_oldest(ring, attachment, attempt),
    }
}

/// A producer that drops never waits, so this is where it notices that its daemon is gone.
fn drop_oldest<T>(
    ring: &mut ring::Producer,
    attachment: &mut Attachment,
    attempt: impl FnMut(&mut ring::Producer) -> Result<T, TrySendError>,
) -> Option<Result<T, NotSent>> {
    if attachment.keep_house_rarely() {
        return Some(Err(NotSent::Lost));
    }
    let (result, freed) = ring.dropping(attempt);
    if freed {
        // As a consumer that releases: others may wait for more than this one took.
        attachment.wake_peers(ring.own_park(), u32::MAX);
    }
    match result {
        Err(TrySendError::Full) => None,
        result => Some(result.map_err(NotSent::Ring)),
    }
}
