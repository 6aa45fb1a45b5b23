//! Room by dropping the oldest messages. `docs/shared-memory.md`, "A full ring", has the rules and what each death leaves.
//!
//! A producer drops as a consumer takes and releases: the word goes from `Published` (or `Returned`) to `Held(me)`, the
//! head moves, the drop is counted, the slots are freed. So ownership and repair are those of a consumer.

use super::{Claim, Found, ProducerEnd, Ring, is_previous_lap};
use crate::layout::{State, Word, mpmc};
use crate::ring::error::{Fault, TrySendError};
use crate::sync::atomic::Ordering;
use crate::sync::canary::{Canary, planted};

/// How often others may claim the room that was made before the ring counts as full.
const DEFEATS_MAX: u32 = 64;

/// Whether a producer makes room itself, and whether it did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Dropping {
    on: bool,
    freed: bool,
}

/// What came of making room.
enum Room {
    /// The slots were free a moment ago, or somebody has claimed them: the claim tells.
    Likely,
    /// One of them has an owner.
    None,
}

/// Who decides over the slot that a claim needs.
enum Obstacle {
    /// It is free.
    Free,
    /// Somebody else has claimed it for this lap, or what was read is out of date.
    Claimed,
    /// The last lap left something there that may be dropped.
    Left(Word),
    /// It belongs to somebody.
    Owned,
}

impl ProducerEnd {
    /// From now on a claim that finds the ring full makes room.
    pub(in crate::ring) fn start_dropping(&mut self) {
        self.dropping = Dropping { on: true, freed: false };
    }

    /// No longer; whether slots were freed since, for which others may wait.
    pub(in crate::ring) fn stop_dropping(&mut self) -> bool {
        std::mem::take(&mut self.dropping).freed
    }

    /// After a claim that failed.
    #[cold]
    pub(super) fn not_claimed(
        &mut self,
        n: u32,
        error: TrySendError,
    ) -> Result<Claim, TrySendError> {
        let claimed = match error {
            TrySendError::Full if self.dropping.on => {
                self.ring.claim_dropping(n, self.owner, &mut self.dropping.freed)
            }
            TrySendError::Full => {
                self.stream.ended();
                Err(TrySendError::Full)
            }
            error => Err(error),
        };
        if let Err(TrySendError::Fault(_)) = claimed {
            self.ring.set_fault_flag();
        }
        claimed
    }
}

impl Ring {
    /// Messages that were dropped; a racy look.
    pub(in crate::ring) fn dropped(&self) -> u64 {
        // Relaxed: a counter; whoever finds the slots of a drop free finds it counted, see `discard`.
        self.field(mpmc::DROPPED).load(Ordering::Relaxed)
    }

    /// Claims `n` slots in which the last lap has left messages.
    fn claim_dropping(&self, n: u32, owner: u8, freed: &mut bool) -> Result<Claim, TrySendError> {
        for _ in 0..DEFEATS_MAX {
            // Acquire: partner of `advance`.
            let tail = self.tail().load(Ordering::Acquire);
            match self.make_room(tail, n, owner, freed)? {
                Room::None => break,
                Room::Likely => match self.claim(n, owner, false) {
                    Err(TrySendError::Full) => {}
                    claimed => return claimed,
                },
            }
        }
        Err(TrySendError::Full)
    }

    /// Frees the `n` slots from the tail on, if nobody owns one of them.
    fn make_room(&self, tail: u64, n: u32, owner: u8, freed: &mut bool) -> Result<Room, Fault> {
        let positions = || (0..u64::from(n)).map(|behind| tail.wrapping_add(behind));
        // First only a look: what lies in front of somebody's slot would be dropped in vain.
        if positions().any(|position| matches!(self.obstacle(position), Obstacle::Owned)) {
            return Ok(Room::None);
        }
        for position in positions() {
            // Whoever was faster has freed it, or claimed it: one more look is enough to know.
            for _ in 0..2 {
                match self.obstacle(position) {
                    Obstacle::Free => break,
                    Obstacle::Claimed => return Ok(Room::Likely),
                    Obstacle::Owned => return Ok(Room::None),
                    Obstacle::Left(word) => *freed |= self.drop_left(position, word, owner)?,
                }
            }
        }
        Ok(Room::Likely)
    }

    fn obstacle(&self, position: u64) -> Obstacle {
        let word = self.slots.load(position);
        if word == self.slots.free_word(position, 0) {
            return Obstacle::Free;
        }
        if !is_previous_lap(word, self.slots.lap(position)) {
            return Obstacle::Claimed;
        }
        match word.state() {
            Some(State::Writing | State::Held | State::Skipping) => Obstacle::Owned,
            // `Free` lies behind the first slot of a message, which comes before it and is dropped as a whole.
            _ => Obstacle::Left(word),
        }
    }

    /// Drops what the last lap has left in the slot of this position, unless somebody else is faster. Whether slots were freed.
    fn drop_left(&self, position: u64, word: Word, owner: u8) -> Result<bool, Fault> {
        let oldest = position.wrapping_sub(self.slots.geometry.slots());
        match word.state() {
            Some(State::Published) => {
                // Acquire: partner of `advance`. Only the message under the head may be taken.
                if self.head().load(Ordering::Acquire) != oldest {
                    return Ok(false);
                }
                let claim = Claim { position: oldest, n: self.slots.claim_length(oldest, word)? };
                if !self.slots.exchange(oldest, word, word.with(owner, State::Held)) {
                    return Ok(false);
                }
                self.advance(self.head(), claim);
                self.discard(claim);
                Ok(true)
            }
            Some(State::Returned) => {
                let claim = Claim { position: oldest, n: self.slots.claim_length(oldest, word)? };
                if !self.slots.exchange(oldest, word, word.with(owner, State::Held)) {
                    return Ok(false);
                }
                self.discard(claim);
                Ok(true)
            }
            Some(State::Tombstone) => {
                Ok(matches!(self.no_message_at_head(oldest, word, owner)?, Found::Freed))
            }
            _ => Ok(false),
        }
    }

    /// Counts a message that this handle holds as dropped, and frees its slots. In this order: whoever dies in between has
    /// counted one too many, never one too few.
    fn discard(&self, claim: Claim) {
        if !planted(Canary::DropWithoutCounting) {
            // Relaxed: the Release of `free` hands it on, to partner `Slot::load`.
            self.field(mpmc::DROPPED).fetch_add(1, Ordering::Relaxed);
        }
        self.slots.free(claim.position, claim.n);
    }
}
