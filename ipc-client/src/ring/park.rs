//! Sleeping and waking: who sleeps, on which word, and why no wake is lost.
//!
//! Each side of a ring (its producers, its consumers) has a [`Park`]: one bit for each handle that sleeps and one event
//! word to sleep on. The bits are written by the sleepers alone; the event word is counted up by those who wake.
//!
//! ```text
//! sleeper                              waker
//!  1  snapshot = event                  a  publish or free a slot   (Release)
//!  2  set own bit                       b  light barrier
//!  3  heavy barrier                     c  any bit set?  no: done
//!  4  look again; ready: go to 6        d  event += 1
//!  5  sleep while event == snapshot     e  wake those who sleep on event
//!  6  clear own bit
//! ```
//!
//! The heavy barrier forces a full fence on every processor that runs a registered process between its step a and its
//! step c (`membarrier`; or both barriers are sequentially consistent fences). So either the waker's c sees the bit of
//! 2, or the sleeper's 4 sees the slot of a. In the first case d changes the event word after the snapshot of 1: a
//! sleeper that has not yet reached 5 does not sleep, one that sleeps is woken by e. A bit that is not cleared by its
//! dead owner costs wakers a needless system call until the daemon has repaired the handle, and loses nothing.

use core::time::Duration;

use super::region::Region;
use crate::layout::handle_line;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::canary::{Canary, planted};

/// Words of sleeper bits on one side of an mpmc ring.
const SLEEPER_WORDS: usize = crate::layout::HANDLES / 64;

/// What the algorithm needs from the operating system.
pub trait Kernel {
    /// Orders everything before it and everything after it on this and, in membarrier mode, on all other processors.
    fn heavy_barrier(&self);
    /// The publisher's half of [`Self::heavy_barrier`]: no instruction in membarrier mode.
    fn light_barrier(&self);
    /// Sleeps while the word has this value, at most this long; may return early for no reason.
    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>);
    /// Wakes at most `count` of those who sleep on the word.
    fn wake(&self, word: &AtomicU32, count: u32);
}

/// One side's sleepers and the word they sleep on.
#[derive(Debug, Clone)]
pub struct Park {
    bits: Region,
    bits_offset: usize,
    /// 1 on an spsc ring, where every handle has bit 0; 4 on an mpmc ring.
    words: usize,
    event: Region,
    event_offset: usize,
    lines: Region,
    lines_offset: usize,
}

impl Park {
    pub(super) fn mpmc(ring: &Region, bits_offset: usize, event_offset: usize) -> Self {
        Self {
            bits: ring.clone(),
            bits_offset,
            words: SLEEPER_WORDS,
            event: ring.clone(),
            event_offset,
            lines: ring.clone(),
            lines_offset: crate::layout::mpmc::HANDLE_LINES,
        }
    }

    /// The sleepers' page has the bit and the handle line, the wakers' page has the event word.
    pub(super) fn spsc(sleeper: &Region, waker: &Region) -> Self {
        use crate::layout::spsc_page;
        Self {
            bits: sleeper.clone(),
            bits_offset: spsc_page::SLEEPERS,
            words: 1,
            event: waker.clone(),
            event_offset: spsc_page::EVENT,
            lines: sleeper.clone(),
            lines_offset: spsc_page::HANDLE_LINE,
        }
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        self.bits.u64_at(self.bits_offset + 8 * index)
    }

    /// Bit number of a handle in this park.
    fn bit(&self, handle: u8) -> usize {
        if self.words == 1 { 0 } else { usize::from(handle) }
    }

    /// Whether anybody sleeps or wants a doorbell rung; after the waker's barrier.
    #[inline]
    pub fn any_sleeper(&self) -> bool {
        // Relaxed: ordered by the barriers, see the module.
        let mut any = self.word(0).load(Ordering::Relaxed);
        if self.words != 1 {
            for index in 1..SLEEPER_WORDS {
                any |= self.word(index).load(Ordering::Relaxed);
            }
        }
        any != 0
    }

    /// Handles whose bit is set. On an spsc ring the only handle is 0.
    pub fn sleepers(&self) -> impl Iterator<Item = u8> + '_ {
        (0..self.words).flat_map(move |index| {
            // Acquire: partner of the Release in `announce`, for the doorbell in the handle line.
            let mut bits = self.word(index).load(Ordering::Acquire);
            if self.words == 1 {
                bits &= 1;
            }
            core::iter::from_fn(move || {
                if bits == 0 {
                    return None;
                }
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                u8::try_from(index * 64 + bit as usize).ok()
            })
        })
    }

    /// Sets the caller's own bit. The caller then runs the heavy barrier and looks again before it sleeps.
    pub fn announce(&self, handle: u8) {
        let bit = self.bit(handle);
        // Release: whoever sees the bit sees the doorbell in the handle line.
        self.word(bit / 64).fetch_or(1 << (bit % 64), Ordering::Release);
    }

    /// Clears the caller's own bit (or, by the daemon, that of a dead handle).
    pub fn retract(&self, handle: u8) {
        let bit = self.bit(handle);
        // Relaxed: a waker that still sees the bit wakes nobody.
        self.word(bit / 64).fetch_and(!(1 << (bit % 64)), Ordering::Relaxed);
    }

    /// Value of the event word, to be taken before [`Self::announce`].
    pub fn event(&self) -> u32 {
        // Acquire: partner of `bump`, keeps the snapshot in front of the announcement.
        self.event_word().load(Ordering::Acquire)
    }

    /// The word to sleep on.
    pub fn event_word(&self) -> &AtomicU32 {
        self.event.u32_at(self.event_offset)
    }

    /// Counts the event word up, before its sleepers are woken.
    pub fn bump(&self) {
        // Release: partner of `event`.
        self.event_word().fetch_add(1, Ordering::Release);
    }

    /// Doorbell that a sleeping handle wants rung, and the bit of this queue in it.
    #[allow(clippy::cast_possible_truncation)] // two halves of 32 bits
    pub fn doorbell_of(&self, handle: u8) -> Option<(u32, u32)> {
        let line = self.lines_offset + self.line_index(handle) * handle_line::BYTES;
        // Relaxed: after the Acquire load of the bit.
        let value = self.lines.u64_at(line + handle_line::DOORBELL).load(Ordering::Relaxed);
        (value as u32 != 0).then_some((value as u32, (value >> 32) as u32))
    }

    fn line_index(&self, handle: u8) -> usize {
        if self.words == 1 { 0 } else { usize::from(handle) }
    }
}

/// Steps 1 to 6 of the sleeper, once: returns what `ready` found before or after the sleep, or `None` after a time-out or
/// a wake that came for nothing. The caller decides whether to come again.
pub fn sleep_once<T>(
    park: &Park,
    handle: u8,
    kernel: &impl Kernel,
    timeout: Option<Duration>,
    mut ready: impl FnMut() -> Option<T>,
) -> Option<T> {
    let snapshot = park.event();
    park.announce(handle);
    kernel.heavy_barrier();
    let mut found = if planted(Canary::NoRecheck) { None } else { ready() };
    if found.is_none() {
        kernel.wait(park.event_word(), snapshot, timeout);
        found = ready();
    }
    park.retract(handle);
    found
}

/// Steps d and e of the waker, for those who sleep on the ring's own event word. Doorbells are rung by the caller.
pub fn wake_sleepers(park: &Park, kernel: &impl Kernel, count: u32) {
    if planted(Canary::WakerClearsFlag) {
        for index in 0..park.words {
            park.word(index).swap(0, Ordering::Relaxed);
        }
    }
    park.bump();
    kernel.wake(park.event_word(), count);
}
