//! Discarding the oldest messages: what a limit or a purge does.

use std::collections::BTreeSet;

use super::consumer::LeaseState;
use super::effects::{Effect, Item, NO_SLOT};
use super::group::{Group, Waiter};
use super::limits::Limits;
use super::queue::Queue;
use super::record::{self, TrimReason, kind};
use super::time::Timer;
use super::types::RecordRef;
use super::{Log, Logic, canary};

impl Queue {
    /// Bytes that a stream keeps, at most.
    pub(super) fn stream_bytes(&self) -> u64 {
        if self.first == self.next_sequence {
            return 0;
        }
        self.marks.bytes().saturating_sub(self.marks.bytes_below(self.first))
    }

    /// Bytes of these messages and of all from a place on, at most: as many as there are behind the mark before the first of them, and
    /// no more than the groups have together that they come from.
    pub(super) fn bytes_of(&self, (open, fresh): (&BTreeSet<u64>, u64)) -> u64 {
        let first = open.first().map_or(fresh, |first| fresh.min(*first));
        if first >= self.next_sequence {
            return 0;
        }
        let above = self.marks.bytes().saturating_sub(self.marks.bytes_below(first));
        let groups = self.live_groups().map(|group| group.bytes).fold(0, u64::saturating_add);
        // A stream has messages that no group has any more.
        if self.is_stream() { above } else { above.min(groups) }
    }

    /// From this sequence on there are no more bytes than the limit. The newest message stays in any case.
    fn cut_by_bytes(&self) -> u64 {
        let above = self.marks.bytes().saturating_sub(self.definition.limits.max_bytes);
        self.marks.at_bytes(above).to.unwrap_or(self.next_sequence - 1)
    }
}

impl Logic {
    /// A queue has got a message, other rules, or the time of its oldest ones is over.
    #[inline]
    pub(super) fn may_be_overfull(&mut self, index: u32) {
        if let Some(queue) = self.queues.get_mut(index)
            && queue.definition.limits.discards()
            && !queue.overfull
        {
            queue.overfull = true;
            self.overfull.push_back(index);
        }
    }

    /// Discards what queues have too much, with one record each. `false`: the journal has no room.
    pub(super) fn trim(&mut self, log: &mut dyn Log) -> bool {
        while let Some(&index) = self.overfull.front() {
            if self.failed.is_none() && !self.trim_queue(index, log) {
                return false;
            }
            self.overfull.pop_front();
            if let Some(queue) = self.queues.get_mut(index) {
                queue.overfull = false;
            }
        }
        true
    }

    fn trim_queue(&mut self, index: u32, log: &mut dyn Log) -> bool {
        if let Some((below, reason)) = self.too_much(index) {
            let Some(queue) = self.queues.get(index) else { return true };
            let record = RecordRef {
                kind: kind::TRIMMED,
                flags: 0,
                queue: queue.definition.id,
                sequence: 0,
                parts: &[&record::encode_trimmed(below, reason)],
            };
            let appended = if canary::planted(canary::Canary::ForgetTrim) {
                let nothing = RecordRef { kind: kind::RETURNED, parts: &[&[1, 0]], ..record };
                log.append(nothing)
            } else {
                log.append(record)
            };
            let Ok((lsn, _)) = appended else { return false };
            let (before, oldest) = (queue.trimmed + queue.dropped, self.oldest_stored(queue));
            let items = self.discard_below(index, below, Some(reason));
            let Some(queue) = self.queues.get_mut(index) else { return true };
            queue.cancelling.push_back(oldest);
            let messages = queue.trimmed + queue.dropped - before;
            self.effects.push(lsn, Effect::Trimmed { queue: index, items, messages });
            self.mark(index);
        }
        self.arm_age(index);
        true
    }

