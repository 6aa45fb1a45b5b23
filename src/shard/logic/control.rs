//! Requests of the control thread: one after the other, each answered once it is durable.

use std::collections::VecDeque;

use ringmain_client::protocol::{ErrorCode, Overflow};
use ringmain_client::wire::Outcome;

use super::effects::Effect;
use super::handles::NO_QUEUE;
use super::limits::LimitsEdit;
use super::named::REJECTS;
use super::queue::Queue;
use super::record::{self, kind};
use super::redrive::RedriveJob;
use super::time::Timer;
use super::types::{ControlResult, Lsn, Port, QueueDefinition, QueueEdit, RecordRef};
use super::{AppendError, GroupCommand, Log, Logic};
use crate::shard::memory::{carried_bytes, letter_bytes};

/// A request that is not in the log yet.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) request: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Create(QueueDefinition),
    Edit(u64, QueueEdit),
    Delete(u64),
    Purge(u64),
    Redrive(u64, u64, Vec<u64>),
    Group(u64, String, GroupCommand),
}

impl Command {
    /// Of which queue.
    fn queue(&self) -> u64 {
        match &self.what {
            What::Create(definition) => definition.id,
            What::Edit(queue, _)
            | What::Delete(queue)
            | What::Purge(queue)
            | What::Redrive(queue, ..)
            | What::Group(queue, _, _) => *queue,
        }
    }
}

/// Why a command ended without a record.
pub(super) enum Stop {
    /// The log has no room: later, and so are all others.
    NoRoom,
    /// It waits for messages to be read or to be durable: later. Those of other queues do not wait.
    Later,
    Answer(ControlResult),
}

impl From<AppendError> for Stop {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full => Self::NoRoom,
            AppendError::TooLarge { .. } => refused(ErrorCode::Invalid, error.to_string()),
            AppendError::Failed { errno } => Self::Answer(ControlResult::JournalFailed(errno)),
        }
    }
}

fn invalid(message: &str) -> Stop {
    refused(ErrorCode::Invalid, message)
}

impl Stop {
    pub(super) fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Answer(ControlResult::Refused(code, message.into()))
    }
}

fn refused(code: ErrorCode, message: impl Into<String>) -> Stop {
    Stop::refused(code, message)
}

impl Logic {
    /// Creates a queue with its default group. The id is new: at least [`Self::next_queue_id`].
    pub fn create_queue(&mut self, log: &mut dyn Log, request: u64, definition: QueueDefinition) {
        self.command(log, request, What::Create(definition));
    }

    /// Changes the delivery rules of a queue.
    pub fn edit_queue(&mut self, log: &mut dyn Log, request: u64, queue: u64, edit: QueueEdit) {
        self.command(log, request, What::Edit(queue, edit));
    }

    /// Deletes a queue. Publishes that come from now on are completed with `QueueDeleted`; the caller closes the handles.
    pub fn delete_queue(&mut self, log: &mut dyn Log, request: u64, queue: u64) {
        self.command(log, request, What::Delete(queue));
    }

    /// Discards everything that was published so far, for all groups, also what is leased.
    pub fn purge(&mut self, log: &mut dyn Log, request: u64, queue: u64) {
        self.command(log, request, What::Purge(queue));
    }

    /// Moves messages of a dead-letter queue back, oldest first, at most `count` (0: all that are there now). Each goes to the
    /// queue that its header names, if that is one of `origins`, in ascending order, and has this one as its dead-letter queue;
    /// else it stays.
    pub fn redrive(
        &mut self,
        log: &mut dyn Log,
        request: u64,
        queue: u64,
        count: u64,
        origins: Vec<u64>,
    ) {
        self.command(log, request, What::Redrive(queue, count, origins));
    }

    /// Creates, resets or deletes a group. What a reset or a deletion gives up is needed until that is durable.
    pub fn group_command(
        &mut self,
        log: &mut dyn Log,
        request: u64,
        queue: u64,
        group: &str,
        command: GroupCommand,
    ) {
        self.command(log, request, What::Group(queue, group.to_owned(), command));
    }

