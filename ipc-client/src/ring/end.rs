//! What the two kinds of rings do differently, and what both call a claim.

use super::consumer::Taken;
use super::error::{TryReceiveError, TrySendError};
use super::slots::Slots;
use crate::layout::Word;

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
    /// The word that publishes a message at this position, which lies within a claim; of a batch the first comes last.
    fn published(&self, position: u64, n: u32) -> Word;
    /// Another batch like this one will probably come soon.
    fn prepare_next(&self, _claim: Claim) {}
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
    /// Takes, shows and gives back messages as long as that goes quickly: at most `max` of them; how many.
    fn visit_quickly(&mut self, _max: usize, _show: &mut impl Show) -> usize {
        0
    }
    /// Whether a take would probably not answer `Empty`: a message, a tombstone to free, or a violation.
    fn has_message(&self) -> bool;
    /// Whoever takes has other rings to look at: no look may be longer than it takes.
    fn set_busy(&mut self);
    /// The header of a taken message was found to be right.
    fn accept(&mut self, claim: Claim);
    /// Gives the slots of a message back.
    fn release(&mut self, claim: Claim);
    /// The header of a taken message violates an invariant.
    fn refuse(&mut self);
    /// Position of the next message.
    fn position(&self) -> u64;
}

/// What happens to a message between its take and its release, and after.
pub(super) trait Show {
    /// The message can be read until this returns.
    fn show(&mut self, slots: &Slots, taken: &Taken);
    /// Whether the memory may still be touched.
    fn may_go_on(&self) -> bool;
    /// So many messages, with so many payload bytes together, were given back.
    fn given_back(&mut self, messages: u64, payload_bytes: u64);
}

/// Shows a message and then runs `release`, also when `show` panics.
#[inline(always)]
pub(super) fn show_once(show: &mut impl Show, slots: &Slots, taken: Taken, release: impl FnMut()) {
    let mut shown = Shown { show, taken, release };
    shown.show.show(slots, &shown.taken);
    shown.give_back();
    core::mem::forget(shown);
}

struct Shown<'a, S: Show, R: FnMut()> {
    show: &'a mut S,
    taken: Taken,
    release: R,
}

impl<S: Show, R: FnMut()> Shown<'_, S, R> {
    #[inline(always)]
    fn give_back(&mut self) {
        if self.show.may_go_on() {
            (self.release)();
            self.show.given_back(1, self.taken.length() as u64);
        }
    }
}

/// For panics alone.
impl<S: Show, R: FnMut()> Drop for Shown<'_, S, R> {
    fn drop(&mut self) {
        self.give_back();
    }
}
