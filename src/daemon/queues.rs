//! Queues: creating, deleting, purging.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::Group;
use ringmain_client::layout::{Geometry, LAYOUT_VERSION, control};
use ringmain_client::protocol::{ErrorCode, Kind, Overflow, QueueSpec, Reply, Role};
use ringmain_client::ring::Closed;
use ringmain_client::sys::memory::MemoryError;

use super::background;
use super::broker::{Allocated, Broker, bug};
use super::connections::{Answer, Failure, refuse};
use super::direct_rules;
use super::entries::{Key, QueueEntry, encode};
use super::host_memory;
use super::link::{Item, LinkLost};
use super::log::log;
use super::peer::Credentials;
use super::permissions::Rights;
use super::rings::{QueueMemory, memory_bytes};

/// Longest name of a queue in bytes.
const NAME_BYTES_MAX: usize = 200;
/// Memory of this many bytes is allocated within the time that a repair may be held up, more of it in the background.
pub(super) const ALLOCATED_AT_ONCE: u64 = 8 << 20;
/// Owner only.
const MODE_DEFAULT: u32 = 0o700;

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) entry: QueueEntry,
    pub(super) memory: QueueMemory,
    /// By index.
    pub(super) handles: BTreeMap<u8, Handle>,
}

/// A queue whose memory is being allocated.
#[derive(Debug)]
pub(super) struct Pending {
    id: u64,
    /// Who waits for the answer.
    connection: u64,
    pub(super) entry: QueueEntry,
    overflow: Overflow,
    pub(super) bytes: u64,
    /// It is deleted with this session.
    session: Option<u64>,
}

/// One handle.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) role: Role,
    pub(super) epoch: u32,
    pub(super) session: u64,
    pub(super) doorbell: Option<u32>,
    /// Whether a fault that it reported was logged.
    pub(super) reported: bool,
}

impl Queue {
    pub(super) fn memory_bytes(&self) -> u64 {
        memory_bytes(self.entry.kind, self.memory.geometry())
    }

    pub(super) fn rights(&self, user: &Credentials) -> Rights {
        Rights::of(user, self.entry.owner_uid, self.entry.group_gid, self.entry.mode)
    }

    pub(super) fn item(&self, id: u64) -> Item {
        Item { key: Key::Queue(id).bytes(), bytes: encode(&self.entry), descriptors: 0 }
    }
}

/// A copy of a descriptor, to be sent.
pub(super) fn clone_descriptor(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    descriptor.try_clone_to_owned().map_err(|error| {
        let text = format!("the daemon cannot duplicate a descriptor: {error}");
        no_descriptor(error.raw_os_error()).unwrap_or(Failure::Refused(ErrorCode::Io, text))
    })
}

/// The daemon or the host has no descriptor left, if that is what this errno means.
fn no_descriptor(errno: Option<i32>) -> Option<Failure> {
    let text = match errno? {
        libc::EMFILE => {
            "the daemon has as many files open as it may: start it with a higher limit (ulimit -n), or delete queues"
        }
        libc::ENFILE => "the host has no descriptor left: raise fs.file-max",
        _ => return None,
    };
    Some(Failure::Refused(ErrorCode::Limit, text.to_owned()))
}

/// The keeper had no room for descriptors.
pub(super) fn no_room<T>(reason: String) -> Result<T, Failure> {
    refuse(ErrorCode::Limit, format!("the daemon cannot hold more: {reason}"))
}

/// Why memory was not to be had, as an answer.
pub(super) fn memory_failure(error: &MemoryError) -> Failure {
    if let MemoryError::Io { source, .. } = error
        && let Some(failure) = no_descriptor(source.raw_os_error())
    {
        return failure;
    }
    match error {
        MemoryError::NoRoom { .. } => Failure::Refused(
            ErrorCode::Limit,
            format!(
                "no memory for the queue ({error}): ask for fewer or smaller slots, or free memory"
            ),
        ),
        _ => Failure::Refused(ErrorCode::Io, format!("memory of the queue: {error}")),
    }
}

pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let valid = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(good)
        && !name.starts_with(['.', '-']);
    if valid {
        return Ok(());
    }
    let shown: String = name.chars().take(40).collect();
    refuse(
        ErrorCode::Invalid,
        format!(
            "queue name {shown:?}: 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ - are allowed, the first no dot \
             or dash"
        ),
    )
}

