//! The word in front of every slot.

use core::fmt;

/// What a slot is doing. Three bits of the [`Word`]; an unknown pattern is a fault, never an enum value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Free in this lap.
    Free = 0,
    /// Claimed by a producer (`owner`) that writes into it.
    Writing = 1,
    /// Holds a message.
    Published = 2,
    /// Claimed by a consumer (`owner`) that reads from it.
    Held = 3,
    /// Its consumer died: given out again before the head.
    Returned = 4,
    /// Its producer died or gave up: to be skipped.
    Tombstone = 5,
    /// A tombstone that a consumer (`owner`) is freeing.
    Skipping = 6,
}

/// {lap: 36, n: 17, owner: 8, state: 3} from the highest bit to the lowest.
///
/// `lap` is the position of the message divided by the number of slots, modulo 2^36: a stale reader would have to
/// sleep for 2^36 laps exactly to be fooled. `n` is the number of slots that the message (or, while `Writing`, the whole batch) spans.
/// Words behind the first slot of a message stay `Free` in their lap.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(pub u64);

impl Word {
    const OWNER_SHIFT: u32 = 3;
    const N_SHIFT: u32 = 11;
    const LAP_SHIFT: u32 = 28;
    /// Most slots that one claim can span.
    pub const N_MAX: u32 = (1 << (Self::LAP_SHIFT - Self::N_SHIFT)) - 1;
    /// Laps are counted modulo this value plus one.
    pub const LAP_MASK: u64 = (1 << (64 - Self::LAP_SHIFT)) - 1;

    /// Packs the four parts; `lap` is reduced, `n` must be at most [`Word::N_MAX`].
    #[inline]
    pub const fn new(lap: u64, n: u32, owner: u8, state: State) -> Self {
        debug_assert!(n <= Self::N_MAX);
        Self(
            ((lap & Self::LAP_MASK) << Self::LAP_SHIFT)
                | ((n as u64) << Self::N_SHIFT)
                | ((owner as u64) << Self::OWNER_SHIFT)
                | state as u64,
        )
    }

    /// A free slot in this lap.
    #[inline]
    pub const fn free(lap: u64) -> Self {
        Self::new(lap, 0, 0, State::Free)
    }

    /// Lap modulo 2^36.
    #[inline]
    pub const fn lap(self) -> u64 {
        self.0 >> Self::LAP_SHIFT
    }

    /// Slots that the claim spans.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // masked to 17 bits
    pub const fn n(self) -> u32 {
        (self.0 >> Self::N_SHIFT) as u32 & Self::N_MAX
    }

    /// Handle index of the owner.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the owner is these eight bits
    pub const fn owner(self) -> u8 {
        (self.0 >> Self::OWNER_SHIFT) as u8
    }

    /// State, or `None` for the pattern that none has.
    #[inline]
    pub const fn state(self) -> Option<State> {
        Some(match self.0 & 7 {
            0 => State::Free,
            1 => State::Writing,
            2 => State::Published,
            3 => State::Held,
            4 => State::Returned,
            5 => State::Tombstone,
            6 => State::Skipping,
            _ => return None,
        })
    }

    /// Whether it has this state.
    #[inline]
    pub const fn is(self, state: State) -> bool {
        self.0 & 7 == state as u64
    }

    /// The same lap and length with another owner and state.
    #[inline]
    pub const fn with(self, owner: u8, state: State) -> Self {
        Self::new(self.lap(), self.n(), owner, state)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{lap {} n {} owner {} {:?}}}", self.lap(), self.n(), self.owner(), self.state())
    }
}
