//! What is to happen once a record is durable, in the order of the records.

use std::collections::VecDeque;

use ringmain_client::wire::Outcome;

use super::group::Waiter;
use super::queue::Queue;
use super::types::{ControlResult, HandleId, Lsn, Now, Port};
use super::{Log, Logic, canary};

/// No entry of a lease table.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// One message of an [`Effect::Settled`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) queue: u32,
    pub(super) sequence: u64,
    pub(super) waiter: Waiter,
    /// Entry to be freed, or [`NO_SLOT`].
    pub(super) slot: u32,
}

/// Neighbours in the log, in their queue and in their lane.
#[derive(Debug)]
pub(super) struct StoredRun {
    pub(super) queue: u32,
    pub(super) first_sequence: u64,
    /// Whose completions these are, if anybody waits for them.
    pub(super) producer: Option<HandleId>,
    pub(super) first_position: u64,
    pub(super) stride: u64,
    pub(super) count: u32,
}

#[derive(Debug)]
pub(super) enum Effect {
    /// Messages are there.
    Stored(StoredRun),
    /// A message was not taken.
    Refused {
        handle: HandleId,
        position: u64,
        outcome: Outcome,
        detail: u64,
    },
    /// All of a transaction is there: its first message has this sequence.
    Transacted {
        handle: HandleId,
        position: u64,
        sequence: u64,
    },
    /// Messages are done with, or counted: the next so many items.
    Settled {
        queue: u32,
        items: u32,
    },
    Purged {
        queue: u32,
        items: u32,
    },
    /// A limit has discarded so many messages.
    Trimmed {
        queue: u32,
        items: u32,
        messages: u64,
    },
    Deleted {
        queue: u32,
    },
    GroupDeleted {
        queue: u32,
        group: u32,
        items: u32,
    },
    Control {
        request: u64,
        result: ControlResult,
    },
}

#[derive(Debug)]
struct Pending {
    lsn: Lsn,
    effect: Effect,
}

/// Effects in the order of their records.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pending: VecDeque<Pending>,
    /// Of gathered records, after those of pending effects.
    pub(super) items: VecDeque<Item>,
    /// Last record appended.
    pub(super) appended: Lsn,
}

impl Effects {
    pub(super) fn push(&mut self, lsn: Lsn, effect: Effect) {
        self.appended = lsn;
        self.pending.push_back(Pending { lsn, effect });
    }

    /// After everything that was appended so far.
    pub(super) fn push_behind(&mut self, effect: Effect) {
        self.pending.push_back(Pending { lsn: self.appended, effect });
    }

    /// A message was appended.
    pub(super) fn push_stored(
        &mut self,
        lsn: Lsn,
        queue: u32,
        sequence: u64,
        producer: Option<HandleId>,
        position: u64,
        span: u64,
    ) {
        self.appended = lsn;
        if let Some(Pending { lsn: first_lsn, effect: Effect::Stored(run) }) =
            self.pending.back_mut()
        {
            let count = u64::from(run.count);
            if *first_lsn + count == lsn
                && run.queue == queue
                && run.producer == producer
                && run.first_sequence + count == sequence
                && run.first_position.wrapping_add(run.stride.wrapping_mul(count)) == position
                && run.stride == span
                && run.count < u32::MAX
            {
                run.count += 1;
                return;
            }
        }
        let run = StoredRun {
            queue,
            first_sequence: sequence,
            producer,
            first_position: position,
            stride: span,
            count: 1,
        };
        self.pending.push_back(Pending { lsn, effect: Effect::Stored(run) });
    }

    /// The next effect that this LSN makes durable; of a run as many messages as are.
    fn pop(&mut self, lsn: Lsn) -> Option<Effect> {
        let front = self.pending.front_mut()?;
        if front.lsn > lsn {
            return None;
        }
        if let Effect::Stored(run) = &mut front.effect {
            let durable = lsn - front.lsn + 1;
            if durable < u64::from(run.count) {
                let count = u32::try_from(durable).unwrap_or(u32::MAX);
                let done = StoredRun { count, ..*run };
                front.lsn += durable;
                run.first_sequence += durable;
                run.first_position =
                    run.first_position.wrapping_add(run.stride.wrapping_mul(durable));
                run.count -= count;
                return Some(Effect::Stored(done));
            }
        }
        self.pending.pop_front().map(|pending| pending.effect)
    }
}

