//! A log and clients in memory.

use std::collections::{BTreeMap, BTreeSet};

use ringmain_client::protocol::Kind;
use ringmain_client::wire::{DeliveryHeader, Outcome};

use crate::shard::logic::{
    AppendError, ControlResult, Delivered, HandleId, Limits, Location, Log, Logic, Lsn, Message,
    Now, Port, QueueDefinition, RecordRef, Replay, Snapshot, Stored,
};

/// Room for the longest metadata.
const GROUP_BYTES_MAX: usize = 128 * 1024;

/// A record as it was appended.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) queue: u64,
    pub(super) sequence: u64,
    pub(super) body: Vec<u8>,
}

impl Record {
    fn new(record: RecordRef<'_>) -> Self {
        let RecordRef { kind, flags, queue, sequence, parts } = record;
        Self { kind, flags, queue, sequence, body: parts.concat() }
    }

    fn stored(&self, lsn: Lsn) -> Stored<'_> {
        Stored {
            lsn,
            location: Location { segment: 1, batch: 0, record: 0 },
            kind: self.kind,
            flags: self.flags,
            queue: self.queue,
            sequence: self.sequence,
            body: &self.body,
        }
    }
}

/// The record with LSN n is the n-th.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryLog {
    pub(super) records: Vec<Record>,
    index: BTreeMap<(u64, u64), usize>,
    group: Option<usize>,
    /// No room.
    pub(super) full: bool,
    /// Every append fails.
    pub(super) failed: bool,
    /// Messages that have to be read from far away first; asking begins that.
    pub(super) far: BTreeSet<(u64, u64)>,
    /// Of all messages, so many may be given to readers now; the others are far away.
    pub(super) readers_may_have: Option<u32>,
    /// Messages that cannot be read.
    pub(super) lost: BTreeSet<(u64, u64)>,
    /// Messages that a repair gave up.
    pub(super) gone: BTreeSet<(u64, u64)>,
    pub(super) forgotten: BTreeMap<u64, u64>,
    /// State at an LSN.
    pub(super) checkpoint: Option<(Lsn, Vec<Record>)>,
}

impl MemoryLog {
    pub(super) fn last(&self) -> Lsn {
        self.records.len() as Lsn
    }

    pub(super) fn write_checkpoint(&mut self, logic: &Logic) {
        let mut records = Vec::new();
        logic.write(&mut |record| records.push(Record::new(record)));
        self.checkpoint = Some((self.last(), records));
    }

    /// Everything behind this LSN is lost.
    pub(super) fn cut(&mut self, lsn: Lsn) {
        self.records.truncate(usize::try_from(lsn).expect("small"));
        let records = self.records.len();
        self.index.retain(|_, at| *at < records);
        if self.checkpoint.as_ref().is_some_and(|(at, _)| *at > lsn) {
            self.checkpoint = None;
        }
        self.far.clear();
    }

    /// Replays everything, or the checkpoint and what is behind `overlap` records in front of it.
    pub(super) fn replay(&self, with_checkpoint: bool, overlap: u64) -> Result<Logic, String> {
        let mut logic = Logic::new(7);
        let mut from = 0;
        if let Some((lsn, records)) = self.checkpoint.as_ref().filter(|_| with_checkpoint) {
            logic.checkpoint_begin();
            for record in records {
                logic.record(record.stored(*lsn))?;
            }
            logic.checkpoint_end();
            from = usize::try_from(lsn.saturating_sub(overlap)).expect("small");
        }
        for (record, lsn) in self.records[from..].iter().zip(from as Lsn + 1..) {
            logic.record(record.stored(lsn))?;
        }
        Ok(logic)
    }
}

impl Log for MemoryLog {
    fn group_bytes_max(&self) -> usize {
        GROUP_BYTES_MAX
    }

    fn begin(&mut self) {
        assert!(self.group.is_none(), "groups do not nest");
        self.group = Some(self.records.len());
    }

    fn append(&mut self, record: RecordRef<'_>) -> Result<(Lsn, Location), AppendError> {
        if self.failed {
            return Err(AppendError::Failed { errno: 5 });
        }
        if self.full {
            return Err(AppendError::Full);
        }
        let record = Record::new(record);
        if record.body.len() > GROUP_BYTES_MAX {
            return Err(AppendError::TooLarge { limit_bytes: GROUP_BYTES_MAX });
        }
        if record.sequence != 0 {
            let old = self.index.insert((record.queue, record.sequence), self.records.len());
            assert_eq!(old, None, "a sequence is used once");
        }
        self.records.push(record);
        Ok((self.last(), Location { segment: 1, batch: 0, record: 0 }))
    }

    fn commit(&mut self) {
        self.group.take().expect("a group was begun");
    }

    fn abort(&mut self) {
        let start = self.group.take().expect("a group was begun");
        self.cut(start as Lsn);
    }

    fn message(&mut self, queue: u64, sequence: u64) -> Message<'_> {
        assert!(
            self.forgotten.get(&queue).is_none_or(|below| sequence >= *below),
            "message {sequence} was to be forgotten"
        );
        if self.lost.contains(&(queue, sequence)) {
            return Message::Lost("rotten".to_owned());
        }
        if self.gone.contains(&(queue, sequence)) {
            return Message::Gone;
        }
        if self.far.remove(&(queue, sequence)) {
            return Message::Pending;
        }
        match self.index.get(&(queue, sequence)) {
            Some(at) => Message::Ready(&self.records[*at].body),
            None => Message::Gone,
        }
    }

    fn message_for_reader(&mut self, queue: u64, sequence: u64, _: &mut u32) -> Message<'_> {
        match &mut self.readers_may_have {
            Some(0) => return Message::Pending,
            Some(left) => *left -= 1,
            None => {}
        }
        self.message(queue, sequence)
    }

    fn forget(&mut self, queue: u64, below: u64) {
        self.forgotten.insert(queue, below);
    }
}

