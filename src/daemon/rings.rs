//! A queue's memory as the broker has it: every call into the rings goes through here.
//!
//! The members of a ring may write anything into it at any time. Whatever is read here is bounded by the rings or used
//! for display only.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ringmain_client::layout::{Geometry, HANDLES, State, Word, control, mpmc, spsc_page};
use ringmain_client::protocol::{Kind, Memory, Overflow, Role};
use ringmain_client::ring::repair::{self, Owned};
use ringmain_client::ring::{
    Closed, Fault, Kernel, LineSnapshot, Park, Region, RingMemory, bias, wake_sleepers,
};
use ringmain_client::sync::atomic::{AtomicU32, Ordering, fence};
use ringmain_client::sys::map::{Access, Mapping, Populate};
use ringmain_client::sys::memory::{MemoryError, create_sealed, verify_sealed};
use ringmain_client::sys::{futex, membarrier};

/// Honest members let a purge end within milliseconds; it must not keep the control thread when others do not.
const PURGE_TIME_MAX: Duration = Duration::from_secs(1);

/// What a queue's memory consists of, and how many bytes each part has.
pub(super) fn regions(kind: Kind, geometry: &Geometry) -> Vec<(Memory, usize)> {
    let ring_bytes = geometry.region_bytes(kind);
    match kind {
        Kind::Spsc => vec![
            (Memory::Control, control::BYTES),
            (Memory::Slots, ring_bytes),
            (Memory::ProducerPage, spsc_page::BYTES),
            (Memory::ConsumerPage, spsc_page::BYTES),
        ],
        Kind::Mpmc => vec![(Memory::Control, control::BYTES), (Memory::Ring, ring_bytes)],
    }
}

/// Bytes of all of them.
pub(super) fn memory_bytes(kind: Kind, geometry: &Geometry) -> u64 {
    regions(kind, geometry).iter().map(|(_, bytes)| *bytes as u64).sum()
}

/// Whether a handle of this role may write to this part.
pub(super) fn is_writable(memory: Memory, role: Role) -> bool {
    match memory {
        Memory::Control => false,
        Memory::Ring => true,
        Memory::Slots | Memory::ProducerPage => role == Role::Produce,
        Memory::ConsumerPage => role == Role::Consume,
        Memory::ClientFile | Memory::Link | Memory::ShardBell => true,
        Memory::ShardFile | Memory::ShardPage => false,
    }
}

/// A sleeping handle that wants to be told through its doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ring {
    pub(super) role: Role,
    /// Index; on an spsc ring 0, whatever the index.
    pub(super) handle: u8,
    pub(super) doorbell: u32,
    pub(super) bit: u32,
}

/// The mapped memory of one queue and its descriptors.
#[derive(Debug)]
pub(super) struct QueueMemory {
    geometry: Geometry,
    ring: RingMemory,
    /// Behind the regions in `ring`: dropped after it.
    _mappings: Vec<Mapping>,
    /// In the order of [`regions`], writable.
    pub(super) descriptors: Vec<OwnedFd>,
}

impl QueueMemory {
    /// Allocates and maps the memory of a new queue.
    pub(super) fn create(
        name: &str,
        id: u64,
        kind: Kind,
        geometry: Geometry,
        overflow: Overflow,
    ) -> Result<Self, MemoryError> {
        let mut descriptors = Vec::with_capacity(4);
        for (memory, bytes) in regions(kind, &geometry) {
            let part = match memory {
                Memory::Control => "control",
                Memory::Ring => "ring",
                Memory::Slots => "slots",
                Memory::ProducerPage => "producer",
                Memory::ConsumerPage => "consumer",
                _ => "brokered",
            };
            descriptors.push(create_sealed(&format!("ringmain:{name}:{part}"), bytes)?);
        }
        let memory = Self::adopt(kind, geometry, descriptors)?;
        repair::init_control(memory.ring.control(), id, kind, &geometry);
        if overflow == Overflow::DropOldest {
            memory.bar_bias(Role::Consume);
        }
        memory.set_overflow(overflow);
        Ok(memory)
    }

