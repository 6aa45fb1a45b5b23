//! What a queue may hold, and who waits for room.

use ringmain_client::protocol::{DeliverySpec, Overflow, Retention};
use serde::{Deserialize, Serialize};

use super::handles::HandleRef;
use super::queue::Queue;
use super::returns::NS_PER_MS;
use super::types::{HandleId, QueueDefinition};
use super::{Logic, canary};

/// What a queue may hold, part of its definition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long a message is kept.
    pub retention: Retention,
    /// Most messages; 0: any number.
    pub max_messages: u64,
    /// Most bytes of payload and metadata; 0: any number.
    pub max_bytes: u64,
    /// Streams: milliseconds that a message stays; 0: for ever.
    pub max_age_ms: u64,
    /// What happens at a limit.
    pub overflow: Overflow,
    /// Of a stream: what was published before it became one is not kept. Set by an edit.
    pub stream_from: u64,
}

/// What an edit of [`Limits`] changes; `None` leaves it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitsEdit {
    /// As in [`Limits`].
    pub retention: Option<Retention>,
    /// As in [`Limits`].
    pub max_messages: Option<u64>,
    /// As in [`Limits`].
    pub max_bytes: Option<u64>,
    /// As in [`Limits`].
    pub max_age_ms: Option<u64>,
    /// As in [`Limits`].
    pub overflow: Option<Overflow>,
}

impl Limits {
    /// As asked for at the creation of a queue.
    #[must_use]
    pub fn asked(spec: &DeliverySpec) -> Self {
        Self {
            retention: spec.retention.unwrap_or_default(),
            max_messages: spec.max_messages.unwrap_or(0),
            max_bytes: spec.max_bytes.unwrap_or(0),
            max_age_ms: spec.max_age_ms.unwrap_or(0),
            overflow: spec.overflow.unwrap_or_default(),
            stream_from: 1,
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        self.retention == Retention::Stream
    }

    pub(super) fn max_age_ns(&self) -> u64 {
        self.max_age_ms.saturating_mul(NS_PER_MS)
    }

    fn is_limited(&self) -> bool {
        self.max_messages > 0 || self.max_bytes > 0
    }

    /// Whether the oldest messages are discarded for new ones, or for their age.
    pub(super) fn discards(&self) -> bool {
        match self.overflow {
            _ if self.is_stream() => self.is_limited() || self.max_age_ms > 0,
            Overflow::DropOldest => self.is_limited(),
            Overflow::Block | Overflow::Reject => false,
        }
    }

    /// Bytes from one mark to the next at most, so that bytes can be cut where they are too many.
    pub(super) fn mark_bytes(&self) -> u64 {
        if self.max_bytes > 0 && self.discards() { (self.max_bytes / 64).max(1) } else { u64::MAX }
    }

    /// Why a queue cannot have these.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn check(&self, durable: bool) -> Result<(), &'static str> {
        if self.is_stream() && self.overflow != Overflow::Block {
            return Err(
                "a stream has no overflow: at its limits the oldest messages go; leave out --overflow, or \
                 take --overflow block back first",
            );
        }
        if !self.is_stream() && self.max_age_ms > 0 {
            return Err("max-age is for streams: add --retention stream, or set --max-age 0s");
        }
        if durable && self.overflow == Overflow::DropOldest {
            return Err(
                "overflow=drop-oldest: a durable queue loses nothing that it has confirmed; take block, reject, or \
                 --retention stream",
            );
        }
        if self.overflow != Overflow::Block && !self.is_limited() {
            return Err("an overflow rule needs a limit: add --max-messages or --max-bytes");
        }
        Ok(())
    }
}

impl LimitsEdit {
    /// As asked for.
    #[must_use]
    pub fn asked(spec: &DeliverySpec) -> Self {
        Self {
            retention: spec.retention,
            max_messages: spec.max_messages,
            max_bytes: spec.max_bytes,
            max_age_ms: spec.max_age_ms,
            overflow: spec.overflow,
        }
    }

    /// `next_sequence` is that of the queue.
    pub(super) fn apply(&self, limits: &mut Limits, next_sequence: u64) {
        if let Some(retention) = self.retention {
            if retention == Retention::Stream && !limits.is_stream() {
                limits.stream_from = next_sequence;
            }
            limits.retention = retention;
        }
        limits.max_messages = self.max_messages.unwrap_or(limits.max_messages);
        limits.max_bytes = self.max_bytes.unwrap_or(limits.max_bytes);
        limits.max_age_ms = self.max_age_ms.unwrap_or(limits.max_age_ms);
        limits.overflow = self.overflow.unwrap_or(limits.overflow);
    }
}

/// A producer whose next message waits for room.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitingLane {
    pub(super) handle: HandleId,
    /// Of the message.
    pub(super) bytes: u64,
    /// There is room for it, and its lane is to be looked at again. Those that were granted room are in front of the others.
    pub(super) granted: bool,
}

impl Queue {
    pub(super) fn is_stream(&self) -> bool {
        self.definition.limits.is_stream()
    }

    /// Its rules are others now.
    pub(super) fn redefine(&mut self, definition: QueueDefinition) {
        let ttl_ms = std::mem::replace(&mut self.definition, definition).ttl_ms;
        if ttl_ms != self.definition.ttl_ms {
            self.look_at_all();
        }
        if self.is_stream() {
            self.first = self.first.max(self.definition.limits.stream_from);
        }
    }

