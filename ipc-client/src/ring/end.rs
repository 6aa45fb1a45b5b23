//! What the two kinds of rings do differently, and what both call a claim.

use super::error::{TryReceiveError, TrySendError};
use super::slots::Slots;

/// A stretch of slots that a handle owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Position of the first slot.
    pub(super) position: u64,
    /// Slots.
    pub(super) n: u32,
}

/// How one kind claims slots and makes messages visible.
pub(super) trait SendEnd {
    fn slots(&self) -> &Slots;
    /// A message longer than one cache line is about to be claimed.
    fn prepare_long(&self);
    /// Claims `n` slots, 1 to a quarter of the ring.
    fn claim(&mut self, n: u32) -> Result<Claim, TrySendError>;
    /// Publishes one message that lies within a claim; of a batch the first message comes last.
    fn publish(&mut self, position: u64, n: u32);
    /// All messages of the claim are published.
    fn finish(&mut self, claim: Claim);
    /// Gives a claim up.
    fn abandon(&mut self, claim: Claim);
    /// Position of the next claim.
    fn position(&self) -> u64;
}

/// How one kind takes messages and gives their slots back.
pub(super) trait ReceiveEnd {
    fn slots(&self) -> &Slots;
    /// Takes the next message; and whether a consumer that died may have seen it.
    fn take(&mut self) -> Result<(Claim, bool), TryReceiveError>;
    /// Whether a take would probably not answer `Empty`: a message, a tombstone to free, or a violation.
    fn has_message(&self) -> bool;
    /// The header of a taken message was found to be right.
    fn accept(&mut self, claim: Claim);
    /// Gives the slots of a message back.
    fn release(&mut self, claim: Claim);
    /// The header of a taken message violates an invariant.
    fn refuse(&mut self);
    /// Position of the next message.
    fn position(&self) -> u64;
}
