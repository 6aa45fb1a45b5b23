//! What is shown of queues and of the daemon. Everything from shared memory is a racy copy, for people.

use std::ops::Bound::{Excluded, Unbounded};

use ringmain_client::protocol::{
    ErrorCode, HandleInfo, Kind, PROTOCOL_VERSION, Plane, QueueInfo, Reply, Role, Status,
};
use ringmain_client::ring::Closed;
use ringmain_client::sys::clock::monotonic_ns;

use super::broker::Broker;
use super::brokered::{BrokeredQueue, QueueInfoForm};
use super::connections::{Answer, Failure, refuse};
use super::link::LinkLost;
use super::peer::Credentials;
use super::process::is_stopped;
use super::queues::{Handle, Queue};

/// Words of a ring that one request looks at to tell who waits for whom.
const WORDS_LOOKED_AT: u64 = 1 << 18;

/// Queues of one page: their summaries fit a frame, whatever their names are.
const PAGE_QUEUES: usize = 32;

impl Broker {
    /// Without the handles.
    pub(super) fn queue_summary(&self, id: u64, queue: &Queue) -> QueueInfo {
        let entry = &queue.entry;
        let (head, tail) = queue.memory.positions();
        let [repairs, tombstones, returned] = queue.memory.counters();
        let count = |role: Role| {
            let handles = queue.handles.values().filter(|handle| handle.role == role);
            u32::try_from(handles.count()).unwrap_or(u32::MAX)
        };
        QueueInfo {
            id,
            name: entry.name.clone(),
            kind: entry.kind,
            plane: Plane::Direct,
            brokered: None,
            durable: false,
            slots: entry.slots,
            slot_size: entry.slot_size,
            max_message: entry.max_message,
            memory_bytes: queue.memory_bytes(),
            owner_uid: entry.owner_uid,
            group_gid: entry.group_gid,
            mode: entry.mode,
            wake_mode: entry.wake_mode,
            state: match queue.memory.closed() {
                None => "open",
                Some(Closed::Draining) => "draining",
                Some(Closed::Deleted) => "deleted",
                Some(_) => "fault",
            }
            .to_owned(),
            tail,
            head,
            used_slots: tail - head,
            producers: count(Role::Produce),
            consumers: count(Role::Consume),
            repairs,
            tombstones,
            returned,
            handles: Vec::new(),
            session: self.session_queues.contains_key(&id),
            overflow: queue.memory.overflow(),
            dropped: queue.memory.dropped(),
        }
    }

    pub(super) fn queue_info(&self, user: &Credentials, name: &str) -> Result<Answer, Failure> {
        let (id, queue) = self.find(name)?;
        if !queue.rights(user).may_see() {
            let text = format!(
                "queue {name} gives you no right: owner is user {}, mode {:o}",
                queue.entry.owner_uid, queue.entry.mode
            );
            return refuse(ErrorCode::NotPermitted, text);
        }
        let mut info = self.queue_summary(id, queue);
        info.handles = self.handle_infos(queue);
        Ok(Answer::of(Reply::Queue(Box::new(info))))
    }

    fn handle_infos(&self, queue: &Queue) -> Vec<HandleInfo> {
        let now_ns = monotonic_ns();
        let mut budget = WORDS_LOOKED_AT;
        let stopped = self.stopped_consumer(queue);
        let owned = queue.memory.owned_by_all();
        let mut infos: Vec<HandleInfo> = Vec::with_capacity(queue.handles.len());
        for (index, handle) in &queue.handles {
            let line = queue.memory.line(handle.role, *index);
            let owned = match queue.entry.kind {
                Kind::Mpmc => owned[usize::from(*index)],
                Kind::Spsc => queue.memory.owned_by(*index, handle.role),
            };
            let waiting_ns =
                (line.waiting_since_ns != 0).then(|| now_ns.saturating_sub(line.waiting_since_ns));
            let delayed_by = waiting_ns
                .and_then(|_| {
                    let owner = self.delayer(queue, handle, line.waiting_at, &mut budget);
                    owner.or_else(|| stopped.filter(|_| handle.role == Role::Produce))
                })
                .filter(|other| other != index && queue.handles.contains_key(other));
            let session = self.sessions.get(&handle.session);
            infos.push(HandleInfo {
                handle: *index,
                role: handle.role,
                pid: session.map_or(0, |session| session.pid),
                uid: session.map_or(0, |session| session.uid),
                state: self.handle_state(handle).to_owned(),
                messages: line.messages,
                bytes: line.payload_bytes,
                owned_slots: owned.slots,
                owns_position: owned.first_position,
                waiting_ns,
                delayed_by,
                delays_others_ns: None,
            });
        }
        let delays: Vec<(u8, u64)> =
            infos.iter().filter_map(|info| Some((info.delayed_by?, info.waiting_ns?))).collect();
        for info in &mut infos {
            info.delays_others_ns = delays
                .iter()
                .filter(|(delayer, _)| *delayer == info.handle)
                .map(|(_, waiting_ns)| *waiting_ns)
                .max();
        }
        infos
    }