/// What the clients see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Completed { handle: HandleId, position: u64, sequence: u64, outcome: Outcome },
    Delivered { handle: HandleId, header: DeliveryHeader, metadata: Vec<u8>, payload: Vec<u8> },
    Answer { handle: HandleId, request: u64, outcome: Outcome },
    Skipped { handle: HandleId, messages: u64 },
    Drained { handle: HandleId },
    Unreadable { handle: HandleId, sequence: u64 },
    Control { request: u64, result: ControlResult },
    Ended { handle: HandleId },
}

#[derive(Debug, Clone, Default)]
pub(super) struct MemoryPort {
    pub(super) events: Vec<Event>,
    /// Entries in use: attempt, sequence.
    pub(super) leases: BTreeMap<(HandleId, u32), (u32, u64)>,
    /// Room in delivery rings; unlimited if not there.
    pub(super) room: BTreeMap<HandleId, u32>,
    /// Deliveries that their consumer has not looked at.
    pub(super) unseen: BTreeSet<(HandleId, u32)>,
    /// The next deliveries are not looked at.
    pub(super) blind: bool,
}

impl Port for MemoryPort {
    fn completed(
        &mut self,
        handle: HandleId,
        first_position: u64,
        last_position: u64,
        count: u32,
        first_sequence: u64,
        outcome: Outcome,
        _detail: u64,
    ) {
        let stride = (last_position - first_position) / u64::from(count).max(2).saturating_sub(1);
        for number in 0..u64::from(count) {
            let position = first_position + stride * number;
            let sequence = if outcome == Outcome::Done { first_sequence + number } else { 0 };
            self.events.push(Event::Completed { handle, position, sequence, outcome });
        }
    }

    fn deliver(
        &mut self,
        handle: HandleId,
        header: &DeliveryHeader,
        _flags: u16,
        metadata: &[u8],
        payload: &[u8],
    ) -> Delivered {
        if payload.len() > 60_000 {
            return Delivered::TooLarge;
        }
        if let Some(room) = self.room.get_mut(&handle) {
            if *room == 0 {
                return Delivered::Full;
            }
            *room -= 1;
        }
        let lease = header.lease;
        if lease.attempt != 0 {
            let entry = self.leases.get(&(handle, lease.slot));
            assert_eq!(entry, Some(&(lease.attempt, lease.sequence)), "the lease comes first");
            if self.blind {
                self.unseen.insert((handle, lease.slot));
            }
        }
        let (metadata, payload) = (metadata.to_vec(), payload.to_vec());
        self.events.push(Event::Delivered { handle, header: *header, metadata, payload });
        Delivered::Sent
    }

    fn answer(&mut self, handle: HandleId, request: u64, outcome: Outcome, _detail: u64) {
        self.events.push(Event::Answer { handle, request, outcome });
    }

    fn skipped(&mut self, handle: HandleId, messages: u64) {
        self.events.push(Event::Skipped { handle, messages });
    }

    fn unreadable(&mut self, handle: HandleId, sequence: u64) {
        self.events.push(Event::Unreadable { handle, sequence });
    }

    fn drained(&mut self, handle: HandleId) {
        self.events.push(Event::Drained { handle });
    }

    fn lease(&mut self, handle: HandleId, slot: u32, lease: Option<(u32, u64)>) {
        let old = match lease {
            Some(lease) => self.leases.insert((handle, slot), lease),
            None => {
                self.unseen.remove(&(handle, slot));
                self.leases.remove(&(handle, slot))
            }
        };
        assert_eq!(old.is_some(), lease.is_none(), "entry {slot} of {handle:?}");
    }

    fn recalled(&mut self, _handle: HandleId) {}

    fn seen(&mut self, handle: HandleId, slot: u32) -> bool {
        !self.unseen.contains(&(handle, slot))
    }

    fn control(&mut self, request: u64, result: ControlResult) {
        self.events.push(Event::Control { request, result });
    }

    fn ended(&mut self, handle: HandleId) {
        self.events.push(Event::Ended { handle });
    }
}

pub(super) fn definition(id: u64, name: &str) -> QueueDefinition {
    QueueDefinition {
        id,
        name: name.to_owned(),
        kind: Kind::Mpmc,
        durable: true,
        slots: 1024,
        slot_size: 256,
        max_message: 65_536,
        owner_uid: 1000,
        group_gid: 1000,
        mode: 0o700,
        max_deliveries: 0,
        dead_letter: String::new(),
        lease_ms: 30_000,
        limits: Limits::default(),
        ttl_ms: 0,
    }
}

pub(super) fn handle(queue: u64, handle: u8) -> HandleId {
    HandleId { queue, handle, epoch: 1 }
}

pub(super) fn at_ms(ms: u64) -> Now {
    Now { monotonic_ns: ms * 1_000_000, realtime_ns: 1_700_000_000_000_000_000 + ms * 1_000_000 }
}
