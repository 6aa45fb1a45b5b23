//! The state from the records of a journal.
//!
//! Records that the state already contains change nothing: a checkpoint may overlap with what follows it.

use ringmain_client::layout::metadata::times;

use super::group::{Delayed, Doomed, Group, Reason};
use super::handles::push_lane;
use super::queue::Queue;
use super::record::{
    self, GroupCreated, GroupState, LaneState, LooksState, MessageBody, OpenRun, QueueState,
    Returned, ShardState, Transaction, TrimReason, kind,
};
use super::returns::NS_PER_MS;
use super::types::{QueueDefinition, Replay, Stored};
use super::{LaneRun, Logic};

/// More messages than this cannot be with consumers at a time: 254 handles with 4096 leases. What claims more is damaged.
const SKIPPED_MAX: u64 = 1 << 24;

impl Replay for Logic {
    fn checkpoint_begin(&mut self) {
        let before = std::mem::replace(self, Self::new(self.shard));
        // Of nested beginnings only the first has a state before it that counts.
        let before = match before.before_checkpoint {
            Some(before) => before,
            None => Box::new(before),
        };
        self.before_checkpoint = Some(before);
    }

    fn record(&mut self, record: Stored<'_>) -> Result<(), String> {
        self.replay(&record).map_err(|what| {
            format!("record of kind {} for queue {}: {what}", record.kind, record.queue)
        })
    }

    fn checkpoint_end(&mut self) {
        self.before_checkpoint = None;
    }
}

impl Logic {
    fn replay(&mut self, record: &Stored<'_>) -> Result<(), String> {
        let body = record.body;
        match record.kind {
            kind::MESSAGE => self.replay_message(record.queue, record.sequence, body),
            kind::QUEUE_CREATED => {
                let definition: QueueDefinition = record::decode(body)?;
                if definition.id >= self.next_queue_id {
                    self.add_queue(Queue::new(definition));
                }
                Ok(())
            }
            kind::QUEUE_EDITED => {
                let definition: QueueDefinition = record::decode(body)?;
                self.with_queue(record.queue, |queue| {
                    queue.redefine(definition);
                    Ok(())
                })
            }
            kind::QUEUE_DELETED => {
                if let Some(index) = self.by_id.remove(&record.queue)
                    && let Some(queue) = self.queues.remove(index)
                {
                    self.by_name.remove(&queue.definition.name);
                }
                Ok(())
            }
            kind::GROUP_CREATED => self.replay_group(record.queue, &record::decode(body)?),
            kind::ACKNOWLEDGED | kind::MOVED | kind::DISCARDED | kind::EXPIRED => {
                self.with_queue(record.queue, |queue| settled(queue, record))
            }
            kind::RETURNED => self.with_queue(record.queue, |queue| {
                record::read_returned(body, |group, entry| returned(queue, group, &entry))
            }),
            kind::PURGED => {
                let below = body.try_into().map_err(|_| "malformed record")?;
                self.replay_discarded(record.queue, u64::from_le_bytes(below), None)
            }
            kind::TRIMMED => {
                let (below, reason) = record::decode_trimmed(body).ok_or("malformed record")?;
                self.replay_discarded(record.queue, below, Some(reason))
            }
            kind::GROUP_DELETED | kind::GROUP_RESET => self.replay_group_change(record),
            kind::PRODUCER_ATTACHED => {
                let attached = record::decode(body)?;
                self.with_queue(record.queue, |queue| queue.named.attached(attached))
            }
            kind::TRANSACTION => {
                let Transaction { lane, position, span, sequence, .. } = record::decode(body)?;
                let runs = self.lanes.entry(lane).or_default();
                if runs.back().is_none_or(|run| run.end() <= position) {
                    push_lane(runs, position, span, sequence);
                }
                Ok(())
            }
            kind::PRODUCERS_FORGOTTEN => {
                let forgotten = record::decode(body)?;
                self.with_queue(record.queue, |queue| {
                    queue.named.forget(&forgotten);
                    Ok(())
                })
            }
            kind::NAMED_STATE => {
                let state = record::decode(body)?;
                self.with_queue(record.queue, |queue| queue.named.restore(state))
            }
            kind::SHARD_STATE => {
                let state: ShardState = record::decode(body)?;
                if state.shard != self.shard {
                    return Err(format!("of shard {}, this is shard {}", state.shard, self.shard));
                }
                self.next_queue_id = self.next_queue_id.max(state.next_queue_id);
                Ok(())
            }
            kind::QUEUE_STATE => self.replay_queue(record::decode(body)?),
            kind::GROUP_STATE => {
                let state: GroupState = record::decode(body)?;
                self.with_queue(record.queue, |queue| group_state(queue, &state))
            }
            kind::OPEN_MESSAGES => self.with_queue(record.queue, |queue| {
                record::read_open_runs(body, |group, run| open_run(queue, group, &run))
            }),
            kind::MARKS => self.with_queue(record.queue, |queue| {
                let end = queue.next_sequence;
                queue.marks.read(body, end, queue.published_ns)
            }),
            kind::LOOKS_STATE => {
                let state: LooksState = record::decode(body)?;
                self.with_queue(record.queue, |queue| looks_state(queue, &state))
            }
            kind::LANE_STATE => self.replay_lane(record::decode(body)?),
            kind => Err(format!("kind {kind} is not known to this version")),
        }
    }

