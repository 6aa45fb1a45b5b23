//! Names and values of the logic's interface.

use super::limits::{Limits, LimitsEdit};
use ringmain_client::protocol::{ErrorCode, GroupPlace, Kind};
use ringmain_client::wire::{DeliveryHeader, Outcome};
use serde::{Deserialize, Serialize};

pub use crate::journal::{
    AppendError, FLAG_MESSAGE, Location, Lsn, RecordRef, Replay, Snapshot, Stored,
};
pub use ringmain_client::protocol::{BrokeredInfo, HandleKey as HandleId, StartAt};

/// The time of a call, from the caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// For leases and delays.
    pub monotonic_ns: u64,
    /// For publish times: since 1970.
    pub realtime_ns: u64,
}

/// A brokered queue as it was created or last edited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDefinition {
    /// Never used again.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// How many may attach.
    pub kind: Kind,
    /// Whether it lies in the journal of the data folder.
    pub durable: bool,
    /// Slots in a lane and in a delivery ring.
    pub slots: u32,
    /// Bytes per slot.
    pub slot_size: u32,
    /// Longest payload in bytes.
    pub max_message: u32,
    /// Owner.
    pub owner_uid: u32,
    /// Group.
    pub group_gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Deliveries before a message is moved or discarded; 0: any number.
    pub max_deliveries: u32,
    /// Name of the dead-letter queue, a queue of the same shard; empty: none.
    pub dead_letter: String,
    /// Milliseconds; 0: as long as the consumer lives.
    pub lease_ms: u64,
    /// What it may hold.
    pub limits: Limits,
    /// Milliseconds from the publish time after which a message is not given out any more; 0: none.
    pub ttl_ms: u64,
}

/// What an edit changes; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueEdit {
    /// As in [`QueueDefinition`].
    pub max_deliveries: Option<u32>,
    /// As in [`QueueDefinition`].
    pub dead_letter: Option<String>,
    /// As in [`QueueDefinition`].
    pub lease_ms: Option<u64>,
    /// As in [`QueueDefinition`].
    pub limits: LimitsEdit,
    pub ttl_ms: Option<u64>,
}

/// Groups of a queue at most: each is looked at with every message.
pub const GROUPS_MAX: usize = 256;

/// A consumer that is to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSpec {
    /// Empty: the default group.
    pub group: String,
    /// Where a group that does not exist yet starts; where a browser starts.
    pub from: StartAt,
    /// Most unacknowledged messages; bounded by `leases`.
    pub credit: u32,
    /// Entries of its lease table; 1 to 4096. An entry is free again when the acknowledgement is durable, so there should be
    /// more entries than credit.
    pub leases: u32,
    /// Only shows messages.
    pub browse: bool,
    /// It was served by a broker that is gone.
    pub adopted: bool,
}

/// A message or a submission was not taken: it stays in its ring, and is offered again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The journal has no room now.
    Full,
    /// The queue is at its limit: nothing of this lane is taken before [`super::Logic::take_unblocked`] names it. Other lanes
    /// are as before.
    Limit,
    /// There is no such handle or queue, or the request makes no sense for it: its rings are to be closed.
    Unknown,
    /// The journal failed with this errno.
    JournalFailed(i32),
    /// The group of an adopted consumer was deleted: it ends.
    NoGroup,
    /// The queue has as many groups as it may have.
    GroupLimit,
}

/// How a delivery went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// It is in the ring.
    Sent,
    /// No room now; [`super::Logic::room`] says when there is.
    Full,
    /// It will never fit into this ring.
    TooLarge,
}

/// The answer to a control request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlResult {
    /// It is durable.
    Done,
    /// Messages discarded, durably.
    Purged(u64),
    /// Messages moved back, durably.
    Redriven(u64),
    /// A named producer is attached, durably.
    Named {
        /// Its id in the queue.
        id: u64,
        /// Of this attachment.
        epoch: u32,
        /// Last own sequence that is stored; 0: none.
        last: u64,
    },
    /// Nothing was changed.
    Refused(ErrorCode, String),
    /// The journal failed with this errno: it may or may not have been carried out.
    JournalFailed(i32),
    /// A group is durably there, or would be, if that was the question.
    Group(GroupPlace),
}

/// Towards the clients.
pub trait Port {
    /// The messages of a lane from one position to another have this outcome, and sequences from `first_sequence` on. Calls
    /// for a handle come in the order of its lane; sequences and positions have no gaps within a call.
    #[allow(clippy::too_many_arguments)]
    fn completed(
        &mut self,
        handle: HandleId,
        first_position: u64,
        last_position: u64,
        count: u32,
        first_sequence: u64,
        outcome: Outcome,
        detail: u64,
    );
    /// A message. After [`Self::lease`], unless the header's attempt is 0 (only shown).
    fn deliver(
        &mut self,
        handle: HandleId,
        header: &DeliveryHeader,
        flags: u16,
        metadata: &[u8],
        payload: &[u8],
    ) -> Delivered;
    /// The answer to a request that asked for one.
    fn answer(&mut self, handle: HandleId, request: u64, outcome: Outcome, detail: u64);
    /// A limit has discarded so many messages of the consumer's group that were with nobody. In front of the next delivery.
    fn skipped(&mut self, handle: HandleId, messages: u64);
    /// This message cannot be read: the consumer's group does not go on. 0: it does again.
    fn unreadable(&mut self, handle: HandleId, sequence: u64);
    /// Nothing is left for this handle now.
    fn drained(&mut self, handle: HandleId);
    /// Sets an entry (attempt, sequence) of the handle's lease table, before the delivery is sent, or frees it.
    fn lease(&mut self, handle: HandleId, slot: u32, lease: Option<(u32, u64)>);
    /// Entries were freed although the client may not have looked at their deliveries: it is to look at the table.
    fn recalled(&mut self, handle: HandleId);
    /// Whether the client has looked at the delivery in this entry: its consumer position is behind it. A message that nobody
    /// has looked at returns without being counted.
    fn seen(&mut self, handle: HandleId, slot: u32) -> bool;
    /// What a control request came to, once it is durable.
    fn control(&mut self, request: u64, result: ControlResult);
    /// The group of this consumer is deleted: the caller closes the handle.
    fn ended(&mut self, handle: HandleId);
}
