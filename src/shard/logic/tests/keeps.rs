//! What a queue of the plain broker keeps: limits, and what they discard.

use std::collections::BTreeMap;

use ringmain_client::protocol::{Overflow, Retention};

use super::memory::at_ms;
use super::model::{Queue, State};
use super::programs::{Check, Program, QUEUES, Random, TTL_MS};
use crate::shard::logic::record::TrimReason;
use crate::shard::logic::{HandleId, Limits, LimitsEdit, QueueEdit, Snapshot};

fn check(is_right: bool, what: impl FnOnce() -> String) -> Check {
    if is_right { Ok(()) } else { Err(what()) }
}

/// The queue whose rules change.
pub(super) const LIMITED: u64 = 3;

/// Rules and counters of a queue.
#[derive(Debug, Clone, Default)]
pub(super) struct Keeps {
    pub(super) limits: Limits,
    pub(super) first: u64,
    pub(super) trimmed: u64,
    pub(super) dropped: u64,
}

impl Keeps {
    pub(super) fn is_stream(&self) -> bool {
        self.limits.retention == Retention::Stream
    }

    pub(super) fn change(&mut self, limits: Limits, next: u64) {
        let was_stream = self.is_stream();
        self.limits = limits;
        if self.is_stream() && !was_stream {
            self.first = next;
        }
    }
}

/// A message that a limit has discarded under its consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone {
    pub(super) handle: HandleId,
    pub(super) slot: u32,
    pub(super) attempt: u32,
    pub(super) sequence: u64,
    pub(super) deadline_ms: u64,
}

/// Some rules to choose from.
pub(super) fn rules(number: u64) -> Limits {
    let limits = Limits { stream_from: 1, ..Limits::default() };
    let stream = Limits { retention: Retention::Stream, ..limits };
    let dropping = Limits { overflow: Overflow::DropOldest, ..limits };
    match number % 8 {
        0 => limits,
        1 => Limits { max_messages: 12, ..stream },
        2 => Limits { max_bytes: 300, max_age_ms: 60, ..stream },
        3 => Limits { max_messages: 6, ..limits },
        4 => Limits { max_messages: 8, max_bytes: 120, overflow: Overflow::Reject, ..limits },
        5 => Limits { max_messages: 7, ..dropping },
        6 => stream,
        _ => Limits { max_bytes: 100, ..dropping },
    }
}

/// One of three times for the same queue.
pub(super) fn ttl_ms(number: u64) -> u64 {
    [0, TTL_MS, 3 * TTL_MS][number as usize % 3]
}

impl Queue {
    /// Whether the limit of messages is in the way of one more. Whether that of bytes is depends on what the broker knows.
    pub(super) fn is_full(&self) -> bool {
        let limits = &self.keeps.limits;
        let waits = !self.keeps.is_stream() && limits.overflow != Overflow::DropOldest;
        let most = limits.max_messages;
        waits && most > 0 && self.groups.values().any(|group| group.open.len() as u64 >= most)
    }

    fn bytes_from(&self, sequence: u64) -> u64 {
        let payloads = self.payloads.range(sequence..).map(|(_, payload)| payload.len() as u64);
        payloads.chain(self.metadata.range(sequence..).map(|(_, bytes)| *bytes)).sum()
    }

