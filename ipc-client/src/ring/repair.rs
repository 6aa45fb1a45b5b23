//! What the daemon does to a ring: fills its control page, closes it, looks at it, and repairs it after a death.
//!
//! # The repair argument
//!
//! [`dead_handle`] runs when the kernel has said that the process of a handle is gone (its pidfd is readable). From then
//! on nobody but the daemon writes what that handle owned, and everything it wrote is visible. What it had begun can be
//! read off the ring:
//!
//! | the process died in ... | what is found | what is done |
//! |---|---|---|
//! | mpmc send, before step 3 | nothing | nothing |
//! | mpmc send, 3 to 4 | `Writing` under the tail | the tail is moved as any member would move it, then as below |
//! | mpmc send, 4 to 6, or a batch partly published behind its first word | `Writing(n)` | words behind the first set free, the first becomes `Tombstone(n)` |
//! | mpmc take, 3 to 4 | `Held` under the head | the head is moved, then as below |
//! | mpmc take, 4 to 7, some words behind the first already free in the next lap | `Held(n)` | words behind the first set back to this lap, the first becomes `Returned(n)`, the hint is counted up |
//! | mpmc send with dropping, while it holds a message that it drops | as a take | as a take |
//! | freeing a tombstone | `Skipping(n)` | freed |
//! | spsc send, before step 3 | words of a batch published beyond the producer's position, the first not | set free |
//! | spsc send, 3 to 4 | published words from the producer's position on | the position moves past them |
//! | spsc take, before step 4 | `taken` beyond the consumer's position | messages up to `taken` are marked as redelivered, then `taken` is set back |
//! | spsc batch shown, before step 4 | `shown` beyond the consumer's position | the same up to `shown`; the position becomes `shown - 1`, then `shown` is cleared |
//! | asleep | its sleeper bit | cleared |
//!
//! Every row tests for exactly the state that it removes, each word is changed once and last, and no row reads anything but the
//! ring. So a repair that is itself killed is repeated from the start, and two in a row do nothing the second time.
//! No word of another handle is touched, so live handles go on meanwhile; they see the dead handle's words change as if
//! it had acted itself.

use super::end::Claim;
use super::error::{Fault, Invariant};
use super::mpmc::Ring;
use super::region::Region;
use super::slots::Slots;
use super::{RingMemory, spsc};
use crate::layout::{
    Geometry, HANDLE_DAEMON, HANDLES, LAYOUT_VERSION, MAGIC, State, Word, control, mpmc, spsc_page,
};
use crate::protocol::{Kind, Overflow, Role};
use crate::sync::atomic::Ordering;
use crate::sync::canary::{Canary, planted};

/// What a repair changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Claims that became tombstones (mpmc), or batches that were discarded (spsc).
    pub tombstones: u32,
    /// Messages that will be given out again.
    pub returned: u32,
    /// Tombstones that were freed.
    pub freed: u32,
}

/// What a handle owns, as a scan of the ring shows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owned {
    /// Slots.
    pub slots: u32,
    /// The first of them.
    pub first_position: Option<u64>,
}

/// Repairs what a dead process left under this handle. The caller has proof of the death, wakes everybody afterwards,
/// and uses the index again only then. A fault means that the ring is beyond repair: close it.
pub fn dead_handle(
    memory: &RingMemory,
    geometry: &Geometry,
    handle: u8,
    role: Role,
) -> Result<Report, Fault> {
    dead_handles(memory, geometry, &[(handle, role)])
}

/// The same for several handles of a queue, in one pass over an mpmc ring however many they are.
pub fn dead_handles(
    memory: &RingMemory,
    geometry: &Geometry,
    handles: &[(u8, Role)],
) -> Result<Report, Fault> {
    let report = match memory {
        RingMemory::Mpmc { ring, .. } => {
            let owners = Owners::of(handles.iter().map(|(handle, _)| *handle));
            repair_mpmc(&Ring::new(ring, *geometry)?, &owners)?
        }
        RingMemory::Spsc { slots, producer, consumer, .. } => {
            let mut sum = Report::default();
            for (_, role) in handles {
                let one = match role {
                    Role::Produce => repair_spsc_producer(slots, producer, consumer, *geometry)?,
                    Role::Consume => repair_spsc_consumer(producer, consumer, geometry)?,
                };
                sum.tombstones += one.tombstones;
                sum.returned += one.returned;
            }
            sum
        }
    };
    for (handle, role) in handles {
        memory.park(*role).retract(*handle);
        memory.line(*role, *handle).clear();
    }
    let count = |field: usize, by: u32| {
        // Relaxed: counters for people; the daemon is their only writer.
        memory.control().u64_at(field).fetch_add(u64::from(by), Ordering::Relaxed);
    };
    count(control::REPAIRS, u32::try_from(handles.len()).unwrap_or(u32::MAX));
    count(control::TOMBSTONES, report.tombstones);
    count(control::RETURNED, report.returned);
    Ok(report)
}

/// A set of handle indexes.
struct Owners([u64; HANDLES / 64]);