/// The group of a new queue: as with chgrp, one of the creator's own unless it is root.
pub(super) fn group_of(user: &Credentials, wanted: Option<&str>) -> Result<u32, Failure> {
    let Some(wanted) = wanted else {
        return Ok(user.gid);
    };
    let shown: String = wanted.chars().take(40).collect();
    let gid = match wanted.parse::<u32>() {
        Ok(gid) => Some(gid),
        Err(_) if wanted.len() <= 256 && !wanted.contains('\0') => {
            Group::from_name(wanted).ok().flatten().map(|group| group.gid.as_raw())
        }
        Err(_) => None,
    };
    match gid {
        None => refuse(
            ErrorCode::Invalid,
            format!("group {shown:?} does not exist: name one of your groups"),
        ),
        Some(gid) if user.uid == 0 || user.in_group(gid) => Ok(gid),
        Some(_) => refuse(
            ErrorCode::NotPermitted,
            format!("you are no member of group {shown:?}: name one of your groups"),
        ),
    }
}

/// Permission bits.
pub(super) fn checked_mode(mode: Option<u32>) -> Result<u32, Failure> {
    let mode = mode.unwrap_or(MODE_DEFAULT);
    if mode & !0o777 != 0 {
        return refuse(
            ErrorCode::Invalid,
            format!("mode {mode:o}: only the bits 0777 are allowed"),
        );
    }
    Ok(mode)
}

impl Broker {
    /// The queue of this name, if the user may see it.
    pub(super) fn find(&self, name: &str) -> Result<(u64, &Queue), Failure> {
        let found = self.names.get(name).and_then(|id| Some((*id, self.queues.get(id)?)));
        found.map_or_else(
            || {
                let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
                refuse(
                    ErrorCode::NotFound,
                    format!("queue {shown:?} does not exist: create it first"),
                )
            },
            Ok,
        )
    }

    /// The same, for those who may manage it.
    pub(super) fn find_managed(
        &self,
        user: &Credentials,
        name: &str,
        what: &str,
    ) -> Result<u64, Failure> {
        let (id, queue) = self.find(name)?;
        if queue.rights(user).may_manage() {
            return Ok(id);
        }
        let text = format!(
            "{what} queue {name} needs the right to execute (manage): owner is user {}, mode {:o}",
            queue.entry.owner_uid, queue.entry.mode
        );
        refuse(ErrorCode::NotPermitted, text)
    }

    /// `None`: its memory is being allocated, the answer comes later.
    pub(super) fn create_queue(
        &mut self,
        number: u64,
        user: &Credentials,
        name: String,
        spec: &QueueSpec,
    ) -> Result<Option<Answer>, Failure> {
        let session = self.bound_session(number, spec)?;
        let (entry, geometry, overflow) = self.new_entry(number, user, name, spec)?;
        if let Some(id) = self.names.get(&entry.name) {
            return self.exists_already(*id, &entry, overflow).map(Some);
        }
        if let Some(pending) = self.allocating.get_mut(&entry.name) {
            // The same client again, over a new connection: it gets the answer.
            if pending.entry == entry
                && pending.overflow == overflow
                && !self.connections.contains_key(&pending.connection)
            {
                pending.connection = number;
                return Ok(None);
            }
            let text = format!("queue {} is being created: try again later", entry.name);
            return refuse(ErrorCode::Busy, text);
        }
        let bytes = memory_bytes(entry.kind, &geometry);
        self.check_queue_limits(user.uid, bytes)?;
        host_memory::check(bytes).or_else(|reason| refuse(ErrorCode::Limit, reason))?;
        let id = self.counters.queue(&mut self.keeper)?;
        let (name, kind) = (entry.name.clone(), entry.kind);
        let allocate = move || QueueMemory::create(&name, id, kind, geometry, overflow);
        if bytes <= ALLOCATED_AT_ONCE {
            return self.finish_create(id, entry, allocate(), session).map(Some);
        }
        let name = entry.name.clone();
        let pending = Pending { id, connection: number, entry, overflow, bytes, session };
        self.allocating.insert(name.clone(), pending);
        self.allocated.compute("allocate", move || Allocated::Queue { name, memory: allocate() });
        Ok(None)
    }

    /// Memory that was allocated in the background.
    pub(super) fn on_allocated(&mut self) -> Result<(), LinkLost> {
        for allocated in self.allocated.take() {
            match allocated {
                Allocated::Queue { name, memory } => self.on_queue_allocated(&name, memory)?,
                Allocated::Pair { ticket, pair } => self.on_pair_allocated(ticket, pair)?,
            }
        }
        Ok(())
    }

    fn on_queue_allocated(
        &mut self,
        name: &str,
        memory: Result<QueueMemory, MemoryError>,
    ) -> Result<(), LinkLost> {
        let Some(pending) = self.allocating.remove(name) else {
            return Ok(());
        };
        if !self.connections.contains_key(&pending.connection) {
            // Nobody waits for it: as if it had never been asked for.
            background::run("free", move || drop(memory));
            return Ok(());
        }
        let Pending { id, connection, entry, session, .. } = pending;
        let result = self.finish_create(id, entry, memory, session);
        self.answer(connection, result.map(Some))
    }