    /// Maps memory that exists.
    pub(super) fn adopt(
        kind: Kind,
        geometry: Geometry,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, MemoryError> {
        let parts = regions(kind, &geometry);
        if parts.len() != descriptors.len() {
            return Err(MemoryError::Kind);
        }
        let mut mappings = Vec::with_capacity(parts.len());
        for ((_, bytes), descriptor) in parts.iter().zip(&descriptors) {
            verify_sealed(descriptor.as_fd(), *bytes)?;
            let mapping =
                Mapping::map(descriptor.as_fd(), *bytes, Access::ReadWrite, Populate::OnTouch)
                    .map_err(|source| match source.kind() {
                        std::io::ErrorKind::OutOfMemory => {
                            MemoryError::NoRoom { bytes: *bytes, source }
                        }
                        _ => MemoryError::Io { what: "mmap", source },
                    })?;
            mappings.push(mapping);
        }
        let region = |index: usize| {
            let mapping: &Mapping = &mappings[index];
            // SAFETY: page-aligned, mapped readable and writable for its length as long as `_mappings` lives, which is
            // as long as any use of `ring`: it never leaves this value. The file cannot shrink (verified above), and
            // this process accesses it through the rings alone.
            unsafe { Region::new(mapping.base(), mapping.len()) }
        };
        let ring = match kind {
            Kind::Spsc => RingMemory::Spsc {
                control: region(0),
                slots: region(1),
                producer: region(2),
                consumer: region(3),
            },
            Kind::Mpmc => RingMemory::Mpmc { control: region(0), ring: region(1) },
        };
        Ok(Self { geometry, ring, _mappings: mappings, descriptors })
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn closed(&self) -> Option<Closed> {
        self.ring.closed()
    }

    /// Closes the queue, unless it is closed more firmly already; the caller wakes everybody.
    pub(super) fn close(&self, value: u64) {
        let page = self.ring.control();
        // Relaxed: this process is the only writer.
        let before = page.u64_at(control::CLOSED).load(Ordering::Relaxed);
        if value > before {
            repair::close(page, value);
        }
    }

    /// After the death of the handles' processes, or when they were given back with slots in hand; the caller has the
    /// proof of it, and wakes everybody afterwards.
    pub(super) fn repair(&self, handles: &[(u8, Role)]) -> Result<(), Fault> {
        repair::dead_handles(&self.ring, &self.geometry, handles).map(|_| ())
    }

    pub(super) fn owned_by(&self, handle: u8, role: Role) -> Owned {
        repair::owned_by(&self.ring, &self.geometry, handle, role)
    }

    /// Messages discarded. The caller wakes everybody afterwards.
    pub(super) fn purge(&self) -> Result<u64, Fault> {
        let begin = Instant::now();
        repair::purge(&self.ring, &self.geometry, || begin.elapsed() < PURGE_TIME_MAX)
    }

    /// Head and tail.
    pub(super) fn positions(&self) -> (u64, u64) {
        repair::positions(&self.ring, &self.geometry)
    }

    /// Repairs, tombstones, returned messages.
    pub(super) fn counters(&self) -> [u64; 3] {
        [control::REPAIRS, control::TOMBSTONES, control::RETURNED]
            .map(|field| self.ring.control().u64_at(field).load(Ordering::Relaxed))
    }

    /// What happens to a message for which there is no room.
    pub(super) fn overflow(&self) -> Overflow {
        self.ring.overflow()
    }

    /// Changes it; the caller wakes everybody.
    pub(super) fn set_overflow(&self, overflow: Overflow) {
        repair::set_overflow(self.ring.control(), overflow);
    }

    /// See [`bias`].
    pub(super) fn bar_bias(&self, role: Role) {
        bias::bar(&self.ring, role);
    }

    /// See [`bias`]. `members`: all handles of this role.
    pub(super) fn forget_bias_of_others(&self, role: Role, members: &[u8]) {
        bias::forget_others(&self.ring, role, members);
    }

    /// See [`bias`].
    pub(super) fn grant_bias(&self, role: Role, handle: u8) {
        bias::grant(&self.ring, role, handle);
    }

    /// See [`bias`]. An error: the kernel refuses membarrier, and nobody but the handle that had the bias may claim.
    pub(super) fn revoke_bias(&self, role: Role) -> Result<(), ()> {
        if bias::revoke(&self.ring, role) && !membarrier::issue() { Err(()) } else { Ok(()) }
    }

    /// See [`bias`].
    pub(super) fn holdout(&self, role: Role) -> Option<u8> {
        bias::holdout(&self.ring, role)
    }

    /// Messages that producers dropped for room.
    pub(super) fn dropped(&self) -> u64 {
        self.ring.dropped()
    }

    pub(super) fn line(&self, role: Role, handle: u8) -> LineSnapshot {
        self.ring.line(role, handle).snapshot()
    }

    /// The word of a position on an mpmc ring; for display.
    fn word(ring: &Region, geometry: &Geometry, position: u64) -> Word {
        let offset = mpmc::SLOTS + geometry.slot_offset(position);
        // Relaxed: a racy look.
        Word(ring.u64_at(offset).load(Ordering::Relaxed))
    }

    /// The handle whose claim keeps somebody waiting at this position of an mpmc ring, if it is a claim that does. Looks at
    /// no more words than the budget allows, whatever the members wrote.
    pub(super) fn delayer(&self, role: Role, position: u64, budget: &mut u64) -> Option<u8> {
        let RingMemory::Mpmc { ring, .. } = &self.ring else {
            return None;
        };
        let mut look = |position: u64| {
            *budget = budget.checked_sub(1)?;
            Some(Self::word(ring, &self.geometry, position))
        };
        let is_free = |word: Word| word.state() == Some(State::Free);
        let reach = u64::from(self.geometry.claim_slots_max());
        let here = look(position)?;
        if !is_free(here) {
            return owner(here);
        }
        // The slot may lie behind the first of a longer claim.
        for distance in 1..reach {
            let word = look(position.wrapping_sub(distance))?;
            if !is_free(word) {
                if u64::from(word.n()) > distance {
                    return owner(word);
                }
                break;
            }
        }
        if role == Role::Consume {
            return None;
        }
        // A producer may need several slots, of which the first ones are free.
        for distance in 1..reach {
            let word = look(position.wrapping_add(distance))?;
            if !is_free(word) {
                return owner(word);
            }
        }
        None
    }

    /// What each handle of an mpmc ring owns, in one pass; index 0 is unused.
    pub(super) fn owned_by_all(&self) -> Vec<Owned> {
        let mut owned = vec![Owned::default(); HANDLES];
        let RingMemory::Mpmc { ring, .. } = &self.ring else {
            return owned;
        };
        let (_, tail) = self.positions();
        let slots = self.geometry.slots();
        for distance in (1..=slots).rev() {
            // Every claim lies before the tail, within a lap of it.
            let position = tail.wrapping_sub(distance);
            let word = Self::word(ring, &self.geometry, position);
            if let Some(owner) = owner(word) {
                let entry = &mut owned[usize::from(owner)];
                entry.slots = entry.slots.saturating_add(word.n());
                entry.first_position.get_or_insert(position);
            }
        }
        owned
    }

    /// Messages that nobody has taken, as far as a racy look can tell.
    pub(super) fn messages_left(&self) -> u64 {
        let (head, tail) = self.positions();
        match &self.ring {
            RingMemory::Mpmc { ring, .. } => (0..self.geometry.slots())
                .map(|position| Self::word(ring, &self.geometry, position).state())
                .filter(|state| matches!(state, Some(State::Published | State::Returned)))
                .count() as u64,
            RingMemory::Spsc { slots, .. } => {
                let (mut position, mut messages) = (head, 0);
                while position < tail {
                    let offset = self.geometry.slot_offset(position);
                    // Relaxed: a racy look, bounded by the ring.
                    let word = Word(slots.u64_at(offset).load(Ordering::Relaxed));
                    position = position.saturating_add(u64::from(word.n().max(1)));
                    messages += 1;
                }
                messages
            }
        }
    }

    /// Takes the traces of a handle that was given back out of the ring: nobody sleeps there any more.
    pub(super) fn clear_handle(&self, role: Role, handle: u8) {
        self.ring.park(role).retract(handle);
        self.ring.line(role, handle).clear();
    }

    /// Wakes every sleeper of both roles and tells which doorbells are to be rung as well.
    pub(super) fn wake_everybody(&self) -> Vec<Ring> {
        // SeqCst: partner of the sleeper's heavy barrier, as in `ringmain_client::ring::park`. What was changed before
        // is either seen by the sleeper's second look, or its bit is seen below.
        fence(Ordering::SeqCst);
        let mut rings = Vec::new();
        for role in [Role::Produce, Role::Consume] {
            let park = self.ring.park(role);
            wake_sleepers(&park, &FencingKernel, u32::MAX);
            rings.extend(doorbells(&park, role));
        }
        rings
    }
}

fn owner(word: Word) -> Option<u8> {
    let owned = matches!(word.state(), Some(State::Writing | State::Held | State::Skipping));
    owned.then(|| word.owner())
}

fn doorbells(park: &Park, role: Role) -> impl Iterator<Item = Ring> + '_ {
    park.sleepers().filter_map(move |handle| {
        let (doorbell, bit) = park.doorbell_of(handle)?;
        Some(Ring { role, handle, doorbell, bit })
    })
}

/// The daemon never sleeps on a ring, and it wakes rarely enough to run the full fence every time.
struct FencingKernel;

impl Kernel for FencingKernel {
    fn heavy_barrier(&self) {
        fence(Ordering::SeqCst);
    }