impl Owners {
    fn of(handles: impl Iterator<Item = u8>) -> Self {
        let mut set = [0; HANDLES / 64];
        for handle in handles {
            set[usize::from(handle / 64)] |= 1 << (handle % 64);
        }
        Self(set)
    }

    fn contains(&self, handle: u8) -> bool {
        self.0[usize::from(handle / 64)] >> (handle % 64) & 1 == 1
    }
}

fn repair_mpmc(ring: &Ring, owners: &Owners) -> Result<Report, Fault> {
    ring.help_ends()?;
    let slots = &ring.slots;
    let mut report = Report::default();
    for index in 0..slots.geometry.slots() {
        let word = slots.load(index);
        let owned = owners.contains(word.owner()) || planted(Canary::RepairWithoutProof);
        let Some(state @ (State::Writing | State::Held | State::Skipping)) = word.state() else {
            continue;
        };
        if !owned {
            continue;
        }
        // Every owned claim lies before the tail, within a lap of it.
        let position = ring.position_of(index, word, ring.tail_position());
        let claim = Claim { position, n: slots.claim_length(position, word)? };
        match state {
            State::Writing => {
                if planted(Canary::ForgottenContinuation) {
                    slots.store(position, word.with(0, State::Tombstone));
                } else {
                    ring.bury(claim);
                }
                report.tombstones += 1;
            }
            State::Held => {
                if !planted(Canary::ForgottenContinuation) {
                    slots.reset_continuations(position, claim.n);
                }
                slots.store(position, word.with(0, State::Returned));
                report.returned += 1;
            }
            _ => {
                slots.free(position, claim.n);
                report.freed += 1;
            }
        }
    }
    // Also when nothing was returned now: a repair that was killed may have returned something and not said so.
    ring.hint_returned();
    Ok(report)
}

fn repair_spsc_producer(
    slots: &Region,
    producer: &Region,
    consumer: &Region,
    geometry: Geometry,
) -> Result<Report, Fault> {
    spsc::check_pages(producer, consumer)?;
    let slots = Slots::new(slots.clone(), 0, geometry)?;
    let (head, mut tail) =
        spsc::bounded(&geometry, spsc::position(consumer), spsc::position(producer))?;
    let end = head + geometry.slots();
    let published = |position: u64| -> Option<Word> {
        let word = slots.load(position);
        (word.lap() == slots.lap(position) && word.state() == Some(State::Published))
            .then_some(word)
    };
    while tail < end
        && let Some(word) = published(tail)
    {
        tail += u64::from(slots.claim_length(tail, word)?);
        if tail > end {
            return Err(Fault { invariant: Invariant::Positions, position: tail, value: word.0 });
        }
    }
    let mut report = Report::default();
    for position in tail..end {
        let word = slots.load(position);
        if word.lap() == slots.lap(position) && word != slots.free_word(position, 0) {
            if !planted(Canary::ForgottenContinuation) {
                slots.store(position, slots.free_word(position, 0));
            }
            report.tombstones = 1;
        }
    }
    // Release: partner of `spsc::position`. Last, so that a repair that dies before is repeated in full.
    producer.u64_at(spsc_page::POSITION).store(tail, Ordering::Release);
    Ok(report)
}

fn repair_spsc_consumer(
    producer: &Region,
    consumer: &Region,
    geometry: &Geometry,
) -> Result<Report, Fault> {
    spsc::check_pages(producer, consumer)?;
    let progress = spsc::progress(consumer);
    let (head, tail) = spsc::bounded(geometry, progress.released, spsc::position(producer))?;
    let taken_max = spsc::taken_max(geometry, tail);
    let taken = progress.taken.clamp(head, taken_max);
    // Relaxed: its only writer is dead.
    let before = consumer.u64_at(spsc_page::REDELIVERED).load(Ordering::Relaxed).min(taken_max);
    // Relaxed: read by the successor, whose handle comes into being after this.
    consumer.u64_at(spsc_page::REDELIVERED).store(before.max(taken), Ordering::Relaxed);
    // Release: partner of `spsc::position`. What the dead consumer was done with is the producer's again.
    consumer.u64_at(spsc_page::POSITION).store(head, Ordering::Release);
    // Last: the successor has looked at nothing yet. Release, both: a repair that is repeated because this one was killed
    // finds either the old values here or the new ones above.
    consumer.u64_at(spsc_page::TAKEN).store(head, Ordering::Release);
    consumer.u64_at(spsc_page::SHOWN).store(0, Ordering::Release);
    Ok(Report { returned: u32::from(taken > head), ..Report::default() })
}

