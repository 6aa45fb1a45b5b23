//! What the control messages say. The same types are printed by the commands with `--json`.

use serde::{Deserialize, Serialize};

/// How the members of a queue may be arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One producer and one consumer at a time; separate rights to produce and to consume.
    Spsc,
    /// Any number of both (up to the handle limit), who trust each other's data.
    Mpmc,
}

/// The way of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plane {
    /// From producer to consumer through one shared ring; the daemon is not involved.
    #[default]
    Direct,
    /// Through a shard of the daemon: acknowledgements, redelivery, dead letters, and durability if wanted.
    Brokered,
}

impl core::fmt::Display for Plane {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Brokered => "brokered",
        })
    }
}

/// What a handle does with its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sends messages.
    Produce,
    /// Receives messages.
    Consume,
}

/// How a sleeper and a waker are ordered; fixed when a queue is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WakeMode {
    /// The sleeper pays with `membarrier(GLOBAL_EXPEDITED)`; the publisher runs no fence.
    Membarrier,
    /// Both sides run a sequentially consistent fence.
    Fence,
}

/// Geometry and rights of a queue that is to be created. `None` takes the default of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSpec {
    /// `mpmc` by default.
    pub kind: Option<Kind>,
    /// Slots in the ring, a power of two, at least 64; 4096 by default.
    pub slots: Option<u32>,
    /// Bytes per slot, a multiple of 16, at least 64; 256 by default.
    pub slot_size: Option<u32>,
    /// Longest payload in bytes; at most what a quarter of the ring holds; 64 KiB by default, or that quarter if it
    /// is smaller.
    pub max_message: Option<u32>,
    /// Permission bits as of a file: read = consume, write = produce, execute = manage; 0o700 by default.
    /// On an mpmc queue a member has one right, `use`, and needs read and write.
    pub mode: Option<u32>,
    /// Group by name or number; the creator's group by default.
    pub group: Option<String>,
    /// `direct` by default, `brokered` if durable.
    pub plane: Option<Plane>,
    /// Every confirmed message is on stable storage. Needs the brokered plane.
    pub durable: bool,
    /// What a brokered queue does with messages that are not acknowledged.
    pub delivery: DeliverySpec,
    /// Deleted when the session of its creator ends: when its process exits or its [`Client`](crate::Client) is dropped with all
    /// handles. Not durable.
    pub session: bool,
}

impl QueueSpec {
    /// The plane that is asked for; a durable queue is brokered.
    pub fn plane(&self) -> Plane {
        if self.durable { Plane::Brokered } else { self.plane.unwrap_or_default() }
    }
}

/// Delivery rules of a brokered queue; on a direct queue all but `overflow` must be `None`. `None` takes the default, or leaves
/// the rule as it is when a queue is edited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverySpec {
    /// Deliveries before a message goes to the dead-letter queue (or is discarded and counted if there is none); 0, the
    /// default, means any number.
    pub max_deliveries: Option<u32>,
    /// Name of the dead-letter queue, a brokered queue of the same durability; empty for none.
    pub dead_letter: Option<String>,
    /// Milliseconds until a message that was neither acknowledged nor extended is given to another consumer; 0 for
    /// never while its consumer lives; 30,000 by default.
    pub lease_ms: Option<u64>,
    /// How long a message is kept.
    pub retention: Option<Retention>,
    /// Most messages that the queue holds; 0, the default, for any number.
    pub max_messages: Option<u64>,
    /// Most bytes of payload and metadata that the queue holds; 0, the default, for any number.
    pub max_bytes: Option<u64>,
    /// Streams: milliseconds after which a message is discarded; 0, the default, for never.
    pub max_age_ms: Option<u64>,
    /// What happens at a limit; on a direct queue, when the ring is full. Streams discard their oldest messages instead.
    pub overflow: Option<Overflow>,
    /// Milliseconds from its publishing after which a message is not given out any more but goes to the dead-letter queue (or is
    /// discarded and counted); 0, the default, for none.
    pub ttl_ms: Option<u64>,
}

/// How long a brokered queue keeps a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retention {
    /// Until every group has acknowledged it.
    #[default]
    Acknowledged,
    /// Until a limit discards it, whoever has acknowledged it.
    Stream,
}