    fn finish_create(
        &mut self,
        id: u64,
        entry: QueueEntry,
        memory: Result<QueueMemory, MemoryError>,
        session: Option<u64>,
    ) -> Result<Answer, Failure> {
        let memory = memory.map_err(|error| memory_failure(&error))?;
        let (bound, beside) = self.binding(id, session)?;
        let queue = Queue { entry, memory, handles: BTreeMap::new() };
        let mut descriptors: Vec<_> = queue.memory.descriptors.iter().map(AsFd::as_fd).collect();
        let count = u8::try_from(descriptors.len()).unwrap_or(u8::MAX);
        let item = Item { descriptors: count, ..queue.item(id) };
        descriptors.extend(beside.iter().map(AsFd::as_fd));
        let items = [vec![item], bound].concat();
        self.keeper.apply_with(Vec::new(), items, &descriptors)?.or_else(no_room)?;
        self.bind(id, session);
        self.names.insert(queue.entry.name.clone(), id);
        let info = self.queue_summary(id, &queue);
        self.queues.insert(id, queue);
        Ok(Answer { created: Some(id), ..Answer::of(Reply::Queue(Box::new(info))) })
    }

    /// Checks what a client asks for and fills in the defaults.
    fn new_entry(
        &self,
        number: u64,
        user: &Credentials,
        name: String,
        spec: &QueueSpec,
    ) -> Result<(QueueEntry, Geometry, Overflow), Failure> {
        check_name(&name)?;
        let kind = spec.kind.unwrap_or(Kind::Mpmc);
        let geometry = match Geometry::new(spec.slots, spec.slot_size, spec.max_message) {
            Ok(geometry) => geometry,
            Err(error) => return refuse(ErrorCode::Invalid, error.to_string()),
        };
        let overflow = direct_rules::check(kind, &spec.delivery)
            .or_else(|text| refuse(ErrorCode::Invalid, text))?;
        let mode = checked_mode(spec.mode)?;
        let group_gid = group_of(user, spec.group.as_deref())?;
        let creator = self.creator(number);
        let slots = u32::try_from(geometry.slots()).unwrap_or(u32::MAX);
        let entry = QueueEntry {
            name,
            kind,
            layout_version: LAYOUT_VERSION,
            slots,
            slot_size: u32::try_from(geometry.slot_size()).unwrap_or(u32::MAX),
            max_message: u32::try_from(geometry.max_message()).unwrap_or(u32::MAX),
            wake_mode: self.wake_mode,
            owner_uid: user.uid,
            group_gid,
            mode,
            creating: creator,
            purging: false,
        };
        Ok((entry, geometry, overflow.unwrap_or_default()))
    }

    /// Session id and pid of whoever creates a queue over this connection.
    pub(super) fn creator(&self, number: u64) -> Option<(u64, u32)> {
        let session = self.session_of(number).ok()?;
        self.sessions.get(&session).map(|session| (session.id, session.pid))
    }

    /// The same request again, because the broker died before it could answer, is no mistake of the client.
    fn exists_already(
        &self,
        id: u64,
        entry: &QueueEntry,
        overflow: Overflow,
    ) -> Result<Answer, Failure> {
        let Some(queue) = self.queues.get(&id) else {
            let text = format!(
                "queue {} exists already: delete it first, or take another name",
                entry.name
            );
            return refuse(ErrorCode::Exists, text);
        };
        let again = queue.entry.creating.is_some()
            && queue.memory.overflow() == overflow
            && QueueEntry { wake_mode: queue.entry.wake_mode, ..entry.clone() } == queue.entry;
        if again {
            let info = self.queue_summary(id, queue);
            return Ok(Answer { created: Some(id), ..Answer::of(Reply::Queue(Box::new(info))) });
        }
        let text =
            format!("queue {} exists already: delete it first, or take another name", entry.name);
        refuse(ErrorCode::Exists, text)
    }

    /// The creator has its answer: the same request again is a mistake from now on.
    pub(super) fn creator_knows(&mut self, id: u64) -> Result<(), LinkLost> {
        if let Some(queue) = self.brokered.queues.get_mut(&id) {
            queue.entry.creating = None;
            let item = queue.item(id);
            return self.keeper.apply(Vec::new(), vec![item]);
        }
        let Some(queue) = self.queues.get_mut(&id) else {
            return Ok(());
        };
        queue.entry.creating = None;
        let item = queue.item(id);
        self.keeper.apply(Vec::new(), vec![item])
    }

