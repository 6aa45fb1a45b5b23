//! Giving out handles on brokered queues.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringmain_client::layout::pair::{lease, link};
use ringmain_client::layout::{HANDLE_MAX, LAYOUT_VERSION};
use ringmain_client::pair::PairGeometry;
use ringmain_client::protocol::{
    AttachOptions, Attached, BrokeredHandle as Terms, ErrorCode, HandleKey, Kind, Memory,
    NamedHandle, Reply, Role,
};
use ringmain_client::sys::eventfd::EventFd;
use ringmain_client::sys::memory::{MemoryError, reopen_read_only};

use super::super::background;
use super::super::broker::{Allocated, Broker, bug};
use super::super::connections::{Answer, Failure, refuse};
use super::super::entries::{BrokeredHandleEntry, Key, LinkEntry, encode};
use super::super::host_memory;
use super::super::link::{Item, LinkLost};
use super::super::peer::Credentials;
use super::super::queues::{ALLOCATED_AT_ONCE, clone_descriptor, memory_failure, no_room};
use super::groups::check_group_name;
use super::{BrokeredHandle, BrokeredQueue, SHARDS, SessionLink, Waiting, failure, no_right};
use crate::shard::control::{NewHandle, ToShard};
use crate::shard::logic::ControlResult;
use crate::shard::memory::{LinkMemory, PairFiles, PairMemory, PairSize, pair_bytes};

/// Slots of a ring with records, at least.
const RECORD_SLOTS: u32 = 1024;
/// Unacknowledged messages of a consumer that does not say.
const CREDIT_DEFAULT: u32 = 256;
/// Longest name of a producer in bytes.
const NAME_BYTES_MAX: usize = 200;

impl Broker {
    /// `None`: the answer comes when the shard serves the handle.
    pub(in super::super) fn attach_brokered(
        &mut self,
        wanted: WantedHandle,
    ) -> Result<Option<Answer>, Failure> {
        let (size, geometry) = self.admit(&wanted)?;
        let bytes = pair_bytes(&geometry);
        self.check_memory_limit(wanted.payer, bytes)?;
        host_memory::check(bytes).or_else(|reason| refuse(ErrorCode::Limit, reason))?;
        let name = self.brokered.queues[&wanted.queue].entry.name.clone();
        let queue = wanted.queue;
        let allocate = move || NewPair::create(&name, queue, geometry);
        if bytes <= ALLOCATED_AT_ONCE {
            let pair = allocate().map_err(|error| memory_failure(&error))?;
            self.attach_with(&wanted, size, pair)?;
            return Ok(None);
        }
        let ticket = self.brokered.next_allocation;
        self.brokered.next_allocation += 1;
        self.brokered.allocating.insert(ticket, PendingPair { wanted, bytes });
        self.allocated.compute("allocate", move || Allocated::Pair { ticket, pair: allocate() });
        Ok(None)
    }

    /// Memory that was allocated in the background: what has changed meanwhile counts.
    pub(in super::super) fn on_pair_allocated(
        &mut self,
        ticket: u64,
        pair: Result<NewPair, MemoryError>,
    ) -> Result<(), LinkLost> {
        let Some(PendingPair { wanted, .. }) = self.brokered.allocating.remove(&ticket) else {
            return Ok(());
        };
        if !self.connections.contains_key(&wanted.connection) {
            // Nobody waits for it: as if it had never been asked for.
            background::run("free", move || drop(pair));
            return Ok(());
        }
        let connection = wanted.connection;
        let admitted = match self.brokered.queues.contains_key(&wanted.queue) {
            true => self.admit(&wanted),
            false => refuse(ErrorCode::NotFound, "the queue was deleted meanwhile"),
        };
        let attached = match (admitted, pair) {
            (Ok((size, _)), Ok(pair)) => self.attach_with(&wanted, size, pair),
            (Ok(_), Err(error)) => Err(memory_failure(&error)),
            (Err(failure), pair) => {
                background::run("free", move || drop(pair));
                Err(failure)
            }
        };
        match attached {
            Ok(()) => Ok(()),
            Err(failure) => self.answer(connection, Err(failure)),
        }
    }

