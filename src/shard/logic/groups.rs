//! Groups as such: where they start, creating, resetting and deleting them, how far behind they are.

use std::collections::{BTreeMap, BTreeSet};

use ringmain_client::protocol::{ErrorCode, GroupInfo, GroupPlace, StartAt};

use super::consumer::LeaseState;
use super::control::Stop;
use super::effects::{Effect, Item, NO_SLOT};
use super::group::{Group, Waiter};
use super::handles::NO_QUEUE;
use super::queue::Queue;
use super::record::{self, GroupCreated, GroupReset, MessageBody, kind};
use super::time::Timer;
use super::types::{ControlResult, GROUPS_MAX, Port};
use super::{Log, Logic, Message, canary};

/// A search for the first message of a time: of those that are there, all below `from` are older, none from `to` on is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    from: u64,
    to: u64,
}

/// Searches that wait for the disk, by queue and time.
pub(super) type Searches = BTreeMap<(u64, u64), Search>;

/// A request about a group.
#[derive(Debug, Clone)]
pub enum GroupCommand {
    /// A new one.
    Create {
        /// Where it starts.
        from: StartAt,
    },
    /// Puts it to another start.
    Reset {
        /// Which.
        to: StartAt,
        /// Only says what it would come to.
        dry_run: bool,
        /// Although consumers are attached.
        force: bool,
    },
    /// Ends it.
    Delete {
        /// Although consumers are attached.
        force: bool,
    },
}

impl Queue {
    /// Index of a group that is not being deleted.
    pub(super) fn group_named(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| !group.deleted && group.name == name)
    }

    /// Whether this is the default group of a stream in which nobody has acknowledged anything and nobody is attached: all that the
    /// stream has is there for it, and all that a limit has discarded it has missed.
    pub(super) fn is_unused(&self, group: &Group) -> bool {
        self.is_stream()
            && group.id == 0
            && group.consumers.is_empty()
            && group.fresh <= self.first
            && group.back().next().is_none()
            && group.skipped == self.trimmed + self.dropped
    }

    /// Those that are not being deleted.
    pub(super) fn live_groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|group| !group.deleted)
    }
}

fn called(name: &str) -> &str {
    if name.is_empty() { "default" } else { name }
}

impl Logic {
    /// The sequence that a start means now. `None`: messages have to be read for that, or become durable; to be asked again.
    pub(super) fn find_start(
        &mut self,
        log: &mut dyn Log,
        index: u32,
        from: StartAt,
    ) -> Option<u64> {
        let Some(queue) = self.queues.get(index) else { return Some(1) };
        let end = queue.next_sequence;
        match from {
            StartAt::First => Some(1),
            StartAt::New => Some(end),
            StartAt::Sequence(sequence) => Some(sequence.clamp(1, end)),
            StartAt::Last(messages) => Some(self.last(index, messages)),
            StartAt::Time(published_ns) => self.search(log, index, published_ns),
        }
    }

    /// The first of the last so many messages that are there.
    fn last(&self, index: u32, messages: u64) -> u64 {
        let (open, fresh) = self.there(index, 1);
        let end = self.queues.get(index).map_or(1, |queue| queue.next_sequence);
        let Some(single) = messages.checked_sub(end.saturating_sub(fresh)) else {
            return end - messages;
        };
        let Some(nth) = single.checked_sub(1) else { return fresh };
        let nth = usize::try_from(nth).unwrap_or(usize::MAX);
        open.iter().rev().nth(nth).or_else(|| open.first()).copied().unwrap_or(fresh)
    }

    /// By halves among the messages that are there, between two marks. One that cannot be read counts as late enough: rather
    /// too much than too little.
    fn search(&mut self, log: &mut dyn Log, index: u32, published_ns: u64) -> Option<u64> {
        let queue = self.queues.get(index)?;
        let (id, durable_end) = (queue.definition.id, queue.durable_end);
        let key = (id, published_ns);
        let mut search = self.searches.remove(&key).unwrap_or_else(|| {
            if published_ns > queue.published_ns {
                return Search { from: queue.next_sequence, to: queue.next_sequence };
            }
            let bounds = queue.marks.at_time(published_ns);
            if canary::planted(canary::Canary::StartAtMark) {
                let at = bounds.to.unwrap_or(queue.next_sequence);
                return Search { from: at, to: at };
            }
            Search { from: bounds.from, to: bounds.to.unwrap_or(queue.next_sequence) }
        });
        if !self.started {
            // Nothing can be read yet, and what comes behind an adopted browser must not wait for it.
            return Some(search.from);
        }
        loop {
            let Some(middle) = self.middle(index, search) else { return Some(search.to) };
            let message = if middle < durable_end {
                log.message(id, middle)
            } else if self.failed.is_none() {
                Message::Pending
            } else {
                Message::Gone
            };
            let body = match message {
                Message::Pending => {
                    self.searches.insert(key, search);
                    return None;
                }
                Message::Lost(_) | Message::Gone => None,
                Message::Ready(body) => MessageBody::parse(body),
            };
            if body.is_some_and(|body| body.published_ns < published_ns) {
                search.from = middle + 1;
            } else {
                search.to = middle;
            }
        }
    }