    fn command(&mut self, log: &mut dyn Log, request: u64, what: What) {
        self.commands.push_back(Command { request, what });
        if self.flush_gathered(log) {
            self.run_commands(log);
        }
    }

    /// Carries out what waits, that of each queue in order. `false`: the journal has no room.
    pub(super) fn run_commands(&mut self, log: &mut dyn Log) -> bool {
        let mut later = VecDeque::new();
        let mut has_room = true;
        while let Some(command) = self.commands.pop_front() {
            if later.iter().any(|earlier: &Command| earlier.queue() == command.queue()) {
                later.push_back(command);
                continue;
            }
            let request = command.request;
            let done = match self.failed {
                Some(errno) => Err(Stop::Answer(ControlResult::JournalFailed(errno))),
                None => self.run_command(log, &command),
            };
            match done {
                Ok(()) => {}
                Err(Stop::Later) => later.push_back(command),
                Err(Stop::NoRoom) => {
                    later.push_back(command);
                    has_room = false;
                    break;
                }
                Err(Stop::Answer(result)) => {
                    self.effects.push_behind(Effect::Control { request, result });
                }
            }
        }
        later.append(&mut self.commands);
        self.commands = later;
        has_room
    }

    /// Whether requests wait for the log.
    pub fn has_commands(&self) -> bool {
        !self.commands.is_empty() || !self.redrives.is_empty()
    }

    /// Answers the requests that wait for the log with this: nothing of them is done, except what a redrive has moved.
    pub fn refuse_commands(&mut self, result: &ControlResult) {
        let commands = self.commands.drain(..).map(|command| command.request);
        let requests: Vec<u64> =
            commands.chain(self.redrives.drain(..).map(|job| job.request)).collect();
        for request in requests {
            self.effects.push_behind(Effect::Control { request, result: result.clone() });
        }
    }

    fn run_command(&mut self, log: &mut dyn Log, command: &Command) -> Result<(), Stop> {
        let request = command.request;
        match &command.what {
            What::Create(definition) => self.create(log, request, definition),
            What::Edit(queue, edit) => self.edit(log, request, *queue, edit),
            What::Delete(queue) => self.delete(log, request, *queue),
            What::Purge(queue) => self.purge_now(log, request, *queue),
            What::Group(queue, name, command) => {
                self.run_group_command(log, request, (*queue, name), command)
            }
            What::Redrive(queue, count, origins) => {
                let index = self.live(*queue)?;
                let end = self.queues.get(index).map_or(0, |queue| queue.durable_end);
                let left = if *count == 0 { u64::MAX } else { *count };
                let origins = origins.clone();
                let (next, moved) = (1, 0);
                let job = RedriveJob { request, queue: index, origins, next, end, left, moved };
                self.redrives.push_back(job);
                Ok(())
            }
        }
    }

    pub(super) fn live(&self, id: u64) -> Result<u32, Stop> {
        self.by_id
            .get(&id)
            .copied()
            .filter(|index| self.queues.get(*index).is_some_and(|queue| !queue.deleted))
            .ok_or_else(|| refused(ErrorCode::NotFound, format!("queue {id} does not exist")))
    }

    fn create(
        &mut self,
        log: &mut dyn Log,
        request: u64,
        definition: &QueueDefinition,
    ) -> Result<(), Stop> {
        if definition.id < self.next_queue_id {
            let message = format!("queue id {} was used before", definition.id);
            return Err(refused(ErrorCode::Internal, message));
        }
        if self.by_name.contains_key(&definition.name) {
            let message = format!("queue {} exists", definition.name);
            return Err(refused(ErrorCode::Exists, message));
        }
        self.check_dead_letter(definition)?;
        definition.limits.check(definition.durable).map_err(invalid)?;
        let body = record::encode(definition);
        let lsn = self.append(log, kind::QUEUE_CREATED, definition.id, &body)?;
        self.add_queue(Queue::new(definition.clone()));
        self.effects.push(lsn, Effect::Control { request, result: ControlResult::Done });
        Ok(())
    }

