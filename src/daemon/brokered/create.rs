//! Creating and deleting brokered queues.

use std::os::fd::AsFd;

use ringmain_client::layout::Geometry;
use ringmain_client::layout::metadata::DEAD_LETTER_BYTES;
use ringmain_client::protocol::{DeliverySpec, ErrorCode, Kind, QueueSpec, Reply};
use ringmain_client::wire::DELIVERY_HEADER_BYTES;

use super::super::broker::{Broker, bug};
use super::super::connections::{Answer, Failure, refuse};
use super::super::entries::{BrokeredQueueEntry, Key};
use super::super::link::LinkLost;
use super::super::peer::Credentials;
use super::super::queues::{check_name, checked_mode, group_of, no_room};
use super::{BrokeredQueue, SHARD_DURABLE, SHARD_MEMORY, State, Waiting, failure, no_right};
use crate::shard::control::ToShard;
use crate::shard::logic::{ControlResult, Limits, QueueDefinition};
use crate::shard::start::message_bytes_max;

/// Slots of the rings with messages if nothing else is asked for.
const SLOTS_DEFAULT: u32 = 1024;
/// Milliseconds.
const LEASE_DEFAULT_MS: u64 = 30_000;
/// A year; beyond it 0 is meant.
const LEASE_MAX_MS: u64 = 366 * 24 * 3600 * 1000;
/// A hundred years; beyond it 0 is meant.
const AGE_MAX_MS: u64 = 100 * LEASE_MAX_MS;

/// No connection.
const NOBODY: u64 = u64::MAX;

/// Whether the times are such as a brokered queue takes; else why not.
///
/// # Errors
/// In words, which one it is.
pub fn check_times(delivery: &DeliverySpec) -> Result<(), String> {
    let times = [
        ("lease", delivery.lease_ms, LEASE_MAX_MS),
        ("max-age", delivery.max_age_ms, AGE_MAX_MS),
        ("ttl", delivery.ttl_ms, AGE_MAX_MS),
    ];
    for (name, value_ms, max_ms) in times {
        if let Some(value_ms) = value_ms.filter(|value_ms| *value_ms > max_ms) {
            return Err(format!("{name}={value_ms} ms: at most {max_ms} ms, or 0 for no end"));
        }
    }
    Ok(())
}

impl Broker {
    /// `None`: the answer comes when the queue is stored.
    pub(in super::super) fn create_brokered(
        &mut self,
        number: u64,
        user: &Credentials,
        name: String,
        spec: &QueueSpec,
    ) -> Result<Option<Answer>, Failure> {
        let session = self.bound_session(number, spec)?;
        let entry = self.new_brokered_entry(number, user, name, spec)?;
        if let Some(id) = self.names.get(&entry.name).copied() {
            return self.create_again(number, id, &entry);
        }
        if self.allocating.contains_key(&entry.name) {
            let text = format!("queue {} is being created: try again later", entry.name);
            return refuse(ErrorCode::Busy, text);
        }
        self.check_queue_limits(user.uid, 0)?;
        self.want_shard(entry.shard)?;
        self.check_shard(entry.shard)?;
        let delivery = self.checked_delivery(user, &entry, None, &spec.delivery)?;
        let id = self.counters.queue(&mut self.keeper)?;
        let definition = QueueDefinition {
            id,
            name: entry.name.clone(),
            kind: entry.kind,
            durable: entry.shard == SHARD_DURABLE,
            slots: entry.slots,
            slot_size: entry.slot_size,
            max_message: entry.max_message,
            owner_uid: entry.owner_uid,
            group_gid: entry.group_gid,
            mode: entry.mode,
            max_deliveries: delivery.max_deliveries.unwrap_or(0),
            lease_ms: delivery.lease_ms.unwrap_or(LEASE_DEFAULT_MS),
            limits: Limits::asked(&delivery),
            dead_letter: delivery.dead_letter.unwrap_or_default(),
            ttl_ms: delivery.ttl_ms.unwrap_or(0),
        };
        let shard = entry.shard;
        let queue = BrokeredQueue { entry, state: State::Creating, handles: Default::default() };
        let (bound, beside) = self.binding(id, session)?;
        let items = [vec![queue.item(id)], bound].concat();
        let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
        self.keeper.apply_with(Vec::new(), items, &beside)?.or_else(no_room)?;
        self.bind(id, session);
        self.names.insert(queue.entry.name.clone(), id);
        self.brokered.queues.insert(id, queue);
        let request = self.brokered.request(Waiting::Create { connection: number, queue: id });
        self.brokered.tell(shard, ToShard::Create { request, definition });
        Ok(None)
    }

