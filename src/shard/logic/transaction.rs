//! Transactions: messages and acknowledgements in one step, all or nothing.
//!
//! One atomic group of the journal: the transaction with its place in the lane, the messages, the acknowledgements. Everything is
//! checked before the first of them is appended, and nothing is changed before the last one is.

use std::collections::{BTreeMap, BTreeSet};

use ringmain_client::layout::metadata::{OwnSequence, times};
use ringmain_client::protocol::Overflow;
use ringmain_client::wire::{LeaseToken, Outcome};

use super::consumer::Lease;
use super::effects::{Effect, Item};
use super::group::Waiter;
use super::handles::{HandleRef, NO_QUEUE, push_lane};
use super::publish::message_bytes_max;
use super::queue::Queue;
use super::record::{self, List, MessageBody, Transaction, kind};
use super::types::{FLAG_MESSAGE, HandleId, Lsn, Now, RecordRef, Refusal};
use super::{AppendError, Log, Logic, canary};
use crate::shard::memory::METADATA_BYTES_MAX;

/// A message of a transaction.
#[derive(Debug, Clone, Copy)]
pub struct TransactionMessage<'a> {
    /// A producer.
    pub handle: HandleId,
    /// As of a message that is sent alone.
    pub metadata: &'a [u8],
    /// As of a message that is sent alone.
    pub payload: &'a [u8],
}

/// An acknowledgement of a transaction.
#[derive(Debug, Clone, Copy)]
pub struct TransactionAck {
    /// A consumer.
    pub handle: HandleId,
    /// Which delivery.
    pub lease: LeaseToken,
}

/// A message that may be appended.
#[derive(Debug, Clone, Copy)]
struct Checked<'a> {
    queue: u32,
    sequence: u64,
    own: Option<OwnSequence>,
    ttl_ms: Option<u64>,
    body: MessageBody<'a>,
}

/// A lease that is held.
#[derive(Debug, Clone, Copy)]
struct HeldLease {
    consumer: u32,
    generation: u32,
    slot: u32,
    lease: Lease,
}

/// Acknowledgements by queue and group (its place there and its id).
type Acks = BTreeMap<(u32, usize, u32), Vec<HeldLease>>;

/// Why nothing of it is done: what, and details.
type No = (Outcome, u64);