    pub(super) fn append(
        &self,
        log: &mut dyn Log,
        kind: u8,
        queue: u64,
        body: &[u8],
    ) -> Result<Lsn, Stop> {
        let record = RecordRef { kind, flags: 0, queue, sequence: 0, parts: &[body] };
        Ok(log.append(record)?.0)
    }

    pub(super) fn add_queue(&mut self, queue: Queue) -> u32 {
        let (id, name) = (queue.definition.id, queue.definition.name.clone());
        let index = self.queues.insert(queue);
        self.by_id.insert(id, index);
        self.by_name.insert(name, index);
        self.next_queue_id = self.next_queue_id.max(id.saturating_add(1));
        index
    }

    /// The dead-letter queue must be there and take everything that this queue takes.
    fn check_dead_letter(&self, definition: &QueueDefinition) -> Result<(), Stop> {
        let name = &definition.dead_letter;
        if name.is_empty() {
            return Ok(());
        }
        if *name == definition.name {
            let message =
                format!("dead-letter={name}: a queue cannot be its own dead-letter queue");
            return Err(refused(ErrorCode::Invalid, message));
        }
        let Some(target) = self.by_name.get(name).and_then(|index| self.queues.get(*index)) else {
            let message = format!(
                "dead-letter={name}: there is no such brokered queue of the same durability; create it first"
            );
            return Err(refused(ErrorCode::NotFound, message));
        };
        if target.definition.max_message < definition.max_message {
            let message = format!(
                "dead-letter={name}: it takes messages of at most {} bytes, this queue of {}; create it with \
                 --max-message {}",
                target.definition.max_message, definition.max_message, definition.max_message
            );
            return Err(refused(ErrorCode::Invalid, message));
        }
        let QueueDefinition { slots, slot_size, max_message, .. } = *definition;
        let carried = carried_bytes(target.definition.slots, target.definition.slot_size);
        let longest = letter_bytes(slots, slot_size, max_message);
        if carried < longest {
            let message = format!(
                "dead-letter={name}: its rings carry letters of at most {carried} bytes, those of this queue may have \
                 {longest} with key and headers; create it with --slots {slots} --slot-size {slot_size}"
            );
            return Err(refused(ErrorCode::Invalid, message));
        }
        Ok(())
    }

    fn edit(
        &mut self,
        log: &mut dyn Log,
        request: u64,
        id: u64,
        edit: &QueueEdit,
    ) -> Result<(), Stop> {
        let index = self.live(id)?;
        let Some(queue) = self.queues.get(index) else { return Err(Stop::Later) };
        let mut definition = queue.definition.clone();
        if let Some(max_deliveries) = edit.max_deliveries {
            definition.max_deliveries = max_deliveries;
        }
        if let Some(name) = &edit.dead_letter {
            definition.dead_letter.clone_from(name);
            self.check_dead_letter(&definition)?;
        }
        if let Some(lease_ms) = edit.lease_ms {
            definition.lease_ms = lease_ms;
        }
        if let Some(ttl_ms) = edit.ttl_ms {
            definition.ttl_ms = ttl_ms;
        }
        edit.limits.apply(&mut definition.limits, queue.next_sequence);
        if edit.limits != LimitsEdit::default() {
            definition.limits.check(definition.durable).map_err(invalid)?;
        }
        if definition.limits.overflow == Overflow::Reject
            && self.queues.get(index).is_some_and(|queue| !queue.named.is_empty())
        {
            return Err(refused(ErrorCode::Busy, REJECTS));
        }
        let lsn = self.append(log, kind::QUEUE_EDITED, id, &record::encode(&definition))?;
        let mut groups = 0;
        if let Some(queue) = self.queues.get_mut(index) {
            let other = queue.is_stream() != definition.limits.is_stream();
            let other_ttl = queue.definition.ttl_ms != definition.ttl_ms;
            queue.redefine(definition);
            groups = queue.groups.len();
            if other_ttl {
                for number in queue.groups.iter().flat_map(|group| &group.consumers) {
                    if let Some(consumer) = self.consumers.get_mut(*number) {
                        consumer.forget_expiries();
                    }
                }
            }
            if other {
                // What is not kept any more is needed until that is durable.
                queue.purging += 1;
                self.effects.push(lsn, Effect::Purged { queue: index, items: 0 });
            }
        }
        for group in 0..groups {
            self.doom_exhausted(index, group);
        }
        self.mark(index);
        self.may_be_overfull(index);
        self.effects.push(lsn, Effect::Control { request, result: ControlResult::Done });
        Ok(())
    }