    fn new_brokered_entry(
        &self,
        number: u64,
        user: &Credentials,
        name: String,
        spec: &QueueSpec,
    ) -> Result<BrokeredQueueEntry, Failure> {
        check_name(&name)?;
        let slots = spec.slots.unwrap_or(SLOTS_DEFAULT);
        let header = u32::try_from(DELIVERY_HEADER_BYTES + DEAD_LETTER_BYTES).unwrap_or(u32::MAX);
        let limit = match Geometry::new(Some(slots), spec.slot_size, Some(0)) {
            Ok(geometry) => geometry.body_bytes(geometry.claim_slots_max()).saturating_sub(header),
            Err(error) => return refuse(ErrorCode::Invalid, error.to_string()),
        };
        let stored = message_bytes_max(spec.durable, self.brokered.config.shards.segment_bytes);
        let max_message = spec.max_message.unwrap_or_else(|| {
            let most = limit.min(u32::try_from(stored).unwrap_or(u32::MAX));
            Geometry::MAX_MESSAGE_DEFAULT.min(most)
        });
        let slot_size = spec.slot_size.unwrap_or(Geometry::SLOT_SIZE_DEFAULT);
        if u64::from(max_message) > stored {
            let text = format!(
                "max-message={max_message}: the journal takes messages of at most {stored} bytes, key and headers included; \
                 ask for shorter ones, or start the daemon with a longer --segment-size (4 MiB is the end)"
            );
            return refuse(ErrorCode::Invalid, text);
        }
        if max_message > limit {
            let text = format!(
                "max-message={max_message}: at most a quarter of a ring less {header} bytes, {limit} bytes with \
                 slots={slots} and slot-size={slot_size}; ask for more or larger slots"
            );
            return refuse(ErrorCode::Invalid, text);
        }
        if spec.durable && self.brokered.config.data_dir.is_none() {
            let text = "durable queues need a data folder: start the daemon with --data-dir DIR";
            return refuse(ErrorCode::Invalid, text);
        }
        Ok(BrokeredQueueEntry {
            name,
            kind: spec.kind.unwrap_or(Kind::Mpmc),
            shard: if spec.durable { SHARD_DURABLE } else { SHARD_MEMORY },
            slots,
            slot_size,
            max_message,
            owner_uid: user.uid,
            group_gid: group_of(user, spec.group.as_deref())?,
            mode: checked_mode(spec.mode)?,
            creating: self.creator(number),
        })
    }

    /// The same request again, because the broker died before it could answer, is no mistake of the client.
    fn create_again(
        &mut self,
        number: u64,
        id: u64,
        entry: &BrokeredQueueEntry,
    ) -> Result<Option<Answer>, Failure> {
        let name = &entry.name;
        let Some(queue) = self.brokered.queues.get(&id) else {
            return exists(name);
        };
        if queue.entry != *entry || queue.entry.creating.is_none() {
            return exists(name);
        }
        if queue.state == State::Open {
            self.answer_with_info(number, id, Some(id))?;
            return Ok(None);
        }
        let waiting = self.brokered.waiting.values_mut().find_map(|waiting| match waiting {
            Waiting::Create { connection, queue } if *queue == id => Some(connection),
            _ => None,
        });
        match waiting {
            Some(connection) if self.connections.contains_key(connection) => {
                refuse(ErrorCode::Busy, format!("queue {name} is being created: try again later"))
            }
            Some(connection) => {
                *connection = number;
                Ok(None)
            }
            // Adopted: the shard has not said yet whether it has the queue.
            None => {
                refuse(ErrorCode::Busy, format!("queue {name} is being created: try again later"))
            }
        }
    }