    /// Whether the queue and the user can have such a handle now, whatever its memory.
    fn admit(&mut self, wanted: &WantedHandle) -> Result<(PairSize, PairGeometry), Failure> {
        let WantedHandle { user, queue: id, role, options, .. } = wanted;
        let size = self.check_attach(user, *id, *role, options)?;
        self.look_at_brokered_holder(*id, *role)?;
        let Some(queue) = self.brokered.queues.get(id) else {
            return Err(bug("queue without entry").into());
        };
        if free_index(queue, *role, options.browse).is_none() {
            return self.no_index(*id, *role);
        }
        self.check_handle_limit(wanted.payer)?;
        let geometry =
            size.geometry().or_else(|error| refuse(ErrorCode::Invalid, error.to_string()))?;
        Ok((size, geometry))
    }

    /// Hands out a handle that was admitted.
    fn attach_with(
        &mut self,
        wanted: &WantedHandle,
        size: PairSize,
        pair: NewPair,
    ) -> Result<(), Failure> {
        let WantedHandle { connection, session, queue: id, role, options, .. } = wanted;
        let found = self.brokered.queues.get(id);
        let Some(index) = found.and_then(|queue| free_index(queue, *role, options.browse)) else {
            return self.no_index(*id, *role);
        };
        self.open_link(*session)?;
        let ready_index = self.free_ready_index(*session)?;
        let epoch = self.counters.epoch(&mut self.keeper)?;
        let entry = BrokeredHandleEntry {
            epoch,
            session: *session,
            layout_version: LAYOUT_VERSION,
            wake_mode: self.wake_mode,
            size,
            ready_index,
            lane: random()?,
            group: options.group.clone(),
            from: options.from,
            credit: credit(options, size.leases),
            browse: options.browse,
            producer: options.producer.clone(),
        };
        let key = HandleKey { queue: *id, handle: index, epoch };
        self.hand_out_brokered(*connection, key, entry, pair)
    }

    /// Stores a handle and gives it to its shard.
    fn hand_out_brokered(
        &mut self,
        number: u64,
        key: HandleKey,
        entry: BrokeredHandleEntry,
        pair: NewPair,
    ) -> Result<(), Failure> {
        let NewPair { files, memory } = pair;
        let Some(queue) = self.brokered.queues.get(&key.queue) else {
            return Err(bug("queue without entry").into());
        };
        let shard = queue.entry.shard;
        let (attached, descriptors) = self.terms(queue, key, &entry, &files)?;
        let item = Item {
            key: Key::BrokeredHandle { queue: key.queue, handle: key.handle }.bytes(),
            bytes: encode(&entry),
            descriptors: 2,
        };
        let beside = [files.client.as_fd(), files.shard.as_fd()];
        self.keeper.apply_with(Vec::new(), vec![item], &beside)?.or_else(no_room)?;
        if let Some(session) = self.sessions.get_mut(&entry.session) {
            session.handles.insert((key.queue, key.handle));
        }
        if let Some(link) = self.brokered.links.get_mut(&entry.session) {
            link.indexes.insert(entry.ready_index);
        }
        let handle = NewHandle::of(key, &entry, memory, false);
        self.tell_link(shard, entry.session);
        if let Some(queue) = self.brokered.queues.get_mut(&key.queue) {
            let handle = BrokeredHandle { entry, closing: false, faulty: false };
            queue.handles.insert(key.handle, handle);
        }
        let request = self.brokered.request(Waiting::Attach {
            connection: number,
            attached: Box::new(attached),
            descriptors,
        });
        self.brokered.tell(shard, ToShard::Attach { request, handle: Box::new(handle) });
        Ok(())
    }

