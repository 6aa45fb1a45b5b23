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