    /// Whether so many more messages of together so many bytes may be taken. A stream makes room by itself.
    #[inline]
    pub(super) fn has_room(&self, messages: u64, bytes: u64) -> bool {
        let limits = &self.definition.limits;
        if !limits.is_limited() || limits.is_stream() {
            return true;
        }
        self.limit_in_the_way(messages, bytes).is_none()
    }

    /// Whether a message of a lane may be taken now: there is room for it, beside what was granted to others, and nobody waits who came
    /// before. So a long message is not passed by short ones for ever.
    #[inline]
    pub(super) fn admits(&mut self, lane: HandleId, bytes: u64) -> bool {
        if self.waiting.is_empty() || self.definition.limits.overflow != Overflow::Block {
            return self.has_room(1, bytes);
        }
        self.admits_in_turn(lane, bytes)
    }

    #[cold]
    fn admits_in_turn(&mut self, lane: HandleId, bytes: u64) -> bool {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.handle == lane) else {
            let granted = self.waiting.iter().map(|waiting| waiting.bytes).sum::<u64>();
            let messages = self.waiting.len() as u64 + 1;
            return self.waiting.iter().all(|waiting| waiting.granted)
                && self.has_room(messages, granted.saturating_add(bytes));
        };
        if (at == 0 || self.waiting[at].granted) && self.has_room(1, bytes) {
            return true;
        }
        // Something else has taken the room, a dead letter for example.
        self.waiting.iter_mut().skip(at).for_each(|waiting| waiting.granted = false);
        false
    }

    /// A lane does not wait any more.
    pub(super) fn leave_line(&mut self, lane: HandleId) {
        self.waiting.retain(|waiting| waiting.handle != lane);
    }

    /// The group that has most counts.
    fn limit_in_the_way(&self, messages: u64, bytes: u64) -> Option<&'static str> {
        let Limits { max_messages, max_bytes, .. } = self.definition.limits;
        self.live_groups().find_map(|group| {
            let open = group.open(self.next_sequence);
            if max_messages > 0 && open.saturating_add(messages) > max_messages {
                return Some("max-messages");
            }
            // What is too long for the limit alone is taken alone.
            let alone = open == 0 && messages == 1;
            let too_long = max_bytes > 0 && group.bytes.saturating_add(bytes) > max_bytes;
            (too_long && !alone).then_some("max-bytes")
        })
    }

    /// The limit that producers wait for.
    pub(super) fn blocked_by(&self) -> &'static str {
        let first = self.waiting.iter().find(|lane| !lane.granted);
        first.and_then(|lane| self.limit_in_the_way(1, lane.bytes)).unwrap_or_default()
    }
}

impl Logic {
    /// Producers whose lanes were left alone for [`super::Refusal::Limit`] and may go on: their lanes are to be looked at.
    pub fn take_unblocked(&mut self) -> Vec<HandleId> {
        std::mem::take(&mut self.unblocked)
    }

    /// Whether this queue refuses messages when it is full.
    pub fn rejects(&self, queue: u64) -> bool {
        let queue = self.by_id.get(&queue).and_then(|index| self.queues.get(*index));
        queue.is_some_and(|queue| queue.definition.limits.overflow == Overflow::Reject)
    }

    /// Grants room to as many of those who wait as there is room for, in the order in which they came. Who takes the room fills it or
    /// leaves word of it by what it stores, so that nobody is forgotten.
    pub(super) fn unblock(&mut self, index: u32) {
        if canary::planted(canary::Canary::LeaveWaiting) {
            return;
        }
        let Some(queue) = self.queues.get_mut(index) else { return };
        if queue.definition.limits.overflow != Overflow::Block {
            for lane in std::mem::take(&mut queue.waiting) {
                self.unblocked.push(lane.handle);
                if let Some(HandleRef::Producer(number)) = self.handles.get(&lane.handle)
                    && let Some(producer) = self.producers.get_mut(*number)
                {
                    producer.waits = false;
                }
            }
            return;
        }
        let (mut messages, mut bytes) = (0, 0u64);
        for at in 0..queue.waiting.len() {
            let lane = queue.waiting[at];
            messages += 1;
            bytes = bytes.saturating_add(lane.bytes);
            if lane.granted {
                continue;
            }
            if !queue.has_room(messages, bytes) {
                return;
            }
            queue.waiting[at].granted = true;
            self.unblocked.push(lane.handle);
        }
    }

    /// A lane cannot be looked at now: whoever waits behind it does not wait for it. It comes last when it is offered again.
    pub fn pass_over(&mut self, handle: HandleId) {
        let Some(&HandleRef::Producer(number)) = self.handles.get(&handle) else { return };
        let Some(producer) = self.producers.get_mut(number) else { return };
        if std::mem::take(&mut producer.waits) {
            let queue = producer.queue;
            self.stop_waiting(queue, handle);
        }
    }

    /// Nobody waits for room any more: everything is refused.
    pub(super) fn unblock_all(&mut self) {
        for (_, queue) in self.queues.iter_mut() {
            self.unblocked.extend(queue.waiting.drain(..).map(|lane| lane.handle));
        }
        for (_, producer) in self.producers.iter_mut() {
            producer.waits = false;
        }
    }

    /// A producer is gone: another one may have its place.
    pub(super) fn stop_waiting(&mut self, index: u32, handle: HandleId) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        queue.leave_line(handle);
        if !queue.waiting.is_empty() {
            self.mark(index);
        }
    }
}