impl Logic {
    /// Everything up to this LSN is durable: completions, answers and control results go out in the order of the log. To be
    /// called every turn, also if nothing new is durable.
    pub fn on_durable(&mut self, lsn: Lsn, port: &mut dyn Port, log: &mut dyn Log, now: Now) {
        self.now = now;
        while let Some(effect) = self.effects.pop(lsn) {
            match effect {
                Effect::Stored(run) => self.stored(&run, port),
                Effect::Settled { queue, items } => {
                    self.settle_items(items, port, Outcome::Done, 0);
                    self.settled(queue, items, log);
                }
                Effect::Purged { queue, items } => {
                    self.cancel_items(items, port);
                    if let Some(queue) = self.queues.get_mut(queue) {
                        queue.purging -= 1;
                        queue.settled = u32::MAX;
                    }
                    self.settled(queue, 0, log);
                }
                Effect::Trimmed { queue, items, messages } => {
                    self.cancel_items(items, port);
                    if let Some(queue) = self.queues.get_mut(queue) {
                        queue.cancelling.pop_front();
                    }
                    self.settled(queue, u32::try_from(messages).unwrap_or(u32::MAX), log);
                }
                Effect::Deleted { queue } => self.drop_queue(queue, port, log),
                Effect::GroupDeleted { queue, group, items } => {
                    self.cancel_items(items, port);
                    self.drop_group(queue, group, port);
                    // Producers that waited for it may go on.
                    self.mark(queue);
                    self.settled(queue, 0, log);
                }
                Effect::Refused { handle, position, outcome, detail } => {
                    if self.handles.contains_key(&handle) {
                        port.completed(handle, position, position, 1, 0, outcome, detail);
                    }
                }
                Effect::Control { request, result } => port.control(request, result),
                Effect::Transacted { handle, position, sequence } => {
                    if self.handles.contains_key(&handle) {
                        port.completed(handle, position, position, 1, sequence, Outcome::Done, 0);
                    }
                }
            }
        }
    }

    fn stored(&mut self, run: &StoredRun, port: &mut dyn Port) {
        if let Some(queue) = self.queues.get_mut(run.queue) {
            queue.durable_end = queue.durable_end.max(run.first_sequence + u64::from(run.count));
        }
        self.mark(run.queue);
        if let Some(handle) = run.producer
            && self.handles.contains_key(&handle)
        {
            let last = run.stride.wrapping_mul(u64::from(run.count) - 1);
            port.completed(
                handle,
                run.first_position,
                run.first_position.wrapping_add(last),
                run.count,
                run.first_sequence,
                Outcome::Done,
                0,
            );
        }
    }

    /// Frees the entries of items and answers who waits.
    fn settle_items(&mut self, items: u32, port: &mut dyn Port, outcome: Outcome, detail: u64) {
        for _ in 0..items {
            let Some(item) = self.effects.items.pop_front() else { return };
            self.settle_item(&item, port, outcome, detail);
        }
    }

    /// As [`Self::settle_items`], of messages that were taken from their consumers: these may not have looked at them.
    fn cancel_items(&mut self, items: u32, port: &mut dyn Port) {
        for _ in 0..items {
            let Some(item) = self.effects.items.pop_front() else { return };
            if let Some(handle) = self.settle_item(&item, port, Outcome::Done, 0) {
                port.recalled(handle);
            }
        }
    }

    /// Whose it was, if that one is still there.
    fn settle_item(
        &mut self,
        item: &Item,
        port: &mut dyn Port,
        outcome: Outcome,
        detail: u64,
    ) -> Option<HandleId> {
        let consumer = self.consumers.get_mut(item.waiter.consumer)?;
        if consumer.generation != item.waiter.generation {
            return None;
        }
        let handle = consumer.handle;
        if item.slot != NO_SLOT {
            port.lease(handle, item.slot, None);
            consumer.release(item.slot);
            let queue = consumer.queue;
            self.mark(queue);
        }
        if item.waiter.request != 0 {
            port.answer(handle, item.waiter.request, outcome, detail);
        }
        Some(handle)
    }