    /// A queue that is unknown was deleted, or never was.
    fn with_queue(
        &mut self,
        id: u64,
        change: impl FnOnce(&mut Queue) -> Result<(), String>,
    ) -> Result<(), String> {
        match self.by_id.get(&id).and_then(|index| self.queues.get_mut(*index)) {
            Some(queue) => change(queue),
            None if id < self.next_queue_id => Ok(()),
            None => Err("the queue was never created".to_owned()),
        }
    }

    fn replay_lane(&mut self, state: LaneState) -> Result<(), String> {
        if state.runs.iter().any(|(_, _, count, _)| *count == 0) {
            return Err("empty run of a lane".to_owned());
        }
        let runs = self.lanes.entry(state.lane).or_default();
        runs.extend(state.runs.into_iter().map(
            |(first_position, stride, count, first_sequence)| LaneRun {
                first_position,
                stride,
                count,
                first_sequence,
            },
        ));
        Ok(())
    }

    fn replay_message(&mut self, id: u64, sequence: u64, body: &[u8]) -> Result<(), String> {
        let message = MessageBody::parse(body).ok_or("malformed message")?;
        let (lane, position, span) = (message.lane, message.position, u64::from(message.span));
        let own_ms = match message.metadata {
            [] => None,
            metadata => times(metadata).unwrap_or_default().ttl_ms,
        };
        let mut new = false;
        self.with_queue(id, |queue| {
            if sequence > queue.next_sequence {
                let next = queue.next_sequence;
                return Err(format!("message {sequence} follows message {}", next - 1));
            }
            new = sequence == queue.next_sequence;
            if new {
                let bytes = message.metadata.len() + message.payload.len();
                let published_ns = message.published_ns.max(queue.published_ns);
                queue.appended(published_ns, bytes);
                queue.expires(sequence, published_ns, own_ms);
                queue.named.replay_message(&message)?;
            }
            Ok(())
        })?;
        if new && lane != 0 {
            push_lane(self.lanes.entry(lane).or_default(), position, span, sequence);
        }
        Ok(())
    }

    fn replay_group(&mut self, id: u64, created: &GroupCreated) -> Result<(), String> {
        let Some(&index) = self.by_id.get(&id) else { return self.with_queue(id, |_| Ok(())) };
        let is_new = |queue: &Queue| created.group >= queue.next_group;
        if self.queues.get(index).is_some_and(is_new) {
            self.create_group(index, created, 0);
        }
        Ok(())
    }

    /// Purged, or discarded by a limit.
    fn replay_discarded(
        &mut self,
        id: u64,
        below: u64,
        reason: Option<TrimReason>,
    ) -> Result<(), String> {
        let mut too_far = false;
        self.with_queue(id, |queue| {
            too_far = below > queue.next_sequence;
            Ok(())
        })?;
        if too_far {
            return Err(format!("messages below {below} do not exist"));
        }
        if let Some(&index) = self.by_id.get(&id) {
            self.discard_below(index, below, reason);
        }
        Ok(())
    }

    fn replay_group_change(&mut self, record: &Stored<'_>) -> Result<(), String> {
        let Some(&index) = self.by_id.get(&record.queue) else {
            return self.with_queue(record.queue, |_| Ok(()));
        };
        if record.kind == kind::GROUP_DELETED {
            self.replay_group_deleted(index, record::decode(record.body)?)
        } else {
            self.replay_group_reset(index, &record::decode(record.body)?)
        }
    }

