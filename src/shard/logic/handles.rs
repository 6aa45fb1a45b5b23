//! Producers and consumers: who is attached.

use std::collections::{BTreeSet, VecDeque};

use super::consumer::{Browser, Consumer};
use super::earned::Earned;
use super::group::{ASIDE_NS, Group};
use super::record::{self, GroupCreated, kind};
use super::types::{ConsumerSpec, GROUPS_MAX, HandleId, Lsn, Now, Port, RecordRef, Refusal};
use super::{AppendError, Log, Logic, canary};

/// Entries of a lease table at most.
const LEASES_MAX: u32 = 4096;
const _: () = assert!(LEASES_MAX as usize == ringmain_client::layout::pair::lease::LEASES_MAX);

/// No queue: it was deleted.
pub(super) const NO_QUEUE: u32 = u32::MAX;

/// Messages of a lane that are in the journal and not released yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneRun {
    /// Lane position of the first message.
    pub first_position: u64,
    /// From one message to the next.
    pub stride: u64,
    /// Messages.
    pub count: u32,
    /// Sequence of the first message; the others follow without gaps.
    pub first_sequence: u64,
}

impl LaneRun {
    /// Position behind the last message.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first_position.wrapping_add(self.stride.wrapping_mul(self.count as u64))
    }

    fn drop_first(&mut self, count: u64) {
        self.first_position = self.first_position.wrapping_add(self.stride.wrapping_mul(count));
        self.first_sequence += count;
        self.count = u32::try_from(u64::from(self.count) - count).unwrap_or(0);
    }
}

/// Adds a message to the runs of its lane.
pub(super) fn push_lane(runs: &mut VecDeque<LaneRun>, position: u64, span: u64, sequence: u64) {
    if let Some(run) = runs.back_mut()
        && run.end() == position
        && run.stride == span
        && run.first_sequence + u64::from(run.count) == sequence
        && run.count < u32::MAX
    {
        run.count += 1;
        return;
    }
    runs.push_back(LaneRun {
        first_position: position,
        stride: span,
        count: 1,
        first_sequence: sequence,
    });
}

