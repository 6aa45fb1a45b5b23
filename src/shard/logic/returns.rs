//! Messages that come back from a consumer without being done with.

use super::Logic;
use super::consumer::{Lease, LeaseState};
use super::effects::{Item, NO_SLOT};
use super::expiry::UNKNOWN_NS;
use super::group::{Delayed, Doomed, Group, Reason, Waiter};
use super::record::Returned;
use super::types::Port;

/// Why and how a message comes back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Return {
    pub(super) sequence: u64,
    /// Deliveries so far, this one included if it counts.
    pub(super) count: u32,
    /// Whether the journal must know.
    pub(super) counted: bool,
    pub(super) rejected: bool,
    pub(super) delay_ms: u64,
    /// When it expires, or [`UNKNOWN_NS`].
    pub(super) expires_ns: u64,
}

pub(super) const NS_PER_MS: u64 = 1_000_000;

impl Logic {
    /// A message that is with nobody any more: it is available, or later, or is to be moved away.
    pub(super) fn put_back(
        &mut self,
        index: u32,
        group_index: usize,
        back: Return,
        waiter: Option<Waiter>,
    ) {
        let now_ns = self.now.monotonic_ns;
        let journaled = self.failed.is_none();
        let Some(queue) = self.queues.get_mut(index) else { return };
        let limit = queue.definition.max_deliveries;
        let queue_id = queue.definition.id;
        let Return { sequence, count, rejected, .. } = back;
        let reason = if rejected {
            Some(Reason::Rejected)
        } else if limit > 0 && count >= limit {
            Some(Reason::MaxDeliveries)
        } else if back.expires_ns != UNKNOWN_NS && back.expires_ns <= self.now.realtime_ns {
            Some(Reason::Expired)
        } else {
            None
        };
        if back.expires_ns == UNKNOWN_NS && queue.uses_ttl {
            queue.looks.add(UNKNOWN_NS, sequence, sequence);
        }
        let Some(group) = queue.groups.get_mut(group_index) else { return };
        let delay_ms = if reason.is_some() { 0 } else { back.delay_ms };
        let mut waiter = waiter;
        if let Some(reason) = reason {
            // Who rejects hears when the message has been moved.
            let waiter = if rejected { waiter.take() } else { None };
            group.doomed.insert(sequence, Doomed { count, reason, waiter });
        } else if delay_ms > 0 {
            let due_ns =
                now_ns.saturating_add(delay_ms.saturating_mul(NS_PER_MS)).min(u64::MAX - 1);
            group.delay(sequence, Delayed { count, due_ns });
            self.arm_group(index, group_index);
        } else {
            group.ready.insert(sequence, count);
        }
        self.mark(index);
        if journaled && (back.counted || rejected || delay_ms > 0) {
            let group_id = self.group_id(index, group_index);
            let entry = Returned { sequence, count, rejected, delay_ms };
            let item = waiter.map(|waiter| Item { queue: index, sequence, waiter, slot: NO_SLOT });
            self.gather_returned(index, queue_id, group_id, entry, item);
        }
    }

    /// Messages that have had all their deliveries are moved, after a restart or an edit of the limit.
    pub(super) fn doom_exhausted(&mut self, index: u32, group_index: usize) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        let limit = queue.definition.max_deliveries;
        let Some(group) = queue.groups.get_mut(group_index).filter(|_| limit > 0) else { return };
        let Group { ready, doomed, .. } = group;
        ready.retain(|sequence, count| {
            let left = *count < limit;
            if !left {
                let reason = Reason::MaxDeliveries;
                doomed.insert(*sequence, Doomed { count: *count, reason, waiter: None });
            }
            left
        });
    }

    pub(super) fn group_id(&self, index: u32, group: usize) -> u32 {
        self.queues.get(index).and_then(|queue| queue.groups.get(group)).map_or(0, |group| group.id)
    }

    /// A held lease ends: its entry is free, and the message comes back. One that nobody has looked at was not delivered.
    pub(super) fn end_lease(&mut self, port: &mut dyn Port, number: u32, slot: u32, lease: Lease) {
        let Some(consumer) = self.consumers.get_mut(number) else { return };
        let handle = consumer.handle;
        let (index, group_index) = (consumer.queue, consumer.group);
        let seen = port.seen(handle, slot);
        port.lease(handle, slot, None);
        port.recalled(handle);
        consumer.release(slot);
        if lease.state == LeaseState::Gone {
            self.mark(index);
            return;
        }
        self.unlease(index, group_index);
        let back = Return {
            sequence: lease.sequence,
            count: if seen { lease.attempt } else { lease.attempt - 1 },
            counted: seen,
            rejected: false,
            delay_ms: 0,
            expires_ns: lease.expires_ns,
        };
        self.put_back(index, group_index, back, None);
    }

    pub(super) fn unlease(&mut self, index: u32, group: usize) {
        if let Some(queue) = self.queues.get_mut(index)
            && let Some(group) = queue.groups.get_mut(group)
        {
            group.leased = group.leased.saturating_sub(1);
        }
    }

    /// All leases of a consumer end.
    pub(super) fn return_all(&mut self, port: &mut dyn Port, number: u32) {
        let Some(consumer) = self.consumers.get(number) else { return };
        let mut held: Vec<_> = consumer.busy_leases().collect();
        held.sort_unstable_by_key(|(_, lease)| lease.sequence);
        for (slot, lease) in held {
            self.end_lease(port, number, slot, lease);
        }
    }
}