    /// What the client is told.
    fn terms(
        &self,
        queue: &BrokeredQueue,
        key: HandleKey,
        entry: &BrokeredHandleEntry,
        files: &PairFiles,
    ) -> Result<(Attached, Vec<OwnedFd>), Failure> {
        let shard = queue.entry.shard;
        let (Some(link), Some(page)) =
            (self.brokered.links.get(&entry.session), self.brokered.shards.get(&shard))
        else {
            return Err(bug("link or shard without entry").into());
        };
        let Some(bell) = link.bells.get(shard as usize) else {
            return Err(bug("shard without bell").into());
        };
        let read_only = |descriptor: BorrowedFd<'_>| {
            reopen_read_only(descriptor).map_err(|error| memory_failure(&error))
        };
        let descriptors = vec![
            clone_descriptor(files.client.as_fd())?,
            read_only(files.shard.as_fd())?,
            clone_descriptor(link.memory.as_fd())?,
            read_only(page.page.as_fd())?,
            clone_descriptor(bell.as_fd())?,
        ];
        let attached = Attached {
            key,
            layout_version: entry.layout_version,
            kind: queue.entry.kind,
            slots: entry.size.slots,
            slot_size: entry.size.slot_size,
            max_message: entry.size.max_message,
            wake_mode: entry.wake_mode,
            brokered: Some(Terms {
                durable: queue.is_durable(),
                record_slots: entry.size.record_slots,
                leases: entry.size.leases,
                ready_index: entry.ready_index,
                shard,
                // The shard's answer says these.
                group_created: false,
                named: None,
            }),
            descriptors: vec![
                Memory::ClientFile,
                Memory::ShardFile,
                Memory::Link,
                Memory::ShardPage,
                Memory::ShardBell,
            ],
        };
        Ok((attached, descriptors))
    }

    /// Rights, options, the shard; the sizes of the handle's memory.
    fn check_attach(
        &self,
        user: &Credentials,
        id: u64,
        role: Role,
        options: &AttachOptions,
    ) -> Result<PairSize, Failure> {
        let Some(queue) = self.brokered.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        let entry = &queue.entry;
        // On this plane nobody can touch another one's messages: the rights to produce and to consume are separate.
        if !queue.rights(user).may_attach(Kind::Spsc, role) {
            return no_right(queue, if role == Role::Produce { "write" } else { "read" });
        }
        self.open_shard(queue)?;
        let of_producers =
            AttachOptions { producer: options.producer.clone(), ..AttachOptions::default() };
        if role == Role::Produce && *options != of_producers {
            let text = "group, start, credit and browse are for consumers";
            return refuse(ErrorCode::Invalid, text);
        }
        if role == Role::Consume && !options.producer.is_empty() {
            return refuse(ErrorCode::Invalid, "the name of a producer is for producers");
        }
        check_group_name(&options.group)?;
        check_producer_name(&options.producer)?;
        self.check_shard(entry.shard)?;
        let most = u32::try_from(lease::LEASES_MAX).unwrap_or(u32::MAX);
        let leases = match role {
            Role::Produce => 0,
            // An entry is free again when the acknowledgement is stored: more of them than credit keep a consumer going.
            Role::Consume => {
                let credit = if options.credit == 0 { CREDIT_DEFAULT } else { options.credit };
                credit.saturating_mul(4).clamp(1024, most)
            }
        };
        Ok(PairSize {
            role,
            slots: entry.slots,
            slot_size: entry.slot_size,
            max_message: entry.max_message,
            // An acknowledgement keeps its slot as long as its entry, so that fewer slots than entries would be the limit.
            record_slots: leases.next_power_of_two().max(RECORD_SLOTS),
            leases,
        })
    }

    fn no_index<T>(&self, id: u64, role: Role) -> Result<T, Failure> {
        let Some(queue) = self.brokered.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        let name = &queue.entry.name;
        if queue.entry.kind == Kind::Spsc && queue.count(role) > 0 {
            let holder = queue.handles.values().find(|handle| {
                handle.entry.size.role == role && !handle.closing && !handle.entry.browse
            });
            let session = holder.and_then(|holder| self.sessions.get(&holder.entry.session));
            let what = if role == Role::Produce { "producer" } else { "consumer" };
            let text = format!(
                "queue {name} has one {what} at a time, and process {} is attached: stop it first",
                session.map_or(0, |session| session.pid)
            );
            return refuse(ErrorCode::Busy, text);
        }
        let text = format!("queue {name} has {HANDLE_MAX} handles, the most possible");
        refuse(ErrorCode::Limit, text)
    }

    /// On an spsc queue, whether whoever has this role still lives: its death may not have been noticed yet.
    fn look_at_brokered_holder(&mut self, id: u64, role: Role) -> Result<(), LinkLost> {
        let holder =
            self.brokered.queues.get(&id).filter(|queue| queue.entry.kind == Kind::Spsc).and_then(
                |queue| {
                    queue
                        .handles
                        .values()
                        .find(|handle| handle.entry.size.role == role && !handle.closing)
                },
            );
        match holder.map(|handle| handle.entry.session) {
            Some(session) => self.look_at(session),
            None => Ok(()),
        }
    }

    /// Makes the session's link if it has none, and stores it.
    fn open_link(&mut self, number: u64) -> Result<(), Failure> {
        if self.brokered.links.contains_key(&number) {
            return Ok(());
        }
        let Some(session) = self.sessions.get(&number) else {
            return Err(bug("session without entry").into());
        };
        let memory = LinkMemory::create().map_err(|error| memory_failure(&error))?;
        let mapped = LinkMemory::map(memory.as_fd()).map_err(|error| memory_failure(&error))?;
        let mut bells = Vec::new();
        for _ in SHARDS {
            match EventFd::new() {
                Ok(bell) => bells.push(Arc::new(bell)),
                Err(error) => return no_room(format!("eventfd: {error}")),
            }
        }
        let mut items = Vec::new();
        let mut beside = Vec::new();
        if !session.stored {
            items.push(session.item(number));
            beside.push(session.pidfd.as_fd());
        }
        let descriptors = u8::try_from(1 + bells.len()).unwrap_or(u8::MAX);
        let bytes = encode(&LinkEntry {});
        items.push(Item { key: Key::Link(number).bytes(), bytes, descriptors });
        beside.push(memory.as_fd());
        beside.extend(bells.iter().map(|bell| bell.as_fd()));
        self.keeper.apply_with(Vec::new(), items, &beside)?.or_else(no_room)?;
        if let Some(session) = self.sessions.get_mut(&number) {
            session.stored = true;
        }
        let link = SessionLink {
            memory,
            bells,
            mapped: Arc::new(mapped),
            indexes: BTreeSet::new(),
            told: BTreeSet::new(),
        };
        self.brokered.links.insert(number, link);
        Ok(())
    }

    fn free_ready_index(&self, session: u64) -> Result<u32, Failure> {
        let used = self.brokered.links.get(&session).map(|link| &link.indexes);
        let most = u32::try_from(link::HANDLES_MAX).unwrap_or(u32::MAX);
        let free = used.and_then(|used| (0..most).find(|index| !used.contains(index)));
        free.map_or_else(
            || {
                let text =
                    format!("a process has at most {most} brokered handles: close some of them");
                refuse(ErrorCode::Limit, text)
            },
            Ok,
        )
    }

    /// Lets a shard know a session's link before the first handle.
    pub(super) fn tell_link(&mut self, shard: u32, session: u64) {
        let Some(found) = self.brokered.links.get_mut(&session) else { return };
        let Some(bell) = found.bells.get(shard as usize).map(Arc::clone) else { return };
        if found.told.insert(shard) {
            let link = Arc::clone(&found.mapped);
            self.brokered.tell(shard, ToShard::Link { session, link, bell });
        }
    }

    pub(super) fn on_attached(
        &mut self,
        request: u64,
        key: HandleKey,
        result: ControlResult,
        group_created: bool,
    ) -> Result<(), LinkLost> {
        let named = match result {
            ControlResult::Named { id, epoch, last } => Some(NamedHandle { id, epoch, last }),
            _ => None,
        };
        let waiting = self.brokered.waiting.remove(&request);
        let refused = failure(&result);
        if refused.is_some() {
            self.on_released(key)?;
        }
        let Some(Waiting::Attach { connection, mut attached, descriptors }) = waiting else {
            return Ok(());
        };
        if let Some(terms) = &mut attached.brokered {
            terms.named = named;
            terms.group_created = group_created;
        }
        let outcome = match refused {
            Some(failure) => Err(failure),
            None => Ok(Some(Answer { descriptors, ..Answer::of(Reply::Attached(attached)) })),
        };
        self.answer(connection, outcome)
    }
}

