//! What a shard decides: sequences, groups, leases, attempts, dead letters. No I/O, no clock, no threads.
//!
//! # The caller's turn
//! 1. submissions ([`Logic::submission`]), then lanes ([`Logic::publish`]); both may be refused with [`Refusal::Full`]:
//!    then the message stays in its ring;
//! 2. [`Logic::on_time`] if [`Logic::next_deadline`] is over;
//! 3. [`Logic::dispatch`] while it returns `true` and there is nothing more urgent;
//! 4. [`Logic::flush`]: acknowledgements and returns that were gathered become records; then `Journal::submit`;
//! 5. after `Journal::reap`: [`Logic::on_durable`], **every turn**, also if nothing new is durable; then [`Logic::dispatch`].
//!
//! # Restart
//! Replay the journal into a new [`Logic`], open the handles that live and adopt their leases, then [`Logic::start`]. Nothing is
//! dispatched before that.

mod log;
mod types;

use ringmain_client::wire::Up;

pub use log::{
    AppendError, FLAG_MESSAGE, Location, Log, Lsn, Message, RecordRef, Replay, Snapshot, Stored,
};
pub use types::{
    BrokeredInfo, ConsumerSpec, ControlResult, Delivered, HandleId, Now, Port, QueueDefinition,
    QueueEdit, Refusal, StartAt,
};

/// Messages of a lane that are journaled and that [`Logic::released`] has not been called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneRun {
    /// Lane position of the first message.
    pub first_position: u64,
    /// From one message to the next.
    pub stride: u64,
    /// Messages.
    pub count: u32,
    /// Sequence of the first message; the others follow without gaps.
    pub first_sequence: u64,
}

/// The queues of a shard.
#[derive(Debug)]
pub struct Logic {}

#[allow(unused_variables, clippy::too_many_arguments)]
impl Logic {
    /// Without queues.
    pub fn new(shard: u32) -> Self { todo!() }
    /// After replay and adoption: delays start afresh, what was leased and is not adopted is available, dispatching begins.
    pub fn start(&mut self, now: Now) { todo!() }

    /// Ids below this one may have been used.
    pub fn next_queue_id(&self) -> u64 { todo!() }
    /// Definitions of all queues, by id.
    pub fn queues(&self) -> impl Iterator<Item = &QueueDefinition> + '_ { std::iter::empty() }
    /// Figures of a queue.
    pub fn info(&self, queue: u64) -> Option<BrokeredInfo> { todo!() }
    /// Groups that cannot go on because a message cannot be read: queue, group, what.
    pub fn stalls(&self) -> impl Iterator<Item = (u64, &str, &str)> + '_ { std::iter::empty() }

    // Control requests. The answer comes through `Port::control` from `on_durable`, also a refusal.
    pub fn create_queue(&mut self, log: &mut dyn Log, request: u64, definition: QueueDefinition) { todo!() }
    pub fn edit_queue(&mut self, log: &mut dyn Log, request: u64, queue: u64, edit: QueueEdit) { todo!() }
    /// From now on publishes are completed with `QueueDeleted`. The caller closes the handles.
    pub fn delete_queue(&mut self, log: &mut dyn Log, request: u64, queue: u64) { todo!() }
    /// Discards everything that was published so far, for all groups, also what is leased.
    pub fn purge(&mut self, log: &mut dyn Log, port: &mut dyn Port, request: u64, queue: u64) { todo!() }
    /// Moves messages of a dead-letter queue back, at most `count` (0: all that are there now).
    pub fn redrive(&mut self, log: &mut dyn Log, request: u64, queue: u64, count: u64) { todo!() }

    /// `lane` names the lane for ever: it is in the records.
    pub fn open_producer(&mut self, handle: HandleId, lane: u64) -> Result<(), Refusal> { todo!() }
    /// Creates the group if it does not exist. `Full`: try again later.
    pub fn open_consumer(&mut self, log: &mut dyn Log, handle: HandleId, spec: &ConsumerSpec) -> Result<(), Refusal> { todo!() }
    /// Before [`Self::start`]: an entry in the lease table of an adopted consumer. `false`: the message is not there any more (or
    /// another one has it with a higher attempt): the entry is to be freed.
    pub fn adopt_lease(&mut self, handle: HandleId, slot: u32, sequence: u64, attempt: u32) -> bool { todo!() }
    /// What an adopted lane has in the journal from this position on: each is to be completed if it was not.
    pub fn lane_runs(&self, lane: u64, from_position: u64) -> Vec<LaneRun> { todo!() }
    /// Lane positions below this one are released.
    pub fn released(&mut self, handle: HandleId, position: u64) { todo!() }
    /// The handle is gone: leases return at once. Everything in its lane and submissions was taken before.
    pub fn close_handle(&mut self, port: &mut dyn Port, handle: HandleId, died: bool, now: Now) { todo!() }

    /// A message from a lane. `next_position` is the position behind it.
    pub fn publish(&mut self, log: &mut dyn Log, handle: HandleId, position: u64, next_position: u64, flags: u16, metadata: &[u8], payload: &[u8], now: Now) -> Result<(), Refusal> { todo!() }
    /// A record from a consumer. The caller may release its slot in the ring when everything up to the next [`Self::flush`] is
    /// durable; what it did not release before the broker died is submitted again with `again`.
    pub fn submission(&mut self, port: &mut dyn Port, handle: HandleId, up: Up, again: bool, now: Now) -> Result<(), Refusal> { todo!() }
    /// Appends what was gathered. `false`: the journal has no room, it stays gathered.
    pub fn flush(&mut self, log: &mut dyn Log) -> bool { todo!() }

    /// Everything up to this LSN is durable.
    pub fn on_durable(&mut self, lsn: Lsn, port: &mut dyn Port, log: &mut dyn Log, now: Now) { todo!() }
    /// The journal failed. `lsn` is the last durable one: [`Self::on_durable`] has been called for it.
    pub fn on_failed(&mut self, errno: i32, lsn: Lsn, port: &mut dyn Port) { todo!() }

    /// There is room in the delivery ring of a handle again.
    pub fn room(&mut self, handle: HandleId) { todo!() }
    /// Gives out messages, a bounded number. `true`: there is more to do at once.
    pub fn dispatch(&mut self, log: &mut dyn Log, port: &mut dyn Port, now: Now) -> bool { todo!() }
    /// When [`Self::on_time`] is due, on the monotonic clock.
    pub fn next_deadline(&mut self) -> Option<u64> { todo!() }
    /// Leases and delays that are over.
    pub fn on_time(&mut self, port: &mut dyn Port, now: Now) { todo!() }
}

impl Snapshot for Logic {
    fn write(&self, _emit: &mut dyn FnMut(RecordRef<'_>)) { todo!() }
    fn is_live(&self, _segment: u64) -> bool { todo!() }
}

impl Replay for Logic {
    fn checkpoint_begin(&mut self) { todo!() }
    fn record(&mut self, _record: Stored<'_>) -> Result<(), String> { todo!() }
    fn checkpoint_end(&mut self) { todo!() }
}