    /// From time to time the log learns what it need not find any more.
    fn settled(&mut self, index: u32, items: u32, log: &mut dyn Log) {
        const OFTEN: u32 = 4096;
        let nothing_settles = self.effects.items.is_empty();
        let Some(queue) = self.queues.get_mut(index) else { return };
        if nothing_settles && queue.purging == 0 && queue.is_done_with() {
            queue.marks.clear();
        }
        queue.settled = queue.settled.saturating_add(items);
        if queue.settled < OFTEN || queue.purging > 0 {
            return;
        }
        queue.settled = 0;
        let below = self.needed_from(index);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.marks.forget_below(below);
            log.forget(queue.definition.id, below);
        }
    }

    /// The oldest message that may still be asked for, now or after a restart.
    fn needed_from(&self, index: u32) -> u64 {
        let Some(queue) = self.queues.get(index) else { return u64::MAX };
        // What a limit cancels is needed until that is durable.
        let cancelling = queue.cancelling.front().copied().unwrap_or(u64::MAX);
        let from = self.oldest_stored(queue).min(cancelling);
        let settling = self.effects.items.iter().filter(|item| item.queue == index);
        settling.map(|item| item.sequence).fold(from, u64::min)
    }

    /// The oldest message that some group has not acknowledged, or the next one.
    pub(super) fn oldest_open(&self, queue: &Queue) -> u64 {
        let mut from = queue.next_sequence;
        for group in &queue.groups {
            let heads = [
                Some(group.fresh),
                group.ready.keys().next().copied(),
                group.delayed.keys().next().copied(),
                group.doomed.keys().next().copied(),
            ];
            let leased = group.consumers.iter().filter_map(|consumer| {
                let consumer = self.consumers.get(*consumer)?;
                consumer.held_leases().map(|(_, lease)| lease.sequence).min()
            });
            from = heads.into_iter().flatten().chain(leased).fold(from, u64::min);
        }
        from
    }

    /// The journal failed with this errno, and [`Self::on_durable`] has been called for what is durable. Everybody who waits for
    /// more hears of it. Dispatch of what is durable goes on; nothing is acknowledged any more.
    pub fn on_failed(&mut self, errno: i32, port: &mut dyn Port) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(errno);
        let detail = u64::from(errno.unsigned_abs());
        while let Some(effect) = self.effects.pop(Lsn::MAX) {
            match effect {
                Effect::Stored(run) => self.failed_run(&run, detail, port),
                Effect::Refused { handle, position, outcome, detail: told } => {
                    // What these rest on is not durable.
                    let (outcome, detail) = match outcome {
                        Outcome::Duplicate | Outcome::Fenced => (Outcome::JournalFailed, detail),
                        outcome => (outcome, told),
                    };
                    if self.handles.contains_key(&handle) {
                        port.completed(handle, position, position, 1, 0, outcome, detail);
                    }
                }
                Effect::Transacted { handle, position, .. } => {
                    if self.handles.contains_key(&handle) {
                        let outcome = Outcome::JournalFailed;
                        port.completed(handle, position, position, 1, 0, outcome, detail);
                    }
                }
                Effect::Control { request, .. } => {
                    port.control(request, ControlResult::JournalFailed(errno));
                }
                Effect::GroupDeleted { queue, group, .. } => self.keep_group(queue, group),
                Effect::Settled { .. }
                | Effect::Purged { .. }
                | Effect::Trimmed { .. }
                | Effect::Deleted { .. } => {}
            }
        }
        // Those of gathered records as well.
        let items = u32::try_from(self.effects.items.len()).unwrap_or(u32::MAX);
        self.settle_items(items, port, Outcome::JournalFailed, detail);
        self.gathered.clear();
        self.searches.clear();
        self.effects.appended = 0;
        for command in self.commands.drain(..) {
            port.control(command.request, ControlResult::JournalFailed(errno));
        }
        for job in self.redrives.drain(..) {
            port.control(job.request, ControlResult::JournalFailed(errno));
        }
        self.fail_rejections(port, detail);
        self.unblock_all();
    }

    fn failed_run(&self, run: &StoredRun, detail: u64, port: &mut dyn Port) {
        let Some(handle) = run.producer else { return };
        if self.handles.contains_key(&handle) {
            let last = run.stride.wrapping_mul(u64::from(run.count) - 1);
            port.completed(
                handle,
                run.first_position,
                run.first_position.wrapping_add(last),
                run.count,
                0,
                Outcome::JournalFailed,
                detail,
            );
        }
    }

    /// Who waits for a message to be moved does not wait any more.
    fn fail_rejections(&mut self, port: &mut dyn Port, detail: u64) {
        let mut waiters = Vec::new();
        for (_, queue) in self.queues.iter_mut() {
            for group in &mut queue.groups {
                waiters.extend(group.doomed.values_mut().filter_map(|doomed| doomed.waiter.take()));
            }
        }
        for waiter in waiters {
            self.answer(waiter, port, Outcome::JournalFailed, detail);
        }
    }

    /// Answers a consumer that may be gone.
    pub(super) fn answer(
        &self,
        waiter: Waiter,
        port: &mut dyn Port,
        outcome: Outcome,
        detail: u64,
    ) {
        if waiter.request == 0 {
            return;
        }
        if let Some(consumer) = self.consumers.get(waiter.consumer)
            && consumer.generation == waiter.generation
        {
            port.answer(consumer.handle, waiter.request, outcome, detail);
        }
    }

    /// Where dispatch stops.
    pub(super) fn dispatch_end(queue: &Queue) -> u64 {
        if canary::planted(canary::Canary::DispatchBeforeDurable) {
            return queue.next_sequence;
        }
        queue.durable_end
    }
}
