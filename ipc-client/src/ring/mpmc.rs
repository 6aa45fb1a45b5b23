//! The mpmc ring: a bounded queue whose every claim has an owner at every instant.
//!
//! Derived from D. Vyukov's bounded MPMC queue (a lap number in every slot), with the claim turned round: Vyukov moves
//! the tail and thereby owns a slot that says nothing about its owner; here the first slot's word is exchanged from
//! `Free` to `Writing` with the owner in it, and only then the tail is moved, by whoever comes first. What a dead
//! process owned can be read off the words.
//!
//! ```text
//! claim n slots at the tail t                     take the message at the head h
//!  1  t = tail                                     1  h = head, w = word[h]
//!  2  word[t] free in t's lap, and so are          2  w published in h's lap?
//!     the n - 1 behind it?                         3  word[h]: Published -> Held(me)
//!  3  word[t]: Free -> Writing(n, me)              4  head: h -> h + n
//!  4  tail: t -> t + n                             5  copy out
//!  5  write header and body                        6  words behind the first: free in the next lap
//!  6  word[t]: Writing -> Published                7  word[h]: free in the next lap
//! ```
//!
//! Invariants:
//! - **Boundary.** Head and tail only take values at which a claim starts. Step 3 can succeed only while the tail is t,
//!   because a claim at t leaves no free word in t's lap.
//! - **Order.** The tail passes a claim before the claim is published, the head before it is freed. So a word that is
//!   published (held, ...) in the lap of the tail, while the tail does not move, is a violation.
//! - **All or nothing.** The first word of a free stretch is freed last: who sees it free in lap L sees those behind it
//!   free in L, until they are claimed as part of a claim that starts at or before them.
//! - **Ownership.** A word in `Writing`, `Held` or `Skipping` is changed by its owner, or by the daemon once the owner's
//!   process is known to be dead. A word behind the first of a claim belongs to the owner of the first.

mod overflow;

use super::bias::Own;
use super::end::{Claim, ReceiveEnd, SendEnd};
use super::error::{Fault, Invariant, TryReceiveError, TrySendError};
use super::look::{Stream, end_look};
use super::region::Region;
use super::slots::Slots;
use crate::layout::{Geometry, State, Word, mpmc};
use crate::protocol::Role;
use crate::sync::atomic::{AtomicU64, Ordering, store_beside_exchanges};
use crate::sync::canary::{Canary, planted};

/// Attempts before an operation is taken for a victim of random writes rather than of contention. Each failed attempt
/// means that some other member completed a step, so honest members never come near it; tombstones that a consumer
/// frees are no failures.
const ATTEMPTS_MAX: u32 = 1 << 20;

/// How many slots ahead a biased producer asks for the lines that it will write.
const AHEAD: u64 = 8;

/// The shared state of one ring and the words of its slots. The region is at least as long as the header.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    ring: Region,
    pub(super) slots: Slots,
}

/// The sending end of one handle.
#[derive(Debug)]
pub(super) struct ProducerEnd {
    ring: Ring,
    owner: u8,
    bias: Own,
    stream: Stream,
    dropping: overflow::Dropping,
}

/// The receiving end of one handle.
#[derive(Debug)]
pub(super) struct ConsumerEnd {
    ring: Ring,
    owner: u8,
    bias: Own,
    /// Slot at which the search for messages of dead consumers goes on.
    scan_from: u64,
    stream: Stream,
}

impl ProducerEnd {
    pub(super) fn new(
        control: &Region,
        ring: &Region,
        geometry: Geometry,
        owner: u8,
    ) -> Result<Self, Fault> {
        Ok(Self {
            bias: Own::new(control, ring, Role::Produce, owner),
            ring: Ring::new(ring, geometry)?,
            owner,
            stream: Stream::new(geometry.slots()),
            dropping: overflow::Dropping::default(),
        })
    }

    /// As [`super::Producer::with_bias`].
    pub(super) fn allow_bias(&mut self) {
        self.bias.allow();
    }
}

impl SendEnd for ProducerEnd {
    #[inline(always)]
    fn slots(&self) -> &Slots {
        &self.ring.slots
    }

    /// The exchange of the word stops until its line is there; the second line is fetched meanwhile. A biased producer has asked for
    /// both before.
    #[inline(always)]
    fn prepare_long(&self) {
        if self.bias.is_granted() {
            return;
        }
        self.ring.slots.prefetch_second_line(self.ring.tail_position(), true);
    }

