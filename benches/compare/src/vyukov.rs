//! The mpmc ring with plain stamps in place of owners: D. Vyukov's bounded queue in the same slots, with the same header
//! and the same copies, bare or with the same duties. What attribution costs is the difference of the latter to
//! `ringmain_client::ring`.

use ringmain_client::sync::atomic::{AtomicU64, Ordering};

use ringmain_client::layout::{Geometry, SPACING_BYTES};
use ringmain_client::ring::Region;

const TAIL: usize = 0;
const HEAD: usize = SPACING_BYTES;
/// Closed, faulty, messages given back: read by everybody, written by nobody here.
const FLAGS: usize = 2 * SPACING_BYTES;
/// What passed through the producer and the consumer.
const LINES: [usize; 2] = [3 * SPACING_BYTES, 4 * SPACING_BYTES];
const SLOTS: usize = 5 * SPACING_BYTES;

/// What a queue does for a message besides passing it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duties {
    /// Nothing.
    None,
    /// What the rings do: they look whether the queue is closed, faulty, has messages that were given back, and count
    /// messages and bytes in the handle's line.
    AsRings,
}

/// One queue; one-slot messages only.
#[derive(Clone)]
pub(crate) struct Vyukov {
    memory: Region,
    geometry: Geometry,
    duties: Duties,
}

impl Vyukov {
    /// Bytes of memory for a queue.
    pub(crate) fn bytes(geometry: &Geometry) -> usize {
        SLOTS + geometry.slots_bytes()
    }

    /// A queue in zeroed memory.
    pub(crate) fn new(memory: Region, geometry: Geometry, duties: Duties) -> Self {
        let queue = Self { memory, geometry, duties };
        for position in 0..geometry.slots() {
            queue.stamp(position).store(position, Ordering::Relaxed);
        }
        queue
    }

    fn slot(&self, position: u64) -> usize {
        SLOTS + self.geometry.slot_offset(position)
    }

    fn stamp(&self, position: u64) -> &AtomicU64 {
        self.memory.u64_at(self.slot(position))
    }

    /// Whether the queue can be used; looked at before every message.
    #[inline]
    fn is_open(&self) -> bool {
        let flag = |nth: usize| self.memory.u64_at(FLAGS + 8 * nth).load(Ordering::Acquire) == 0;
        self.duties == Duties::None || (flag(0) && flag(1) && flag(2))
    }

    #[inline]
    fn count(&self, line: usize, bytes: usize) {
        if self.duties == Duties::AsRings {
            for (field, value) in [(0, 1), (8, bytes as u64)] {
                let field = self.memory.u64_at(line + field);
                // One writer.
                field.store(field.load(Ordering::Relaxed) + value, Ordering::Relaxed);
            }
        }
    }

    /// Sends a message, or returns `false` when there is no room.
    #[inline]
    pub(crate) fn try_send(&self, payload: &[u8]) -> bool {
        if !self.is_open() {
            return false;
        }
        let tail = self.memory.u64_at(TAIL);
        let mut position = tail.load(Ordering::Relaxed);
        loop {
            let stamp = self.stamp(position).load(Ordering::Acquire);
            if stamp == position {
                match tail.compare_exchange(
                    position,
                    position + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => break,
                    Err(current) => position = current,
                }
            } else if stamp < position {
                return false;
            } else {
                position = tail.load(Ordering::Relaxed);
            }
        }
        let slot = self.slot(position);
        self.memory.u64_at(slot + 8).store(payload.len() as u64, Ordering::Relaxed);
        self.memory.copy_in(slot + 16, payload);
        self.stamp(position).store(position + 1, Ordering::Release);
        self.count(LINES[0], payload.len());
        true
    }

    /// Receives a message; its length.
    #[inline]
    pub(crate) fn try_receive(&self, into: &mut [u8]) -> Option<usize> {
        if !self.is_open() {
            return None;
        }
        let head = self.memory.u64_at(HEAD);
        let mut position = head.load(Ordering::Relaxed);
        loop {
            let stamp = self.stamp(position).load(Ordering::Acquire);
            if stamp == position + 1 {
                match head.compare_exchange(
                    position,
                    position + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => break,
                    Err(current) => position = current,
                }
            } else if stamp < position + 1 {
                return None;
            } else {
                position = head.load(Ordering::Relaxed);
            }
        }
        let slot = self.slot(position);
        let length = self.memory.u64_at(slot + 8).load(Ordering::Relaxed);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(into.len());
        self.memory.copy_out(slot + 16, &mut into[..length]);
        self.stamp(position).store(position + self.geometry.slots(), Ordering::Release);
        self.count(LINES[1], length);
        Some(length)
    }
}
