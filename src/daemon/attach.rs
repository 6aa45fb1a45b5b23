//! Handles: giving them out and taking them back.

use std::os::fd::{AsFd, OwnedFd};

use ringmain_client::layout::HANDLE_MAX;
use ringmain_client::protocol::{Attached, ErrorCode, HandleKey, Kind, Memory, Reply, Role};
use ringmain_client::ring::Closed;
use ringmain_client::sys::memory::reopen_read_only;

use super::broker::{Broker, bug};
use super::connections::{Answer, Failure, refuse};
use super::entries::{HandleEntry, Key, encode};
use super::link::{Item, LinkLost};
use super::log::log;
use super::peer::Credentials;
use super::permissions::Rights;
use super::queues::{Handle, Queue, clone_descriptor, memory_failure, no_room};
use super::rings::{is_writable, regions};

/// Longest part of a client's text that is logged.
const LOGGED_CHARS: usize = 200;

fn handle_item(queue: u64, index: u8, handle: &Handle) -> Item {
    let entry = HandleEntry {
        role: handle.role,
        epoch: handle.epoch,
        session: handle.session,
        doorbell: handle.doorbell,
        dirty: false,
    };
    Item {
        key: Key::Handle { queue, handle: index }.bytes(),
        bytes: encode(&entry),
        descriptors: 0,
    }
}

impl Queue {
    /// The memory of a handle: writable only what its role writes.
    fn hand_out(&self, role: Role) -> Result<(Vec<Memory>, Vec<OwnedFd>), Failure> {
        let parts = regions(self.entry.kind, self.memory.geometry());
        let mut descriptors = Vec::with_capacity(parts.len());
        for ((memory, _), descriptor) in parts.iter().zip(&self.memory.descriptors) {
            descriptors.push(if is_writable(*memory, role) {
                clone_descriptor(descriptor.as_fd())?
            } else {
                reopen_read_only(descriptor.as_fd()).map_err(|error| memory_failure(&error))?
            });
        }
        Ok((parts.into_iter().map(|(memory, _)| memory).collect(), descriptors))
    }

    fn attached(&self, key: HandleKey, descriptors: Vec<Memory>) -> Attached {
        Attached {
            key,
            layout_version: self.entry.layout_version,
            kind: self.entry.kind,
            slots: self.entry.slots,
            slot_size: self.entry.slot_size,
            max_message: self.entry.max_message,
            wake_mode: self.entry.wake_mode,
            brokered: None,
            descriptors,
        }
    }
}

impl Broker {
    pub(super) fn attach(
        &mut self,
        number: u64,
        user: &Credentials,
        name: &str,
        role: Role,
    ) -> Result<Answer, Failure> {
        let (id, queue) = self.find(name)?;
        let kind = queue.entry.kind;
        if !queue.rights(user).may_attach(kind, role) {
            let text = format!(
                "queue {name}: this needs the right to {}: owner is user {}, group {}, mode {:o}",
                Rights::needed(kind, role),
                queue.entry.owner_uid,
                queue.entry.group_gid,
                queue.entry.mode
            );
            return refuse(ErrorCode::NotPermitted, text);
        }
        check_open(queue, name)?;
        self.look_at_holder(id, role)?;
        let Some(session) = self.sessions.get(&number) else {
            return Err(bug("session without entry").into());
        };
        self.check_handle_limit(session.uid)?;
        let index = self.free_index(id, role)?;
        // Before anybody else knows of the new handle, a broker that takes over included.
        if let Some(queue) = self.queues.get(&id)
            && queue.handles.values().any(|handle| handle.role == role)
        {
            queue.revoke_bias(role)?;
        }
        let attached = self.give_out(number, id, role, index);
        if let Some(queue) = self.queues.get(&id) {
            queue.settle_bias(role);
        }
        attached
    }