    /// Everything below is discarded; returns what is wrong with that, or how many each group lost that were with nobody.
    pub(super) fn trim(
        &mut self,
        below: u64,
        reason: TrimReason,
        now_ms: u64,
    ) -> Result<BTreeMap<String, u64>, String> {
        let Limits { max_messages, max_bytes, max_age_ms, overflow, .. } = self.keeps.limits;
        let left = |group: &super::model::Group| group.open.range(below..).count() as u64;
        let most_left = self.groups.values().map(left).max().unwrap_or(0);
        let stream = self.keeps.is_stream();
        let fits = match reason {
            TrimReason::Messages => stream && self.next - below == max_messages,
            TrimReason::Bytes => {
                // Cut at a mark: not more than a mark too much, and never the last message.
                let newest = below + 1 == self.next;
                stream && (self.bytes_from(below) <= max_bytes || newest)
            }
            TrimReason::Age => {
                let mut gone = self.times.range(self.keeps.first..below);
                let old_ns = at_ms(now_ms).realtime_ns - max_age_ms * 1_000_000;
                stream && gone.all(|(_, at_ns)| *at_ns <= old_ns)
            }
            TrimReason::DropOldest if max_messages > 0 => {
                overflow == Overflow::DropOldest && most_left == max_messages
            }
            TrimReason::DropOldest => {
                let newest = below + 1 == self.next;
                overflow == Overflow::DropOldest && (self.bytes_from(below) <= max_bytes || newest)
            }
        };
        if !fits {
            return Err(format!("discarded below {below} for {reason:?}: {self:?}"));
        }
        let messages = self.there().range(..below).count() as u64;
        match reason {
            TrimReason::DropOldest => self.keeps.dropped += messages,
            _ => self.keeps.trimmed += messages,
        }
        self.keeps.first = self.keeps.first.max(below);
        let mut lost = BTreeMap::new();
        for (name, group) in &mut self.groups {
            let kept = group.open.split_off(&below);
            let gone = std::mem::replace(&mut group.open, kept);
            group.skipped += gone.len() as u64;
            let with = gone.values().filter(|state| matches!(state, State::With { .. })).count();
            lost.insert(name.clone(), (gone.len() - with) as u64);
        }
        Ok(lost)
    }
}

impl Program {
    /// A limit has discarded something.
    pub(super) fn trimmed(&mut self, id: u64, below: u64, reason: TrimReason) -> Check {
        let queue = self.model.queues.get_mut(&id).expect("queue");
        // Who has one stays busy with it.
        let open = queue.groups.values().flat_map(|group| group.open.range(..below));
        self.gone.extend(open.filter_map(|(sequence, state)| match *state {
            State::With { handle, slot, attempt, deadline_ms } => {
                Some(Gone { handle, slot, attempt, sequence: *sequence, deadline_ms })
            }
            _ => None,
        }));
        let lost = queue.trim(below, reason, self.ms)?;
        for (handle, client) in &mut self.consumers {
            if handle.queue == id {
                client.skipped += lost.get(&client.group).unwrap_or(&0);
            }
        }
        Ok(())
    }

    pub(super) fn told_of_skipped(&mut self, handle: HandleId, messages: u64) -> Check {
        let client = self.consumers.get_mut(&handle).expect("open");
        if std::mem::take(&mut client.skipped) == messages && messages > 0 {
            Ok(())
        } else {
            Err(format!("{handle:?} is told of {messages} skipped messages"))
        }
    }

    /// Other rules for one of the queues.
    pub(super) fn edit(&mut self) -> Check {
        self.logic.flush(&mut self.log);
        self.records()?;
        // What is over by the old rules goes first.
        self.log.far.clear();
        self.dispatch()?;
        let limits = rules(self.random.below(8));
        let edit = LimitsEdit {
            retention: Some(limits.retention),
            max_messages: Some(limits.max_messages),
            max_bytes: Some(limits.max_bytes),
            max_age_ms: Some(limits.max_age_ms),
            overflow: Some(limits.overflow),
        };
        let ttl_ms = ttl_ms(self.random.below(3));
        let edit = QueueEdit { limits: edit, ttl_ms: Some(ttl_ms), ..QueueEdit::default() };
        let queue = self.model.queues.get_mut(&LIMITED).expect("queue");
        queue.keeps.change(limits, queue.next);
        queue.ttl_ms = ttl_ms;
        self.logic.edit_queue(&mut self.log, 1 << 40, LIMITED, edit);
        self.note()
    }

    /// Lanes that may be looked at again.
    pub(super) fn go_on(&mut self) {
        let unblocked = self.logic.take_unblocked();
        self.limited.retain(|queue| unblocked.iter().all(|handle| handle.queue != *queue));
    }

