//! The control thread's side of the brokered plane: which queues and handles there are, who may use them, and what the
//! shards are asked to do. What is in the queues is the shards' business.
//!
//! Nothing here waits for a shard: a request that needs one is answered when the shard has answered. What a shard has to know
//! about a handle goes to it before its client hears of it, and what is stored by the keeper is stored before either.

mod adopt;
mod attach;
mod create;
mod departure;
mod groups;
mod inform;
mod manage;
mod shards;

pub use create::check_times;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringmain_client::protocol::{Attached, ErrorCode, HandleKey, Reply, Role, Status};
use ringmain_client::sys::eventfd::EventFd;

use super::background::Results;
use super::broker::Broker;
use super::connections::{Answer, Failure, refuse};
use super::entries::{BrokeredHandleEntry, BrokeredQueueEntry, Key, encode};
use super::link::{BrokeredConfig, Item, LinkLost};
use super::log::log;
use super::peer::Credentials;
use super::permissions::Rights;
use super::sessions::Session;
use crate::shard::control::{FromShard, HandleCounters, Outbox, ToShard, Trouble};
use crate::shard::logic::ControlResult;
use crate::shard::memory::LinkMemory;

pub(super) use adopt::Adopting;
use attach::PendingPair;
pub(super) use attach::{NewPair, WantedHandle};
pub(super) use shards::{SHARD_DURABLE, SHARD_MEMORY, SHARDS};

/// Requests to shards that are under way at a time, from everybody.
const REQUESTS_MAX: usize = 4096;

/// Everything about brokered queues.
#[derive(Debug)]
pub(super) struct Brokered {
    pub(super) config: BrokeredConfig,
    /// By id.
    pub(super) queues: BTreeMap<u64, BrokeredQueue>,
    /// By session.
    links: BTreeMap<u64, SessionLink>,
    shards: BTreeMap<u32, shards::Shard>,
    inbox: Results<FromShard>,
    waiting: BTreeMap<u64, Waiting>,
    next_request: u64,
    /// Handles whose memory is being allocated.
    allocating: BTreeMap<u64, PendingPair>,
    next_allocation: u64,
    /// Sessions whose processes are dead, until nothing of their handles is in use.
    departing: BTreeMap<u64, Departing>,
    segments: shards::Segments,
}

/// A brokered queue.
#[derive(Debug)]
pub(super) struct BrokeredQueue {
    pub(super) entry: BrokeredQueueEntry,
    pub(super) state: State,
    pub(super) handles: BTreeMap<u8, BrokeredHandle>,
}

/// How far a queue has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The shard has not said yet that it is stored.
    Creating,
    Open,
    /// The shard has not said yet that this is stored.
    Deleting,
}

/// What an answer looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueInfoForm {
    /// One queue.
    One,
    /// A page of them.
    Page,
}

/// A handle on a brokered queue.
#[derive(Debug)]
pub(super) struct BrokeredHandle {
    pub(super) entry: BrokeredHandleEntry,
    /// Given back or its process is dead; the shard takes what it sent.
    pub(super) closing: bool,
    /// Closed by the shard because its client broke the rules.
    pub(super) faulty: bool,
}

/// What a session shares with the shards.
#[derive(Debug)]
struct SessionLink {
    memory: OwnedFd,
    /// One for each shard.
    bells: Vec<Arc<EventFd>>,
    mapped: Arc<LinkMemory>,
    /// Words in use.
    indexes: BTreeSet<u32>,
    /// Shards that know it.
    told: BTreeSet<u32>,
}

/// A dead process whose handles are being taken back.
#[derive(Debug)]
struct Departing {
    session: Session,
    handles: BTreeSet<(u64, u8)>,
}

/// Who waits for a shard, and for what.
#[derive(Debug)]
enum Waiting {
    Create { connection: u64, queue: u64 },
    Delete { connection: u64, queue: u64 },
    Edit { connection: u64, queue: u64 },
    Count { connection: u64, queue: u64 },
    Attach { connection: u64, attached: Box<Attached>, descriptors: Vec<OwnedFd> },
    Inform(Box<inform::Informing>),
    Group { connection: u64, queue: u64 },
    Groups { connection: u64, queue: u64, one: Option<String> },
    Status { connection: u64, status: Box<Status>, missing: Vec<u32> },
}

impl BrokeredQueue {
    pub(super) fn rights(&self, user: &Credentials) -> Rights {
        Rights::of(user, self.entry.owner_uid, self.entry.group_gid, self.entry.mode)
    }

