//! One queue.

use super::expiry::Looks;
use super::group::Group;
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
    /// Group that dispatch begins with.
    pub(super) turn: usize,
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
    pub(super) armed_ns: Option<u64>,
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
            dirty: false,
            deleted: false,
            purging: 0,
            settled: 0,
            looks: Looks::default(),
            uses_ttl: false,
            expired: 0,
            armed_ns: None,
        }
    }

    /// The rules are others from now on.
    pub(super) fn define(&mut self, definition: QueueDefinition) {
        let ttl_ms = std::mem::replace(&mut self.definition, definition).ttl_ms;
        if ttl_ms != self.definition.ttl_ms {
            self.look_at_all();
        }
    }

    pub(super) fn group_by_id(&mut self, id: u32) -> Option<&mut Group> {
        self.groups.iter_mut().find(|group| group.id == id)
    }

    /// A message was appended.
    pub(super) fn appended(&mut self, published_ns: u64, bytes: usize) {
        self.next_sequence += 1;
        self.published_ns = published_ns;
        for group in &mut self.groups {
            group.bytes += bytes as u64;
        }
    }
}