/// What happens to a message for which a queue with a limit, or a direct queue, has no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// It waits in its producer's lane; on a direct queue its producer waits.
    #[default]
    Block,
    /// It is refused: [`Outcome::QueueFull`](crate::wire::Outcome::QueueFull), on a direct queue
    /// [`SendError::QueueFull`](crate::SendError::QueueFull).
    Reject,
    /// It is taken, and the oldest are discarded and counted. Only if the queue is not durable, and not on a direct spsc queue,
    /// whose producer can take nothing.
    DropOldest,
}

/// One queue, as `queue list` and `queue info` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Never used again after the queue is deleted.
    pub id: u64,
    /// Unique name: 1 to 200 bytes of `[A-Za-z0-9._-]`, not starting with a dot or a dash.
    pub name: String,
    /// `spsc` or `mpmc`.
    pub kind: Kind,
    /// `direct` or `brokered`.
    pub plane: Plane,
    /// Whether messages survive the machine.
    pub durable: bool,
    /// Slots in the ring.
    pub slots: u32,
    /// Bytes per slot.
    pub slot_size: u32,
    /// Longest payload in bytes.
    pub max_message: u32,
    /// Bytes of shared memory.
    pub memory_bytes: u64,
    /// User id of the owner.
    pub owner_uid: u32,
    /// Group id.
    pub group_gid: u32,
    /// Permission bits, see [`QueueSpec::mode`].
    pub mode: u32,
    /// `membarrier` or `fence`.
    pub wake_mode: WakeMode,
    /// `open`, `draining`, `deleted` or `fault`.
    pub state: String,
    /// Position of the next claim by a producer, in slots since creation.
    pub tail: u64,
    /// Position of the next claim by a consumer, in slots since creation.
    pub head: u64,
    /// Slots between head and tail.
    pub used_slots: u64,
    /// Producer handles attached.
    pub producers: u32,
    /// Consumer handles attached.
    pub consumers: u32,
    /// Handles repaired: their process died, or gave them back with slots in hand.
    pub repairs: u64,
    /// Claims of such producers that were discarded.
    pub tombstones: u64,
    /// Messages of such consumers that were given out again.
    pub returned: u64,
    /// Brokered queues only.
    pub brokered: Option<BrokeredInfo>,
    /// One entry a handle; filled by `queue info` only.
    pub handles: Vec<HandleInfo>,
    /// Whether it is deleted when the session of its creator ends.
    pub session: bool,
    /// What happens to a message for which there is no room.
    pub overflow: Overflow,
    /// Messages discarded by `drop-oldest`.
    pub dropped: u64,
}

/// What a shard knows about one of its queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokeredInfo {
    /// Sequence that the next message gets; the first one has 1.
    pub next_sequence: u64,
    /// Messages that are stored and not acknowledged by every group.
    pub messages: u64,
    /// Their payload and metadata bytes.
    pub message_bytes: u64,
    /// Of these, messages that the default group may give out now.
    pub ready: u64,
    /// Of these, messages that are with a consumer of the default group.
    pub unacknowledged: u64,
    /// Of these, messages whose delay is not over. Those that were published with a delay count from when it was their turn.
    pub delayed: u64,
    /// Deliveries beyond the first of a message, since the queue was created or the machine started.
    pub redelivered: u64,
    /// Messages that were moved to the dead-letter queue.
    pub dead_lettered: u64,
    /// Messages discarded after their last delivery because there is no dead-letter queue.
    pub discarded: u64,
    /// 0: any number.
    pub max_deliveries: u32,
    /// Empty: none.
    pub dead_letter: String,
    /// 0: as long as the consumer lives.
    pub lease_ms: u64,
    /// Number of the shard.
    pub shard: u32,
    /// How long a message is kept.
    pub retention: Retention,
    /// Most messages; 0: any number.
    pub max_messages: u64,
    /// Most bytes; 0: any number.
    pub max_bytes: u64,
    /// Streams: milliseconds that a message stays; 0: for ever.
    pub max_age_ms: u64,
    /// What happens at a limit.
    pub overflow: Overflow,
    /// Sequence of the oldest message that is stored; that of the next one if there is none.
    pub first_sequence: u64,
    /// Messages that left a stream by a limit.
    pub trimmed: u64,
    /// Messages discarded by `drop-oldest`.
    pub dropped: u64,
    /// Messages that were discarded by a limit before the default group had acknowledged them.
    pub skipped: u64,
    /// Producers whose messages wait for room below the limit.
    pub blocked_producers: u32,
    /// The limit that they wait for, `max-messages` or `max-bytes`; empty if nobody waits.
    pub blocked_by: String,
    /// Messages whose time to live was over: moved to the dead-letter queue, or discarded.
    pub expired: u64,
    /// 0: none.
    pub ttl_ms: u64,
    /// Messages that were refused because the queue was full, since the broker started.
    pub rejected: u64,
    /// Groups that get nothing because a message cannot be read.
    pub stalled_groups: u32,
    /// Of one of them: which message, and where the journal is damaged; empty if there is none.
    pub stalled_by: String,
}