    /// Everything below this sequence is too much, and why.
    fn too_much(&self, index: u32) -> Option<(u64, TrimReason)> {
        let queue = self.queues.get(index).filter(|queue| !queue.deleted)?;
        let limits = &queue.definition.limits;
        if !limits.discards() {
            return None;
        }
        if !queue.is_stream() {
            let below = self.dropped_below(queue)?;
            return Some((below, TrimReason::DropOldest));
        }
        let by_messages = match limits.max_messages {
            0 => 0,
            most => queue.next_sequence.saturating_sub(most),
        };
        let has_too_many = limits.max_bytes > 0 && queue.stream_bytes() > limits.max_bytes;
        let by_bytes = if has_too_many { queue.cut_by_bytes() } else { 0 };
        let by_age = self.too_old_below(queue);
        let reasons = [
            (by_messages, TrimReason::Messages),
            (by_bytes, TrimReason::Bytes),
            (by_age, TrimReason::Age),
        ];
        let most = reasons.into_iter().max_by_key(|(below, _)| *below);
        let ahead = u64::from(canary::planted(canary::Canary::TrimAhead));
        let most = most.filter(|(below, _)| *below > queue.first);
        most.map(|(below, reason)| ((below + ahead).min(queue.next_sequence), reason))
    }

    /// What goes for new messages in a queue that drops the oldest: the group that has most counts.
    fn dropped_below(&self, queue: &Queue) -> Option<u64> {
        let Limits { max_messages, max_bytes, .. } = queue.definition.limits;
        let by_messages = queue.live_groups().filter_map(|group| {
            let excess = group.open(queue.next_sequence).saturating_sub(max_messages);
            (max_messages > 0 && excess > 0).then(|| self.behind_oldest(group, excess))
        });
        let too_long = max_bytes > 0 && queue.live_groups().any(|group| group.bytes > max_bytes);
        let by_bytes = too_long.then(|| queue.cut_by_bytes());
        let below = by_messages.chain(by_bytes).max()?;
        (below > self.oldest_open(queue)).then_some(below)
    }

    /// Messages below it have had their time.
    fn too_old_below(&self, queue: &Queue) -> u64 {
        let limits = &queue.definition.limits;
        if limits.max_age_ms == 0 {
            return 0;
        }
        let old_ns = self.now.realtime_ns.saturating_sub(limits.max_age_ns());
        if queue.published_ns <= old_ns {
            return queue.next_sequence;
        }
        // A message without a mark is not younger than the next mark.
        queue.marks.at_time(old_ns + 1).from
    }

    /// The timer of the oldest message of a stream. It comes late by a part of the age, so that it finds many messages.
    fn arm_age(&mut self, index: u32) {
        let now = self.now;
        let Some(queue) = self.queues.get_mut(index) else { return };
        let limits = &queue.definition.limits;
        if !queue.is_stream() || limits.max_age_ms == 0 || queue.first == queue.next_sequence {
            return;
        }
        let oldest_ns = queue.marks.next_time(queue.first).unwrap_or(queue.published_ns);
        let age_ns = limits.max_age_ns();
        let due_ns = oldest_ns.saturating_add(age_ns).saturating_add(age_ns / 64);
        let at_ns = now.monotonic_ns.saturating_add(due_ns.saturating_sub(now.realtime_ns));
        if queue.armed_ns.is_some_and(|armed_ns| armed_ns <= at_ns) {
            return;
        }
        if let Some(armed_ns) = queue.armed_ns.replace(at_ns) {
            self.timers.remove(&(armed_ns, Timer::Age(index)));
        }
        self.timers.insert((at_ns, Timer::Age(index)));
    }

