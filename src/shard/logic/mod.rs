//! What a shard decides: sequences, groups, leases, attempts, dead letters. No I/O, no clock, no threads. docs/brokered.md has the
//! semantics.
//!
//! # The caller's turn
//! 1. submissions ([`Logic::submission`]), then lanes ([`Logic::publish`]); both may be refused with [`Refusal::Full`]:
//!    then the message stays in its ring and is offered again later;
//! 2. [`Logic::on_time`] if [`Logic::next_deadline`] is over;
//! 3. [`Logic::flush`]: acknowledgements and returns that were gathered become records; then `Journal::submit`. It may be left out
//!    for a moment as long as [`Logic::is_patient`];
//! 4. after `Journal::reap`: [`Logic::on_durable`], **every turn**, also if nothing new is durable;
//! 5. [`Logic::dispatch`] while it returns `true` and there is nothing more urgent;
//! 6. lanes that were refused with [`Refusal::Limit`] are offered again when [`Logic::take_unblocked`] names them.
//!
//! After a failure of the journal: `on_durable` for what is durable, [`Logic::on_failed`] once, then turns as before.
//!
//! # Restart
//! Replay the journal into a new [`Logic`], open the handles that live and adopt their leases, then [`Logic::start`]. Nothing is
//! dispatched before that.

mod adopt;
mod canary;
mod consumer;
mod control;
mod dead_letter;
mod dispatch;
mod earned;
mod effects;
mod expiry;
mod gather;
mod group;
mod groups;
mod handles;
pub mod headers;
mod info;
mod limits;
mod log;
mod marks;
mod named;
mod publish;
mod queue;
pub mod record;
mod redrive;
mod replay;
mod returns;
mod slab;
mod snapshot;
mod submission;
mod time;
mod transaction;
mod trim;
mod types;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use consumer::Consumer;
use control::Command;
use effects::Effects;
use gather::Gather;
use group::Stalls;
use groups::Searches;
use handles::{HandleRef, Producer};
use queue::Queue;
use redrive::RedriveJob;
use slab::Slab;

use time::Timer;

pub use groups::GroupCommand;
pub use handles::LaneRun;
pub use limits::{Limits, LimitsEdit};
pub use log::{Log, Message};
pub use named::{FORGOTTEN_AFTER_NS, NAMES_MAX};
pub use publish::message_bytes_max;
pub(super) use slab::NumberMap;
pub use transaction::{TransactionAck, TransactionMessage};
pub use types::{
    AppendError, BrokeredInfo, ConsumerSpec, ControlResult, Delivered, FLAG_MESSAGE, GROUPS_MAX,
    HandleId, Location, Lsn, Now, Port, QueueDefinition, QueueEdit, RecordRef, Refusal, Replay,
    Snapshot, StartAt, Stored,
};

/// The queues of a shard.
#[derive(Debug)]
pub struct Logic {
    shard: u32,
    next_queue_id: u64,
    queues: Slab<Queue>,
    by_id: NumberMap<u64, u32>,
    by_name: BTreeMap<String, u32>,
    handles: NumberMap<HandleId, HandleRef>,
    producers: Slab<Producer>,
    consumers: Slab<Consumer>,
    next_generation: u32,
    effects: Effects,
    gathered: Gather,
    commands: VecDeque<Command>,
    redrives: VecDeque<RedriveJob>,
    timers: BTreeSet<(u64, Timer)>,
    /// Queues that dispatch has to look at.
    dirty: VecDeque<u32>,
    /// Memory of a call of dispatch.
    served: Vec<u32>,
    /// Queues that may have more than they may keep.
    overfull: VecDeque<u32>,
    /// Producers that may go on after [`Refusal::Limit`].
    unblocked: Vec<HandleId>,
    /// Lanes of the replayed journal.
    lanes: BTreeMap<u64, VecDeque<LaneRun>>,
    /// A copy of a message that is to be moved.
    scratch: Vec<u8>,
    stalls: Stalls,
    /// Queues whose messages are gone, since somebody asked.
    losses_untold: Vec<String>,
    started: bool,
    failed: Option<i32>,
    /// Starts at a time that are being looked for.
    searches: Searches,
    now: Now,
    /// While a checkpoint is replayed: what there was before it.
    before_checkpoint: Option<Box<Logic>>,
}

impl Logic {
    /// Without queues.
    pub fn new(shard: u32) -> Self {
        Self {
            shard,
            next_queue_id: 1,
            queues: Slab::default(),
            by_id: NumberMap::default(),
            by_name: BTreeMap::new(),
            handles: NumberMap::default(),
            producers: Slab::default(),
            consumers: Slab::default(),
            next_generation: 0,
            effects: Effects::default(),
            gathered: Gather::default(),
            commands: VecDeque::new(),
            redrives: VecDeque::new(),
            timers: BTreeSet::new(),
            dirty: VecDeque::new(),
            served: Vec::new(),
            overfull: VecDeque::new(),
            unblocked: Vec::new(),
            lanes: BTreeMap::new(),
            scratch: Vec::new(),
            stalls: Stalls::default(),
            losses_untold: Vec::new(),
            started: false,
            failed: None,
            searches: Searches::new(),
            now: Now::default(),
            before_checkpoint: None,
        }
    }

    /// Dispatch is to look at this queue.
    fn mark(&mut self, index: u32) {
        if let Some(queue) = self.queues.get_mut(index)
            && !queue.dirty
        {
            queue.dirty = true;
            self.dirty.push_back(index);
        }
    }
}
