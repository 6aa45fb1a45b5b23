//! The mpmc ring with plain stamps in place of owners: D. Vyukov's bounded queue in the same slots, with the same header
//! and the same copies. What attribution costs is the difference to `ringmain_client::ring`.

use ringmain_client::sync::atomic::{AtomicU64, Ordering};

use ringmain_client::layout::{Geometry, SPACING_BYTES};
use ringmain_client::ring::Region;

const TAIL: usize = 0;
const HEAD: usize = SPACING_BYTES;
const SLOTS: usize = 2 * SPACING_BYTES;

/// One queue; one-slot messages only.
#[derive(Clone)]
pub(crate) struct Vyukov {
    memory: Region,
    geometry: Geometry,
}

impl Vyukov {
    /// Bytes of memory for a queue.
    pub(crate) fn bytes(geometry: &Geometry) -> usize {
        SLOTS + geometry.slots_bytes()
    }

    /// A queue in zeroed memory.
    pub(crate) fn new(memory: Region, geometry: Geometry) -> Self {
        let queue = Self { memory, geometry };
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

    /// Sends a message, or returns `false` when there is no room.
    #[inline]
    pub(crate) fn try_send(&self, payload: &[u8]) -> bool {
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
        true
    }

    /// Receives a message; its length.
    #[inline]
    pub(crate) fn try_receive(&self, into: &mut [u8]) -> Option<usize> {
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
        Some(length)
    }
}
