//! The state as the records of a checkpoint.
//!
//! All that was appended has had its effect. Leases are not in it: after a restart a message is with nobody, unless its consumer
//! lives and the lease is adopted.

use super::consumer::Consumer;
use super::group::{ASIDE_NS, Delayed, Group, Reason};
use super::queue::Queue;
use super::record::{
    self, GroupState, LIST_BYTES, LaneState, List, LooksState, OpenRun, QueueState, ShardState,
    kind,
};
use super::returns::NS_PER_MS;
use super::types::{RecordRef, Snapshot};
use super::{LaneRun, Logic, canary};

/// Runs of a lane in one record.
const LANE_RUNS: usize = LIST_BYTES / 40;
/// Looks in one record.
const LOOKS: usize = LIST_BYTES / 32;

impl Snapshot for Logic {
    fn write(&self, emit: &mut dyn FnMut(RecordRef<'_>)) {
        let shard = ShardState { shard: self.shard, next_queue_id: self.next_queue_id };
        put(emit, kind::SHARD_STATE, 0, &record::encode(&shard));
        // By id: a checkpoint is the same for the same state.
        let mut queues: Vec<_> = self.queues.iter().filter(|(_, one)| !one.deleted).collect();
        queues.sort_unstable_by_key(|(_, queue)| queue.definition.id);
        for (index, queue) in queues {
            self.write_queue(index, queue, emit);
        }
        for (lane, runs) in &self.lanes {
            write_lane(*lane, runs.iter(), emit);
        }
        let mut producers: Vec<_> = self.producers.iter().map(|(_, producer)| producer).collect();
        producers.sort_unstable_by_key(|producer| producer.lane);
        for producer in producers {
            write_lane(producer.lane, producer.runs.iter(), emit);
        }
    }

    /// What an acknowledgement, a purge or a deletion cancels is needed until that is durable; after a failure nothing is any more.
    fn is_needed(&self, queue: u64, first: u64, last: u64) -> bool {
        if self.failed.is_some() {
            return true;
        }
        let Some(&index) = self.by_id.get(&queue) else { return false };
        let Some(queue) = self.queues.get(index) else { return false };
        if queue.deleted || queue.purging > 0 {
            return true;
        }
        // A stream keeps everything; what a limit cancels is needed until that is durable.
        let kept = queue.is_stream() && last >= queue.first;
        let early = canary::planted(canary::Canary::GiveUpEarly);
        let oldest = queue.cancelling.front().filter(|_| !early);
        if kept || oldest.is_some_and(|oldest| last >= *oldest && first < queue.first) {
            return true;
        }
        let range = first..=last;
        let in_group = |group: &Group| {
            last >= group.fresh
                || group.ready.range(range.clone()).next().is_some()
                || group.delayed.range(range.clone()).next().is_some()
                || group.doomed.range(range.clone()).next().is_some()
                || self.members(group).any(|consumer| {
                    consumer.held_leases().any(|(_, lease)| range.contains(&lease.sequence))
                })
        };
        let settling = || {
            let mut items = self.effects.items.iter();
            items.any(|item| item.queue == index && range.contains(&item.sequence))
        };
        queue.groups.iter().any(in_group) || settling()
    }

    /// The same in parts.
    fn needed(
        &self,
        queue: u64,
        first: u64,
        last: u64,
        limit: usize,
        parts: &mut Vec<(u64, u64)>,
    ) -> u64 {
        let end = last.saturating_add(1);
        if !self.is_needed(queue, first, last) {
            return end;
        }
        let index = self.by_id.get(&queue).copied();
        let found = index.and_then(|index| Some((index, self.queues.get(index)?)));
        let Some((index, queue)) =
            found.filter(|(_, one)| self.failed.is_none() && !one.deleted && one.purging == 0)
        else {
            add(parts, first, last);
            return end;
        };
        // From there on all of them.
        let mut fresh = queue.groups.iter().map(|group| group.fresh).min().unwrap_or(end);
        if queue.is_stream() {
            fresh = fresh.min(queue.first);
        }
        let fresh = fresh.clamp(first, end);
        let range = first..fresh;
        let mut told = end;
        let mut found: Vec<(u64, u64)> = Vec::new();
        for group in &queue.groups {
            let mut take = |sequences: &mut dyn Iterator<Item = u64>| {
                let before = found.len();
                found.extend(sequences.take(limit.max(1)).map(|one| (one, one)));
                if found.len() - before == limit.max(1) {
                    told = told.min(found[found.len() - 1].1 + 1);
                }
            };
            take(&mut group.ready.range(range.clone()).map(|(sequence, _)| *sequence));
            take(&mut group.delayed.range(range.clone()).map(|(sequence, _)| *sequence));
            take(&mut group.doomed.range(range.clone()).map(|(sequence, _)| *sequence));
            let leases = self.members(group).flat_map(|consumer| consumer.held_leases());
            let leased = leases.map(|(_, lease)| lease.sequence);
            let leased = leased.filter(|sequence| range.contains(sequence));
            found.extend(leased.map(|one| (one, one)));
        }
        let settling = self.effects.items.iter().filter(|item| item.queue == index);
        let settling = settling.map(|item| item.sequence);
        let settling = settling.filter(|sequence| range.contains(sequence));
        found.extend(settling.map(|one| (one, one)));
        if let Some(oldest) = queue.cancelling.front() {
            found.push((first.max(*oldest), last.min(queue.first.saturating_sub(1))));
        }
        found.push((fresh, last));
        found.sort_unstable();
        for (first, last) in found {
            let last = last.min(told - 1);
            if first <= last {
                add(parts, first, last);
            }
        }
        told
    }
}

/// Adds a part that begins in the last one at the earliest.
fn add(parts: &mut Vec<(u64, u64)>, first: u64, last: u64) {
    match parts.last_mut() {
        Some(part) if first <= part.1.saturating_add(1) => part.1 = part.1.max(last),
        _ => parts.push((first, last)),
    }
}

impl Logic {
    pub(super) fn members<'a>(
        &'a self,
        group: &'a Group,
    ) -> impl Iterator<Item = &'a Consumer> + 'a {
        group.consumers.iter().filter_map(|number| self.consumers.get(*number))
    }

