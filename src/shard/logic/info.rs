//! What is known about the queues.

use super::Logic;
use super::queue::Queue;
use super::types::{BrokeredInfo, QueueDefinition};

impl Logic {
    /// Ids below this one may have been used.
    pub fn next_queue_id(&self) -> u64 {
        self.next_queue_id
    }

    /// Definitions of all queues, in the order of their names.
    pub fn queues(&self) -> impl Iterator<Item = &QueueDefinition> + '_ {
        self.by_name.values().filter_map(|index| Some(&self.queues.get(*index)?.definition))
    }

    /// Figures of a queue; of the default group where it says so.
    pub fn info(&self, queue: u64) -> Option<BrokeredInfo> {
        let index = *self.by_id.get(&queue)?;
        let queue = self.queues.get(index).filter(|queue| !queue.deleted)?;
        let group = queue.groups.first()?;
        let definition = &queue.definition;
        let waiting = queue.waiting.iter().filter(|lane| !lane.granted).count();
        let stalls = || queue.live_groups().filter_map(|group| group.stalled.as_ref());
        let fresh = queue.durable_end.saturating_sub(group.fresh);
        let message_bytes = match queue.is_stream() {
            true => queue.stream_bytes(),
            false => queue.groups.iter().map(|group| group.bytes).max().unwrap_or(0),
        };
        Some(BrokeredInfo {
            next_sequence: queue.next_sequence,
            messages: self.messages(index, queue.durable_end),
            message_bytes,
            ready: group.ready.len() as u64 + group.doomed.len() as u64 + fresh,
            unacknowledged: group.leased,
            delayed: group.delayed.len() as u64,
            redelivered: queue.redelivered,
            dead_lettered: queue.dead_lettered,
            discarded: queue.discarded,
            max_deliveries: definition.max_deliveries,
            dead_letter: definition.dead_letter.clone(),
            lease_ms: definition.lease_ms,
            shard: self.shard,
            retention: definition.limits.retention,
            max_messages: definition.limits.max_messages,
            max_bytes: definition.limits.max_bytes,
            max_age_ms: definition.limits.max_age_ms,
            overflow: definition.limits.overflow,
            first_sequence: self.oldest_stored(queue),
            trimmed: queue.trimmed,
            dropped: queue.dropped,
            skipped: group.skipped,
            blocked_producers: u32::try_from(waiting).unwrap_or(u32::MAX),
            blocked_by: queue.blocked_by().to_owned(),
            expired: queue.expired,
            ttl_ms: definition.ttl_ms,
            rejected: queue.rejected,
            stalled_groups: u32::try_from(stalls().count()).unwrap_or(u32::MAX),
            stalled_by: stalls().next().map_or(String::new(), |stall| stall.what.clone()),
        })
    }

    /// The errno of the journal, if it has failed.
    pub fn failed(&self) -> Option<i32> {
        self.failed
    }

    /// Groups that cannot go on because a message cannot be read: queue, group, what and where.
    pub fn stalls(&self) -> impl Iterator<Item = (u64, &str, &str)> + '_ {
        self.queues.iter().flat_map(|(_, queue)| {
            queue.live_groups().filter_map(|group| {
                let what = &group.stalled.as_ref()?.what;
                Some((queue.definition.id, group.name.as_str(), what.as_str()))
            })
        })
    }

    /// Why groups have stalled since the last call.
    pub fn take_stalls(&mut self) -> Vec<String> {
        self.stalls.take_untold()
    }

    /// Queues of which messages were found to be gone since the last call, in words; each is named once.
    pub fn take_losses(&mut self) -> Vec<String> {
        std::mem::take(&mut self.losses_untold)
    }

    /// The oldest message that is there, or the next one.
    pub(super) fn oldest_stored(&self, queue: &Queue) -> u64 {
        let open = self.oldest_open(queue);
        if queue.is_stream() { open.min(queue.first) } else { open }
    }

    /// Messages below `end` that are stored: those that some group has not acknowledged, or a stream keeps.
    pub(super) fn messages(&self, index: u32, end: u64) -> u64 {
        let Some(queue) = self.queues.get(index) else { return 0 };
        if queue.is_stream() {
            return self.stored_below(index, end);
        }
        match &queue.groups[..] {
            [group] => group.open(end),
            _ => {
                let (open, fresh) = self.there(index, 1);
                open.len() as u64 + end.saturating_sub(fresh)
            }
        }
    }
}
