//! One queue.

use std::collections::VecDeque;

use super::expiry::Looks;
use super::group::Group;
use super::limits::WaitingLane;
use super::marks::Marks;
use super::named::NamedProducers;
use super::types::QueueDefinition;

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) definition: QueueDefinition,
    /// The next message gets it.
    pub(super) next_sequence: u64,
    /// Messages below it are durable.
    pub(super) durable_end: u64,
    /// Publish time of the last message.
    pub(super) published_ns: u64,
    /// The first one is the default group.
    pub(super) groups: Vec<Group>,
    pub(super) next_group: u32,
    pub(super) redelivered: u64,
    pub(super) dead_lettered: u64,
    pub(super) discarded: u64,
    pub(super) browsers: Vec<u32>,
    /// Group that dispatch begins with; behind the last one, those who only look.
    pub(super) turn: usize,
    /// Of those, the one that comes first.
    pub(super) browser_turn: usize,
    /// It is in the list of those that dispatch has to look at.
    pub(super) dirty: bool,
    /// A deletion is on its way to the disk.
    pub(super) deleted: bool,
    /// Purges on their way to the disk.
    pub(super) purging: u32,
    /// Since the log was last told what it may forget.
    pub(super) settled: u32,
    /// Messages that may expire, and when.
    pub(super) looks: Looks,
    /// It has or had messages that expire.
    pub(super) uses_ttl: bool,
    /// Messages moved or discarded because their TTL was over.
    pub(super) expired: u64,
    /// Entry in the timers, for the first look.
    pub(super) looks_armed_ns: Option<u64>,
    pub(super) marks: Marks,
    /// Messages below it were discarded, by a limit or a purge. Of a stream, everything from here on is kept.
    pub(super) first: u64,
    /// Of each record on its way to the disk by which a limit discards messages: the oldest one that was there before.
    pub(super) cancelling: VecDeque<u64>,
    /// Messages that left a stream by a limit.
    pub(super) trimmed: u64,
    /// Messages discarded to make room.
    pub(super) dropped: u64,
    /// Messages refused for want of room, in this life.
    pub(super) rejected: u64,
    /// Producers whose messages wait for room, in the order in which they came.
    pub(super) waiting: VecDeque<WaitingLane>,
    /// Messages below it were stored before this start: those of them that the log does not have were given up by a repair of it.
    pub(super) replayed_end: u64,
    /// It was said that messages of it are gone.
    pub(super) is_loss_told: bool,
    /// It is in the list of those that may have more than they may keep.
    pub(super) overfull: bool,
    /// Entry in the timers, for the age of the oldest message.
    pub(super) armed_ns: Option<u64>,
    pub(super) named: NamedProducers,
}

impl Queue {
    pub(super) fn new(definition: QueueDefinition) -> Self {
        Self {
            definition,
            next_sequence: 1,
            durable_end: 1,
            published_ns: 0,
            groups: vec![Group::new(0, "", 1)],
            next_group: 1,
            redelivered: 0,
            dead_lettered: 0,
            discarded: 0,
            browsers: Vec::new(),
            turn: 0,
            browser_turn: 0,
            dirty: false,
            deleted: false,
            purging: 0,
            settled: 0,
            looks: Looks::default(),
            uses_ttl: false,
            expired: 0,
            looks_armed_ns: None,
            marks: Marks::default(),
            first: 1,
            cancelling: VecDeque::new(),
            trimmed: 0,
            dropped: 0,
            rejected: 0,
            waiting: VecDeque::new(),
            replayed_end: 1,
            is_loss_told: false,
            overfull: false,
            armed_ns: None,
            named: NamedProducers::default(),
        }
    }

    /// That messages are gone, if it was not said before.
    pub(super) fn loss(&mut self, sequence: u64) -> Option<String> {
        let is_told = std::mem::replace(&mut self.is_loss_told, true);
        let name = &self.definition.name;
        (!is_told).then(|| format!("message {sequence} of queue {name} is not in the journal"))
    }

    /// Every message is done with.
    pub(super) fn is_done_with(&self) -> bool {
        let is_empty = !self.is_stream() || self.first == self.next_sequence;
        is_empty && self.groups.iter().all(|group| group.open(self.next_sequence) == 0)
    }

    pub(super) fn group_by_id(&mut self, id: u32) -> Option<&mut Group> {
        self.groups.iter_mut().find(|group| group.id == id)
    }

    /// A message was appended.
    pub(super) fn appended(&mut self, published_ns: u64, bytes: usize) {
        let step_bytes = self.definition.limits.mark_bytes();
        self.marks.appended(self.next_sequence, published_ns, bytes, step_bytes);
        self.next_sequence += 1;
        self.published_ns = published_ns;
        for group in &mut self.groups {
            group.bytes += bytes as u64;
        }
    }
}
