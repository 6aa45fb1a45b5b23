//! Claims without exchanges, for the handle that has one side of an mpmc ring to itself.
//!
//! An exchange of a word costs a locked instruction, which waits until all stores before it are done. It is needed where
//! several handles of one role compete for a word. While there is one, the daemon *biases* the side towards it, and it claims
//! with a load and a store of the same word; what it leaves in memory at each step is the same. The idea is that of biased
//! locking (Kawachiya, Koseki, Onodera, OOPSLA 2002), with a membarrier in the revocation as in Dice, Huang and Yang,
//! "Asymmetric Dekker Synchronization" (2001).
//!
//! ```text
//! biased handle                        daemon, before it gives out a second handle of the role
//!  1  bias names me?  no: exchange      a  bias: granted(h) -> revoked(h)
//!  2  inside = 1                        b  heavy barrier
//!  3  light barrier
//!  4  bias names me?  no: 6, exchange   the second handle, before its first claim
//!  5  claim by load and store           c  wait until inside of h is 0
//!  6  inside = 0        (Release)
//! ```
//!
//! The barrier of b forces a full fence on the processor that runs h, between its 2 and its 4, or outside of both. Either 4 comes
//! after it and sees the revocation, or 2 comes before it and c sees that h is inside; 6 then hands on what h has
//! claimed. A handle that stays inside was stopped or killed within some nanoseconds of its work: if it is dead, its repair clears
//! its line. Only a handle whose process takes part in the daemon's membarriers may use its bias; see `with_bias` of both ends.

use super::RingMemory;
use super::region::Region;
use crate::layout::{control, handle_line};
use crate::protocol::Role;
use crate::sync::atomic::{Ordering, compiler_fence};
use crate::sync::canary::{Canary, planted};

/// What a bias word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bias(u64);

impl Bias {
    fn load(page: &Region, role: Role) -> Self {
        // Acquire: partner of the Release in `store`.
        Self(page.u64_at(field(role)).load(Ordering::Acquire))
    }

    fn store(self, page: &Region, role: Role) {
        // Release: partner of the Acquire in `load` and `Own::is_granted`. What those who have left the side did comes before
        // whatever the handle does that has it now.
        page.u64_at(field(role)).store(self.0, Ordering::Release);
    }

    fn granted(self) -> Option<u8> {
        index(self.0)
    }

    fn revoked(self) -> Option<u8> {
        index(self.0 >> control::BIAS_REVOKED_SHIFT)
    }

    fn is_barred(self) -> bool {
        self.0 & control::BIAS_BARRED != 0
    }
}

#[allow(clippy::cast_possible_truncation)] // the low byte is meant
fn index(value: u64) -> Option<u8> {
    Some(value as u8).filter(|handle| *handle != 0)
}

const fn field(role: Role) -> usize {
    match role {
        Role::Produce => control::PRODUCER_BIAS,
        Role::Consume => control::CONSUMER_BIAS,
    }
}

/// No bias word has this value.
const NEVER: u64 = u64::MAX;

/// What one handle knows of the bias of its side.
#[derive(Debug, Clone)]
pub(super) struct Own {
    page: Region,
    field: usize,
    ring: Region,
    /// Offset of the flag in the handle's line.
    inside: usize,
    handle: u8,
    /// The value that names this handle, or [`NEVER`] if it may not use its bias.
    me: u64,
}

impl Own {
    /// Of a handle of an mpmc ring that may not use its bias yet.
    pub(super) fn new(control: &Region, ring: &Region, role: Role, handle: u8) -> Self {
        let line = crate::layout::mpmc::HANDLE_LINES + usize::from(handle) * handle_line::BYTES;
        assert!(control.len() >= control::BYTES && ring.len() >= crate::layout::mpmc::SLOTS);
        Self {
            page: control.clone(),
            field: field(role),
            ring: ring.clone(),
            inside: line + handle_line::INSIDE,
            handle,
            me: NEVER,
        }
    }

