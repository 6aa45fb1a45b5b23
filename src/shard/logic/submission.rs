//! What consumers ask: ack, nack, extend, reject, credit.

use ringmain_client::wire::{LeaseToken, Outcome, Up};

use super::Logic;
use super::consumer::Lease;
use super::effects::Item;
use super::expiry::UNKNOWN_NS;
use super::group::Waiter;
use super::handles::HandleRef;
use super::returns::{NS_PER_MS, Return};
use super::types::{HandleId, Now, Port, Refusal};

/// Who asked, and where.
#[derive(Debug, Clone, Copy)]
struct Asked {
    number: u32,
    queue: u32,
    group: usize,
    waiter: Waiter,
}

impl Logic {
    /// A record from a consumer. Its slot in the ring may be released when everything up to the end of the next [`Self::flush`]
    /// is durable; what was not released when a broker died is submitted again, with `again`.
    ///
    /// # Errors
    /// [`Refusal::Full`]: it was not taken and stays in the ring. [`Refusal::Unknown`]: no such consumer.
    // Into its one caller: the record stays in registers.
    #[inline(always)]
    pub fn submission(
        &mut self,
        port: &mut dyn Port,
        handle: HandleId,
        up: Up,
        again: bool,
        now: Now,
    ) -> Result<(), Refusal> {
        self.now = now;
        let Some(&HandleRef::Consumer(number)) = self.handles.get(&handle) else {
            return Err(Refusal::Unknown);
        };
        if self.gathered.is_full() {
            return Err(Refusal::Full);
        }
        let (token, request) = match up {
            Up::Credit { credit } => {
                self.set_credit(number, credit);
                return Ok(());
            }
            Up::Ack { lease, request }
            | Up::Nack { lease, request, .. }
            | Up::Extend { lease, request, .. }
            | Up::Reject { lease, request } => (lease, request),
            // The shard answers it itself, when what came before it is durable.
            Up::Flush { .. } => return Ok(()),
        };
        let consumer = self.consumers.get(number).ok_or(Refusal::Unknown)?;
        let waiter = Waiter { consumer: number, generation: consumer.generation, request };
        let asked = Asked { number, queue: consumer.queue, group: consumer.group, waiter };
        let found = consumer.find(token.slot, token.sequence, token.attempt);
        if self.queues.get(asked.queue).is_none_or(|queue| queue.deleted) {
            self.answer(waiter, port, Outcome::QueueDeleted, 0);
            return Ok(());
        }
        let group = self.queues.get(asked.queue).and_then(|queue| queue.groups.get(asked.group));
        if group.is_some_and(|group| group.deleted) {
            self.answer(waiter, port, Outcome::LeaseLost, 0);
            return Ok(());
        }
        let Some(lease) = found else {
            self.end_gone(port, number, token);
            self.without_lease(port, asked, up, token, again);
            return Ok(());
        };
        match up {
            Up::Ack { .. } => self.acknowledge(port, asked, token, lease),
            Up::Nack { .. } | Up::Reject { .. } => {
                self.hand_back(port, asked, token.slot, back(up, token, lease.expires_ns));
            }
            Up::Extend { lease_ms, .. } => {
                let length_ns = lease_ms.saturating_mul(NS_PER_MS);
                let deadline_ns = now.monotonic_ns.saturating_add(length_ns);
                if let Some(consumer) = self.consumers.get_mut(number) {
                    consumer.set_deadline(token.slot, deadline_ns);
                }
                self.arm_consumer(number, deadline_ns);
                self.answer(waiter, port, Outcome::Done, 0);
            }
            Up::Credit { .. } | Up::Flush { .. } => {}
        }
        Ok(())
    }

    /// A consumer has come to an end with a message that a limit has discarded.
    fn end_gone(&mut self, port: &mut dyn Port, number: u32, token: LeaseToken) {
        let Some(consumer) = self.consumers.get_mut(number) else { return };
        if consumer.is_gone(token.slot, token.sequence, token.attempt) {
            port.lease(consumer.handle, token.slot, None);
            consumer.release(token.slot);
            let queue = consumer.queue;
            self.mark(queue);
        }
    }

    fn set_credit(&mut self, number: u32, credit: u32) {
        let Some(consumer) = self.consumers.get_mut(number) else { return };
        consumer.set_credit(credit);
        consumer.drained_wanted = true;
        let queue = consumer.queue;
        self.mark(queue);
    }

