//! One handle as its shard has it: two rings, what was taken out of one, what waits for room in the other.

use std::collections::VecDeque;

use ringmain_client::layout::{control, spsc_page};
use ringmain_client::pair::{LeaseEntry, LeaseTable};
use ringmain_client::protocol::{HandleKey, Role, WakeMode};
use ringmain_client::ring::{
    Closed, Consumer, Fault, Kernel, Producer, RingMemory, Taken, TryReceiveError, TrySendError,
    repair, wake_sleepers,
};
use ringmain_client::sync::atomic::Ordering;
use ringmain_client::sys::kernel::HostKernel;
use ringmain_client::wire::{DeliveryHeader, Down, Encoded, Outcome, RECORD_BYTES_MAX};

use super::memory::PairMemory;

/// A slot of a ring with records: the word and the header, then the record.
const RECORD_OFFSET: usize = ringmain_client::layout::slot::BODY;

/// A message or record that was taken and whose slots are not released yet.
#[derive(Debug)]
struct Held {
    taken: Taken,
    /// Submissions: they are released when everything up to this LSN is durable; unknown until what follows from them is
    /// appended.
    lsn: Option<u64>,
    /// To be answered then.
    request: Option<u64>,
}

/// What goes into the ring towards the client when there is room.
#[derive(Debug, Clone, Copy)]
enum Waiting {
    Completion { first: u64, last: u64, count: u32, sequence: u64, outcome: Outcome, detail: u64 },
    Record(Down),
}

/// One of the two rings.
#[derive(Debug, Clone, Copy)]
enum Side {
    Up,
    Down,
}

/// One handle.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) key: HandleKey,
    pub(super) role: Role,
    pub(super) session: u64,
    pub(super) ready_index: u32,
    kernel: HostKernel,
    up: Consumer,
    down: Producer,
    /// Taken and not released, oldest first.
    held: VecDeque<Held>,
    /// Of `held`, the last: taken out of the ring, refused by the journal for want of room.
    pub(super) refused: bool,
    /// The queue is at its limit: nothing is taken out of the lane.
    pub(super) is_limited: bool,
    /// Records for the client, oldest first.
    waiting: VecDeque<Waiting>,
    /// There was no room towards the client when it had come this far.
    blocked_at: Option<u64>,
    /// In the list of those that may have something.
    pub(super) is_listed: bool,
    /// In the list of those whose clients may have to be woken.
    pub(super) is_touched: bool,
    wake_up: bool,
    wake_down: bool,
    /// Doorbells that its client wants rung: number and bit, as the client says.
    rings: Vec<(u32, u32)>,
    /// It was given back (`false`) or its process is dead (`true`).
    pub(super) closing: Option<bool>,
    /// Nothing more was in `up` since then.
    pub(super) is_drained: bool,
    /// What its client did.
    pub(super) fault: Option<String>,
    /// Submissions before this position were taken by a broker that is gone.
    again_before: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) leases: LeaseTable,
    /// Behind the rings: dropped after them.
    pub(super) memory: PairMemory,
}

impl Handle {
    /// Fails if the client has written what cannot be.
    pub(super) fn new(
        key: HandleKey,
        memory: PairMemory,
        session: u64,
        ready_index: u32,
        wake_mode: WakeMode,
    ) -> Result<Self, Fault> {
        let (up, down) = ends(&memory, key).inspect_err(|_| memory.close(control::CLOSED_FAULT))?;
        let pair = &memory.pair;
        let geometry = *pair.geometry();
        let RingMemory::Spsc { consumer, .. } = pair.up() else { unreachable!("pairs are spsc") };
        // Relaxed: written by a broker that is gone.
        let again_before = consumer.u64_at(spsc_page::TAKEN).load(Ordering::Relaxed);
        Ok(Self {
            key,
            role: geometry.role(),
            session,
            ready_index,
            kernel: HostKernel::new(wake_mode),
            up,
            down,
            held: VecDeque::new(),
            refused: false,
            is_limited: false,
            waiting: VecDeque::new(),
            blocked_at: None,
            is_listed: false,
            is_touched: false,
            wake_up: false,
            wake_down: false,
            rings: Vec::new(),
            closing: None,
            is_drained: false,
            fault: None,
            again_before,
            messages: 0,
            bytes: 0,
            leases: memory.pair.leases(),
            memory,
        })
    }