    /// The message in the middle of those that are there.
    fn middle(&self, index: u32, search: Search) -> Option<u64> {
        let (open, fresh) = self.there(index, search.from);
        let single = open.range(..search.to).count();
        let fresh = fresh.max(search.from);
        let run = usize::try_from(search.to.saturating_sub(fresh)).unwrap_or(usize::MAX);
        if single + run == 0 {
            return None;
        }
        let middle = usize::midpoint(single, run).min(single + run - 1);
        match middle.checked_sub(single) {
            None => open.iter().nth(middle).copied(),
            Some(behind) => Some(fresh + behind as u64),
        }
    }

    /// What a group that starts at this sequence has.
    fn place(&self, index: u32, from: u64) -> GroupPlace {
        let (open, fresh) = self.there(index, from);
        let end = self.queues.get(index).map_or(1, |queue| queue.next_sequence);
        let messages = open.len() as u64 + end.saturating_sub(fresh);
        GroupPlace { sequence: open.first().copied().unwrap_or(fresh), messages }
    }

    /// Carries a request out. One that changes something is answered when that is durable.
    pub(super) fn run_group_command(
        &mut self,
        log: &mut dyn Log,
        request: u64,
        (id, name): (u64, &str),
        command: &GroupCommand,
    ) -> Result<(), Stop> {
        let index = self.live(id)?;
        let found = self.queues.get(index).and_then(|queue| queue.group_named(name));
        match *command {
            GroupCommand::Create { from } => self.create_named(log, request, index, name, from),
            GroupCommand::Reset { to, dry_run, force } => {
                let group = found.ok_or_else(|| self.no_group(index, name))?;
                if !dry_run && !force {
                    self.check_unused(index, group, "reset")?;
                }
                self.reset_group(log, request, (index, group), to, dry_run)
            }
            GroupCommand::Delete { force } => {
                if name.is_empty() {
                    let text =
                        "the default group lasts as long as its queue; see `ringmain queue delete`";
                    return Err(Stop::refused(ErrorCode::Invalid, text));
                }
                let group = found.ok_or_else(|| self.no_group(index, name))?;
                if !force {
                    self.check_unused(index, group, "delete")?;
                }
                self.delete_group(log, request, (index, group))
            }
        }
    }

    fn no_group(&self, index: u32, name: &str) -> Stop {
        let queue = self.queues.get(index).map_or("", |queue| &queue.definition.name);
        let text = format!(
            "queue {queue} has no group {}; see `ringmain group list {queue}`",
            called(name)
        );
        Stop::refused(ErrorCode::NotFound, text)
    }

    fn check_unused(&self, index: u32, group: usize, what: &str) -> Result<(), Stop> {
        let Some(queue) = self.queues.get(index) else { return Err(Stop::Later) };
        let group = &queue.groups[group];
        if group.consumers.is_empty() {
            return Ok(());
        }
        let text = format!(
            "group {} of queue {} has {} consumers: stop them first, or {what} it with --force",
            called(&group.name),
            queue.definition.name,
            group.consumers.len()
        );
        Err(Stop::refused(ErrorCode::Busy, text))
    }

    fn create_named(
        &mut self,
        log: &mut dyn Log,
        request: u64,
        index: u32,
        name: &str,
        from: StartAt,
    ) -> Result<(), Stop> {
        let Some(queue) = self.queues.get(index) else { return Err(Stop::Later) };
        if queue.group_named(name).is_some() {
            let queue = &queue.definition.name;
            let text = format!("queue {queue} has a group {}", called(name));
            return Err(Stop::refused(ErrorCode::Exists, text));
        }
        if queue.groups.len() >= GROUPS_MAX {
            let text = format!(
                "queue {} has {GROUPS_MAX} groups, the most possible: delete one first",
                queue.definition.name
            );
            return Err(Stop::refused(ErrorCode::Limit, text));
        }
        let from = self.find_start(log, index, from).ok_or(Stop::Later)?;
        let Some(queue) = self.queues.get(index) else { return Err(Stop::Later) };
        let created = GroupCreated { group: queue.next_group, name: name.to_owned(), from };
        let id = queue.definition.id;
        let lsn = self.append(log, kind::GROUP_CREATED, id, &record::encode(&created))?;
        let place = self.place(index, from);
        self.create_group(index, &created, lsn);
        self.effects.push(lsn, Effect::Control { request, result: ControlResult::Group(place) });
        Ok(())
    }