    /// Delivery rules with everything that they refer to. Whether the dead-letter queue takes what this queue takes is for the
    /// shard to say.
    pub(super) fn checked_delivery(
        &self,
        user: &Credentials,
        entry: &BrokeredQueueEntry,
        own: Option<u64>,
        delivery: &DeliverySpec,
    ) -> Result<DeliverySpec, Failure> {
        if let Err(text) = check_times(delivery) {
            return refuse(ErrorCode::Invalid, text);
        }
        let Some(target) = delivery.dead_letter.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(delivery.clone());
        };
        let shown: String = target.chars().take(200).collect();
        let found = self.brokered_id(target);
        let Some((id, queue)) = found.and_then(|id| Some((id, self.brokered.queues.get(&id)?)))
        else {
            let text = format!("dead-letter queue {shown:?} is no brokered queue: create it first");
            return refuse(ErrorCode::NotFound, text);
        };
        if own == Some(id) || target == entry.name {
            let text = "a queue cannot be its own dead-letter queue: name another one";
            return refuse(ErrorCode::Invalid, text);
        }
        if self.session_queues.contains_key(&id) {
            let text = format!(
                "dead-letter queue {target} vanishes with its session: name one that stays"
            );
            return refuse(ErrorCode::Invalid, text);
        }
        if queue.state != State::Open {
            let text = format!("dead-letter queue {target} is being created or deleted");
            return refuse(ErrorCode::Busy, text);
        }
        if queue.entry.shard != entry.shard {
            let text = format!(
                "dead-letter queue {target} is {}durable and this queue is {}: name one of the same durability",
                if queue.is_durable() { "" } else { "not " },
                if queue.is_durable() { "not" } else { "durable" }
            );
            return refuse(ErrorCode::Invalid, text);
        }
        if !queue.rights(user).may_send() {
            return no_right(queue, "write");
        }
        Ok(delivery.clone())
    }

    pub(super) fn on_created(
        &mut self,
        connection: u64,
        id: u64,
        result: &ControlResult,
    ) -> Result<(), LinkLost> {
        if let Some(failure) = failure(result) {
            self.forget_brokered_queue(id)?;
            return self.answer(connection, Err(failure));
        }
        let Some(queue) = self.brokered.queues.get_mut(&id) else {
            return Ok(());
        };
        if queue.state == State::Creating {
            queue.state = State::Open;
        }
        // Its session may have ended meanwhile.
        self.session_ended |= self.session_queues.contains_key(&id);
        self.answer_with_info(connection, id, Some(id))
    }

    pub(in super::super) fn delete_brokered(
        &mut self,
        number: u64,
        user: &Credentials,
        id: u64,
    ) -> Result<Option<Answer>, Failure> {
        let shard = self.managed(user, id)?;
        self.check_shard(shard)?;
        let Some(queue) = self.brokered.queues.get_mut(&id) else {
            return Err(bug("queue without entry").into());
        };
        queue.state = State::Deleting;
        let request = self.brokered.request(Waiting::Delete { connection: number, queue: id });
        self.brokered.tell(shard, ToShard::Delete { request, queue: id });
        Ok(None)
    }

    /// Its session has ended. What is being created is deleted when it is there.
    pub(in super::super) fn delete_session_queue(&mut self, id: u64) {
        let Some(queue) = self.brokered.queues.get_mut(&id) else { return };
        let shard = queue.entry.shard;
        if queue.state != State::Open || !self.brokered.shards.contains_key(&shard) {
            return;
        }
        queue.state = State::Deleting;
        let request = self.brokered.request(Waiting::Delete { connection: NOBODY, queue: id });
        self.brokered.tell(shard, ToShard::Delete { request, queue: id });
    }

    pub(super) fn on_deleted(
        &mut self,
        connection: u64,
        id: u64,
        result: &ControlResult,
    ) -> Result<(), LinkLost> {
        let outcome = match failure(result) {
            Some(failure) => {
                if let Some(queue) = self.brokered.queues.get_mut(&id) {
                    queue.state = State::Open;
                }
                Err(failure)
            }
            None => {
                self.forget_brokered_queue(id)?;
                Ok(Some(Answer::of(Reply::Done)))
            }
        };
        self.answer(connection, outcome)
    }

    /// The shard does not have it (any more): its name is free, its handles are nobody's.
    pub(super) fn forget_brokered_queue(&mut self, id: u64) -> Result<(), LinkLost> {
        let Some(queue) = self.brokered.queues.remove(&id) else {
            return Ok(());
        };
        self.names.remove(&queue.entry.name);
        let mut deletes: Vec<_> = queue
            .handles
            .keys()
            .map(|handle| Key::BrokeredHandle { queue: id, handle: *handle }.bytes())
            .collect();
        deletes.push(Key::BrokeredQueue(id).bytes());
        deletes.extend(self.unbind(id));
        self.keeper.apply(deletes, Vec::new())?;
        for (index, handle) in queue.handles {
            self.forget_brokered_handle(id, index, &handle.entry)?;
        }
        Ok(())
    }
}

fn exists<T>(name: &str) -> Result<T, Failure> {
    let text = format!("queue {name} exists already: delete it first, or take another name");
    refuse(ErrorCode::Exists, text)
}