/// A handle that somebody asks for.
#[derive(Debug)]
pub(in super::super) struct WantedHandle {
    /// Who gets the answer.
    pub(in super::super) connection: u64,
    pub(in super::super) session: u64,
    /// Who asks.
    pub(in super::super) user: Credentials,
    /// User of the session: its limits count.
    pub(in super::super) payer: u32,
    pub(in super::super) queue: u64,
    pub(in super::super) role: Role,
    pub(in super::super) options: AttachOptions,
}

/// A handle whose memory is being allocated.
#[derive(Debug)]
pub(super) struct PendingPair {
    wanted: WantedHandle,
    bytes: u64,
}

impl PendingPair {
    /// Bytes that it will take, if it is this user's.
    pub(super) fn bytes_of(&self, uid: u32) -> u64 {
        if self.wanted.payer == uid { self.bytes } else { 0 }
    }
}

/// Memory for a new handle.
#[derive(Debug)]
pub(in super::super) struct NewPair {
    files: PairFiles,
    memory: PairMemory,
}

impl NewPair {
    fn create(name: &str, queue: u64, geometry: PairGeometry) -> Result<Self, MemoryError> {
        let files = PairFiles::create(name, &geometry)?;
        let memory = PairMemory::map(geometry, &files)?;
        memory.initialise(queue);
        Ok(Self { files, memory })
    }
}