    /// Takes the next message out of `up`, into these buffers: its position, the position behind it, its flags. What the
    /// journal refused before comes again.
    pub(super) fn take(
        &mut self,
        metadata: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<Option<(u64, u64, u16)>, Fault> {
        if !self.hold_next()? {
            return Ok(None);
        }
        let Some(Held { taken, .. }) = self.held.back() else { return Ok(None) };
        metadata.resize(taken.metadata_length(), 0);
        payload.resize(taken.length(), 0);
        self.up.read_metadata(taken, metadata);
        self.up.read(taken, 0, payload);
        Ok(Some((taken.sequence(), self.up.position(), taken.flags())))
    }

    /// The same of a record: its position and its length. Of one that is longer than any record the front is copied.
    #[inline(always)]
    pub(super) fn take_record(
        &mut self,
        into: &mut [u8; RECORD_BYTES_MAX],
    ) -> Result<Option<(u64, usize)>, Fault> {
        if !self.hold_next()? {
            return Ok(None);
        }
        let Some(Held { taken, .. }) = self.held.back() else { return Ok(None) };
        self.up.read(taken, 0, into);
        Ok(Some((taken.sequence(), taken.length())))
    }

    /// Takes the next message of `up` and holds it, unless the last one is to come again; whether there is one.
    #[inline(always)]
    fn hold_next(&mut self) -> Result<bool, Fault> {
        if !std::mem::take(&mut self.refused) {
            match self.up.try_take() {
                Ok(taken) => self.held.push_back(Held { taken, lsn: None, request: None }),
                Err(TryReceiveError::Empty | TryReceiveError::Closed(_)) => return Ok(false),
                Err(TryReceiveError::Fault(fault)) => return Err(fault),
            }
        }
        Ok(true)
    }

    /// Whether a submission at this position may have been taken by a broker that is gone.
    pub(super) fn is_again(&self, position: u64) -> bool {
        position < self.again_before
    }

    /// Position of the next message of `up` that was not taken.
    pub(super) fn up_position(&self) -> u64 {
        self.up.position()
    }

    /// Messages taken and not released.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// What follows from all submissions so far is appended up to this LSN.
    pub(super) fn appended(&mut self, lsn: u64) {
        for held in self.held.iter_mut().rev() {
            if held.lsn.is_some() {
                break;
            }
            held.lsn = Some(lsn);
        }
    }

    /// The submission that was taken last wants to know when everything up to it is stored.
    pub(super) fn answer_when_stored(&mut self, request: u64) {
        if let Some(held) = self.held.back_mut() {
            held.request = Some(request);
        }
    }

    /// Releases submissions whose consequences are durable; all of them if nothing will be any more.
    pub(super) fn release_submissions(&mut self, durable: u64, failed: Option<i32>) {
        while let Some(held) = self.held.front() {
            let stored = held.lsn.is_some_and(|lsn| lsn <= durable);
            if !stored && failed.is_none() {
                break;
            }
            let Some(held) = self.held.pop_front() else { break };
            self.up.release(held.taken);
            self.wake_up = true;
            if let Some(request) = held.request {
                let (outcome, detail) = match failed {
                    Some(errno) if !stored => {
                        (Outcome::JournalFailed, u64::from(errno.unsigned_abs()))
                    }
                    _ => (Outcome::Done, 0),
                };
                self.record(Down::Answer { request, outcome, detail });
            }
        }
    }

    /// Releases messages of the lane up to this position; `Some` is where the lane stands now, if that changed.
    fn release_lane(&mut self, last: u64) -> bool {
        let mut released = false;
        while self.held.front().is_some_and(|held| held.taken.sequence() <= last) {
            if let Some(held) = self.held.pop_front() {
                self.up.release(held.taken);
                released = true;
            }
        }
        self.wake_up |= released;
        released
    }

    /// Everything of the lane below this position is released.
    pub(super) fn released_position(&self) -> u64 {
        self.held.front().map_or_else(|| self.up.position(), |held| held.taken.sequence())
    }

    /// The messages of the lane from one position to another have come to this.
    pub(super) fn completed(
        &mut self,
        first: u64,
        last: u64,
        count: u32,
        sequence: u64,
        outcome: Outcome,
        detail: u64,
    ) {
        if let Some(Waiting::Completion {
            last: last_before,
            count: count_before,
            sequence: sequence_before,
            outcome: outcome_before,
            detail: detail_before,
            ..
        }) = self.waiting.back_mut()
            && (*outcome_before, *detail_before) == (outcome, detail)
            && (outcome != Outcome::Done || *sequence_before + u64::from(*count_before) == sequence)
            && let Some(sum) = count_before.checked_add(count)
        {
            *count_before = sum;
            *last_before = last;
            return;
        }
        let record = Waiting::Completion { first, last, count, sequence, outcome, detail };
        self.waiting.push_back(record);
    }

    /// A record for a consumer.
    pub(super) fn record(&mut self, record: Down) {
        self.waiting.push_back(Waiting::Record(record));
    }

    /// Puts records into the ring while there is room; whether lane slots were released.
    pub(super) fn flush(&mut self) -> bool {
        let mut released = false;
        while let Some(waiting) = self.waiting.front().copied() {
            let (record, last) = match waiting {
                Waiting::Completion { first, last, count, sequence, outcome, detail } => {
                    let record = Down::Completed {
                        first_position: first,
                        last_position: last,
                        first_sequence: sequence,
                        count,
                        outcome,
                        detail,
                    };
                    (record, Some(last))
                }
                Waiting::Record(record) => (record, None),
            };
            // Nobody reads what is sent to a handle that is being taken back.
            if self.closing.is_none() && self.fault.is_none() && !self.send(&record.encode()) {
                break;
            }
            self.waiting.pop_front();
            if let Some(last) = last {
                released |= self.release_lane(last);
            }
        }
        released
    }

    /// Whether it went in. A ring that is closed swallows it.
    fn send(&mut self, record: &Encoded) -> bool {
        self.send_message(0, &[], record.as_ref()) != Sent::Full
    }

    /// Puts a message into the ring towards the client.
    fn send_message(&mut self, flags: u16, metadata: &[u8], payload: &[u8]) -> Sent {
        if self.blocked_at.is_some() {
            return Sent::Full;
        }
        let client = self.memory.client_position();
        let sent = self.down.try_send(flags, metadata, payload);
        self.sent(sent, client)
    }

    /// Puts a message of the queue into the ring towards the client. What does not fit one slot is put together in `whole`.
    pub(super) fn send_delivery(
        &mut self,
        header: &DeliveryHeader,
        flags: u16,
        metadata: &[u8],
        payload: &[u8],
        whole: &mut Vec<u8>,
    ) -> Sent {
        let header = header.encode();
        let length = header.len() + payload.len();
        if flags == 0 && metadata.is_empty() && length <= self.down.slot_capacity() {
            return self.send_in_place(&header, payload);
        }
        whole.clear();
        whole.extend_from_slice(&header);
        whole.extend_from_slice(payload);
        self.send_message(flags, metadata, whole)
    }

    /// One that takes one slot is put together there.
    fn send_in_place(&mut self, front: &[u8], payload: &[u8]) -> Sent {
        if self.blocked_at.is_some() {
            return Sent::Full;
        }
        let client = self.memory.client_position();
        let length = front.len() + payload.len();
        let sent = self.down.try_reserve(length).map(|reserved| {
            let written = self
                .down
                .write(&reserved, front.len(), payload)
                .and_then(|()| self.down.write(&reserved, 0, front));
            debug_assert!(written.is_ok(), "a reservation takes what was asked for");
            self.down.commit(reserved, length)
        });
        self.sent(sent, client)
    }

    /// What became of a message when the client had come so far.
    fn sent(&mut self, sent: Result<u64, TrySendError>, client: u64) -> Sent {
        match sent {
            Ok(_) => {
                self.wake_down = true;
                Sent::Yes
            }
            Err(TrySendError::Full) => {
                self.blocked_at = Some(client);
                // The client looks at this when it has made room; the shard looks once more before it sleeps.
                self.down.own_park().announce(self.key.handle);
                Sent::Full
            }
            Err(TrySendError::TooLarge { .. }) => Sent::TooLarge,
            Err(TrySendError::Closed(_)) => Sent::Closed,
            Err(TrySendError::Fault(fault)) => {
                self.fault.get_or_insert_with(|| fault.to_string());
                Sent::Closed
            }
        }
    }

    /// One who only looks on has no leases: the first entry of its table tells a broker that takes over how far it has come.
    pub(super) fn remember_shown(&mut self, sequence: u64) {
        let entry = LeaseEntry { attempt: 1, sequence, position: self.down.position() };
        self.leases.set(0, Some(entry));
    }

    /// Position of the next message to the client.
    pub(super) fn down_position(&self) -> u64 {
        self.down.position()
    }

    /// Whether records wait.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Records that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there was no room towards the client and the client has not moved since.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_at.is_some_and(|at| self.memory.client_position() == at)
    }