    fn replay_queue(&mut self, state: QueueState) -> Result<(), String> {
        if self.by_id.contains_key(&state.definition.id) {
            return Err("the queue is there twice".to_owned());
        }
        let mut queue = Queue::new(state.definition);
        queue.groups.clear();
        queue.next_sequence = state.next_sequence.max(1);
        queue.next_group = state.next_group;
        queue.published_ns = state.published_ns;
        queue.redelivered = state.redelivered;
        queue.dead_lettered = state.dead_lettered;
        queue.discarded = state.discarded;
        queue.first = state.first.max(1);
        queue.trimmed = state.trimmed;
        queue.dropped = state.dropped;
        queue.expired = state.expired;
        queue.uses_ttl = queue.definition.ttl_ms > 0;
        self.add_queue(queue);
        Ok(())
    }
}

/// `None`: it was deleted.
fn group_of(queue: &mut Queue, id: u32) -> Result<Option<&mut Group>, String> {
    let next = queue.next_group;
    match queue.group_by_id(id) {
        None if id >= next => Err(format!("group {id} was never created")),
        found => Ok(found),
    }
}

fn group_state(queue: &mut Queue, state: &GroupState) -> Result<(), String> {
    if queue.group_by_id(state.group).is_some() || state.fresh > queue.next_sequence {
        return Err("impossible group".to_owned());
    }
    let mut group = Group::new(state.group, &state.name, state.fresh);
    group.bytes = state.bytes;
    group.skipped = state.skipped;
    queue.groups.push(group);
    Ok(())
}

fn open_run(queue: &mut Queue, id: u32, run: &OpenRun) -> Result<(), String> {
    let group = group_of(queue, id)?.ok_or("open messages of no group")?;
    if run.first == 0 || run.first + run.messages > group.fresh || run.messages > SKIPPED_MAX {
        return Err("impossible range of messages".to_owned());
    }
    let (count, rejected, delay_ms) = (run.count, run.rejected, run.delay_ms);
    for sequence in run.first..run.first + run.messages {
        put_back(group, &Returned { sequence, count, rejected, delay_ms });
    }
    Ok(())
}

/// The limit of deliveries is looked at when it is given out.
fn put_back(group: &mut Group, entry: &Returned) {
    let Returned { sequence, count, rejected, delay_ms } = *entry;
    if rejected {
        let reason = Reason::Rejected;
        group.doomed.insert(sequence, Doomed { count, reason, waiter: None });
    } else if delay_ms > 0 {
        let due_ns = delay_ms.saturating_mul(NS_PER_MS).min(u64::MAX / 2);
        group.delay(sequence, Delayed { count, due_ns });
    } else {
        group.ready.insert(sequence, count);
    }
}

fn looks_state(queue: &mut Queue, state: &LooksState) -> Result<(), String> {
    for (at_ns, first, last) in &state.looks {
        if *first == 0 || first > last || *last >= queue.next_sequence {
            return Err(format!("messages {first} to {last} do not exist"));
        }
        queue.looks.add(*at_ns, *first, *last);
    }
    queue.uses_ttl = true;
    Ok(())
}

/// Acknowledged, moved, discarded or expired.
fn settled(queue: &mut Queue, stored: &Stored<'_>) -> Result<(), String> {
    let end = queue.next_sequence;
    let mut messages = 0;
    record::read_ranges(stored.body, |id, first, count| {
        let Some(group) = group_of(queue, id)? else { return Ok(()) };
        if first == 0
            || first + count > end
            || count > SKIPPED_MAX
            || first.saturating_sub(group.fresh) > SKIPPED_MAX
        {
            return Err(format!("messages {first} to {} do not exist", first + count - 1));
        }
        for sequence in first..first + count {
            let mean = group.mean_bytes(end);
            if group.take(sequence).is_some() {
                group.settle(mean, end);
                messages += 1;
            }
        }
        Ok(())
    })?;
    let is_moved = stored.kind == kind::MOVED;
    if stored.kind == kind::EXPIRED || is_moved && stored.flags & record::FLAG_EXPIRED != 0 {
        queue.expired += messages;
    }
    match stored.kind {
        kind::MOVED => queue.dead_lettered += messages,
        kind::DISCARDED => queue.discarded += messages,
        _ => {}
    }
    Ok(())
}

fn returned(queue: &mut Queue, id: u32, entry: &Returned) -> Result<(), String> {
    let end = queue.next_sequence;
    let Some(group) = group_of(queue, id)? else { return Ok(()) };
    let sequence = entry.sequence;
    if sequence == 0 || sequence >= end || sequence.saturating_sub(group.fresh) > SKIPPED_MAX {
        return Err(format!("message {sequence} does not exist"));
    }
    // What is done with stays so.
    if group.take(sequence).is_some() {
        put_back(group, entry);
    }
    Ok(())
}