    pub(super) fn is_durable(&self) -> bool {
        self.entry.shard == SHARD_DURABLE
    }

    pub(super) fn item(&self, id: u64) -> Item {
        let bytes = encode(&self.entry);
        Item { key: Key::BrokeredQueue(id).bytes(), bytes, descriptors: 0 }
    }

    /// Bytes of shared memory of all handles.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.handles.values().map(BrokeredHandle::memory_bytes).sum()
    }

    /// Handles that count for admission and are shown.
    pub(super) fn count(&self, role: Role) -> usize {
        let counts = |handle: &&BrokeredHandle| {
            handle.entry.size.role == role && !handle.closing && !handle.entry.browse
        };
        self.handles.values().filter(counts).count()
    }
}

impl BrokeredHandle {
    pub(super) fn memory_bytes(&self) -> u64 {
        self.entry.size.geometry().map_or(0, |geometry| crate::shard::memory::pair_bytes(&geometry))
    }
}

impl Brokered {
    pub(super) fn new(config: BrokeredConfig) -> io::Result<Self> {
        Ok(Self {
            config,
            queues: BTreeMap::new(),
            links: BTreeMap::new(),
            shards: BTreeMap::new(),
            inbox: Results::new()?,
            waiting: BTreeMap::new(),
            next_request: 1,
            allocating: BTreeMap::new(),
            next_allocation: 1,
            departing: BTreeMap::new(),
            segments: shards::Segments::default(),
        })
    }

    /// Readable while a shard may have said something.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.inbox.descriptor()
    }

    fn outbox(&self) -> Outbox<FromShard> {
        self.inbox.outbox()
    }

    /// Bytes of shared memory of a user's handles, those included that are being allocated.
    pub(super) fn memory_of(&self, sessions: &BTreeMap<u64, Session>, uid: u32) -> u64 {
        let pending: u64 = self.allocating.values().map(|pending| pending.bytes_of(uid)).sum();
        let handles: u64 = self
            .queues
            .values()
            .flat_map(|queue| queue.handles.values())
            .filter(|handle| {
                sessions.get(&handle.entry.session).is_some_and(|session| session.uid == uid)
            })
            .map(BrokeredHandle::memory_bytes)
            .sum();
        pending.saturating_add(handles)
    }

    fn handle_mut(&mut self, key: HandleKey) -> Option<&mut BrokeredHandle> {
        self.queues
            .get_mut(&key.queue)
            .and_then(|queue| queue.handles.get_mut(&key.handle))
            .filter(|handle| handle.entry.epoch == key.epoch)
    }

    /// Sends something to a shard, if it runs.
    fn tell(&self, shard: u32, message: ToShard) {
        if let Some(shard) = self.shards.get(&shard) {
            shard.outbox.send(message);
        }
    }

    /// Whether messages can be stored in this shard.
    fn is_sound(&self, shard: u32) -> bool {
        self.shards.get(&shard).is_none_or(shards::Shard::is_sound)
    }

    /// What does not work, in words.
    pub(super) fn troubles(&self) -> Vec<String> {
        self.shards.values().filter_map(shards::Shard::trouble_in_words).collect()
    }

    /// A number for a request to a shard.
    fn request(&mut self, waiting: Waiting) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        self.waiting.insert(request, waiting);
        request
    }
}

/// Refuses for want of a working shard, or because too much is under way.
impl Broker {
    fn check_shard(&self, shard: u32) -> Result<(), Failure> {
        if self.brokered.waiting.len() >= REQUESTS_MAX {
            return refuse(ErrorCode::Busy, "too many requests are under way: try again later");
        }
        match self.brokered.shards.get(&shard).and_then(shards::Shard::trouble) {
            Some(trouble) => refuse(ErrorCode::Io, trouble),
            None => Ok(()),
        }
    }

    /// The brokered queue of this name, if the name is one's.
    pub(super) fn brokered_id(&self, name: &str) -> Option<u64> {
        self.names.get(name).copied().filter(|id| self.brokered.queues.contains_key(id))
    }

    /// Whether the session has this handle on a brokered queue.
    pub(super) fn has_brokered(&self, session: u64, key: HandleKey) -> bool {
        self.brokered
            .queues
            .get(&key.queue)
            .and_then(|queue| queue.handles.get(&key.handle))
            .is_some_and(|handle| {
                handle.entry.session == session && handle.entry.epoch == key.epoch
            })
    }