    fn light_barrier(&self) {
        fence(Ordering::SeqCst);
    }

    fn wait(&self, _: &AtomicU32, _: u32, _: Option<std::time::Duration>) {}

    fn wake(&self, word: &AtomicU32, count: u32) {
        futex::wake(word, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_memory_can_be_adopted_and_closed() {
        for kind in [Kind::Spsc, Kind::Mpmc] {
            let geometry = Geometry::new(Some(64), Some(64), None).unwrap();
            let created = QueueMemory::create("test", 7, kind, geometry, Overflow::Reject).unwrap();
            let copies = created.descriptors.iter().map(|fd| fd.try_clone().unwrap()).collect();
            let adopted = QueueMemory::adopt(kind, geometry, copies).unwrap();
            assert_eq!(adopted.closed(), None);
            assert_eq!((adopted.overflow(), adopted.dropped()), (Overflow::Reject, 0));
            created.close(control::CLOSED_DELETED);
            assert_eq!(adopted.closed(), Some(Closed::Deleted));
            created.close(control::CLOSED_DRAINING);
            assert_eq!(adopted.closed(), Some(Closed::Deleted));
            assert_eq!(adopted.purge(), Ok(0));
            assert_eq!(adopted.positions(), (0, 0));
            assert!(adopted.wake_everybody().is_empty());
            let larger = Geometry::new(Some(128), Some(64), None).unwrap();
            let copies = created.descriptors.iter().map(|fd| fd.try_clone().unwrap()).collect();
            assert!(QueueMemory::adopt(kind, larger, copies).is_err());
        }
    }
}