impl Logic {
    /// A transaction from the lane of a producer, from `position` to `next_position`. What becomes of it is told as by
    /// [`Self::publish`], with the sequence of its first message, or 0 if it has none. `Duplicate` if its messages under names were
    /// stored before: then nothing of it is done, as it was done then. `Invalid` if some of them were.
    ///
    /// # Errors
    /// As [`Self::publish`].
    #[allow(clippy::too_many_arguments)]
    pub fn transact(
        &mut self,
        log: &mut dyn Log,
        handle: HandleId,
        position: u64,
        next_position: u64,
        messages: &[TransactionMessage<'_>],
        acks: &[TransactionAck],
        now: Now,
    ) -> Result<(), Refusal> {
        self.now = now;
        let Some(&HandleRef::Producer(lane)) = self.handles.get(&handle) else {
            return Err(Refusal::Unknown);
        };
        let checked = self.check_messages(log, lane, messages, now);
        let checked = checked.and_then(|checked| Ok((checked, self.check_acks(acks)?)));
        let done = match checked {
            Ok((messages, acks)) => {
                let place = (lane, position, next_position.wrapping_sub(position));
                self.append_transaction(log, handle, place, &messages, &acks)
            }
            Err((outcome, detail)) => {
                if outcome == Outcome::QueueFull {
                    self.count_rejected(messages);
                }
                self.effects.push_behind(Effect::Refused { handle, position, outcome, detail });
                return Ok(());
            }
        };
        let (outcome, detail) = match done {
            Ok(()) => return Ok(()),
            Err(AppendError::Full) => return Err(Refusal::Full),
            Err(AppendError::TooLarge { limit_bytes }) => (Outcome::TooLarge, limit_bytes as u64),
            Err(AppendError::Failed { errno }) => {
                (Outcome::JournalFailed, u64::from(errno.unsigned_abs()))
            }
        };
        self.effects.push_behind(Effect::Refused { handle, position, outcome, detail });
        Ok(())
    }

    /// The messages of a transaction that is refused for want of room, of queues that reject.
    fn count_rejected(&mut self, messages: &[TransactionMessage<'_>]) {
        for message in messages {
            let Ok((index, ..)) = self.producer_of(message.handle) else { continue };
            if let Some(queue) = self.queues.get_mut(index)
                && queue.definition.limits.overflow == Overflow::Reject
            {
                queue.rejected += 1;
            }
        }
    }

    fn check_messages<'a>(
        &self,
        log: &dyn Log,
        lane: u32,
        messages: &[TransactionMessage<'a>],
        now: Now,
    ) -> Result<Vec<Checked<'a>>, No> {
        if let Some(errno) = self.failed {
            return Err((Outcome::JournalFailed, u64::from(errno.unsigned_abs())));
        }
        if self.producers.get(lane).is_none_or(|producer| producer.queue == NO_QUEUE) {
            return Err((Outcome::QueueDeleted, 0));
        }
        let limit = message_bytes_max(log.group_bytes_max());
        let mut checked = Vec::with_capacity(messages.len());
        // So far in this transaction: messages of each queue, and the last own sequence of each name.
        let (mut of_queue, mut last_own) = (BTreeMap::new(), BTreeMap::new());
        let mut is_duplicate = false;
        for message in messages {
            let (index, queue, named) = self.producer_of(message.handle)?;
            let TransactionMessage { metadata, payload, .. } = *message;
            let times = times(metadata).filter(|_| metadata.len() <= METADATA_BYTES_MAX);
            let ttl_ms = times.ok_or((Outcome::Invalid, 0))?.ttl_ms;
            if metadata.len() + payload.len() > limit {
                return Err((Outcome::TooLarge, limit as u64));
            }
            let own = match queue.named.judge(named, metadata) {
                Ok(own) => own,
                Err(Outcome::Duplicate) => {
                    is_duplicate = true;
                    continue;
                }
                Err(outcome) => return Err((outcome, 0)),
            };
            if let Some(own) = own {
                let last = last_own.entry((index, own.producer)).or_insert(0);
                if own.sequence <= *last {
                    return Err((Outcome::Invalid, 0));
                }
                *last = own.sequence;
            }
            let body = MessageBody {
                published_ns: now.realtime_ns.max(queue.published_ns),
                lane: 0,
                position: 0,
                span: 0,
                flags: 0,
                metadata,
                payload,
            };
            let (before, bytes) = of_queue.entry(index).or_insert((0u64, 0u64));
            let sequence = queue.next_sequence + *before;
            *before += 1;
            *bytes += (metadata.len() + payload.len()) as u64;
            checked.push(Checked { queue: index, sequence, own, ttl_ms, body });
        }
        // It does not wait for room: others would wait behind it.
        let is_full = |(index, (messages, bytes)): (&u32, &(u64, u64))| {
            self.queues.get(*index).is_some_and(|queue| {
                queue.definition.limits.overflow != Overflow::DropOldest
                    && !queue.has_room(*messages, *bytes)
            })
        };
        match (is_duplicate, last_own.is_empty()) {
            (false, _) if of_queue.iter().any(is_full) => Err((Outcome::QueueFull, 0)),
            (false, _) => Ok(checked),
            (true, true) => Err((Outcome::Duplicate, 0)),
            // Put together in another way than the one that was stored: nobody can say what is missing.
            (true, false) => Err((Outcome::Invalid, 0)),
        }
    }

    /// The queue of a producer, and its name's id.
    fn producer_of(&self, handle: HandleId) -> Result<(u32, &Queue, Option<u64>), No> {
        let Some(&HandleRef::Producer(number)) = self.handles.get(&handle) else {
            return Err((Outcome::Invalid, 0));
        };
        let producer = self.producers.get(number).ok_or((Outcome::Invalid, 0))?;
        match self.queues.get(producer.queue) {
            Some(queue) if !queue.deleted => Ok((producer.queue, queue, producer.named)),
            _ => Err((Outcome::QueueDeleted, 0)),
        }
    }

    fn check_acks(&self, acks: &[TransactionAck]) -> Result<Acks, No> {
        let mut checked = Acks::new();
        let mut seen = BTreeSet::new();
        for TransactionAck { handle, lease: token } in acks {
            let Some(&HandleRef::Consumer(number)) = self.handles.get(handle) else {
                return Err((Outcome::LeaseLost, 0));
            };
            let lost = (Outcome::LeaseLost, token.sequence);
            let consumer = self.consumers.get(number).ok_or(lost)?;
            let lease = consumer.find(token.slot, token.sequence, token.attempt).ok_or(lost)?;
            if !seen.insert((number, token.slot)) {
                return Err(lost);
            }
            let queue = self.queues.get(consumer.queue).filter(|queue| !queue.deleted);
            let queue = queue.ok_or((Outcome::QueueDeleted, 0))?;
            let id = queue.groups.get(consumer.group).map_or(0, |group| group.id);
            let (slot, generation) = (token.slot, consumer.generation);
            let held = HeldLease { consumer: number, generation, slot, lease };
            checked.entry((consumer.queue, consumer.group, id)).or_default().push(held);
        }
        for held in checked.values_mut() {
            held.sort_unstable_by_key(|held| held.lease.sequence);
        }
        Ok(checked)
    }

    /// Appends all of it or nothing, and then carries it out.
    fn append_transaction(
        &mut self,
        log: &mut dyn Log,
        handle: HandleId,
        (lane, position, span): (u32, u64, u64),
        messages: &[Checked<'_>],
        acks: &Acks,
    ) -> Result<(), AppendError> {
        let Some(number) = self.producers.get(lane).map(|producer| producer.lane) else {
            return Ok(());
        };
        // What was asked for before comes before it.
        if !self.flush_gathered(log) {
            return Err(AppendError::Full);
        }
        let first = messages.first().map_or(0, |message| message.sequence);
        let record = Transaction {
            lane: number,
            position,
            span,
            sequence: first,
            messages: u32::try_from(messages.len()).unwrap_or(u32::MAX),
        };
        log.begin();
        let appended = self.append_parts(log, &record, messages, acks);
        let lsns = match appended {
            Ok(lsns) => {
                log.commit();
                lsns
            }
            Err(error) => {
                log.abort();
                return Err(error);
            }
        };
        for (message, lsn) in messages.iter().zip(&lsns) {
            let Some(queue) = self.queues.get_mut(message.queue) else { continue };
            let bytes = message.body.metadata.len() + message.body.payload.len();
            queue.appended(message.body.published_ns, bytes);
            queue.expires(message.sequence, message.body.published_ns, message.ttl_ms);
            if let Some(own) = message.own {
                queue.named.appended(own, message.body.published_ns);
            }
            self.effects.push_stored(*lsn, message.queue, message.sequence, None, 0, 0);
            self.may_be_overfull(message.queue);
        }
        for ((key, held), lsn) in acks.iter().zip(&lsns[messages.len()..]) {
            self.settle_held(*key, held, *lsn);
        }
        self.effects.push_behind(Effect::Transacted { handle, position, sequence: first });
        if let Some(producer) = self.producers.get_mut(lane) {
            push_lane(&mut producer.runs, position, span, first);
        }
        Ok(())
    }

    /// LSNs of the messages, then of the acknowledgements.
    fn append_parts(
        &self,
        log: &mut dyn Log,
        transaction: &Transaction,
        messages: &[Checked<'_>],
        acks: &Acks,
    ) -> Result<Vec<Lsn>, AppendError> {
        let id = |index: u32| self.queues.get(index).map_or(0, |queue| queue.definition.id);
        let put = |log: &mut dyn Log, kind: u8, queue: u64, body: &[u8]| {
            let record = RecordRef { kind, flags: 0, queue, sequence: 0, parts: &[body] };
            log.append(record).map(|(lsn, _)| lsn)
        };
        put(log, kind::TRANSACTION, 0, &record::encode(transaction))?;
        let mut lsns = Vec::with_capacity(messages.len() + acks.len());
        for message in messages {
            let body = &message.body;
            let record = RecordRef {
                kind: kind::MESSAGE,
                flags: FLAG_MESSAGE,
                queue: id(message.queue),
                sequence: message.sequence,
                parts: &[&body.header(), body.metadata, body.payload],
            };
            lsns.push(log.append(record)?.0);
        }
        for ((queue, _, group), held) in acks {
            let mut list = List::default();
            list.begin(*group);
            if !canary::planted(canary::Canary::HalfTransaction) {
                held.iter().for_each(|held| list.range(held.lease.sequence));
            }
            lsns.push(put(log, kind::ACKNOWLEDGED, id(*queue), list.as_bytes())?);
        }
        Ok(lsns)
    }

    /// Acknowledgements of one group are in the log.
    fn settle_held(&mut self, (index, place, _): (u32, usize, u32), held: &[HeldLease], lsn: Lsn) {
        for HeldLease { consumer, generation, slot, lease } in held.iter().copied() {
            if let Some(queue) = self.queues.get_mut(index) {
                let end = queue.next_sequence;
                if let Some(group) = queue.groups.get_mut(place) {
                    group.leased = group.leased.saturating_sub(1);
                    group.settle(u64::from(lease.bytes), end);
                }
            }
            if let Some(consumer) = self.consumers.get_mut(consumer) {
                consumer.settle(slot);
            }
            let waiter = Waiter { consumer, generation, request: 0 };
            let sequence = lease.sequence;
            self.effects.items.push_back(Item { queue: index, sequence, waiter, slot });
        }
        let items = u32::try_from(held.len()).unwrap_or(u32::MAX);
        self.effects.push(lsn, Effect::Settled { queue: index, items });
        self.mark(index);
    }
}