    fn give_out(&mut self, number: u64, id: u64, role: Role, index: u8) -> Result<Answer, Failure> {
        let (Some(queue), Some(session)) = (self.queues.get(&id), self.sessions.get(&number))
        else {
            return Err(bug("queue or session without entry").into());
        };
        let (memory, descriptors) = queue.hand_out(role)?;
        let epoch = self.counters.epoch(&mut self.keeper)?;
        let handle = Handle { role, epoch, session: number, doorbell: None, reported: false };
        let mut items = vec![handle_item(id, index, &handle)];
        let mut beside = Vec::new();
        if !session.stored {
            items.push(session.item(number));
            beside.push(session.pidfd.as_fd());
        }
        self.keeper.apply_with(Vec::new(), items, &beside)?.or_else(no_room)?;
        let key = HandleKey { queue: id, handle: index, epoch };
        let attached = queue.attached(key, memory);
        if let Some(session) = self.sessions.get_mut(&number) {
            session.stored = true;
            session.handles.insert((id, index));
        }
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.handles.insert(index, handle);
        }
        Ok(Answer { descriptors, ..Answer::of(Reply::Attached(Box::new(attached))) })
    }

    /// On an spsc queue, whether whoever has this role still lives: its death may not have been noticed yet.
    pub(super) fn look_at_holder(&mut self, id: u64, role: Role) -> Result<(), LinkLost> {
        let holder = self
            .queues
            .get(&id)
            .filter(|queue| queue.entry.kind == Kind::Spsc)
            .and_then(|queue| queue.handles.values().find(|handle| handle.role == role));
        match holder.map(|handle| handle.session) {
            Some(session) => self.look_at(session),
            None => Ok(()),
        }
    }

    /// The lowest index that nobody has; an index with an unfinished repair still belongs to somebody.
    fn free_index(&self, id: u64, role: Role) -> Result<u8, Failure> {
        let Some(queue) = self.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        let name = &queue.entry.name;
        if queue.entry.kind == Kind::Spsc
            && let Some(holder) = queue.handles.values().find(|handle| handle.role == role)
        {
            return refuse(ErrorCode::Busy, self.busy_text(name, holder));
        }
        let free = (1..=HANDLE_MAX).find(|index| !queue.handles.contains_key(index));
        free.map_or_else(
            || {
                refuse(
                    ErrorCode::Limit,
                    format!("queue {name} has {HANDLE_MAX} handles, the most possible"),
                )
            },
            Ok,
        )
    }

    fn busy_text(&self, name: &str, holder: &Handle) -> String {
        let what = match holder.role {
            Role::Produce => "producer",
            Role::Consume => "consumer",
        };
        let session = self.sessions.get(&holder.session);
        let pid = session.map_or(0, |session| session.pid);
        let why = if session.is_none_or(|session| session.connection.is_none()) {
            "; its connection is closed, but it is still running"
        } else {
            ""
        };
        format!(
            "queue {name} has one {what} at a time, and process {pid} is attached{why}: stop it first"
        )
    }

    /// Whether this is a handle of the session.
    pub(super) fn check_handle(&self, session: u64, key: HandleKey) -> Result<(), Failure> {
        let handle = self.queues.get(&key.queue).and_then(|queue| queue.handles.get(&key.handle));
        match handle {
            Some(handle) if handle.session == session && handle.epoch == key.epoch => Ok(()),
            _ => refuse(
                ErrorCode::NotFound,
                format!(
                    "handle {} on queue {} does not belong to this process",
                    key.handle, key.queue
                ),
            ),
        }
    }

    /// Changes a handle and stores it.
    pub(super) fn update_handle(
        &mut self,
        id: u64,
        index: u8,
        change: impl FnOnce(&mut Handle),
    ) -> Result<(), LinkLost> {
        let handle = self.queues.get_mut(&id).and_then(|queue| queue.handles.get_mut(&index));
        let Some(handle) = handle else { return Ok(()) };
        change(handle);
        let item = handle_item(id, index, handle);
        self.keeper.apply(Vec::new(), vec![item])
    }

    pub(super) fn detach(&mut self, session: u64, key: HandleKey) -> Result<Answer, Failure> {
        self.check_handle(session, key)?;
        self.give_back(key.queue, key.handle)?;
        Ok(Answer::of(Reply::Done))
    }

    /// Takes a handle back from a living process, which says by that that it does not use it any more: a client has unmapped
    /// the ring before. Slots that it still owns were forgotten with their guard or reservation, and are repaired as after
    /// a death.
    pub(super) fn give_back(&mut self, id: u64, index: u8) -> Result<(), LinkLost> {
        let Some(queue) = self.queues.get(&id) else {
            return Ok(());
        };
        let Some(handle) = queue.handles.get(&index) else {
            return Ok(());
        };
        let (role, session) = (handle.role, handle.session);
        if queue.memory.owned_by(index, role).slots == 0 {
            queue.memory.clear_handle(role, index);
        } else {
            // Before the message to the keeper: if this broker dies in between, the next one learns from the client that
            // the handle is not used, and finds nothing left to repair.
            self.repair(id, &[(index, role)]);
        }
        let key = Key::Handle { queue: id, handle: index };
        self.keeper.apply(vec![key.bytes()], Vec::new())?;
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.handles.remove(&index);
            queue.settle_bias(role);
        }
        if let Some(session) = self.sessions.get_mut(&session) {
            session.handles.remove(&(id, index));
        }
        self.forget_if_unneeded(session)
    }

    /// A member saw an invariant violated. Members of an mpmc ring trust each other, so its word closes the ring; on an spsc
    /// ring it is worth a line in the log, because one side must not be able to shut out the other.
    pub(super) fn report_fault(
        &mut self,
        session: u64,
        key: HandleKey,
        what: &str,
    ) -> Result<Answer, Failure> {
        self.check_handle(session, key)?;
        let Some(queue) = self.queues.get_mut(&key.queue) else {
            return Err(bug("queue without entry").into());
        };
        let text: String =
            what.chars().take(LOGGED_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if queue.entry.kind == Kind::Mpmc {
            self.close_for_fault(key.queue, &text);
            return Ok(Answer::of(Reply::Done));
        }
        let name = queue.entry.name.clone();
        if let Some(handle) = queue.handles.get_mut(&key.handle)
            && !std::mem::replace(&mut handle.reported, true)
        {
            let pid = self.sessions.get(&session).map_or(0, |session| session.pid);
            log!("queue {name}: process {pid} reports a fault of its peer: {text}");
        }
        Ok(Answer::of(Reply::Done))
    }
}

fn check_open(queue: &Queue, name: &str) -> Result<(), Failure> {
    match queue.memory.closed() {
        None => Ok(()),
        Some(Closed::Draining) => refuse(ErrorCode::Closed, "the daemon is stopping"),
        Some(Closed::Deleted) => {
            refuse(ErrorCode::Closed, format!("queue {name} is being deleted"))
        }
        Some(_) => refuse(
            ErrorCode::Closed,
            format!(
                "queue {name} is closed because one of its members violated an invariant: delete it and create it again"
            ),
        ),
    }
}
