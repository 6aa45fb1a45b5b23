//! The control protocol: one request, one reply, over a Unix `SOCK_SEQPACKET` socket.
//!
//! A packet is a [`FRAME_HEADER_BYTES`] header (magic, version, length) and a body encoded with postcard. Descriptors
//! travel beside the reply as `SCM_RIGHTS`. Data never passes through here.

pub mod frame;
mod types;

use serde::{Deserialize, Serialize};

pub use frame::FrameError;
pub use types::{
    BrokeredInfo, DeliverySpec, GroupInfo, GroupPlace, HandleInfo, JournalInfo, Kind, Overflow,
    Plane, QueueInfo, QueueSpec, Retention, Role, Status, WakeMode,
};

/// Version of the messages below. A daemon refuses another one with [`ErrorCode::Version`].
pub const PROTOCOL_VERSION: u16 = 6;

/// Largest packet in bytes, header included.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Bytes in front of every body: magic `RMCP`, version u16, reserved u16, body length u32, all little-endian.
pub const FRAME_HEADER_BYTES: usize = 12;

/// What a client asks. The first request on a connection must be [`Request::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens a session, or takes up the one that the process had before the connection was lost.
    Hello {
        /// Version of the client crate, for the daemon's log.
        client_version: String,
        /// Random and not zero; the same one on every connection of this `Client`. Together with the process it is
        /// the session's identity.
        session: u64,
        /// Handles that the process still uses; all others of this session are detached. Empty at first.
        handles: Vec<HandleKey>,
    },
    /// Creates a queue. Reply: [`Reply::Queue`].
    CreateQueue {
        /// Its name.
        name: String,
        /// Its properties.
        spec: QueueSpec,
    },
    /// Deletes a queue: everybody attached gets `Closed`. Reply: [`Reply::Done`].
    DeleteQueue {
        /// Its name.
        name: String,
    },
    /// Discards the messages of a queue. Reply: [`Reply::Purged`].
    PurgeQueue {
        /// Its name.
        name: String,
    },
    /// Queues in the order of their names, after this one. Reply: [`Reply::Queues`].
    ListQueues {
        /// Last name of the page before, or empty.
        after: String,
    },
    /// One queue with its handles. Reply: [`Reply::Queue`].
    QueueInfo {
        /// Its name.
        name: String,
    },
    /// A handle on a queue. Reply: [`Reply::Attached`], with the descriptors of its memory in the order of
    /// [`Attached::descriptors`].
    Attach {
        /// Name of the queue.
        name: String,
        /// Produce or consume.
        role: Role,
        /// Brokered queues only; the defaults on a direct queue.
        options: AttachOptions,
    },
    /// Changes the rules of a queue. Reply: [`Reply::Queue`].
    EditQueue {
        /// Its name.
        name: String,
        /// What is `None` stays as it is.
        delivery: DeliverySpec,
    },
    /// Moves messages of a dead-letter queue back to where they came from, oldest first. Reply: [`Reply::Redriven`].
    Redrive {
        /// Name of the dead-letter queue.
        name: String,
        /// At most so many; 0 for all.
        count: u64,
    },
    /// Gives a handle back: its process has unmapped the ring. Slots that the handle still owns are repaired as after a
    /// death. Reply: [`Reply::Done`].
    Detach {
        /// Which.
        handle: HandleKey,
    },
    /// Registers the doorbell of the process: two descriptors come along, the doorbell's memfd and the shared end
    /// of its socket pair.
    /// Reply: [`Reply::Doorbell`].
    RegisterDoorbell,
    /// Lets those who publish to this queue ring that doorbell of the same session. Reply: [`Reply::Done`].
    BindDoorbell {
        /// A consumer handle of this session.
        handle: HandleKey,
        /// From [`Reply::Doorbell`].
        doorbell: u32,
    },
    /// The descriptors of a doorbell that is bound to a consumer of a queue on which the caller has a handle.
    /// Reply: [`Reply::Doorbell`] with the memfd and the socket.
    FetchDoorbell {
        /// Queue.
        queue: u64,
        /// The doorbell.
        doorbell: u32,
    },
    /// The caller saw an invariant violated in a ring. Reply: [`Reply::Done`].
    ReportFault {
        /// Its handle.
        handle: HandleKey,
        /// What it saw.
        what: String,
    },
    /// Reply: [`Reply::Status`].
    Status,
    /// Starts the broker anew from this binary (the running one if empty). Reply: [`Reply::Done`], sent before the
    /// old broker leaves.
    Upgrade {
        /// Absolute path or empty.
        binary: String,
    },
    /// Gives a doorbell of this session back; handles that are bound to it ring no more. Reply: [`Reply::Done`].
    ReleaseDoorbell {
        /// From [`Reply::Doorbell`].
        doorbell: u32,
    },
    /// Groups of a brokered queue in the order of their names, after this one. Reply: [`Reply::Groups`].
    ListGroups {
        /// Name of the queue.
        name: String,
        /// Last group of the page before; the default group has an empty name and comes first.
        after: Option<String>,
    },
    /// One group. Reply: [`Reply::Groups`] with one entry.
    GroupInfo {
        /// Name of the queue.
        name: String,
        /// Name of the group; empty for the default group.
        group: String,
    },
    /// Creates a group. Reply: [`Reply::Group`].
    CreateGroup {
        /// Name of the queue.
        name: String,
        /// Name of the group.
        group: String,
        /// Where it starts.
        from: StartAt,
    },
    /// Puts a group to another start. Reply: [`Reply::Group`].
    ResetGroup {
        /// Name of the queue.
        name: String,
        /// Name of the group.
        group: String,
        /// Its new start.
        to: StartAt,
        /// Only says what it would come to.
        dry_run: bool,
        /// Although consumers are attached: their leases are lost.
        force: bool,
    },
    /// Deletes a group other than the default one. Reply: [`Reply::Done`].
    DeleteGroup {
        /// Name of the queue.
        name: String,
        /// Name of the group.
        group: String,
        /// Although consumers are attached: they end.
        force: bool,
    },
}