    #[inline(always)]
    fn claim(&mut self, n: u32) -> Result<Claim, TrySendError> {
        self.ring.refuse_faulty()?;
        let biased = self.bias.enter();
        let claimed = self.ring.claim(n, self.owner, biased);
        if biased {
            self.bias.leave();
        }
        match claimed {
            Err(error) => self.not_claimed(n, error),
            claimed => {
                self.stream.took(1);
                claimed
            }
        }
    }

    #[inline(always)]
    fn published(&self, position: u64, n: u32) -> Word {
        Word::new(self.ring.slots.lap(position), n, self.owner, State::Published)
    }

    #[inline(always)]
    fn finish(&mut self, _claim: Claim) {}

    fn abandon(&mut self, claim: Claim) {
        self.ring.bury(claim);
    }

    fn position(&self) -> u64 {
        self.ring.tail_position()
    }
}

impl ConsumerEnd {
    pub(super) fn new(
        control: &Region,
        ring: &Region,
        geometry: Geometry,
        owner: u8,
    ) -> Result<Self, Fault> {
        Ok(Self {
            bias: Own::new(control, ring, Role::Consume, owner),
            ring: Ring::new(ring, geometry)?,
            owner,
            scan_from: 0,
            stream: Stream::new(geometry.slots()),
        })
    }

    /// As [`super::Consumer::with_bias`].
    pub(super) fn allow_bias(&mut self) {
        self.bias.allow();
    }

    /// As [`Ring::dropped`].
    pub(super) fn dropped(&self) -> u64 {
        self.ring.dropped()
    }
}

impl ReceiveEnd for ConsumerEnd {
    #[inline(always)]
    fn slots(&self) -> &Slots {
        &self.ring.slots
    }

    #[inline(always)]
    fn take(&mut self) -> Result<(Claim, bool), TryReceiveError> {
        self.ring.refuse_faulty()?;
        let biased = self.bias.enter();
        let taken = self.ring.take(self.owner, &mut self.scan_from, biased);
        if biased {
            self.bias.leave();
        }
        match &taken {
            Ok(_) => self.stream.took(1),
            Err(TryReceiveError::Empty) => self.stream.ended(),
            Err(TryReceiveError::Fault(_)) => self.ring.set_fault_flag(),
            Err(TryReceiveError::Closed(_)) => {}
        }
        taken
    }

    fn has_message(&self) -> bool {
        self.ring.refuse_faulty().is_err() || self.ring.has_message()
    }

    fn set_busy(&mut self) {
        self.stream.set_busy();
    }

    #[inline(always)]
    fn accept(&mut self, _claim: Claim) {}

    #[inline(always)]
    fn release(&mut self, claim: Claim) {
        self.ring.slots.free(claim.position, claim.n);
    }

    fn refuse(&mut self) {
        self.ring.set_fault_flag();
    }

    fn position(&self) -> u64 {
        self.ring.head_position()
    }
}

/// What is found at the tail or the head.
enum Found {
    /// The claim can be attempted.
    Ready,
    /// Somebody else moved on, or was helped: look again.
    Again,
    /// A tombstone was freed: look again.
    Freed,
    /// Nothing to claim there now.
    Nothing,
}

impl Ring {
    pub(super) fn new(ring: &Region, geometry: Geometry) -> Result<Self, Fault> {
        Ok(Self { ring: ring.clone(), slots: Slots::new(ring.clone(), mpmc::SLOTS, geometry)? })
    }

    #[inline(always)]
    fn field(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the offsets of `layout::mpmc` are multiples of eight below `SLOTS`, and `new` found the region longer.
        unsafe { self.ring.u64_at_unchecked(offset) }
    }

    #[inline(always)]
    fn tail(&self) -> &AtomicU64 {
        self.field(mpmc::TAIL)
    }

    #[inline(always)]
    fn head(&self) -> &AtomicU64 {
        self.field(mpmc::HEAD)
    }

    /// A racy look at the position of the next claim.
    #[inline(always)]
    pub(super) fn tail_position(&self) -> u64 {
        self.tail().load(Ordering::Relaxed)
    }

