//! The pace at which an end of a ring looks for a message, or for room.

/// Ends a look that found nothing: no load of the next one starts before the loads of this one are done.
///
/// A processor that predicts more looks issues their loads ahead, and each of them pulls at the slot's line: also
/// between a producer's claim and its publication, which then has to get the line back. On x86-64 `lfence` stops that
/// for some nanoseconds; `pause` does as well, but is several times longer and delays the look that finds something.
#[inline(always)]
pub(super) fn end_look() {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: needs SSE2, which is part of x86-64; it touches no memory.
    unsafe {
        core::arch::x86_64::_mm_lfence();
    }
}

/// What a message counts against an empty look.
const WEIGHT: u32 = 2;

/// From this count on it is a stream: sixteen messages without an empty look in between, or more with some.
const STREAM: u32 = 16 * WEIGHT;

/// How long an end leaves the other one alone that it has caught up with: 1 to 2 microseconds, by the processor. Less on a
/// small ring, which would be empty, or full, before that is over.
const PAUSES_MAX: u64 = 48;

/// Slots of the ring for each pause.
const SLOTS_A_PAUSE: u64 = 16;

/// What an end has done lately, against the looks that found nothing to do.
///
/// A consumer that is faster than its producer catches up with it, and from then on each message or batch costs a whole round
/// trip of its line, because the consumer looks at it while it is being written. So whoever catches up with a stream
/// looks away for a moment, once, and finds several messages then. Who waits for single messages is not delayed, because it looks in
/// vain many times between two of them; nor is who has other rings to look at. The same holds for a producer that
/// finds the ring full, again and again, while the consumer reads what it wants to overwrite.
#[derive(Debug)]
pub(super) struct Stream {
    count: u32,
    /// 0: there is other work to do.
    pauses: u32,
}

impl Stream {
    /// On a ring of so many slots.
    #[allow(clippy::cast_possible_truncation)] // at most `PAUSES_MAX`
    pub(super) fn new(slots: u64) -> Self {
        Self { count: 0, pauses: (slots / SLOTS_A_PAUSE).min(PAUSES_MAX) as u32 }
    }

    /// So many messages were taken, or sent.
    #[inline(always)]
    pub(super) fn took(&mut self, messages: u32) {
        self.count = self.count.saturating_add(messages.saturating_mul(WEIGHT));
    }

    /// There is no message, or no room.
    #[inline(always)]
    pub(super) fn ended(&mut self) {
        if self.count < STREAM {
            self.count = self.count.saturating_sub(1);
            return;
        }
        for _ in 0..self.pauses {
            core::hint::spin_loop();
        }
        self.count = 0;
    }

    /// From now on there is other work to do than to wait for this ring.
    pub(super) fn set_busy(&mut self) {
        self.pauses = 0;
    }
}