/// One attached handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandleInfo {
    /// Index in the queue's handle table.
    pub handle: u8,
    /// Produce or consume.
    pub role: Role,
    /// Process id, in the daemon's pid namespace.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// `attached`, `detached` (its connection is closed, its process lives) or `stopped` (SIGSTOP).
    pub state: String,
    /// Messages that passed through this handle.
    pub messages: u64,
    /// Payload bytes that passed through this handle.
    pub bytes: u64,
    /// Slots that this handle has claimed and not yet published or released.
    pub owned_slots: u32,
    /// First position that it owns, if it owns any.
    pub owns_position: Option<u64>,
    /// Set while it waits: for how long, in nanoseconds.
    pub waiting_ns: Option<u64>,
    /// Set while it waits for a slot that another handle owns: that handle's index.
    pub delayed_by: Option<u8>,
    /// Set when it delays somebody: for how long at least, in nanoseconds.
    pub delays_others_ns: Option<u64>,
}

/// The daemon, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the running broker.
    pub version: String,
    /// Control protocol version.
    pub protocol: u16,
    /// Seconds since the keeper started.
    #[serde(rename = "uptime")]
    pub uptime_s: u64,
    /// Process that holds the rings.
    pub keeper_pid: u32,
    /// Process that serves requests and repairs.
    pub broker_pid: u32,
    /// How often the broker was started since the keeper runs.
    pub broker_starts: u64,
    /// Where it listens.
    pub socket: String,
    /// Queues.
    pub queues: u32,
    /// Connected sessions and sessions of live processes that are not connected.
    pub clients: u32,
    /// Attached handles.
    pub handles: u32,
    /// Bytes of shared memory in all queues.
    pub memory_bytes: u64,
    /// What does not work, in words: journals that failed, cannot be opened or have no room.
    pub troubles: Vec<String>,
    /// The journals that are open: one of the durable queues, one of the brokered queues in memory.
    pub journals: Vec<JournalInfo>,
}

/// Figures of a journal, in bytes unless it says otherwise. What is counted is counted since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalInfo {
    /// Number of its shard.
    pub shard: u32,
    /// The folder of its files; `None`: they are in memory.
    pub folder: Option<String>,
    /// Segments with records.
    pub segments: u64,
    /// Segment files that are held ready.
    pub spare_segments: u64,
    /// All files.
    pub file_bytes: u64,
    /// What of the segments is needed, as far as the cleaner has looked: one that it has not looked at yet counts whole.
    pub live_bytes: u64,
    /// Written, in whole blocks.
    pub written_bytes: u64,
    /// Records that the cleaner has copied.
    pub copied_bytes: u64,
    /// Segments whose messages it has copied.
    pub cleaned_segments: u64,
    /// Segments whose files were used again or removed, those included.
    pub freed_segments: u64,
    /// Groups that get nothing because a message cannot be read.
    pub stalled_groups: u32,
}

/// A group of a brokered queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name; empty for the default group.
    pub group: String,
    /// Messages that it has not acknowledged.
    pub lag_messages: u64,
    /// Their payload and metadata bytes.
    pub lag_bytes: u64,
    /// Age of the oldest of them in nanoseconds: this or a little less.
    pub lag_ns: u64,
    /// Consumers attached.
    pub consumers: u32,
    /// Of the messages, those that are with a consumer.
    pub unacknowledged: u64,
    /// Of the messages, those whose delay is not over.
    pub delayed: u64,
    /// First sequence that was never given out.
    pub next_sequence: u64,
    /// Messages that a limit discarded before the group had acknowledged them.
    pub skipped: u64,
    /// The default group of a stream, in which nobody has acknowledged anything and nobody is attached. It counts nothing: lag and
    /// skipped messages are 0.
    pub unused: bool,
    /// It gets nothing because a message cannot be read; [`BrokeredInfo::stalled_by`] says more.
    pub stalled: bool,
}

/// Where a group starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPlace {
    /// The first message that it gets.
    pub sequence: u64,
    /// Messages that are there for it.
    pub messages: u64,
}