    /// A racy look at the position of the next take.
    pub(super) fn head_position(&self) -> u64 {
        self.head().load(Ordering::Relaxed)
    }

    /// Refuses a ring in which a member saw a violation.
    #[inline(always)]
    fn refuse_faulty(&self) -> Result<(), Fault> {
        // Relaxed: a late view only delays the refusal.
        let value = self.field(mpmc::FAULT).load(Ordering::Relaxed);
        if value == 0 {
            return Ok(());
        }
        Err(Fault { invariant: Invariant::SeenByMember, position: 0, value })
    }

    /// Tells all members that this ring is broken.
    #[cold]
    fn set_fault_flag(&self) {
        self.field(mpmc::FAULT).store(1, Ordering::Relaxed);
    }

    /// Moves head or tail past a claim, unless somebody did already.
    #[inline(always)]
    fn advance(&self, end: &AtomicU64, claim: Claim) {
        // AcqRel: partner of the Acquire loads of head and tail; hands on the word's exchange that came before.
        // Failure, Relaxed: somebody helped; their exchange is as good.
        let next = claim.position.wrapping_add(u64::from(claim.n));
        let _ = end.compare_exchange(claim.position, next, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// What [`Self::advance`] does, by the handle that the side is biased towards, past its own claim: the others that may move
    /// this end move it past this claim, too, and no further.
    #[inline(always)]
    fn advance_alone(&self, end: &AtomicU64, claim: Claim) {
        // Release: as `advance`.
        let next = claim.position.wrapping_add(u64::from(claim.n));
        store_beside_exchanges(end, next, Ordering::Release);
    }

    /// Claims `n` slots (1 to a quarter of the ring) for writing. `biased`: no other producer claims meanwhile.
    #[inline(always)]
    fn claim(&self, n: u32, owner: u8, biased: bool) -> Result<Claim, TrySendError> {
        for _ in 0..ATTEMPTS_MAX {
            // Acquire: partner of `advance`.
            let tail = self.tail().load(Ordering::Acquire);
            let slot = self.slots.at(tail);
            let free = self.slots.free_word(tail, 0);
            let writing = Word::new(free.lap(), n, owner, State::Writing);
            let word = slot.load();
            let found = if word != free {
                self.not_free_at_tail(tail, word)?
            } else if n > 1 && !self.free_behind(tail, n) {
                self.nothing_or_stale(self.tail(), tail)
            } else {
                Found::Ready
            };
            match found {
                Found::Ready if biased => {
                    // Nobody else changes a word that is free.
                    slot.store(writing);
                    let claim = Claim { position: tail, n };
                    self.advance_alone(self.tail(), claim);
                    // No exchange waits until its line is there, so lines can be on their way while others are written.
                    self.slots.prefetch_two_lines(tail.wrapping_add(AHEAD));
                    return Ok(claim);
                }
                Found::Ready if slot.exchange(free, writing) => {
                    let claim = Claim { position: tail, n };
                    self.advance(self.tail(), claim);
                    return Ok(claim);
                }
                Found::Ready | Found::Again | Found::Freed => {}
                Found::Nothing => return Err(TrySendError::Full),
            }
        }
        Err(self.no_progress(self.tail_position()).into())
    }

    fn free_behind(&self, position: u64, n: u32) -> bool {
        (1..u64::from(n)).all(|behind| {
            let position = position.wrapping_add(behind);
            self.slots.load(position) == self.slots.free_word(position, 0)
        })
    }

    /// The word under the tail is not free: the ring is full, or the tail lags behind its claimer, who is helped.
    #[inline(never)]
    fn not_free_at_tail(&self, tail: u64, word: Word) -> Result<Found, Fault> {
        let lap = self.slots.lap(tail);
        if word.lap() == lap && word.state() == Some(State::Writing) {
            let n = self.slots.claim_length(tail, word)?;
            self.advance(self.tail(), Claim { position: tail, n });
            return Ok(Found::Again);
        }
        if is_previous_lap(word, lap) {
            return Ok(self.nothing_or_stale(self.tail(), tail));
        }
        // Order: whatever is beyond `Writing` has been passed by the tail, and the load of the word shows it.
        self.stale_or_fault(self.tail(), tail, word)
    }

    /// Turns a claim into something to be skipped. Only its owner, or the daemon after its death, may call this.
    pub(super) fn bury(&self, claim: Claim) {
        self.slots.reset_continuations(claim.position, claim.n);
        let lap = self.slots.lap(claim.position);
        self.slots.store(claim.position, Word::new(lap, claim.n, 0, State::Tombstone));
    }

    /// Takes the next message: one that a dead consumer left, else the one at the head. And whether it is the former.
    /// `biased`: nobody else takes meanwhile.
    #[inline(always)]
    fn take(
        &self,
        owner: u8,
        scan_from: &mut u64,
        biased: bool,
    ) -> Result<(Claim, bool), TryReceiveError> {
        // Acquire: partner of the Release in `hint_returned`.
        let hint = self.field(mpmc::RETURNED).load(Ordering::Acquire);
        if hint & 1 != 0
            && let Some(claim) = self.take_returned(owner, hint, scan_from)?
        {
            return Ok((claim, true));
        }
        let mut freed = false;
        for _ in 0..ATTEMPTS_MAX {
            // Acquire: partner of `advance`.
            let head = self.head().load(Ordering::Acquire);
            let slot = self.slots.at(head);
            let word = slot.load();
            let lap = self.slots.lap(head);
            // Nobody moves the head past a slot that nobody has claimed: no second look at it is needed.
            if word == Word::free(lap) {
                end_look();
                self.slots.prefetch_second_line(head, false);
                return Err(TryReceiveError::Empty);
            }
            if word.lap() != lap || !word.is(State::Published) {
                // As in the spsc ring: the second line is wanted as soon as it is written.
                self.slots.prefetch_second_line(head, false);
                match self.no_message_at_head(head, word, owner)? {
                    Found::Nothing => return Err(TryReceiveError::Empty),
                    Found::Ready | Found::Again => continue,
                    Found::Freed => {
                        freed = true;
                        continue;
                    }
                }
            }
            let claim = Claim { position: head, n: self.slots.claim_length(head, word)? };
            if planted(Canary::HeadBeforeUse) {
                self.advance(self.head(), claim);
            }
            if biased {
                // Nobody else changes a word that is published.
                slot.store(word.with(owner, State::Held));
                self.advance_alone(self.head(), claim);
                return Ok((claim, false));
            }
            if slot.exchange(word, word.with(owner, State::Held)) {
                self.advance(self.head(), claim);
                return Ok((claim, false));
            }
        }
        if freed {
            // Producers that give up as fast as this consumer frees: they break no rule, and there was no message.
            return Err(TryReceiveError::Empty);
        }
        Err(self.no_progress(self.head_position()).into())
    }

    /// The word under the head is no message: there is none, a tombstone is to be freed, or the head lags behind a
    /// consumer, who is helped.
    #[inline(never)]
    fn no_message_at_head(&self, head: u64, word: Word, owner: u8) -> Result<Found, Fault> {
        let lap = self.slots.lap(head);
        if word.lap() != lap {
            if is_previous_lap(word, lap) {
                return Ok(self.nothing_or_stale(self.head(), head));
            }
            return self.stale_or_fault(self.head(), head, word);
        }
        match word.state() {
            Some(State::Free | State::Writing) => Ok(self.nothing_or_stale(self.head(), head)),
            Some(State::Tombstone) => {
                let claim = Claim { position: head, n: self.slots.claim_length(head, word)? };
                if self.slots.exchange(head, word, word.with(owner, State::Skipping)) {
                    self.advance(self.head(), claim);
                    self.slots.free(claim.position, claim.n);
                    return Ok(Found::Freed);
                }
                Ok(Found::Again)
            }
            Some(State::Held | State::Returned | State::Skipping) => {
                let n = self.slots.claim_length(head, word)?;
                self.advance(self.head(), Claim { position: head, n });
                Ok(Found::Again)
            }
            Some(State::Published) => Ok(Found::Again),
            None => Err(Slots::word_fault(head, word, None)),
        }
    }

    /// Whether a take would find something to do. A head that has just moved counts as something.
    fn has_message(&self) -> bool {
        // Acquire: partner of the Release in `hint_returned`.
        if self.field(mpmc::RETURNED).load(Ordering::Acquire) & 1 != 0 {
            return true;
        }
        // Acquire: partner of `advance`.
        let head = self.head().load(Ordering::Acquire);
        let word = self.slots.load(head);
        let lap = self.slots.lap(head);
        let none = (word.lap() == lap && (word.is(State::Free) || word.is(State::Writing)))
            || is_previous_lap(word, lap);
        !none || matches!(self.nothing_or_stale(self.head(), head), Found::Again)
    }

    /// A word that stops the claim: final if the end still stands there.
    #[inline(always)]
    fn nothing_or_stale(&self, end: &AtomicU64, seen: u64) -> Found {
        // Acquire: partner of `advance`.
        if end.load(Ordering::Acquire) == seen { Found::Nothing } else { Found::Again }
    }

    /// A word that can only be there if the end has moved on.
    fn stale_or_fault(&self, end: &AtomicU64, seen: u64, word: Word) -> Result<Found, Fault> {
        // Acquire: partner of `advance`.
        if end.load(Ordering::Acquire) == seen {
            Err(Slots::word_fault(seen, word, word.state()))
        } else {
            Ok(Found::Again)
        }
    }

    #[cold]
    fn no_progress(&self, position: u64) -> Fault {
        Fault { invariant: Invariant::Progress, position, value: self.slots.load(position).0 }
    }

    /// Looks through all slots for a message that a dead consumer left, from where the last search ended. When there
    /// is none the hint is cleared, unless the daemon has set it anew meanwhile.
    #[cold]
    fn take_returned(
        &self,
        owner: u8,
        hint: u64,
        scan_from: &mut u64,
    ) -> Result<Option<Claim>, Fault> {
        let slots = self.slots.geometry.slots();
        for step in 0..slots {
            let index = (*scan_from + step) & (slots - 1);
            let word = self.slots.load(index);
            if word.state() != Some(State::Returned) {
                continue;
            }
            let n = self.slots.claim_length(index, word)?;
            if self.slots.exchange(index, word, word.with(owner, State::Held)) {
                *scan_from = index + 1;
                // Looked at only now: while this handle holds the slot the head cannot get more than a lap away from it.
                // Acquire: partner of `advance`.
                let head = self.head().load(Ordering::Acquire);
                return Ok(Some(Claim { position: self.position_of(index, word, head), n }));
            }
        }
        // AcqRel: partner of `hint_returned`. Failure: the daemon has counted on, the next take looks again.
        let _ = self.field(mpmc::RETURNED).compare_exchange(
            hint,
            hint & !1,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        Ok(None)
    }

    /// Position of the slot with this index and word, which lies within a lap of `near`.
    pub(super) fn position_of(&self, index: u64, word: Word, near: u64) -> u64 {
        let near_lap = self.slots.geometry.lap(near);
        let behind = near_lap.wrapping_sub(word.lap()) & Word::LAP_MASK;
        // The tail may be in the lap after the head's.
        let lap = if behind == Word::LAP_MASK {
            near_lap.wrapping_add(1)
        } else {
            near_lap.wrapping_sub(behind)
        };
        (lap << self.slots.geometry.slots().trailing_zeros()) | index
    }

    /// Tells consumers that slots behind the head hold messages. After those were set to `Returned`.
    pub(super) fn hint_returned(&self) {
        let word = self.field(mpmc::RETURNED);
        let mut hint = word.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS_MAX {
            // Release: partner of the Acquire in `take`.
            match word.compare_exchange(
                hint,
                (hint | 1).wrapping_add(2),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(current) => hint = current,
            }
        }
    }

    /// Completes a claim or a take that died between the exchange of the word and that of head or tail.
    pub(super) fn help_ends(&self) -> Result<(), Fault> {
        let tail = self.tail().load(Ordering::Acquire);
        let word = self.slots.load(tail);
        if word.lap() == self.slots.lap(tail) && word.state() == Some(State::Writing) {
            let n = self.slots.claim_length(tail, word)?;
            self.advance(self.tail(), Claim { position: tail, n });
        }
        let head = self.head().load(Ordering::Acquire);
        let word = self.slots.load(head);
        if word.lap() == self.slots.lap(head)
            && matches!(word.state(), Some(State::Held | State::Returned | State::Skipping))
        {
            let n = self.slots.claim_length(head, word)?;
            self.advance(self.head(), Claim { position: head, n });
        }
        Ok(())
    }
}

fn is_previous_lap(word: Word, lap: u64) -> bool {
    word.lap() == lap.wrapping_sub(1) & Word::LAP_MASK
}
