//! After a restart: who holds what, and then the start.

use super::Logic;
use super::consumer::{Lease, LeaseState};
use super::expiry::UNKNOWN_NS;
use super::handles::HandleRef;
use super::record::Returned;
use super::returns::NS_PER_MS;
use super::types::{HandleId, Now};

impl Logic {
    /// Before [`Self::start`]: an entry in the lease table of an adopted consumer. `false`: its message is done with, or
    /// another consumer has it, or the entry makes no sense: it is to be freed.
    pub fn adopt_lease(
        &mut self,
        handle: HandleId,
        slot: u32,
        sequence: u64,
        attempt: u32,
        now: Now,
    ) -> bool {
        let Some(&HandleRef::Consumer(number)) = self.handles.get(&handle) else { return false };
        let Some(consumer) = self.consumers.get(number) else { return false };
        if self.started || consumer.browser.is_some() || attempt == 0 || sequence == 0 {
            return false;
        }
        let (index, group_index) = (consumer.queue, consumer.group);
        let Some(queue) = self.queues.get(index) else { return false };
        if sequence >= queue.next_sequence {
            return false;
        }
        let lease_ms = queue.definition.lease_ms;
        let group = &queue.groups[group_index];
        // Done with, or another consumer has it: an entry is freed before its message is given to the next.
        if sequence < group.fresh && !group.has_back(sequence) {
            return false;
        }
        let bytes = u32::try_from(group.mean_bytes(queue.next_sequence)).unwrap_or(u32::MAX);
        let Some(consumer) = self.consumers.get_mut(number) else { return false };
        if !consumer.claim_entry(slot) {
            return false;
        }
        let deadline_ns = match lease_ms {
            0 => u64::MAX,
            ms => now.monotonic_ns.saturating_add(ms.saturating_mul(NS_PER_MS)),
        };
        let state = LeaseState::Held;
        let expires_ns = UNKNOWN_NS;
        consumer.hold(slot, Lease { sequence, deadline_ns, attempt, bytes, state, expires_ns });
        self.arm_consumer(number, deadline_ns);
        if let Some(queue) = self.queues.get_mut(index) {
            let queue_id = queue.definition.id;
            let group = &mut queue.groups[group_index];
            let known = group.take(sequence).unwrap_or(0);
            group.leased += 1;
            let (group, count) = (group.id, attempt - 1);
            if count > known {
                // Its last return did not get into the journal.
                let entry = Returned { sequence, count, rejected: false, delay_ms: 0 };
                self.gather_returned(index, queue_id, group, entry, None);
            }
        }
        true
    }

    /// After replay and adoption: delays start afresh, what is not leased is available, dispatching begins.
    pub fn start(&mut self, now: Now) {
        // A checkpoint without its end does not count.
        if let Some(before) = self.before_checkpoint.take() {
            *self = *before;
        }
        self.now = now;
        self.started = true;
        self.lanes.clear();
        let mut groups = Vec::new();
        for (index, queue) in self.queues.iter_mut() {
            queue.durable_end = queue.next_sequence;
            queue.replayed_end = queue.next_sequence;
            for (number, group) in queue.groups.iter_mut().enumerate() {
                let due: Vec<_> = std::mem::take(&mut group.due).into_iter().collect();
                for (delay_ns, sequence) in due {
                    let due_ns = now.monotonic_ns.saturating_add(delay_ns);
                    if let Some(delayed) = group.delayed.get_mut(&sequence) {
                        delayed.due_ns = due_ns;
                        group.due.insert((due_ns, sequence));
                    }
                }
                groups.push((index, number));
            }
        }
        for (index, number) in groups {
            self.doom_exhausted(index, number);
            self.arm_group(index, number);
            self.mark(index);
            self.may_be_overfull(index);
        }
    }
}