/// Drops what is in front of a position.
fn trim_lane(runs: &mut VecDeque<LaneRun>, position: u64) {
    while let Some(run) = runs.front_mut() {
        if run.end() <= position {
            runs.pop_front();
            continue;
        }
        if run.first_position < position {
            let passed = (position - run.first_position).div_ceil(run.stride.max(1));
            run.drop_first(passed.min(u64::from(run.count) - 1));
        }
        return;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandleRef {
    Producer(u32),
    Consumer(u32),
}

#[derive(Debug)]
pub(super) struct Producer {
    /// [`NO_QUEUE`] after the queue was deleted.
    pub(super) queue: u32,
    pub(super) lane: u64,
    pub(super) runs: VecDeque<LaneRun>,
    /// Id of its name in the queue, if it has one.
    pub(super) named: Option<u64>,
    /// Its next message waits for room below the limit of the queue.
    pub(super) waits: bool,
}

impl Logic {
    /// A producer. `lane` names its lane for ever, not zero: it is in the records.
    ///
    /// # Errors
    /// [`Refusal::Unknown`] if there is no such queue or the handle is open.
    pub fn open_producer(&mut self, handle: HandleId, lane: u64) -> Result<(), Refusal> {
        self.open_producer_as(handle, lane, None)
    }

    pub(super) fn open_producer_as(
        &mut self,
        handle: HandleId,
        lane: u64,
        named: Option<u64>,
    ) -> Result<(), Refusal> {
        let queue = self.open_queue(handle)?;
        let lane = match canary::planted(canary::Canary::LanesOfOthers) {
            true => handle.queue << 8 | u64::from(handle.handle),
            false => lane,
        };
        let runs = self.lanes.remove(&lane).unwrap_or_default();
        let index = self.producers.insert(Producer { queue, lane, runs, named, waits: false });
        self.handles.insert(handle, HandleRef::Producer(index));
        Ok(())
    }

    /// Messages of an adopted lane that are in the journal and end behind this position: each is to be completed if it was not.
    /// For a lane that [`Self::open_producer`] has been called for.
    pub fn lane_runs(&self, handle: HandleId, from_position: u64) -> Vec<LaneRun> {
        let Some(HandleRef::Producer(index)) = self.handles.get(&handle) else { return Vec::new() };
        let mut runs =
            self.producers.get(*index).map(|producer| producer.runs.clone()).unwrap_or_default();
        trim_lane(&mut runs, from_position);
        runs.into()
    }

    /// Lane positions below this one are released: their messages are durable, and completed.
    pub fn released(&mut self, handle: HandleId, position: u64) {
        if let Some(HandleRef::Producer(index)) = self.handles.get(&handle)
            && let Some(producer) = self.producers.get_mut(*index)
        {
            trim_lane(&mut producer.runs, position);
        }
    }

    /// A consumer, or one who looks on. Creates its group if that does not exist, unless it is adopted; whether it did. Who attaches
    /// hears of it when the group is durable, so that one that is adopted has it.
    ///
    /// # Errors
    /// [`Refusal::Full`]: try again later. [`Refusal::Unknown`]: no such queue, or the handle is open.
    /// [`Refusal::NoGroup`]: its group was deleted. [`Refusal::JournalFailed`]: the group cannot be created.
    pub fn open_consumer(
        &mut self,
        log: &mut dyn Log,
        handle: HandleId,
        spec: &ConsumerSpec,
    ) -> Result<bool, Refusal> {
        let index = self.open_queue(handle)?;
        let (mut group, mut is_new) = (0, false);
        let mut browser = None;
        if spec.browse {
            let from = self.find_start(log, index, spec.from).ok_or(Refusal::Full)?;
            browser = Some(self.browser(index, from));
        } else {
            (group, is_new) = self.group_for(log, index, spec)?;
        }
        self.next_generation = self.next_generation.wrapping_add(1);
        let mut consumer = Consumer::new(handle, self.next_generation, index, group);
        consumer.browser = browser;
        if !spec.browse {
            consumer.set_leases_max(spec.leases.clamp(1, LEASES_MAX));
            consumer.set_credit(spec.credit);
        }
        let number = self.consumers.insert(consumer);
        self.handles.insert(handle, HandleRef::Consumer(number));
        if let Some(queue) = self.queues.get_mut(index) {
            if spec.browse {
                queue.browsers.push(number);
            } else if let Some(group) = queue.groups.get_mut(group) {
                group.consumers.push(number);
                retry_aside(group);
            }
        }
        self.mark(index);
        Ok(is_new)
    }

    pub(super) fn open_queue(&self, handle: HandleId) -> Result<u32, Refusal> {
        let index = *self.by_id.get(&handle.queue).ok_or(Refusal::Unknown)?;
        let deleted = self.queues.get(index).is_none_or(|queue| queue.deleted);
        if deleted || self.handles.contains_key(&handle) {
            return Err(Refusal::Unknown);
        }
        Ok(index)
    }

    fn group_for(
        &mut self,
        log: &mut dyn Log,
        index: u32,
        spec: &ConsumerSpec,
    ) -> Result<(usize, bool), Refusal> {
        let queue = self.queues.get(index).ok_or(Refusal::Unknown)?;
        if let Some(at) = queue.group_named(&spec.group) {
            return Ok((at, false));
        }
        if let Some(errno) = self.failed {
            return Err(Refusal::JournalFailed(errno));
        }
        if spec.adopted {
            return Err(Refusal::NoGroup);
        }
        if queue.groups.len() >= GROUPS_MAX {
            return Err(Refusal::GroupLimit);
        }
        let from = self.find_start(log, index, spec.from).ok_or(Refusal::Full)?;
        let queue = self.queues.get(index).ok_or(Refusal::Unknown)?;
        let created = GroupCreated { group: queue.next_group, name: spec.group.clone(), from };
        let id = queue.definition.id;
        // What is there is what the log says is there: acknowledgements must be in it first.
        if !self.flush_gathered(log) {
            return Err(Refusal::Full);
        }
        let record = RecordRef {
            kind: kind::GROUP_CREATED,
            flags: 0,
            queue: id,
            sequence: 0,
            parts: &[&record::encode(&created)],
        };
        let lsn = match log.append(record) {
            Ok((lsn, _)) => lsn,
            Err(AppendError::Full) => return Err(Refusal::Full),
            Err(AppendError::TooLarge { .. }) => return Err(Refusal::Unknown),
            Err(AppendError::Failed { errno }) => return Err(Refusal::JournalFailed(errno)),
        };
        self.effects.appended = lsn;
        Ok((self.create_group(index, &created, lsn), true))
    }

    /// The record that created the group of a consumer; 0 if that was before the start. Whoever attaches is answered when it is
    /// durable, also if somebody else had the group created.
    pub fn group_lsn(&self, handle: HandleId) -> Lsn {
        let Some(HandleRef::Consumer(number)) = self.handles.get(&handle) else { return 0 };
        let Some(consumer) = self.consumers.get(*number) else { return 0 };
        let queue = self.queues.get(consumer.queue).filter(|_| consumer.browser.is_none());
        queue.and_then(|queue| queue.groups.get(consumer.group)).map_or(0, |group| group.created)
    }

    /// A new group has what is there: the messages that some group has not acknowledged. `lsn` is that of its record, 0 in a replay.
    pub(super) fn create_group(&mut self, index: u32, created: &GroupCreated, lsn: Lsn) -> usize {
        let (open, fresh) = self.there(index, created.from);
        let Some(queue) = self.queues.get_mut(index) else { return 0 };
        let bytes = queue.bytes_of((&open, fresh));
        let mut group = Group::new(created.group, &created.name, fresh);
        group.created = lsn;
        group.ready = open.into_iter().map(|sequence| (sequence, 0)).collect();
        group.bytes = bytes;
        queue.next_group = queue.next_group.max(created.group.saturating_add(1));
        queue.groups.push(group);
        let number = queue.groups.len() - 1;
        queue.look_again(number);
        // Also if it has no consumers yet.
        self.mark(index);
        number
    }

    /// Messages from a sequence on that some group has not acknowledged: single ones, and the place from which all are there.
    /// Those of a stream are there whoever has acknowledged them.
    pub(super) fn there(&self, index: u32, from: u64) -> (BTreeSet<u64>, u64) {
        match self.queues.get(index) {
            Some(queue) if queue.is_stream() && !canary::planted(canary::Canary::StreamForgets) => {
                (BTreeSet::new(), queue.first.max(from))
            }
            _ => self.open_from(index, from),
        }
    }

    /// The same without regard to what a stream keeps.
    pub(super) fn open_from(&self, index: u32, from: u64) -> (BTreeSet<u64>, u64) {
        let Some(queue) = self.queues.get(index) else { return (BTreeSet::new(), 1) };
        let fresh = queue.live_groups().map(|group| group.fresh).min().unwrap_or(1).max(from);
        let mut open = BTreeSet::new();
        let wanted = |sequence: &u64| (from..fresh).contains(sequence);
        for group in queue.live_groups() {
            open.extend(group.back().filter(wanted));
            for consumer in &group.consumers {
                let Some(consumer) = self.consumers.get(*consumer) else { continue };
                open.extend(consumer.held_leases().map(|(_, lease)| lease.sequence).filter(wanted));
            }
        }
        (open, fresh)
    }

    fn browser(&self, index: u32, from: u64) -> Browser {
        let (open, next) = self.there(index, from);
        Browser { open: open.into_iter().collect(), next, earned: Earned::default() }
    }

    /// The handle is gone, or given back: its leases return at once. Everything in its lane and its submissions was taken before.
    pub fn close_handle(&mut self, port: &mut dyn Port, handle: HandleId, now: Now) {
        self.now = now;
        match self.handles.remove(&handle) {
            None => {}
            Some(HandleRef::Producer(index)) => {
                if let Some(producer) = self.producers.remove(index) {
                    self.stop_waiting(producer.queue, handle);
                }
            }
            Some(HandleRef::Consumer(index)) => {
                self.return_all(port, index);
                let Some(consumer) = self.consumers.remove(index) else { return };
                self.disarm_consumer(index, consumer.armed_ns);
                let Some(queue) = self.queues.get_mut(consumer.queue) else { return };
                queue.browsers.retain(|browser| *browser != index);
                for group in &mut queue.groups {
                    group.consumers.retain(|member| *member != index);
                }
                self.mark(consumer.queue);
            }
        }
    }
}

/// A new consumer may have a ring that takes what did not fit into the others'.
fn retry_aside(group: &mut Group) {
    while let Some(&(ASIDE_NS, sequence)) = group.due.last() {
        group.due.pop_last();
        if let Some(delayed) = group.delayed.remove(&sequence) {
            group.ready.insert(sequence, delayed.count);
        }
    }
}