/// Scans for the slots that a handle owns. On an spsc ring only a consumer's messages can be seen.
pub fn owned_by(memory: &RingMemory, geometry: &Geometry, handle: u8, role: Role) -> Owned {
    let mut owned = Owned::default();
    match memory {
        RingMemory::Mpmc { ring, .. } => {
            let Ok(ring) = Ring::new(ring, *geometry) else {
                return owned;
            };
            let slots = u32::try_from(geometry.slots()).unwrap_or(u32::MAX);
            for index in 0..geometry.slots() {
                let word = ring.slots.load(index);
                // A length that no claim has is a violation that members and repair report; here it counts as one slot.
                let length = ring.slots.claim_length(index, word).unwrap_or(1);
                let held =
                    matches!(word.state(), Some(State::Writing | State::Held | State::Skipping));
                if held && word.owner() == handle {
                    let position = ring.position_of(index, word, ring.tail_position());
                    // Claims that overlap are a violation too.
                    owned.slots = owned.slots.saturating_add(length).min(slots);
                    owned.first_position =
                        Some(owned.first_position.map_or(position, |first| first.min(position)));
                }
            }
        }
        RingMemory::Spsc { producer, consumer, .. } => {
            if spsc::check_pages(producer, consumer).is_err() {
                return owned;
            }
            let spsc::Progress { released, taken } = spsc::progress(consumer);
            if role == Role::Consume && taken > released {
                let slots = (taken - released).min(geometry.slots());
                owned.slots = u32::try_from(slots).unwrap_or(u32::MAX);
                owned.first_position = Some(released);
            }
        }
    }
    owned
}

/// The handle that owns the slot of a position on an mpmc ring: whoever waits there waits for it.
pub fn owner_at(memory: &RingMemory, geometry: &Geometry, position: u64) -> Option<u8> {
    let RingMemory::Mpmc { ring, .. } = memory else {
        return None;
    };
    let word = Ring::new(ring, *geometry).ok()?.slots.load(position);
    matches!(word.state(), Some(State::Writing | State::Held | State::Skipping))
        .then(|| word.owner())
}

/// A racy look at head and tail; the head is never beyond the tail and at most one ring behind it.
pub fn positions(memory: &RingMemory, geometry: &Geometry) -> (u64, u64) {
    // Relaxed, both: for people.
    let (head, tail) = match memory {
        RingMemory::Mpmc { ring, .. } => (
            ring.u64_at(mpmc::HEAD).load(Ordering::Relaxed),
            ring.u64_at(mpmc::TAIL).load(Ordering::Relaxed),
        ),
        RingMemory::Spsc { producer, consumer, .. } => (
            spsc::progress(consumer).released,
            producer.u64_at(spsc_page::POSITION).load(Ordering::Relaxed),
        ),
    };
    (head.clamp(tail.saturating_sub(geometry.slots()), tail), tail)
}

/// Discards what is in a ring, as a consumer with the daemon's own handle; on an spsc ring only while no other consumer
/// is attached. At most one ring full, so that it ends however fast others produce. Returns the number of messages.
///
/// Members of an mpmc ring who break the rules can make each single take long: `go_on` is asked before each, and a `false`
/// ends the purge with a fault.
pub fn purge(
    memory: &RingMemory,
    geometry: &Geometry,
    mut go_on: impl FnMut() -> bool,
) -> Result<u64, Fault> {
    let mut consumer = super::Consumer::new(memory.clone(), *geometry, HANDLE_DAEMON)?.busy();
    let (_, tail) = positions(memory, geometry);
    let mut messages = 0;
    while messages < geometry.slots() {
        if !go_on() {
            let position = consumer.position();
            return Err(Fault { invariant: Invariant::Progress, position, value: messages });
        }
        match consumer.try_take() {
            Ok(taken) => {
                let done = taken.sequence() >= tail;
                consumer.release(taken);
                messages += 1;
                if done {
                    break;
                }
            }
            Err(super::TryReceiveError::Fault(fault)) => return Err(fault),
            Err(_) => break,
        }
    }
    Ok(messages)
}

/// Fills a new control page. Nobody else maps it yet.
pub fn init_control(page: &Region, queue_id: u64, kind: Kind, geometry: &Geometry) {
    let kind = match kind {
        Kind::Spsc => 1u64,
        Kind::Mpmc => 2,
    };
    let set = |field: usize, value: u64| page.u64_at(field).store(value, Ordering::Relaxed);
    set(control::VERSION_AND_KIND, u64::from(LAYOUT_VERSION) | kind << 32);
    set(control::QUEUE_ID, queue_id);
    let slots_log2 = u64::from(geometry.slots().trailing_zeros());
    set(control::GEOMETRY, slots_log2 | (geometry.slot_size() as u64) << 32);
    // Release: the magic comes last.
    page.u64_at(control::MAGIC).store(MAGIC, Ordering::Release);
}

/// Sets what happens to a message for which there is no room. The caller wakes producers that wait afterwards.
pub fn set_overflow(page: &Region, overflow: Overflow) {
    let value = match overflow {
        Overflow::Block => control::OVERFLOW_BLOCK,
        Overflow::Reject => control::OVERFLOW_REJECT,
        Overflow::DropOldest => control::OVERFLOW_DROP_OLDEST,
    };
    // Release: partner of the Acquire in `overflow_rule`. Who sees that it may drop sees that no consumer is biased.
    page.u64_at(control::OVERFLOW).store(value, Ordering::Release);
}

/// Closes a queue with one of the `CLOSED_*` values of [`control`]. The caller wakes everybody afterwards.
pub fn close(page: &Region, value: u64) {
    // Release: partner of the Acquire in `RingMemory::closed`.
    page.u64_at(control::CLOSED).store(value, Ordering::Release);
}