    pub(super) fn age_time(&mut self, index: u32) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.armed_ns = None;
        }
        self.may_be_overfull(index);
    }

    /// The sequence behind the oldest so many messages of a group.
    fn behind_oldest(&self, group: &Group, messages: u64) -> u64 {
        let mut back: Vec<u64> = group.back().collect();
        for consumer in &group.consumers {
            let Some(consumer) = self.consumers.get(*consumer) else { continue };
            back.extend(consumer.held_leases().map(|(_, lease)| lease.sequence));
        }
        let Ok(nth) = usize::try_from(messages - 1) else { return group.fresh };
        if nth >= back.len() {
            return group.fresh + (messages - back.len() as u64);
        }
        *back.select_nth_unstable(nth).1 + 1
    }

    /// Everything below is done with, for all groups: leases are lost, who waits for a rejection is answered when it is durable.
    /// `None`: it was asked for, and consumers get others at once. A limit leaves them busy with what they have. Returns how many
    /// items wait for the record.
    pub(super) fn discard_below(
        &mut self,
        index: u32,
        below: u64,
        reason: Option<TrimReason>,
    ) -> u32 {
        let messages = if reason.is_some() { self.stored_below(index, below) } else { 0 };
        let mut items = 0;
        let Some(queue) = self.queues.get_mut(index) else { return 0 };
        // The lengths of what goes are not known. No more stays than was published from there on, which is nearly exact where a limit of
        // bytes sees to marks: a mean could be too small there, and more would be kept than the limit allows.
        let above = queue.marks.bytes().saturating_sub(queue.marks.bytes_below(below));
        let is_limited = queue.definition.limits.max_bytes > 0;
        let Queue { groups, next_sequence, .. } = queue;
        for group in groups {
            let (open, mean) = (group.open(*next_sequence), group.mean_bytes(*next_sequence));
            for (sequence, doomed) in group.doomed.range(..below) {
                if let Some(waiter) = doomed.waiter {
                    let item = Item { queue: index, sequence: *sequence, waiter, slot: NO_SLOT };
                    self.effects.items.push_back(item);
                    items += 1;
                }
            }
            let mut leased = 0;
            for number in &group.consumers {
                let Some(consumer) = self.consumers.get_mut(*number) else { continue };
                let held: Vec<_> = consumer
                    .held_leases()
                    .filter(|(_, lease)| lease.state == LeaseState::Held && lease.sequence < below)
                    .collect();
                leased += held.len() as u64;
                for (slot, lease) in held {
                    if reason.is_some() {
                        consumer.abandon(slot);
                        continue;
                    }
                    consumer.settle(slot);
                    let generation = consumer.generation;
                    let waiter = Waiter { consumer: *number, generation, request: 0 };
                    let sequence = lease.sequence;
                    self.effects.items.push_back(Item { queue: index, sequence, waiter, slot });
                    items += 1;
                }
            }
            group.leased -= leased;
            group.discard_below(below);
            let left = group.open(*next_sequence);
            group.bytes = match left {
                0 => 0,
                _ if is_limited => group.bytes.min(above),
                _ => mean * left,
            };
            if reason.is_some() && !group.deleted {
                let lost = open - left;
                group.skipped += lost;
                for number in &group.consumers {
                    let Some(consumer) = self.consumers.get_mut(*number) else { continue };
                    consumer.skipped += lost - leased;
                }
            }
        }
        queue.first = queue.first.max(below);
        match reason {
            None => {}
            Some(TrimReason::DropOldest) if canary::planted(canary::Canary::DropUncounted) => {}
            Some(TrimReason::DropOldest) => queue.dropped += messages,
            Some(TrimReason::Messages | TrimReason::Bytes | TrimReason::Age) => {
                queue.trimmed += messages;
            }
        }
        items
    }

    /// Messages below this sequence that are still there.
    pub(super) fn stored_below(&self, index: u32, below: u64) -> u64 {
        let Some(queue) = self.queues.get(index) else { return 0 };
        let kept = if queue.is_stream() { below.saturating_sub(queue.first) } else { 0 };
        let end = if queue.is_stream() { below.min(queue.first) } else { below };
        // In the common case there is nothing else, and nobody has to be asked.
        if self.oldest_open(queue) >= end {
            return kept;
        }
        let (open, fresh) = self.open_from(index, 1);
        kept + open.range(..end).count() as u64 + end.saturating_sub(fresh)
    }
}
