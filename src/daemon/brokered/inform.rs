//! What is shown of brokered queues: the control thread's part, and the shards' as soon as they have answered.

use std::collections::BTreeMap;

use ringmain_client::protocol::{
    BrokeredInfo, ErrorCode, HandleInfo, JournalInfo, Overflow, Plane, QueueInfo, Reply, Role,
    Status,
};

use super::super::broker::{Broker, bug};
use super::super::connections::{Answer, Failure, refuse};
use super::super::link::LinkLost;
use super::super::peer::Credentials;
use super::super::process::is_stopped;
use super::{BrokeredHandle, BrokeredQueue, HandleCounters, QueueInfoForm, State, Waiting};
use crate::shard::control::ToShard;

/// An answer that waits for shards.
#[derive(Debug)]
pub(super) struct Informing {
    connection: u64,
    infos: Vec<QueueInfo>,
    form: QueueInfoForm,
    /// Shards that have not answered yet, each with the number of its request.
    missing: BTreeMap<u64, u32>,
    created: Option<u64>,
}

impl Broker {
    pub(in super::super) fn brokered_queue_info(
        &mut self,
        number: u64,
        user: &Credentials,
        id: u64,
    ) -> Result<Option<Answer>, Failure> {
        let Some(queue) = self.brokered.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        if !queue.rights(user).may_see() {
            let text = format!(
                "queue {} gives you no right: owner is user {}, mode {:o}",
                queue.entry.name, queue.entry.owner_uid, queue.entry.mode
            );
            return refuse(ErrorCode::NotPermitted, text);
        }
        let mut info = self.brokered_summary(id, queue);
        info.handles = queue
            .handles
            .iter()
            .filter(|(_, handle)| !handle.closing)
            .map(|(index, handle)| self.brokered_handle_info(*index, handle))
            .collect();
        self.inform(number, vec![info], QueueInfoForm::One, None)?;
        Ok(None)
    }

    /// The answer to whoever created or edited a queue.
    pub(super) fn answer_with_info(
        &mut self,
        connection: u64,
        id: u64,
        created: Option<u64>,
    ) -> Result<(), LinkLost> {
        let Some(queue) = self.brokered.queues.get(&id) else {
            let gone = Answer::error(ErrorCode::NotFound, "the queue was deleted meanwhile");
            return self.answer(connection, Ok(Some(gone)));
        };
        let info = self.brokered_summary(id, queue);
        self.inform(connection, vec![info], QueueInfoForm::One, created)
    }

    /// Answers with these queues as soon as the shards have said what is in those that are theirs.
    pub(in super::super) fn inform(
        &mut self,
        connection: u64,
        infos: Vec<QueueInfo>,
        form: QueueInfoForm,
        created: Option<u64>,
    ) -> Result<(), LinkLost> {
        let mut wanted: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for info in &infos {
            if let Some(queue) = self.brokered.queues.get(&info.id) {
                wanted.entry(queue.entry.shard).or_default().push(info.id);
            }
        }
        wanted.retain(|shard, _| self.check_shard(*shard).is_ok());
        let handles = infos.iter().any(|info| !info.handles.is_empty());
        let mut informing =
            Informing { connection, infos, form, missing: BTreeMap::new(), created };
        let first = self.brokered.next_request;
        self.brokered.next_request += wanted.len() as u64;
        for (request, (shard, queues)) in (first..).zip(wanted) {
            informing.missing.insert(request, shard);
            self.brokered.tell(shard, ToShard::Inform { request, queues, handles });
        }
        self.go_on_informing(informing)
    }

    /// Kept under the number of the first request that is open.
    fn go_on_informing(&mut self, informing: Informing) -> Result<(), LinkLost> {
        match informing.missing.keys().next().copied() {
            Some(request) => {
                self.brokered.waiting.insert(request, Waiting::Inform(Box::new(informing)));
                Ok(())
            }
            None => {
                let mut infos = informing.infos;
                let reply = match (informing.form, infos.len()) {
                    (QueueInfoForm::One, 1) => Reply::Queue(Box::new(infos.remove(0))),
                    _ => Reply::Queues(infos),
                };
                let answer = Answer { created: informing.created, ..Answer::of(reply) };
                self.answer(informing.connection, Ok(Some(answer)))
            }
        }
    }