    /// Whether there was no room towards the client.
    pub(super) fn was_blocked(&self) -> bool {
        self.blocked_at.is_some()
    }

    /// A message whose completion was sent before: its slots are free.
    pub(super) fn release_completed(&mut self, position: u64) {
        // Nothing before it may be held any more, or the order of the releases would be lost.
        if self.waiting.is_empty() {
            self.release_lane(position);
        }
    }

    /// Messages sent and not confirmed, or delivered and not acknowledged.
    pub(super) fn unfinished(&self) -> u64 {
        match self.role {
            Role::Produce => self.held.len() as u64,
            Role::Consume => {
                let taken = |slot: &u32| self.leases.get(*slot).is_some();
                (0..self.leases.entries()).filter(taken).count() as u64
            }
        }
    }

    /// Whether the client has made room since the last look.
    pub(super) fn has_room_again(&mut self) -> bool {
        match self.blocked_at {
            Some(at) if self.memory.client_position() != at => {
                self.blocked_at = None;
                self.down.own_park().retract(self.key.handle);
                true
            }
            _ => false,
        }
    }

    /// Wakes its client if that sleeps and there is a reason; whether it did.
    pub(super) fn wake(&mut self) -> bool {
        let (up, down) = (std::mem::take(&mut self.wake_up), std::mem::take(&mut self.wake_down));
        if !up && !down {
            return false;
        }
        self.kernel.light_barrier();
        let mut woke = false;
        if down && self.down.peer_park().any_sleeper() {
            self.wake_sleeper(Side::Down);
            woke = true;
        }
        if up && self.up.peer_park().any_sleeper() {
            self.wake_sleeper(Side::Up);
            woke = true;
        }
        woke
    }

