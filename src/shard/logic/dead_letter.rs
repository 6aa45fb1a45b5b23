//! Messages that no consumer could do anything with: moved to the dead-letter queue, or discarded and counted.

use ringmain_client::wire::Outcome;

use super::dispatch::{NOT_THERE, Step};
use super::effects::{Effect, Item, NO_SLOT};
use super::group::{Doomed, Reason, Waiter};
use super::headers;
use super::queue::Queue;
use super::record::{FLAG_EXPIRED, List, MessageBody, kind};
use super::types::{FLAG_MESSAGE, Lsn, Port, QueueDefinition, RecordRef};
use super::{AppendError, Log, Logic, Message};

/// A message that is to be written to another queue and taken out of this one, in one atomic group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    pub(super) from: u32,
    pub(super) group: u32,
    pub(super) sequence: u64,
    pub(super) to: u32,
    /// The record that takes it out.
    pub(super) kind: u8,
    pub(super) record_flags: u8,
    pub(super) flags: u16,
    /// Bytes of metadata at the start of the scratch memory; the payload follows.
    pub(super) metadata_bytes: usize,
}

/// No consumer: nothing is to be freed or answered.
const NOBODY: Waiter = Waiter { consumer: u32::MAX, generation: 0, request: 0 };

impl Logic {
    /// Moves or discards the doomed messages of a group.
    pub(super) fn move_doomed(
        &mut self,
        index: u32,
        group_index: usize,
        log: &mut dyn Log,
        port: &mut dyn Port,
        budget: &mut u32,
    ) -> Step {
        loop {
            let Some(queue) = self.queues.get(index) else { return Step::Done };
            let group = &queue.groups[group_index];
            let Some((&sequence, &doomed)) = group.doomed.first_key_value() else {
                return Step::Done;
            };
            if self.failed.is_some() || group.stalled.is_some() {
                return Step::Done;
            }
            if *budget == 0 {
                return Step::More;
            }
            *budget -= 1;
            if !self.flush_gathered(log) {
                return Step::Later;
            }
            let moved = match self.dead_letter_queue(index) {
                _ if doomed.reason == Reason::Gone => {
                    self.discard(index, group_index, doomed.reason, budget, log)
                }
                None => self.discard(index, group_index, doomed.reason, budget, log),
                Some(None) => return Step::Done,
                Some(Some(to)) => self.dead_letter(index, group_index, to, sequence, doomed, log),
            };
            match moved {
                Ok(()) => {}
                Err(Stop::Later) => return Step::Later,
                Err(Stop::Gone) => {
                    if let Some(queue) = self.queues.get_mut(index)
                        && let Some(doomed) = queue.groups[group_index].doomed.get_mut(&sequence)
                    {
                        doomed.reason = Reason::Gone;
                        self.losses_untold.extend(queue.loss(sequence));
                    }
                }
                Err(Stop::Lost(what)) => {
                    self.stall(index, group_index, sequence, what, port);
                    return Step::Done;
                }
            }
        }
    }

    /// `None`: there is none. `Some(None)`: it is missing, nothing can be moved.
    fn dead_letter_queue(&self, index: u32) -> Option<Option<u32>> {
        let name = &self.queues.get(index)?.definition.dead_letter;
        if name.is_empty() {
            return None;
        }
        Some(self.by_name.get(name).copied())
    }

