//! The pace at which a consumer looks for a message.

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

/// So many messages without an empty look in between make a stream.
const STREAM_MESSAGES: u32 = 16;

/// How long a consumer leaves a stream alone that it has caught up with: 0.5 to 2 microseconds, by the processor.
const PAUSES: u32 = 48;

/// What a consumer has taken since it last found nothing.
///
/// A consumer that is faster than its producer catches up with it, and from then on each message or batch costs a whole round
/// trip of its line, because the consumer looks at it while it is being written. So whoever catches up with a stream
/// looks away for a moment, once, and finds several messages then. Who waits for single messages is not delayed, nor is who has
/// other rings to look at.
#[derive(Debug, Default)]
pub(super) struct Stream {
    taken: u32,
    /// There is other work to do.
    busy: bool,
}

impl Stream {
    /// So many messages were taken.
    #[inline(always)]
    pub(super) fn took(&mut self, messages: u32) {
        self.taken = self.taken.saturating_add(messages);
    }

    /// There is no message.
    #[inline(always)]
    pub(super) fn ended(&mut self) {
        if self.taken >= STREAM_MESSAGES && !self.busy {
            for _ in 0..PAUSES {
                core::hint::spin_loop();
            }
        }
        self.taken = 0;
    }

    /// From now on there is other work to do than to wait for this ring.
    pub(super) fn set_busy(&mut self) {
        self.busy = true;
    }
}