    fn wake_sleeper(&mut self, side: Side) {
        let park = match side {
            Side::Up => self.up.peer_park(),
            Side::Down => self.down.peer_park(),
        };
        wake_sleepers(park, &self.kernel, u32::MAX);
        self.rings.extend(park.sleepers().filter_map(|sleeper| park.doorbell_of(sleeper)));
    }

    /// Doorbells to be rung. They are the control thread's.
    pub(super) fn take_rings(&mut self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.rings.drain(..)
    }

    /// Closes its rings for the client and wakes it.
    pub(super) fn close(&mut self, value: u64) {
        self.memory.close(value);
        self.wake_up = true;
        self.wake_down = true;
        self.wake_all();
    }

    /// Wakes its client, whatever it waits for.
    pub(super) fn wake_all(&mut self) {
        self.kernel.heavy_barrier();
        self.wake_sleeper(Side::Down);
        self.wake_sleeper(Side::Up);
    }

    /// Why it is closed, if it is.
    pub(super) fn closed(&self) -> Option<Closed> {
        self.down.closed()
    }

    /// Lane position of the last message whose completion was sent by a broker that is gone.
    pub(super) fn last_completed(&self) -> Option<u64> {
        let tail = self.down.position();
        let pair = &self.memory.pair;
        let geometry = pair.geometry().down();
        let RingMemory::Spsc { slots, .. } = pair.down() else { return None };
        let offset = geometry.slot_offset(tail.checked_sub(1)?);
        let mut bytes = [0; RECORD_BYTES_MAX];
        slots.copy_out(offset + RECORD_OFFSET, &mut bytes);
        // A completion has 44 bytes; every completion takes one slot, and nothing else goes to a producer.
        match Down::decode(&bytes[..44]) {
            Ok(Down::Completed { last_position, .. }) => Some(last_position),
            _ => None,
        }
    }
}

/// The shard's ends of both rings, where they stand.
fn ends(memory: &PairMemory, key: HandleKey) -> Result<(Consumer, Producer), Fault> {
    let pair = &memory.pair;
    let geometry = *pair.geometry();
    // A broker that died between the word of a record and its position: the record was sent.
    repair::dead_handle(&pair.down(), &geometry.down(), key.handle, Role::Produce)?;
    let up = Consumer::new(pair.up(), geometry.up(), key.handle)?.busy();
    let down = Producer::new(pair.down(), geometry.down(), key.handle)?;
    Ok((up, down))
}

/// What became of a message to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    Full,
    TooLarge,
    /// The ring is closed.
    Closed,
}