    fn acknowledge(&mut self, port: &mut dyn Port, asked: Asked, token: LeaseToken, lease: Lease) {
        let Some(queue) = self.queues.get_mut(asked.queue) else { return };
        let (queue_id, end) = (queue.definition.id, queue.next_sequence);
        let Some(group) = queue.groups.get_mut(asked.group) else { return };
        let group_id = group.id;
        group.leased = group.leased.saturating_sub(1);
        if let Some(errno) = self.failed {
            // It stays in the journal as it is; this consumer goes on reading.
            if let Some(consumer) = self.consumers.get_mut(asked.number) {
                port.lease(consumer.handle, token.slot, None);
                consumer.release(token.slot);
            }
            let detail = u64::from(errno.unsigned_abs());
            self.answer(asked.waiter, port, Outcome::JournalFailed, detail);
            self.mark(asked.queue);
            return;
        }
        group.settle(u64::from(lease.bytes), end);
        if let Some(consumer) = self.consumers.get_mut(asked.number) {
            consumer.settle(token.slot);
        }
        let item = Item {
            queue: asked.queue,
            sequence: lease.sequence,
            waiter: asked.waiter,
            slot: token.slot,
        };
        self.gather_acknowledged(queue_id, group_id, item);
        self.mark(asked.queue);
    }

    /// Nack or reject.
    fn hand_back(&mut self, port: &mut dyn Port, asked: Asked, slot: u32, back: Return) {
        let Some(consumer) = self.consumers.get_mut(asked.number) else { return };
        port.lease(consumer.handle, slot, None);
        consumer.release(slot);
        self.unlease(asked.queue, asked.group);
        self.give_back(port, asked, back);
    }

    fn give_back(&mut self, port: &mut dyn Port, asked: Asked, back: Return) {
        let wanted = asked.waiter.request != 0 && self.failed.is_none();
        self.put_back(asked.queue, asked.group, back, wanted.then_some(asked.waiter));
        if let Some(errno) = self.failed {
            let detail = u64::from(errno.unsigned_abs());
            self.answer(asked.waiter, port, Outcome::JournalFailed, detail);
        }
    }

    /// The token names no lease: it is over. Unless the same was asked of a broker that died before it could answer.
    fn without_lease(
        &mut self,
        port: &mut dyn Port,
        asked: Asked,
        up: Up,
        token: LeaseToken,
        again: bool,
    ) {
        let state = if again {
            self.state_of(asked.queue, asked.group, token.sequence)
        } else {
            State::Unknown
        };
        match (up, state) {
            (Up::Ack { .. } | Up::Reject { .. }, State::Settled)
            | (Up::Nack { .. }, State::Settled) => {
                self.answer(asked.waiter, port, Outcome::Done, 0);
            }
            (Up::Nack { .. } | Up::Reject { .. }, State::Back(count)) if count >= token.attempt => {
                self.answer(asked.waiter, port, Outcome::Done, 0);
            }
            (Up::Nack { .. } | Up::Reject { .. }, State::Back(count))
                if count + 1 == token.attempt =>
            {
                // The entry was freed, but the count is not in the journal.
                let group = self
                    .queues
                    .get_mut(asked.queue)
                    .and_then(|queue| queue.groups.get_mut(asked.group));
                let Some(group) = group else { return };
                let doomed = group.doomed.get(&token.sequence);
                let superseded = doomed.and_then(|doomed| doomed.waiter);
                let taken = group.take(token.sequence);
                if let Some(waiter) = superseded {
                    // It was rejected before it was delivered again.
                    self.answer(waiter, port, Outcome::Done, 0);
                }
                if taken.is_some() {
                    self.give_back(port, asked, back(up, token, UNKNOWN_NS));
                }
            }
            _ => self.answer(asked.waiter, port, Outcome::LeaseLost, 0),
        }
    }

    fn state_of(&self, index: u32, group: usize, sequence: u64) -> State {
        let Some(queue) = self.queues.get(index) else { return State::Unknown };
        let Some(group) = queue.groups.get(group) else { return State::Unknown };
        if sequence == 0 || sequence >= queue.durable_end {
            return State::Unknown;
        }
        if sequence >= group.fresh {
            return State::Back(0);
        }
        if let Some(count) = group.ready.get(&sequence) {
            return State::Back(*count);
        }
        if let Some(delayed) = group.delayed.get(&sequence) {
            return State::Back(delayed.count);
        }
        if let Some(doomed) = group.doomed.get(&sequence) {
            return State::Back(doomed.count);
        }
        let leased =
            group.consumers.iter().filter_map(|member| self.consumers.get(*member)).any(
                |consumer| consumer.held_leases().any(|(_, lease)| lease.sequence == sequence),
            );
        if leased { State::Unknown } else { State::Settled }
    }
}

/// What a nack or a reject gives back.
fn back(up: Up, token: LeaseToken, expires_ns: u64) -> Return {
    let (delay_ms, rejected) = match up {
        Up::Nack { delay_ms, .. } => (delay_ms, false),
        _ => (0, true),
    };
    let LeaseToken { sequence, attempt: count, .. } = token;
    Return { sequence, count, counted: true, rejected, delay_ms, expires_ns }
}

/// Where a message is for one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// With another consumer, or there is no such message.
    Unknown,
    /// Done with.
    Settled,
    /// With nobody, after so many deliveries.
    Back(u32),
}