    /// What is asked for under this request is shown without what this shard knows.
    pub(super) fn inform_without(&mut self, request: u64, shard: u32) -> Result<(), LinkLost> {
        match self.brokered.waiting.remove(&request) {
            Some(Waiting::Inform(mut informing)) => {
                informing.missing.retain(|_, of| *of != shard);
                for info in &mut informing.infos {
                    let queue = self.brokered.queues.get(&info.id);
                    if queue.is_some_and(|queue| queue.entry.shard == shard) {
                        "fault".clone_into(&mut info.state);
                    }
                }
                self.go_on_informing(*informing)
            }
            Some(other) => {
                self.brokered.waiting.insert(request, other);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn on_information(
        &mut self,
        request: u64,
        queues: Vec<(u64, BrokeredInfo)>,
        handles: &[HandleCounters],
    ) -> Result<(), LinkLost> {
        let key = self.brokered.waiting.iter().find_map(|(key, waiting)| match waiting {
            Waiting::Inform(informing) if informing.missing.contains_key(&request) => Some(*key),
            _ => None,
        });
        let Some(Waiting::Inform(mut informing)) =
            key.and_then(|key| self.brokered.waiting.remove(&key))
        else {
            return Ok(());
        };
        informing.missing.remove(&request);
        let mut queues: BTreeMap<u64, BrokeredInfo> = queues.into_iter().collect();
        for info in &mut informing.infos {
            if let Some(brokered) = queues.remove(&info.id) {
                info.tail = brokered.next_sequence;
                info.head = brokered.next_sequence.saturating_sub(brokered.messages);
                info.returned = brokered.redelivered;
                info.overflow = brokered.overflow;
                info.dropped = brokered.dropped;
                if brokered.stalled_groups > 0 {
                    "fault".clone_into(&mut info.state);
                }
                info.brokered = Some(brokered);
            }
            for counters in handles.iter().filter(|counters| counters.key.queue == info.id) {
                let shown =
                    info.handles.iter_mut().find(|shown| shown.handle == counters.key.handle);
                if let Some(shown) = shown {
                    shown.messages = counters.messages;
                    shown.bytes = counters.bytes;
                    shown.owned_slots = u32::try_from(counters.unfinished).unwrap_or(u32::MAX);
                }
            }
        }
        self.go_on_informing(*informing)
    }

    /// Answers with the daemon's status and the figures of the journals that are open.
    pub(in super::super) fn answer_status(&mut self, connection: u64) -> Result<(), Failure> {
        let open = self.brokered.shards.iter().filter(|(_, shard)| shard.is_open());
        let missing = open.map(|(number, _)| *number).rev().collect();
        self.go_on_with_status(connection, Box::new(self.status()), missing)?;
        Ok(())
    }

    /// The shards are asked one after the other.
    fn go_on_with_status(
        &mut self,
        connection: u64,
        status: Box<Status>,
        mut missing: Vec<u32>,
    ) -> Result<(), LinkLost> {
        let Some(shard) = missing.pop() else {
            return self.answer(connection, Ok(Some(Answer::of(Reply::Status(status)))));
        };
        let request = self.brokered.request(Waiting::Status { connection, status, missing });
        self.brokered.tell(shard, ToShard::Figures { request });
        Ok(())
    }

    pub(super) fn on_figures(
        &mut self,
        request: u64,
        journal: JournalInfo,
    ) -> Result<(), LinkLost> {
        match self.brokered.waiting.remove(&request) {
            Some(Waiting::Status { connection, mut status, missing }) => {
                status.journals.push(journal);
                self.go_on_with_status(connection, status, missing)
            }
            _ => Ok(()),
        }
    }

    /// Without the handles and without what its shard knows.
    pub(in super::super) fn brokered_summary(&self, id: u64, queue: &BrokeredQueue) -> QueueInfo {
        let entry = &queue.entry;
        let count = |role| u32::try_from(queue.count(role)).unwrap_or(u32::MAX);
        QueueInfo {
            id,
            name: entry.name.clone(),
            kind: entry.kind,
            plane: Plane::Brokered,
            durable: queue.is_durable(),
            slots: entry.slots,
            slot_size: entry.slot_size,
            max_message: entry.max_message,
            memory_bytes: queue.memory_bytes(),
            owner_uid: entry.owner_uid,
            group_gid: entry.group_gid,
            mode: entry.mode,
            wake_mode: self.wake_mode,
            state: match queue.state {
                State::Deleting => "deleted",
                _ if !self.brokered.is_sound(entry.shard) => "fault",
                _ => "open",
            }
            .to_owned(),
            tail: 0,
            head: 0,
            used_slots: 0,
            producers: count(Role::Produce),
            consumers: count(Role::Consume),
            repairs: 0,
            tombstones: 0,
            returned: 0,
            brokered: None,
            handles: Vec::new(),
            session: self.session_queues.contains_key(&id),
            overflow: Overflow::default(),
            dropped: 0,
        }
    }

    fn brokered_handle_info(&self, index: u8, handle: &BrokeredHandle) -> HandleInfo {
        let session = self.sessions.get(&handle.entry.session);
        let state = match session {
            _ if handle.faulty => "fault",
            Some(session) if session.pid != 0 && is_stopped(session.pid) => "stopped",
            Some(session) if session.connection.is_some() => "attached",
            _ => "detached",
        };
        HandleInfo {
            handle: index,
            role: handle.entry.size.role,
            pid: session.map_or(0, |session| session.pid),
            uid: session.map_or(0, |session| session.uid),
            state: state.to_owned(),
            messages: 0,
            bytes: 0,
            owned_slots: 0,
            owns_position: None,
            waiting_ns: None,
            delayed_by: None,
            delays_others_ns: None,
        }
    }
}