    pub(super) fn allow(&mut self) {
        self.me = u64::from(self.handle);
    }

    /// Whether the side is biased towards this handle now, and it may use that.
    #[inline(always)]
    pub(super) fn is_granted(&self) -> bool {
        // SAFETY: a multiple of eight within the control page, whose length `new` checked.
        let word = unsafe { self.page.u64_at_unchecked(self.field) };
        // Acquire: partner of `Bias::store`.
        word.load(Ordering::Acquire) == self.me
    }

    #[inline(always)]
    fn set_inside(&self, value: u64, order: Ordering) {
        // SAFETY: a multiple of eight within the handle lines, which end before the slots; `new` checked the length.
        unsafe { self.ring.u64_at_unchecked(self.inside) }.store(value, order);
    }

    /// Steps 1 to 4: whether the claim may be made by load and store. Then [`Self::leave`] has to follow.
    #[inline(always)]
    pub(super) fn enter(&self) -> bool {
        if !self.is_granted() {
            return false;
        }
        // Relaxed: ordered by the barriers.
        self.set_inside(1, Ordering::Relaxed);
        // The other half is the daemon's heavy barrier.
        compiler_fence(Ordering::SeqCst);
        if self.is_granted() || planted(Canary::BiasLookedAtOnce) {
            return true;
        }
        self.leave();
        false
    }

    /// Step 6.
    #[inline(always)]
    pub(super) fn leave(&self) {
        // Release: partner of the Acquire in `holdout`.
        self.set_inside(0, Ordering::Release);
    }
}

/// Biases a side towards a handle. The caller knows that no other handle of this role is attached or waits for its repair.
/// Nothing happens on an spsc ring, or if the side is barred.
pub fn grant(memory: &RingMemory, role: Role, handle: u8) {
    let page = memory.control();
    if matches!(memory, RingMemory::Mpmc { .. }) && !Bias::load(page, role).is_barred() {
        Bias(u64::from(handle)).store(page, role);
    }
}

/// Takes a bias back, if there is one, before another handle of the role is given out or the daemon takes messages itself.
/// Returns whether there may be a [`holdout`]: then the caller runs a heavy barrier, also when the bias was taken back by an
/// earlier call.
#[must_use]
pub fn revoke(memory: &RingMemory, role: Role) -> bool {
    let page = memory.control();
    let bias = Bias::load(page, role);
    if let Some(handle) = bias.granted() {
        let barred = bias.0 & control::BIAS_BARRED;
        Bias(u64::from(handle) << control::BIAS_REVOKED_SHIFT | barred).store(page, role);
        return true;
    }
    bias.revoked().is_some()
}

/// Takes out of the word what concerns a handle that is none of these: it was given back or repaired.
pub fn forget_others(memory: &RingMemory, role: Role, members: &[u8]) {
    let page = memory.control();
    let bias = Bias::load(page, role);
    let named = bias.granted().or_else(|| bias.revoked());
    if named.is_some_and(|handle| !members.contains(&handle)) {
        Bias(bias.0 & control::BIAS_BARRED).store(page, role);
    }
}

/// No handle of this role is granted a bias any more, for as long as the queue exists. After [`revoke`].
pub fn bar(memory: &RingMemory, role: Role) {
    let page = memory.control();
    let bias = Bias::load(page, role);
    Bias(bias.0 | control::BIAS_BARRED).store(page, role);
}

/// The handle that has lost its bias and has not noticed yet, being in the middle of a claim: nobody may claim on its side
/// until there is none.
#[must_use]
pub fn holdout(memory: &RingMemory, role: Role) -> Option<u8> {
    if planted(Canary::HoldoutIgnored) {
        return None;
    }
    let handle = Bias::load(memory.control(), role).revoked()?;
    memory.line(role, handle).inside().then_some(handle)
}

/// The handle that a side is biased towards; for people.
#[must_use]
pub fn granted(memory: &RingMemory, role: Role) -> Option<u8> {
    Bias::load(memory.control(), role).granted()
}