impl NewHandle {
    /// From what is stored of it.
    pub(super) fn of(
        key: HandleKey,
        entry: &BrokeredHandleEntry,
        memory: PairMemory,
        adopted: bool,
    ) -> Self {
        Self {
            key,
            memory,
            session: entry.session,
            ready_index: entry.ready_index,
            wake_mode: entry.wake_mode,
            lane: entry.lane,
            group: entry.group.clone(),
            from: entry.from,
            credit: entry.credit,
            browse: entry.browse,
            producer: entry.producer.clone(),
            adopted,
        }
    }
}

/// An index that nobody has, if one more of this role may be.
fn free_index(queue: &BrokeredQueue, role: Role, browse: bool) -> Option<u8> {
    if queue.entry.kind == Kind::Spsc && !browse && queue.count(role) > 0 {
        return None;
    }
    (1..=HANDLE_MAX).find(|index| !queue.handles.contains_key(index))
}

fn check_producer_name(name: &str) -> Result<(), Failure> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.len() <= NAME_BYTES_MAX && name.bytes().all(good) {
        return Ok(());
    }
    let text = format!(
        "producer name: at most {NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ - are allowed"
    );
    refuse(ErrorCode::Invalid, text)
}

fn credit(options: &AttachOptions, leases: u32) -> u32 {
    let wanted = if options.credit == 0 { CREDIT_DEFAULT } else { options.credit };
    wanted.min(leases)
}

/// A number that no lane has had or will have.
fn random() -> Result<u64, Failure> {
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer is valid for its length.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if filled == 8 {
        return Ok(u64::from_ne_bytes(bytes));
    }
    let error = std::io::Error::last_os_error();
    refuse(ErrorCode::Io, format!("the daemon gets no random numbers: {error}"))
}