    pub(super) fn delete_queue(
        &mut self,
        user: &Credentials,
        name: &str,
    ) -> Result<Answer, Failure> {
        let id = self.find_managed(user, name, "deleting")?;
        self.remove_queue(id)?;
        Ok(Answer::of(Reply::Done))
    }

    /// Everybody attached is told; their mappings stay valid until they let go.
    pub(super) fn remove_queue(&mut self, id: u64) -> Result<(), LinkLost> {
        let Some(queue) = self.queues.get(&id) else {
            return Ok(());
        };
        // First the mark in shared memory: if this broker dies now, the next one goes on from there.
        queue.memory.close(control::CLOSED_DELETED);
        self.wake(queue);
        let mut deletes: Vec<_> = queue
            .handles
            .keys()
            .map(|handle| Key::Handle { queue: id, handle: *handle }.bytes())
            .collect();
        deletes.push(Key::Queue(id).bytes());
        deletes.extend(self.unbind(id));
        self.keeper.apply(deletes, Vec::new())?;
        let Some(queue) = self.queues.remove(&id) else {
            return Ok(());
        };
        self.names.remove(&queue.entry.name);
        for (index, handle) in queue.handles {
            if let Some(session) = self.sessions.get_mut(&handle.session) {
                session.handles.remove(&(id, index));
            }
            self.forget_if_unneeded(handle.session)?;
        }
        // Whoever closes the last descriptor frees the memory; it should not be this thread.
        let memory = queue.memory;
        background::run("free", move || drop(memory));
        Ok(())
    }

    pub(super) fn purge_queue(
        &mut self,
        user: &Credentials,
        name: &str,
    ) -> Result<Answer, Failure> {
        let id = self.find_managed(user, name, "purging")?;
        self.look_at_holder(id, Role::Consume)?;
        let Some(queue) = self.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        let consumer = queue.handles.values().find(|handle| handle.role == Role::Consume);
        if let (Kind::Spsc, Some(handle)) = (queue.entry.kind, consumer) {
            let text = format!(
                "queue {name} has one consumer at a time, and {} is attached: stop it first",
                self.sessions.get(&handle.session).map_or(0, |session| session.pid)
            );
            return refuse(ErrorCode::Busy, text);
        }
        self.stop_biased_takes(id)?;
        let Some(queue) = self.queues.get_mut(&id) else {
            return Err(bug("queue without entry").into());
        };
        // Stored first: if this broker dies over it, the next one repairs what the daemon's own handle holds.
        queue.entry.purging = true;
        let begun = queue.item(id);
        self.keeper.apply(Vec::new(), vec![begun])?;
        let result = queue.memory.purge();
        queue.settle_bias(Role::Consume);
        queue.entry.purging = false;
        let ended = queue.item(id);
        match result {
            Ok(messages) => {
                if let Some(queue) = self.queues.get(&id) {
                    self.wake(queue);
                }
                self.keeper.apply(Vec::new(), vec![ended])?;
                Ok(Answer::of(Reply::Purged { messages }))
            }
            Err(fault) => {
                self.close_for_fault(id, &fault.to_string());
                self.keeper.apply(Vec::new(), vec![ended])?;
                refuse(
                    ErrorCode::Closed,
                    format!("queue {name} was closed: {fault}; delete it and create it again"),
                )
            }
        }
    }

    /// Nobody can use the ring any more; its members are told.
    pub(super) fn close_for_fault(&self, id: u64, what: &str) {
        let Some(queue) = self.queues.get(&id) else {
            return;
        };
        if queue.memory.closed().is_some_and(|closed| closed != Closed::Draining) {
            return;
        }
        log!("queue {} closed: {what}; delete it and create it again", queue.entry.name);
        queue.memory.close(control::CLOSED_FAULT);
        self.wake(queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "A.b_c-9", "0", "_x", &"n".repeat(200)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "ä", "a\n", "a\0", &"n".repeat(201)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn groups_are_ones_own_unless_root() {
        let user = Credentials { uid: 5, gid: 6, groups: vec![7] };
        let root = Credentials { uid: 0, gid: 0, groups: vec![] };
        assert_eq!(group_of(&user, None).ok(), Some(6));
        assert_eq!(group_of(&user, Some("7")).ok(), Some(7));
        assert!(matches!(
            group_of(&user, Some("8")),
            Err(Failure::Refused(ErrorCode::NotPermitted, _))
        ));
        assert_eq!(group_of(&root, Some("8")).ok(), Some(8));
        assert_eq!(group_of(&root, Some("root")).ok(), Some(0));
        for bad in ["", "no-such-group-here", "-1", "a\0b"] {
            assert!(matches!(
                group_of(&root, Some(bad)),
                Err(Failure::Refused(ErrorCode::Invalid, _))
            ));
        }
    }
}
