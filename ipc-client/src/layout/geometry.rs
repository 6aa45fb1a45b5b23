//! Slots, slot size, longest message: the numbers that come with the handshake and live in private memory.

use super::{PAGE_BYTES, Word, mpmc, slot};
use crate::protocol::Kind;

/// Sizes of one queue, checked once and trusted from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    slots_log2: u32,
    slot_size: u32,
    max_message: u32,
    claim_slots_max: u32,
    /// Slots less one: reduces a position to a slot.
    slot_mask: u64,
}

/// Why a geometry was refused. The texts say what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// Slots out of bounds or no power of two.
    #[error("slots={0}: must be a power of two from {min} to {max}", min = Geometry::SLOTS_MIN, max = Geometry::SLOTS_MAX)]
    Slots(u32),
    /// Slot size out of bounds or no multiple of 16.
    #[error("slot-size={0}: must be a multiple of 16 from {min} to {max} bytes", min = Geometry::SLOT_SIZE_MIN, max = Geometry::SLOT_SIZE_MAX)]
    SlotSize(u32),
    /// The longest message does not fit a quarter of the ring.
    #[error(
        "max-message={max_message}: at most a quarter of the ring, {limit} bytes with slots={slots} and \
         slot-size={slot_size}; ask for more or larger slots"
    )]
    MaxMessage {
        /// Asked for.
        max_message: u32,
        /// Possible.
        limit: u32,
        /// Slots in the ring.
        slots: u32,
        /// Bytes per slot.
        slot_size: u32,
    },
    /// The whole ring is too large.
    #[error("slots={slots} x slot-size={slot_size}: a ring has at most {max} bytes", max = Geometry::RING_BYTES_MAX)]
    RingBytes {
        /// Slots in the ring.
        slots: u32,
        /// Bytes per slot.
        slot_size: u32,
    },
}

impl Geometry {
    /// Fewest slots.
    pub const SLOTS_MIN: u32 = 64;
    /// Most slots.
    pub const SLOTS_MAX: u32 = 1 << 19;
    /// Slots if nothing else is asked for.
    pub const SLOTS_DEFAULT: u32 = 4096;
    /// Smallest slot in bytes.
    pub const SLOT_SIZE_MIN: u32 = 64;
    /// Largest slot in bytes.
    pub const SLOT_SIZE_MAX: u32 = 1 << 20;
    /// Slot size if nothing else is asked for.
    pub const SLOT_SIZE_DEFAULT: u32 = 256;
    /// Longest message if nothing else is asked for and the ring is large enough.
    pub const MAX_MESSAGE_DEFAULT: u32 = 64 * 1024;
    /// Largest ring in bytes.
    pub const RING_BYTES_MAX: u64 = 1 << 32;

    /// Checks and keeps the sizes; `None` takes the default.
    pub fn new(
        slots: Option<u32>,
        slot_size: Option<u32>,
        max_message: Option<u32>,
    ) -> Result<Self, GeometryError> {
        let slots = slots.unwrap_or(Self::SLOTS_DEFAULT);
        let slot_size = slot_size.unwrap_or(Self::SLOT_SIZE_DEFAULT);
        if !slots.is_power_of_two() || !(Self::SLOTS_MIN..=Self::SLOTS_MAX).contains(&slots) {
            return Err(GeometryError::Slots(slots));
        }
        if !slot_size.is_multiple_of(16)
            || !(Self::SLOT_SIZE_MIN..=Self::SLOT_SIZE_MAX).contains(&slot_size)
        {
            return Err(GeometryError::SlotSize(slot_size));
        }
        if u64::from(slots) * u64::from(slot_size) > Self::RING_BYTES_MAX {
            return Err(GeometryError::RingBytes { slots, slot_size });
        }
        let slots_log2 = slots.trailing_zeros();
        let claim_slots_max = (slots / 4).min(Word::N_MAX);
        let slot_mask = u64::from(slots) - 1;
        let mut geometry =
            Self { slots_log2, slot_size, max_message: 0, claim_slots_max, slot_mask };
        let limit = geometry.body_bytes(geometry.claim_slots_max());
        let max_message = max_message.unwrap_or_else(|| Self::MAX_MESSAGE_DEFAULT.min(limit));
        if max_message > limit {
            return Err(GeometryError::MaxMessage { max_message, limit, slots, slot_size });
        }
        geometry.max_message = max_message;
        Ok(geometry)
    }

    /// A ring too small for a queue and small enough for a model checker, with one-line slots.
    #[cfg(loom)]
    pub fn for_models(slots_log2: u32, claim_slots_max: u32) -> Self {
        let slot_mask = (1 << slots_log2) - 1;
        Self { slots_log2, slot_size: 64, max_message: 1024, claim_slots_max, slot_mask }
    }

    /// Slots in the ring.
    #[inline]
    pub const fn slots(&self) -> u64 {
        self.slot_mask + 1
    }

    /// Bytes per slot.
    #[inline]
    pub const fn slot_size(&self) -> usize {
        self.slot_size as usize
    }

    /// Longest payload in bytes.
    #[inline]
    pub const fn max_message(&self) -> usize {
        self.max_message as usize
    }

    /// Most slots of one claim, a message or a batch: a quarter of the ring.
    #[inline]
    pub const fn claim_slots_max(&self) -> u32 {
        self.claim_slots_max
    }

    /// Lap of a position, not yet reduced to the bits of a word.
    #[inline]
    pub const fn lap(&self, position: u64) -> u64 {
        position >> self.slots_log2
    }

    /// Offset in bytes of a position's slot, counted from the first slot.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // below RING_BYTES_MAX, and usize has 64 bits on every target
    pub const fn slot_offset(&self, position: u64) -> usize {
        (position & self.slot_mask) as usize * self.slot_size as usize
    }

    /// Body bytes (metadata and payload) that fit the first slot.
    #[inline]
    pub const fn first_body_bytes(&self) -> usize {
        self.slot_size as usize - slot::BODY
    }

    /// Body bytes that fit each slot behind the first.
    #[inline]
    pub const fn next_body_bytes(&self) -> usize {
        self.slot_size as usize - slot::BODY_CONTINUED
    }

    /// Body bytes that fit `n` slots (n >= 1).
    #[allow(clippy::cast_possible_truncation)] // bounded by the branch
    pub const fn body_bytes(&self, n: u32) -> u32 {
        let bytes = self.first_body_bytes() as u64 + (n as u64 - 1) * self.next_body_bytes() as u64;
        if bytes > u32::MAX as u64 { u32::MAX } else { bytes as u32 }
    }

    /// Slots that a body of this many bytes needs; may exceed [`Self::claim_slots_max`].
    #[inline]
    pub const fn slots_for(&self, body_bytes: usize) -> u64 {
        if body_bytes <= self.first_body_bytes() {
            1
        } else {
            1 + (body_bytes - self.first_body_bytes()).div_ceil(self.next_body_bytes()) as u64
        }
    }

    /// Bytes of all slots.
    #[allow(clippy::cast_possible_truncation)] // below RING_BYTES_MAX, and usize has 64 bits on every target
    pub const fn slots_bytes(&self) -> usize {
        self.slots() as usize * self.slot_size as usize
    }

    /// Bytes of the memory that holds the slots, in whole pages: the `Slots` region of an spsc queue or the `Ring`
    /// region of an mpmc queue.
    pub const fn region_bytes(&self, kind: Kind) -> usize {
        let bytes = match kind {
            Kind::Spsc => self.slots_bytes(),
            Kind::Mpmc => mpmc::SLOTS + self.slots_bytes(),
        };
        bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
    }
}