    /// Nothing is too much, and nobody waits who need not.
    pub(super) fn check_limits(&mut self) -> Check {
        self.go_on();
        for (id, queue) in &self.model.queues {
            let Limits { max_messages, max_bytes, max_age_ms, overflow, .. } = queue.keeps.limits;
            let info = self.logic.info(*id).expect("queue");
            let counted = (info.first_sequence, info.trimmed, info.dropped, info.skipped);
            let Keeps { trimmed, dropped, first, .. } = queue.keeps;
            let oldest = queue.there().first().copied().unwrap_or(queue.next);
            if counted != (oldest, trimmed, dropped, queue.groups[""].skipped) {
                return Err(format!("{counted:?} of {id}: {queue:?}"));
            }
            let waits = self.limited.contains(id);
            let may_wait = queue.is_full() || max_bytes > 0 && overflow == Overflow::Block;
            if waits && !may_wait || waits != (info.blocked_producers > 0) {
                return Err(format!("{id} waits: {waits}, {queue:?}"));
            }
            let most = |group: &super::model::Group| group.open.len() as u64;
            let stored = match (queue.keeps.is_stream(), overflow) {
                (true, _) => queue.next - first,
                (_, Overflow::DropOldest) => queue.groups.values().map(most).max().unwrap_or(0),
                _ => 0,
            };
            let bytes = if queue.keeps.is_stream() { queue.bytes_from(first) } else { 0 };
            let now_ns = at_ms(self.ms).realtime_ns;
            let age_ns = |at_ns: &u64| now_ns.saturating_sub(*at_ns);
            let old_ns = queue.times.range(first..).next().map_or(0, |(_, at_ns)| age_ns(at_ns));
            let most_ns = max_age_ms * 1_000_000 / 16 * 17 + 1_000_000;
            if max_messages > 0 && stored > max_messages
                || max_bytes > 0 && bytes > max_bytes && stored > 1
                || queue.keeps.is_stream() && max_age_ms > 0 && old_ns > most_ns
            {
                let keeps = &queue.keeps;
                return Err(format!(
                    "{id} has {stored} messages, {bytes} bytes, {old_ns} ns: {keeps:?}"
                ));
            }
        }
        Ok(())
    }

    /// What a crash brings back was needed until then.
    pub(super) fn check_needed(&self) -> Check {
        for id in QUEUES {
            let there = self.model.queues[&id].there();
            if let Some(gone) = there.iter().find(|one| !self.logic.is_needed(id, **one, **one)) {
                return Err(format!("{gone} of {id} was given up"));
            }
        }
        Ok(())
    }

    /// What is needed is the same one by one, for a segment, and in parts.
    pub(super) fn needed(&self, random: &mut Random) -> Check {
        let ids: Vec<u64> = self.logic.queues().map(|queue| queue.id).collect();
        for id in ids {
            let (first, limit) = (1 + random.below(20), 1 + random.below(8));
            let last = first + random.below(200);
            let single = (first..=last).filter(|one| self.logic.is_needed(id, *one, *one));
            let single: Vec<u64> = single.collect();
            let mut parts = Vec::new();
            let mut from = first;
            while from <= last {
                let limit = usize::try_from(limit).unwrap_or(1);
                let told = self.logic.needed(id, from, last, limit, &mut parts);
                check(told > from, || format!("queue {id}: no headway at {from}"))?;
                from = told;
            }
            let all: Vec<u64> = parts.iter().flat_map(|(first, last)| *first..=*last).collect();
            check(all == single, || {
                format!(
                    "queue {id} from {first} to {last}: {all:?} in parts, {single:?} one by one"
                )
            })?;
            let any = self.logic.is_needed(id, first, last);
            check(any != single.is_empty(), || format!("queue {id}: {any}, but {single:?}"))?;
        }
        Ok(())
    }
}