    fn delete(&mut self, log: &mut dyn Log, request: u64, id: u64) -> Result<(), Stop> {
        let index = self.live(id)?;
        let name = self.queues.get(index).map_or("", |queue| queue.definition.name.as_str());
        let user = self.queues.iter().find(|(_, queue)| {
            !queue.deleted && !name.is_empty() && queue.definition.dead_letter == name
        });
        if let Some((_, user)) = user {
            let user = &user.definition.name;
            let message = format!(
                "queue {name} is the dead-letter queue of {user}: change that with `ringmain queue edit {user}` first"
            );
            return Err(refused(ErrorCode::Busy, message));
        }
        let lsn = self.append(log, kind::QUEUE_DELETED, id, &[])?;
        if let Some(queue) = self.queues.get_mut(index) {
            queue.deleted = true;
            self.by_name.remove(&queue.definition.name);
        }
        self.effects.push(lsn, Effect::Deleted { queue: index });
        self.effects.push_behind(Effect::Control { request, result: ControlResult::Done });
        Ok(())
    }

    /// The deletion is durable.
    pub(super) fn drop_queue(&mut self, index: u32, port: &mut dyn Port, log: &mut dyn Log) {
        let Some(queue) = self.queues.remove(index) else { return };
        self.by_id.remove(&queue.definition.id);
        if let Some(armed_ns) = queue.armed_ns {
            self.timers.remove(&(armed_ns, Timer::Queue(index)));
        }
        for (number, group) in queue.groups.iter().enumerate() {
            if let Some(armed_ns) = group.armed_ns {
                self.timers.remove(&(armed_ns, Timer::Group(index, number)));
            }
            for waiter in group.doomed.values().filter_map(|doomed| doomed.waiter) {
                self.answer(waiter, port, Outcome::QueueDeleted, 0);
            }
        }
        self.dirty.retain(|dirty| *dirty != index);
        self.overfull.retain(|overfull| *overfull != index);
        if let Some(armed_ns) = queue.armed_ns {
            self.timers.remove(&(armed_ns, Timer::Age(index)));
        }
        for (_, producer) in self.producers.iter_mut().filter(|(_, one)| one.queue == index) {
            producer.queue = NO_QUEUE;
        }
        let mut armed = Vec::new();
        for (number, consumer) in self.consumers.iter_mut().filter(|(_, one)| one.queue == index) {
            consumer.queue = NO_QUEUE;
            armed.push((number, consumer.armed_ns.take()));
        }
        for (number, armed_ns) in armed {
            self.disarm_consumer(number, armed_ns);
        }
        for job in &mut self.redrives {
            if job.queue == index {
                job.queue = NO_QUEUE;
            }
        }
        self.searches.retain(|(id, _), _| *id != queue.definition.id);
        log.forget(queue.definition.id, u64::MAX);
    }

    fn purge_now(&mut self, log: &mut dyn Log, request: u64, id: u64) -> Result<(), Stop> {
        let index = self.live(id)?;
        let below = self.queues.get(index).map_or(1, |queue| queue.next_sequence);
        let lsn = self.append(log, kind::PURGED, id, &below.to_le_bytes())?;
        let messages = self.messages(index, below);
        let items = self.discard_below(index, below, None);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.purging += 1;
        }
        self.mark(index);
        self.effects.push(lsn, Effect::Purged { queue: index, items });
        let result = ControlResult::Purged(messages);
        self.effects.push_behind(Effect::Control { request, result });
        Ok(())
    }
}