    fn reset_group(
        &mut self,
        log: &mut dyn Log,
        request: u64,
        (index, group): (u32, usize),
        to: StartAt,
        dry_run: bool,
    ) -> Result<(), Stop> {
        let to = self.find_start(log, index, to).ok_or(Stop::Later)?;
        let result = ControlResult::Group(self.place(index, to));
        if dry_run {
            self.effects.push_behind(Effect::Control { request, result });
            return Ok(());
        }
        let Some(queue) = self.queues.get(index) else { return Err(Stop::Later) };
        // What was said of the group before is not said of what it is from now on.
        let becomes = queue.next_group;
        let reset = GroupReset { group: queue.groups[group].id, becomes, to };
        let id = queue.definition.id;
        let lsn = self.append(log, kind::GROUP_RESET, id, &record::encode(&reset))?;
        // What is leased is there: it is looked at before the leases end.
        let start = self.there(index, to);
        let items = self.let_go(index, group);
        self.restart_group(index, group, start);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.groups[group].id = becomes;
            queue.next_group = becomes.saturating_add(1);
            queue.purging += 1;
        }
        self.arm_group(index, group);
        self.mark(index);
        self.may_be_overfull(index);
        self.effects.push(lsn, Effect::Purged { queue: index, items });
        self.effects.push_behind(Effect::Control { request, result });
        Ok(())
    }

    /// The group has these messages, none of them delivered before.
    fn restart_group(&mut self, index: u32, group: usize, (open, fresh): (BTreeSet<u64>, u64)) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        let bytes = queue.bytes_of((&open, fresh));
        let number = group;
        let group = &mut queue.groups[number];
        group.discard_below(u64::MAX);
        group.fresh = fresh;
        group.ready = open.into_iter().map(|sequence| (sequence, 0)).collect();
        group.leased = 0;
        group.bytes = bytes;
        queue.look_again(number);
        self.mark(index);
    }

    /// Leases of a group end, and whoever waits for a rejection is answered: when the next record is durable. Returns the number of
    /// items for that.
    pub(super) fn let_go(&mut self, index: u32, group: usize) -> u32 {
        let Some(queue) = self.queues.get_mut(index) else { return 0 };
        let group = &mut queue.groups[group];
        let mut items = 0;
        let keep = canary::planted(canary::Canary::ResetKeepsLeases);
        for (sequence, doomed) in &mut group.doomed {
            if let Some(waiter) = doomed.waiter.take() {
                let item = Item { queue: index, sequence: *sequence, waiter, slot: NO_SLOT };
                self.effects.items.push_back(item);
                items += 1;
            }
        }
        for number in &group.consumers {
            let Some(consumer) = self.consumers.get_mut(*number) else { continue };
            let held: Vec<_> = consumer
                .held_leases()
                .filter(|(_, lease)| lease.state == LeaseState::Held && !keep)
                .collect();
            for (slot, lease) in held {
                consumer.settle(slot);
                let generation = consumer.generation;
                let waiter = Waiter { consumer: *number, generation, request: 0 };
                let sequence = lease.sequence;
                self.effects.items.push_back(Item { queue: index, sequence, waiter, slot });
                items += 1;
            }
        }
        items
    }

    fn delete_group(
        &mut self,
        log: &mut dyn Log,
        request: u64,
        (index, group): (u32, usize),
    ) -> Result<(), Stop> {
        let Some(queue) = self.queues.get(index) else { return Err(Stop::Later) };
        let (id, group_id) = (queue.definition.id, queue.groups[group].id);
        let lsn = self.append(log, kind::GROUP_DELETED, id, &record::encode(&group_id))?;
        let items = self.let_go(index, group);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.groups[group].deleted = true;
            queue.purging += 1;
        }
        // There may be room below a limit.
        self.mark(index);
        self.effects.push(lsn, Effect::GroupDeleted { queue: index, group: group_id, items });
        let result = ControlResult::Done;
        self.effects.push_behind(Effect::Control { request, result });
        Ok(())
    }

    /// The deletion is durable: its consumers end.
    pub(super) fn drop_group(&mut self, index: u32, id: u32, port: &mut dyn Port) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        let Some(at) = queue.groups.iter().position(|group| group.id == id) else { return };
        let numbers: Vec<usize> = (at..queue.groups.len()).collect();
        for number in &numbers {
            if let Some(armed_ns) = queue.groups[*number].armed_ns.take() {
                self.timers.remove(&(armed_ns, Timer::Group(index, *number)));
            }
        }
        let group = queue.groups.remove(at);
        queue.purging = queue.purging.saturating_sub(1);
        queue.settled = u32::MAX;
        for (_, consumer) in self.consumers.iter_mut().filter(|(_, one)| one.queue == index) {
            if consumer.group > at {
                consumer.group -= 1;
            }
        }
        for number in numbers {
            self.arm_group(index, number);
        }
        for number in group.consumers {
            let Some(consumer) = self.consumers.get_mut(number) else { continue };
            let handle = consumer.handle;
            consumer.queue = NO_QUEUE;
            let armed_ns = consumer.armed_ns.take();
            self.disarm_consumer(number, armed_ns);
            port.ended(handle);
        }
    }

    /// The journal failed before the deletion was durable: the group goes on with what can be read.
    pub(super) fn keep_group(&mut self, index: u32, id: u32) {
        if let Some(queue) = self.queues.get_mut(index)
            && let Some(group) = queue.group_by_id(id)
        {
            group.deleted = false;
            self.mark(index);
        }
    }

    /// The groups of a queue, or one of them, in the order of their creation; `None` if there is no such queue.
    pub fn groups(
        &self,
        queue: u64,
        wanted: Option<&str>,
        realtime_ns: u64,
    ) -> Option<Vec<GroupInfo>> {
        let index = *self.by_id.get(&queue)?;
        let queue = self.queues.get(index).filter(|queue| !queue.deleted)?;
        let groups =
            queue.live_groups().filter(|group| wanted.is_none_or(|name| name == group.name));
        Some(groups.map(|group| self.group_info(queue, group, realtime_ns)).collect())
    }

    fn group_info(&self, queue: &Queue, group: &Group, realtime_ns: u64) -> GroupInfo {
        let end = queue.durable_end;
        let members = || group.consumers.iter().filter_map(|number| self.consumers.get(*number));
        let leased = members().flat_map(|consumer| consumer.held_leases());
        let oldest = group.back().chain(leased.map(|(_, lease)| lease.sequence)).min();
        let fresh = (group.fresh < end).then_some(group.fresh);
        let oldest = oldest.into_iter().chain(fresh).min();
        let lag_ns = oldest.map_or(0, |oldest| {
            let published_ns = queue.marks.time_from(oldest).unwrap_or(queue.published_ns);
            realtime_ns.saturating_sub(published_ns)
        });
        let unused = queue.is_unused(group);
        let counted = |figure: u64| if unused { 0 } else { figure };
        GroupInfo {
            group: group.name.clone(),
            lag_messages: counted(group.open(end)),
            lag_bytes: if group.open(end) == 0 { 0 } else { counted(group.bytes) },
            lag_ns: counted(lag_ns),
            consumers: u32::try_from(group.consumers.len()).unwrap_or(u32::MAX),
            unacknowledged: group.leased,
            delayed: group.delayed.len() as u64,
            next_sequence: group.fresh,
            skipped: counted(group.skipped),
            unused,
            stalled: group.stalled.is_some(),
        }
    }

    /// Where a replayed deletion or reset applies; `None`: the group is gone already.
    pub(super) fn replayed_group(&self, index: u32, id: u32) -> Result<Option<usize>, String> {
        let Some(queue) = self.queues.get(index) else { return Ok(None) };
        match queue.groups.iter().position(|group| group.id == id) {
            None if id >= queue.next_group => Err(format!("group {id} was never created")),
            found => Ok(found),
        }
    }

    pub(super) fn replay_group_deleted(&mut self, index: u32, id: u32) -> Result<(), String> {
        if canary::planted(canary::Canary::KeepDeletedGroup) {
            return Ok(());
        }
        let found = self.replayed_group(index, id)?;
        if let (Some(queue), Some(at)) = (self.queues.get_mut(index), found) {
            if at == 0 {
                return Err("the default group cannot be deleted".to_owned());
            }
            queue.groups.remove(at);
        }
        Ok(())
    }

    pub(super) fn replay_group_reset(
        &mut self,
        index: u32,
        reset: &GroupReset,
    ) -> Result<(), String> {
        let found = self.replayed_group(index, reset.group)?;
        let end = self.queues.get(index).map_or(0, |queue| queue.next_sequence);
        if reset.to == 0 || reset.to > end {
            return Err(format!("a group cannot start at {}", reset.to));
        }
        let Some(queue) = self.queues.get_mut(index) else { return Ok(()) };
        if reset.becomes < queue.next_group {
            // The state has it already.
            return Ok(());
        }
        queue.next_group = reset.becomes.saturating_add(1);
        let Some(at) = found else { return Ok(()) };
        queue.groups[at].id = reset.becomes;
        let start = self.there(index, reset.to);
        self.restart_group(index, at, start);
        Ok(())
    }
}
