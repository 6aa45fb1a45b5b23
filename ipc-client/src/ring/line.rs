//! What a handle tells about itself in its line of shared memory.

use super::region::Region;
use crate::layout::handle_line;
use crate::sync::atomic::Ordering;

/// One handle's line. The accesses are Relaxed but for the flag of [`super::bias`]: the fields are for people and for wakers that
/// read them after the handle's sleeper bit; nothing else depends on them.
#[derive(Debug, Clone)]
pub struct HandleLine {
    region: Region,
    offset: usize,
}

/// A racy copy of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LineSnapshot {
    /// Messages that passed through the handle.
    pub messages: u64,
    /// Payload bytes that passed through the handle.
    pub payload_bytes: u64,
    /// Position at which it waits.
    pub waiting_at: u64,
    /// `CLOCK_MONOTONIC` nanoseconds since when it waits; zero: it does not.
    pub waiting_since_ns: u64,
}

/// What passed through a handle, in private memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    messages: u64,
    payload_bytes: u64,
}

impl Counters {
    /// Counts, and tells it in the handle's line.
    #[inline(always)]
    pub(super) fn count(&mut self, line: &HandleLine, messages: u64, payload_bytes: u64) {
        self.messages += messages;
        self.payload_bytes += payload_bytes;
        line.set_counters(*self);
    }
}

impl HandleLine {
    pub(super) fn new(region: &Region, offset: usize) -> Self {
        assert!(offset.is_multiple_of(8) && offset + handle_line::BYTES <= region.len());
        Self { region: region.clone(), offset }
    }

    #[inline(always)]
    fn set(&self, field: usize, value: u64) {
        // SAFETY: the fields of a line are multiples of eight below its length, and `new` found the line in the region.
        unsafe { self.region.u64_at_unchecked(self.offset + field) }
            .store(value, Ordering::Relaxed);
    }

    fn get(&self, field: usize) -> u64 {
        self.region.u64_at(self.offset + field).load(Ordering::Relaxed)
    }

    /// Everything zero: a handle's first act and, after its death, the daemon's.
    pub fn clear(&self) {
        for field in (0..handle_line::INSIDE).step_by(8) {
            self.set(field, 0);
        }
        // Release: partner of the Acquire in `inside`. Who sees it after a death sees the repair.
        self.region.u64_at(self.offset + handle_line::INSIDE).store(0, Ordering::Release);
    }

    /// Tells the counters.
    #[inline(always)]
    pub(super) fn set_counters(&self, counters: Counters) {
        self.set(handle_line::MESSAGES, counters.messages);
        self.set(handle_line::PAYLOAD_BYTES, counters.payload_bytes);
    }

    /// The handle waits at this position since this time (`CLOCK_MONOTONIC` nanoseconds, not zero).
    pub fn set_waiting(&self, position: u64, since_ns: u64) {
        self.set(handle_line::WAITING_AT, position);
        self.set(handle_line::WAITING_SINCE_NS, since_ns);
    }

    /// Whether the handle is in the middle of a claim without exchanges, see [`super::bias`].
    pub(super) fn inside(&self) -> bool {
        // Acquire: partner of the Release in `bias::Own::leave`, and of that in `clear` after a death.
        self.region.u64_at(self.offset + handle_line::INSIDE).load(Ordering::Acquire) != 0
    }

    /// The handle no longer waits.
    pub fn clear_waiting(&self) {
        self.set(handle_line::WAITING_SINCE_NS, 0);
    }

    /// Doorbell to ring (zero: none) and the bit of this queue in it. Before the sleeper bit is set.
    pub fn set_doorbell(&self, doorbell: u32, bit: u32) {
        self.set(handle_line::DOORBELL, u64::from(doorbell) | u64::from(bit) << 32);
    }

    /// A racy copy.
    pub fn snapshot(&self) -> LineSnapshot {
        LineSnapshot {
            messages: self.get(handle_line::MESSAGES),
            payload_bytes: self.get(handle_line::PAYLOAD_BYTES),
            waiting_at: self.get(handle_line::WAITING_AT),
            waiting_since_ns: self.get(handle_line::WAITING_SINCE_NS),
        }
    }
}