    fn write_queue(&self, index: u32, queue: &Queue, emit: &mut dyn FnMut(RecordRef<'_>)) {
        let id = queue.definition.id;
        let state = QueueState {
            definition: queue.definition.clone(),
            next_sequence: queue.next_sequence,
            next_group: queue.next_group,
            published_ns: queue.published_ns,
            redelivered: queue.redelivered,
            dead_lettered: queue.dead_lettered,
            discarded: queue.discarded,
            first: queue.first,
            trimmed: queue.trimmed,
            dropped: queue.dropped,
            expired: queue.expired,
        };
        put(emit, kind::QUEUE_STATE, id, &record::encode(&state));
        queue.marks.write(|body| put(emit, kind::MARKS, id, body));
        let attached = |producer| self.is_attached(index, producer);
        queue.named.write(id, attached, self.now.realtime_ns, emit);
        for group in queue.live_groups() {
            let mut fresh = group.fresh;
            if canary::planted(canary::Canary::Resurrect) {
                fresh = fresh.saturating_sub(3).max(1);
            }
            let (name, bytes) = (group.name.clone(), group.bytes);
            let skipped = group.skipped;
            let state = GroupState { group: group.id, name, fresh, bytes, skipped };
            put(emit, kind::GROUP_STATE, id, &record::encode(&state));
            self.write_open(id, group, emit);
        }
        for looks in self.looks_to_keep(queue).chunks(LOOKS) {
            let state = LooksState { looks: looks.to_vec() };
            put(emit, kind::LOOKS_STATE, id, &record::encode(&state));
        }
    }

    /// The messages that are neither fresh nor done with, neighbours in the same state as one entry.
    fn write_open(&self, id: u64, group: &Group, emit: &mut dyn FnMut(RecordRef<'_>)) {
        let now_ns = self.now.monotonic_ns;
        let one = |first, count, rejected, delay_ms| OpenRun {
            first,
            messages: 1,
            count,
            rejected,
            delay_ms,
        };
        let ready = group.ready.iter().map(|(sequence, count)| one(*sequence, *count, false, 0));
        let kept = |(_, delayed): &(&u64, &Delayed)| {
            delayed.count > 0 || !canary::planted(canary::Canary::LoseDelayed)
        };
        let delayed = group.delayed.iter().filter(kept).map(|(sequence, delayed)| {
            let left_ns = match delayed.due_ns {
                ASIDE_NS => 0,
                // Delayed from its publishing on: it is looked at again.
                _ if delayed.count == 0 => 0,
                due_ns => due_ns.saturating_sub(now_ns),
            };
            one(*sequence, delayed.count, false, left_ns.div_ceil(NS_PER_MS))
        });
        let doomed = group
            .doomed
            .iter()
            .map(|(sequence, doomed)| (sequence, doomed, doomed.reason == Reason::Rejected))
            .map(|(sequence, doomed, rejected)| one(*sequence, doomed.count, rejected, 0));
        let leased = self.members(group).flat_map(|consumer| {
            consumer
                .held_leases()
                .map(|(_, lease)| one(lease.sequence, lease.attempt - 1, false, 0))
        });
        let mut open: Vec<OpenRun> = ready.chain(delayed).chain(doomed).chain(leased).collect();
        open.sort_unstable_by_key(|run| run.first);
        let mut list = List::default();
        list.begin(group.id);
        let mut used = false;
        let mut runs = open.into_iter().peekable();
        while let Some(mut run) = runs.next() {
            while let Some(next) = runs.next_if(|next| continues(&run, next)) {
                run.messages += next.messages;
            }
            list.open_run(&run);
            used = true;
            if list.is_full() {
                put(emit, kind::OPEN_MESSAGES, id, list.as_bytes());
                list.begin(group.id);
                used = false;
            }
        }
        if used {
            put(emit, kind::OPEN_MESSAGES, id, list.as_bytes());
        }
    }
}

fn continues(run: &OpenRun, next: &OpenRun) -> bool {
    run.first + run.messages == next.first
        && (run.count, run.rejected, run.delay_ms) == (next.count, next.rejected, next.delay_ms)
}

fn write_lane<'a>(
    lane: u64,
    runs: impl Iterator<Item = &'a LaneRun>,
    emit: &mut dyn FnMut(RecordRef<'_>),
) {
    let runs: Vec<_> =
        runs.map(|run| (run.first_position, run.stride, run.count, run.first_sequence)).collect();
    for runs in runs.chunks(LANE_RUNS) {
        let state = LaneState { lane, runs: runs.to_vec() };
        put(emit, kind::LANE_STATE, 0, &record::encode(&state));
    }
}

fn put(emit: &mut dyn FnMut(RecordRef<'_>), kind: u8, queue: u64, body: &[u8]) {
    emit(RecordRef { kind, flags: 0, queue, sequence: 0, parts: &[body] });
}