    /// If all consumers are stopped: the first of them. Nobody need own a slot of a ring that they let run full.
    fn stopped_consumer(&self, queue: &Queue) -> Option<u8> {
        let (head, tail) = queue.memory.positions();
        let mut consumers = queue.handles.iter().filter(|(_, handle)| handle.role == Role::Consume);
        let first = consumers.clone().next().map(|(index, _)| *index);
        let all =
            tail != head && consumers.all(|(_, handle)| self.handle_state(handle) == "stopped");
        first.filter(|_| all)
    }

    /// Who owns the slot that somebody waits for.
    fn delayer(
        &self,
        queue: &Queue,
        waiting: &Handle,
        position: u64,
        budget: &mut u64,
    ) -> Option<u8> {
        match queue.entry.kind {
            Kind::Mpmc => queue.memory.delayer(waiting.role, position, budget),
            // A producer waits for the message that the consumer holds; a consumer waits for no slot that anybody owns.
            Kind::Spsc if waiting.role == Role::Produce => {
                let (index, consumer) =
                    queue.handles.iter().find(|(_, handle)| handle.role == Role::Consume)?;
                let holds = queue.memory.owned_by(*index, consumer.role).slots > 0;
                holds.then_some(*index)
            }
            Kind::Spsc => None,
        }
    }

    fn handle_state(&self, handle: &Handle) -> &'static str {
        match self.sessions.get(&handle.session) {
            Some(session) if session.pid != 0 && is_stopped(session.pid) => "stopped",
            Some(session) if session.connection.is_some() => "attached",
            _ => "detached",
        }
    }

    /// A page of the queues that the user may see.
    pub(super) fn list_queues(
        &mut self,
        number: u64,
        user: &Credentials,
        after: &str,
    ) -> Result<(), LinkLost> {
        let page = self
            .names
            .range::<str, _>((Excluded(after), Unbounded))
            .filter_map(|(_, id)| match (self.queues.get(id), self.brokered.queues.get(id)) {
                (Some(queue), _) => {
                    queue.rights(user).may_see().then(|| self.queue_summary(*id, queue))
                }
                (None, Some(queue)) => {
                    queue.rights(user).may_see().then(|| self.brokered_summary(*id, queue))
                }
                (None, None) => None,
            })
            .take(PAGE_QUEUES)
            .collect();
        self.inform(number, page, QueueInfoForm::Page, None)
    }

    /// Without what shards know.
    pub(super) fn status(&self) -> Status {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let uptime_ns = monotonic_ns().saturating_sub(self.config.keeper_started_ns);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            uptime_s: uptime_ns / 1_000_000_000,
            keeper_pid: self.config.keeper_pid,
            broker_pid: std::process::id(),
            broker_starts: self.config.broker_starts,
            socket: self.config.socket.clone(),
            queues: count(self.queues.len() + self.brokered.queues.len()),
            clients: count(self.sessions.len()),
            handles: count(
                self.queues.values().map(|queue| queue.handles.len()).sum::<usize>()
                    + self.brokered.queues.values().map(|queue| queue.handles.len()).sum::<usize>(),
            ),
            memory_bytes: self.queues.values().map(Queue::memory_bytes).sum::<u64>()
                + self.brokered.queues.values().map(BrokeredQueue::memory_bytes).sum::<u64>(),
            troubles: self.brokered.troubles(),
            journals: Vec::new(),
        }
    }
}