impl Request {
    /// Name of the queue that it is about, if it is about one that exists.
    pub fn queue_name(&self) -> Option<&str> {
        match self {
            Self::DeleteQueue { name }
            | Self::PurgeQueue { name }
            | Self::QueueInfo { name }
            | Self::Attach { name, .. }
            | Self::EditQueue { name, .. }
            | Self::Redrive { name, .. }
            | Self::ListGroups { name, .. }
            | Self::GroupInfo { name, .. }
            | Self::CreateGroup { name, .. }
            | Self::ResetGroup { name, .. }
            | Self::DeleteGroup { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Asks for a handle with the default options.
    pub fn attach(name: impl Into<String>, role: Role) -> Self {
        Self::Attach { name: name.into(), role, options: AttachOptions::default() }
    }
}

/// What a brokered handle asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachOptions {
    /// Consumer group; empty for the default group.
    pub group: String,
    /// Where a group that does not exist yet starts.
    pub from: StartAt,
    /// Most messages that may be unacknowledged at a time; 0 takes the default.
    pub credit: u32,
    /// Consumers: is shown the messages that are there from `from` on, and takes none.
    pub browse: bool,
    /// Producers: the name whose own sequences the queue remembers, 1 to 200 characters of `[A-Za-z0-9._-]`; empty for none.
    pub producer: String,
}

/// A place in a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartAt {
    /// The oldest message that is there.
    #[default]
    First,
    /// Only what comes from now on.
    New,
    /// The message with this sequence, or the first one behind it.
    Sequence(u64),
    /// The first message that was published then or later: nanoseconds since 1970.
    Time(u64),
    /// The last so many messages that are there.
    Last(u64),
}

/// Names a handle for the life of its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HandleKey {
    /// Queue id.
    pub queue: u64,
    /// Index in its handle table, 1 to 254.
    pub handle: u8,
    /// Tells apart successive users of one index.
    pub epoch: u32,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Hello`.
    Welcome {
        /// Version of the broker.
        version: String,
        /// Grows with every start of the broker.
        broker_generation: u64,
        /// Those of the handles named in `Hello` that the daemon does not know: their queues are gone.
        lost: Vec<HandleKey>,
    },
    /// It is done.
    Done,
    /// One queue.
    Queue(Box<QueueInfo>),
    /// A page of queues; an empty page ends the list.
    Queues(Vec<QueueInfo>),
    /// Messages discarded.
    Purged {
        /// How many.
        messages: u64,
    },
    /// Messages moved back from a dead-letter queue.
    Redriven {
        /// How many.
        messages: u64,
    },
    /// A handle.
    Attached(Box<Attached>),
    /// A doorbell.
    Doorbell {
        /// Its number, not zero, never used again while the daemon runs.
        doorbell: u32,
    },
    /// The daemon.
    Status(Box<Status>),
    /// It was refused or went wrong.
    Error {
        /// For programs.
        code: ErrorCode,
        /// For people: one line that says what to do.
        message: String,
    },
    /// A page of groups; an empty page ends the list.
    Groups(Vec<GroupInfo>),
    /// Where a group starts.
    Group(GroupPlace),
}

/// What a new handle needs to know. It comes with the handshake and lives in private memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The handle.
    pub key: HandleKey,
    /// Version of the shared-memory layout of this ring.
    pub layout_version: u32,
    /// `spsc` or `mpmc`.
    pub kind: Kind,
    /// Slots in the ring. Brokered: in the ring that carries messages, a producer's lane or a consumer's deliveries.
    pub slots: u32,
    /// Bytes per slot of that ring.
    pub slot_size: u32,
    /// Longest payload in bytes. Brokered consumers: the delivery header not included.
    pub max_message: u32,
    /// How sleepers and wakers are ordered on this ring.
    pub wake_mode: WakeMode,
    /// Brokered queues only.
    pub brokered: Option<BrokeredHandle>,
    /// What the descriptors that came along are.
    pub descriptors: Vec<Memory>,
}

/// What a brokered handle needs to know besides. See [`crate::layout::pair`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokeredHandle {
    /// Whether a confirmed message is on stable storage.
    pub durable: bool,
    /// Slots of the ring in the other direction: a producer's completions, a consumer's submissions. They have 64 bytes each.
    pub record_slots: u32,
    /// Entries of the lease table: the most credit that can be asked for. 0 for producers.
    pub leases: u32,
    /// The handle's word in the session's link.
    pub ready_index: u32,
    /// Shard that serves it.
    pub shard: u32,
    /// The consumer's group did not exist: it was created.
    pub group_created: bool,
    /// Producers with a name only.
    pub named: Option<NamedHandle>,
}

/// What a producer with a name needs to know besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedHandle {
    /// Of the name in its queue.
    pub id: u64,
    /// Of this attachment.
    pub epoch: u32,
    /// Last own sequence that is stored under the name; 0: none.
    pub last: u64,
}

/// What a descriptor beside [`Reply::Attached`] maps, and whether it may be mapped writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memory {
    /// The page that only the daemon writes: closed, generation, counters. Read-only.
    Control,
    /// mpmc: header, handle lines and slots. Read-write.
    Ring,
    /// spsc: the slots. Read-write for the producer, read-only for the consumer.
    Slots,
    /// spsc: the producer's page. Read-write for the producer, read-only for the consumer.
    ProducerPage,
    /// spsc: the consumer's page. Read-write for the consumer, read-only for the producer.
    ConsumerPage,
    /// Brokered: the client's file of a handle. Read-write.
    ClientFile,
    /// Brokered: the shard's file of a handle. Read-only.
    ShardFile,
    /// Brokered: the session's link. Read-write. The same file for all handles of a session.
    Link,
    /// Brokered: the shard's page. Read-only.
    ShardPage,
    /// Brokered: the eventfd that wakes the shard. The same one for all handles of a session and shard.
    ShardBell,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The message could not be understood, or a value in it is out of bounds.
    Invalid,
    /// Another protocol version.
    Version,
    /// No such queue, handle or doorbell.
    NotFound,
    /// A queue of that name exists.
    Exists,
    /// Missing right.
    NotPermitted,
    /// A limit per user or per queue, or the host's memory limit, stands in the way.
    Limit,
    /// An spsc queue has such a handle already, or the queue is in use.
    Busy,
    /// The ring was closed because an invariant was violated, or the queue is being deleted.
    Closed,
    /// The operating system refused.
    Io,
    /// A bug in the daemon.
    Internal,
}