    fn doomed_is_gone(&mut self, index: u32, group_index: usize, sequence: u64) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        let end = queue.next_sequence;
        let group = &mut queue.groups[group_index];
        let bytes = group.mean_bytes(end);
        let doomed = group.doomed.remove(&sequence);
        group.settle(bytes, end);
        let waiter = doomed.and_then(|doomed| doomed.waiter).unwrap_or(NOBODY);
        self.effects.items.push_back(Item { queue: index, sequence, waiter, slot: NO_SLOT });
    }

    fn stall(
        &mut self,
        index: u32,
        group_index: usize,
        sequence: u64,
        what: String,
        port: &mut dyn Port,
    ) {
        const EIO: u64 = 5;
        let Some(queue) = self.queues.get_mut(index) else { return };
        let group = &mut queue.groups[group_index];
        group.stalled = Some(self.stalls.begin(sequence, what));
        let waiters: Vec<_> =
            group.doomed.values_mut().filter_map(|doomed| doomed.waiter.take()).collect();
        for waiter in waiters {
            self.answer(waiter, port, Outcome::JournalFailed, EIO);
        }
    }

    /// Discards doomed messages with this reason, as many as one record takes.
    fn discard(
        &mut self,
        index: u32,
        group_index: usize,
        reason: Reason,
        budget: &mut u32,
        log: &mut dyn Log,
    ) -> Result<(), Stop> {
        let group = self.group_id(index, group_index);
        let Some(queue) = self.queues.get_mut(index) else { return Err(Stop::Later) };
        let mut list = List::default();
        list.begin(group);
        let mut sequences = Vec::new();
        for (sequence, doomed) in &queue.groups[group_index].doomed {
            // The first one is in the budget already.
            if doomed.reason != reason || list.is_full() || sequences.len() > *budget as usize {
                break;
            }
            list.range(*sequence);
            sequences.push(*sequence);
        }
        let is_expired = reason == Reason::Expired;
        let record = RecordRef {
            kind: if is_expired { kind::EXPIRED } else { kind::DISCARDED },
            flags: 0,
            queue: queue.definition.id,
            sequence: 0,
            parts: &[list.as_bytes()],
        };
        let (lsn, _) = log.append(record).map_err(|_| Stop::Later)?;
        let items = u32::try_from(sequences.len()).unwrap_or(u32::MAX);
        *budget = budget.saturating_sub(items.saturating_sub(1));
        let counter = if is_expired { &mut queue.expired } else { &mut queue.discarded };
        *counter += u64::from(items);
        self.effects.push(lsn, Effect::Settled { queue: index, items });
        for sequence in sequences {
            self.doomed_is_gone(index, group_index, sequence);
        }
        Ok(())
    }

    fn dead_letter(
        &mut self,
        index: u32,
        group_index: usize,
        to: u32,
        sequence: u64,
        doomed: Doomed,
        log: &mut dyn Log,
    ) -> Result<(), Stop> {
        let group = self.group_id(index, group_index);
        let Some(queue) = self.queues.get(index) else { return Err(Stop::Later) };
        let definition = &queue.definition;
        let body = read(log, queue, sequence)?;
        let scratch = &mut self.scratch;
        scratch.clear();
        headers::copy_without_ours(body.metadata, scratch);
        let (reason, record_flags) = match doomed.reason {
            Reason::Rejected => ("rejected", 0),
            Reason::MaxDeliveries => ("max-deliveries", 0),
            Reason::Expired => ("expired", FLAG_EXPIRED),
            Reason::Gone => return Err(Stop::Gone),
        };
        headers::push(scratch, headers::REASON, reason);
        headers::push(scratch, headers::ORIGIN_QUEUE, &definition.name);
        headers::push(scratch, headers::ORIGIN_SEQUENCE, &sequence.to_string());
        headers::push(scratch, headers::DELIVERIES, &doomed.count.to_string());
        let metadata_bytes = scratch.len();
        scratch.extend_from_slice(body.payload);
        let flags = body.flags;
        let kind = kind::MOVED;
        let transfer = Transfer {
            from: index,
            group,
            sequence,
            to,
            kind,
            record_flags,
            flags,
            metadata_bytes,
        };
        self.transfer(transfer, log)?;
        if let Some(queue) = self.queues.get_mut(index) {
            queue.dead_lettered += 1;
            queue.expired += u64::from(doomed.reason == Reason::Expired);
        }
        self.doomed_is_gone(index, group_index, sequence);
        Ok(())
    }

    /// Writes what is in the scratch memory to another queue and takes the message out of its own: both or neither. The caller adds
    /// the item.
    pub(super) fn transfer(&mut self, transfer: Transfer, log: &mut dyn Log) -> Result<(), Stop> {
        let Some(from) = self.queues.get(transfer.from) else { return Err(Stop::Later) };
        let from_id = from.definition.id;
        let Some(to) = self.queues.get_mut(transfer.to) else { return Err(Stop::Later) };
        let (metadata, payload) = self.scratch.split_at(transfer.metadata_bytes);
        let body = MessageBody {
            published_ns: self.now.realtime_ns.max(to.published_ns),
            lane: 0,
            position: 0,
            span: 0,
            flags: transfer.flags,
            metadata,
            payload,
        };
        let mut list = List::default();
        list.begin(transfer.group);
        list.range(transfer.sequence);
        let message = RecordRef {
            kind: kind::MESSAGE,
            flags: FLAG_MESSAGE,
            queue: to.definition.id,
            sequence: to.next_sequence,
            parts: &[&body.header(), metadata, payload],
        };
        let taken_out = RecordRef {
            kind: transfer.kind,
            flags: transfer.record_flags,
            queue: from_id,
            sequence: 0,
            parts: &[list.as_bytes()],
        };
        log.begin();
        let both = both(log, message, taken_out);
        let (stored, settled) = match both {
            Ok(lsns) => {
                log.commit();
                lsns
            }
            Err(error) => {
                log.abort();
                return Err(error.into());
            }
        };
        let sequence = to.next_sequence;
        to.appended(body.published_ns, self.scratch.len());
        to.expires(sequence, body.published_ns, None);
        self.effects.push_stored(stored, transfer.to, sequence, None, 0, 0);
        self.may_be_overfull(transfer.to);
        self.effects.push(settled, Effect::Settled { queue: transfer.from, items: 1 });
        Ok(())
    }
}

fn both(
    log: &mut dyn Log,
    first: RecordRef<'_>,
    second: RecordRef<'_>,
) -> Result<(Lsn, Lsn), AppendError> {
    let (first, _) = log.append(first)?;
    let (second, _) = log.append(second)?;
    Ok((first, second))
}

/// Why a message was not moved.
#[derive(Debug)]
pub(super) enum Stop {
    Later,
    /// It cannot be read.
    Lost(String),
    /// It is not there.
    Gone,
}

impl From<AppendError> for Stop {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full | AppendError::Failed { .. } => Self::Later,
            AppendError::TooLarge { .. } => Self::Lost(error.to_string()),
        }
    }
}

/// Reads a message that is to be moved.
pub(super) fn read<'a>(
    log: &'a mut dyn Log,
    queue: &Queue,
    sequence: u64,
) -> Result<MessageBody<'a>, Stop> {
    let QueueDefinition { id, name, .. } = &queue.definition;
    let lost = |what: &str| Stop::Lost(format!("message {sequence} of queue {name}: {what}"));
    match log.message(*id, sequence) {
        Message::Pending => Err(Stop::Later),
        Message::Lost(what) => Err(lost(&what)),
        Message::Gone if sequence < queue.replayed_end => Err(Stop::Gone),
        Message::Gone => Err(lost(NOT_THERE)),
        Message::Ready(body) => MessageBody::parse(body).ok_or_else(|| lost("malformed record")),
    }
}