    /// What the shards have said.
    pub(super) fn on_shards(&mut self) -> Result<(), LinkLost> {
        for message in self.brokered.inbox.take() {
            self.on_shard(message)?;
        }
        Ok(())
    }

    fn on_shard(&mut self, message: FromShard) -> Result<(), LinkLost> {
        match message {
            FromShard::Started { shard, result } => self.on_started(shard, result),
            FromShard::Done { request, result } => self.on_done(request, result),
            FromShard::Information { request, queues, handles, .. } => {
                self.on_information(request, queues, &handles)
            }
            FromShard::Figures { request, journal } => self.on_figures(request, *journal),
            FromShard::Attached { request, key, result, group_created } => {
                self.on_attached(request, key, result, group_created)
            }
            FromShard::Groups { request, groups } => self.on_groups(request, groups),
            FromShard::Released { key } => self.on_released(key),
            FromShard::Fault { key, what } => {
                self.on_brokered_fault(key, &what);
                Ok(())
            }
            FromShard::Ring { key, doorbell, bit } => {
                self.ring_brokered(key, doorbell, bit);
                Ok(())
            }
            FromShard::Trouble { shard, trouble } => {
                if let Some(Trouble::Failed(text) | Trouble::Full(text)) = &trouble {
                    log!("{text}");
                }
                self.brokered.in_trouble(shard, trouble);
                Ok(())
            }
            FromShard::Log { text } => {
                log!("{text}");
                Ok(())
            }
            FromShard::CreateSegment { shard, name, memory, bytes, answer } => {
                let result = self.store_segment(shard, name, memory, bytes)?;
                let _ = answer.send(result);
                Ok(())
            }
            FromShard::RemoveSegment { shard, name } => self.remove_segment(shard, &name),
            FromShard::Stopped { shard, messages } => {
                self.brokered.stopped(shard, messages);
                Ok(())
            }
        }
    }

    fn on_done(&mut self, request: u64, result: ControlResult) -> Result<(), LinkLost> {
        match self.brokered.waiting.remove(&request) {
            Some(Waiting::Create { connection, queue }) => {
                self.on_created(connection, queue, &result)
            }
            Some(Waiting::Delete { connection, queue }) => {
                self.on_deleted(connection, queue, &result)
            }
            Some(Waiting::Edit { connection, queue }) => match failure(&result) {
                Some(failure) => self.answer(connection, Err(failure)),
                None => self.answer_with_info(connection, queue, None),
            },
            Some(Waiting::Count { connection, .. }) => {
                let outcome = match (&result, failure(&result)) {
                    (_, Some(failure)) => Err(failure),
                    (ControlResult::Redriven(messages), None) => {
                        Ok(Some(Answer::of(Reply::Redriven { messages: *messages })))
                    }
                    (ControlResult::Purged(messages), None) => {
                        Ok(Some(Answer::of(Reply::Purged { messages: *messages })))
                    }
                    _ => Ok(Some(Answer::of(Reply::Done))),
                };
                self.answer(connection, outcome)
            }
            Some(Waiting::Group { connection, .. }) => self.on_group_done(connection, &result),
            Some(
                Waiting::Attach { .. }
                | Waiting::Inform(_)
                | Waiting::Groups { .. }
                | Waiting::Status { .. },
            )
            | None => Ok(()),
        }
    }
}

/// As an answer, if it is a refusal.
fn failure(result: &ControlResult) -> Option<Failure> {
    match result {
        ControlResult::Done
        | ControlResult::Purged(_)
        | ControlResult::Redriven(_)
        | ControlResult::Group(_)
        | ControlResult::Named { .. } => None,
        ControlResult::Refused(code, text) => Some(Failure::Refused(*code, text.clone())),
        ControlResult::JournalFailed(errno) => {
            let error = io::Error::from_raw_os_error(*errno);
            Some(Failure::Refused(
                ErrorCode::Io,
                format!(
                    "the journal failed ({error}): nothing is stored until the disk is repaired and the daemon is \
                     started again"
                ),
            ))
        }
    }
}

/// Rights as an error text.
fn no_right<T>(queue: &BrokeredQueue, what: &str) -> Result<T, Failure> {
    let entry = &queue.entry;
    let text = format!(
        "queue {}: this needs the right to {what}: owner is user {}, group {}, mode {:o}",
        entry.name, entry.owner_uid, entry.group_gid, entry.mode
    );
    refuse(ErrorCode::NotPermitted, text)
}
