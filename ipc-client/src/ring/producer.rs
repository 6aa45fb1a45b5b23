//! The sending end of either kind.

use super::end::{Claim, SendEnd};
use super::error::{Closed, Fault, TrySendError};
use super::line::{Counters, HandleLine};
use super::park::Park;
use super::region::Region;
use super::slots::{Header, Slot, Slots};
use super::{RingMemory, closed_state, mpmc, overflow_rule, spsc};
use crate::layout::{Geometry, slot};
use crate::protocol::{Overflow, Role};
use crate::sync::canary::{Canary, planted};

/// Body bytes that lie in the first cache line of a slot, beside the word.
const FIRST_LINE_BODY: usize = 64 - slot::BODY;

/// Sends messages into one ring. Never waits; waking the consumers is up to the caller.
#[derive(Debug)]
pub struct Producer {
    control: Region,
    end: End,
    handle: u8,
    own_park: Park,
    peer_park: Park,
    line: HandleLine,
    counters: Counters,
}

#[derive(Debug)]
enum End {
    Spsc(spsc::ProducerEnd),
    Mpmc(mpmc::ProducerEnd),
}

/// Runs the same code for either kind, compiled for each.
macro_rules! with_end {
    ($of:expr, $end:ident => $body:expr) => {
        match $of {
            End::Spsc($end) => $body,
            End::Mpmc($end) => $body,
        }
    };
}

/// A slot that is claimed for one message. To be committed or aborted.
#[derive(Debug)]
#[must_use = "a claimed slot stops the ring until it is committed or aborted"]
pub struct Reserved {
    claim: Claim,
    capacity: usize,
}

impl Reserved {
    /// Payload bytes that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// Slots that are claimed for a batch of messages. To be filled at once.
#[derive(Debug)]
#[must_use = "claimed slots stop the ring until they are filled"]
pub struct ClaimedBatch {
    claim: Claim,
    length: usize,
}

impl ClaimedBatch {
    /// Messages, a slot each.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.claim.n
    }
}

/// An offset and a length that exceed the capacity of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset} + length {length} exceeds the {capacity} bytes of the reservation")]
pub struct OutOfBounds {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
    /// Bytes there are.
    pub capacity: usize,
}

/// The place of one message of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    slots: &'a Slots,
    /// Offset of the slot.
    slot: usize,
    length: usize,
}

impl<'a> Body<'a> {
    #[inline(always)]
    pub(super) fn new(slots: &'a Slots, slot: usize, length: usize) -> Self {
        Self { slots, slot, length }
    }

    /// Payload bytes of the message.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)] // a place, no container
    pub fn len(&self) -> usize {
        self.length
    }

    /// Copies bytes to this offset of the payload.
    ///
    /// # Errors
    /// They do not fit the payload; nothing is copied then.
    #[inline(always)]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let capacity = self.length;
        if offset > capacity || bytes.len() > capacity - offset {
            return Err(OutOfBounds { offset, length: bytes.len(), capacity });
        }
        self.slots.write_single(self.slot, offset, bytes);
        Ok(())
    }

    /// Address of the payload: [`Self::len`] bytes, aligned to 16. The bytes hold whatever an earlier message left; another
    /// member that breaks the rules may change them.
    #[must_use]
    #[inline(always)]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.slots.body_at(self.slot)
    }
}

/// Who writes the messages of [`Producer::fill_batch`].
pub trait Fill {
    /// Writes message number `index` of the batch. The first one is asked for last.
    fn fill(&mut self, index: usize, body: &mut Body<'_>);
    /// Whether the memory of the ring may still be touched: it may not in a child that was forked meanwhile.
    fn may_go_on(&self) -> bool;
}

impl Producer {
    /// The producer of an attached handle. Fails if the memory contradicts the geometry.
    pub fn new(memory: RingMemory, geometry: Geometry, handle: u8) -> Result<Self, Fault> {
        let end = match &memory {
            RingMemory::Spsc { slots, producer, consumer, .. } => {
                End::Spsc(spsc::ProducerEnd::new(slots, producer, consumer, geometry)?)
            }
            RingMemory::Mpmc { control, ring } => {
                End::Mpmc(mpmc::ProducerEnd::new(control, ring, geometry, handle)?)
            }
        };
        let line = memory.line(Role::Produce, handle);
        line.clear();
        let own_park = memory.park(Role::Produce);
        let peer_park = memory.park(Role::Consume);
        let control = memory.control().clone();
        Ok(Self { control, end, handle, own_park, peer_park, line, counters: Counters::default() })
    }

    /// Lets this handle claim without exchanges while the daemon biases its side of an mpmc ring towards it, see [`super::bias`].
    /// Only for a process that takes part in the membarriers of the daemon.
    #[must_use]
    pub fn with_bias(mut self) -> Self {
        if let End::Mpmc(end) = &mut self.end {
            end.allow_bias();
        }
        self
    }

    #[inline(always)]
    fn slots(&self) -> &Slots {
        with_end!(&self.end, end => end.slots())
    }

    /// Payload bytes that fit one slot.
    #[inline(always)]
    pub fn slot_capacity(&self) -> usize {
        let geometry = &self.slots().geometry;
        geometry.first_body_bytes().min(geometry.max_message())
    }

    /// Why nothing can be sent any more, if so.
    pub fn closed(&self) -> Option<Closed> {
        closed_state(&self.control)
    }

    #[inline(always)]
    fn refuse_closed(&self) -> Result<(), TrySendError> {
        closed_state(&self.control).map_or(Ok(()), |closed| Err(TrySendError::Closed(closed)))
    }

    #[inline(always)]
    fn count(&mut self, messages: u64, payload_bytes: u64) {
        self.counters.count(&self.line, messages, payload_bytes);
    }

    /// Sends one message, copying it. Returns its sequence: the position of its claim.
    #[inline(always)]
    pub fn try_send(
        &mut self,
        flags: u16,
        metadata: &[u8],
        payload: &[u8],
    ) -> Result<u64, TrySendError> {
        self.refuse_closed()?;
        let sequence = with_end!(&mut self.end, end => send(end, flags, metadata, payload))?;
        self.count(1, payload.len() as u64);
        Ok(sequence)
    }

    /// Sends all of these messages under one claim, or none of them. A process that dies on the way sends none.
    /// Returns the sequence of the first. Together they take at most a quarter of the ring, else `TooLarge`.
    pub fn try_send_batch(&mut self, payloads: &[&[u8]]) -> Result<u64, TrySendError> {
        self.refuse_closed()?;
        if payloads.is_empty() {
            return Ok(self.position());
        }
        let (sequence, payload_bytes) = with_end!(&mut self.end, end => send_batch(end, payloads))?;
        self.count(payloads.len() as u64, payload_bytes);
        Ok(sequence)
    }

    /// The same with metadata in front of each payload: as many of one as of the other.
    pub fn try_send_batch_with<const N: usize>(
        &mut self,
        metadata: &[[u8; N]],
        payloads: &[&[u8]],
    ) -> Result<u64, TrySendError> {
        assert_eq!(metadata.len(), payloads.len(), "each payload has its metadata");
        self.refuse_closed()?;
        if payloads.is_empty() {
            return Ok(self.position());
        }
        let (sequence, payload_bytes) =
            with_end!(&mut self.end, end => send_batch_with(end, metadata, payloads))?;
        self.count(payloads.len() as u64, payload_bytes);
        Ok(sequence)
    }

    /// Claims slots for `count` messages of `length` bytes each, to be written in place. Each must fit one slot,
    /// and together they take at most a quarter of the ring, else `TooLarge`.
    #[inline(always)]
    pub fn try_claim_batch(
        &mut self,
        count: usize,
        length: usize,
    ) -> Result<ClaimedBatch, TrySendError> {
        self.refuse_closed()?;
        let capacity = self.slot_capacity();
        if length > capacity {
            return Err(TrySendError::TooLarge { length, max: capacity });
        }
        let most = self.slots().geometry.claim_slots_max();
        let n = match u32::try_from(count) {
            Ok(n) if n <= most => n,
            _ => {
                let (length, max) = (count.saturating_mul(length), most as usize * length);
                return Err(TrySendError::TooLarge { length, max });
            }
        };
        let claim = match n {
            0 => Claim { position: self.position(), n },
            _ => with_end!(&mut self.end, end => end.claim(n))?,
        };
        Ok(ClaimedBatch { claim, length })
    }

    /// Has the messages of a claimed batch written and sends them. Returns the sequence of the first.
    ///
    /// When `fill` panics nothing is sent, and nothing remains. In a process that was forked meanwhile the memory is not touched
    /// any more; the value returned there means nothing.
    #[inline(always)]
    pub fn fill_batch(&mut self, batch: ClaimedBatch, fill: &mut impl Fill) -> u64 {
        let ClaimedBatch { claim, length } = batch;
        if claim.n == 0 {
            return claim.position;
        }
        if with_end!(&mut self.end, end => fill_batch(end, claim, length, fill)) {
            self.count(claim.n.into(), u64::from(claim.n) * length as u64);
        }
        claim.position
    }

    /// Claims one slot for a payload of at most this many bytes, to be written in place.
    #[inline]
    pub fn try_reserve(&mut self, payload_max: usize) -> Result<Reserved, TrySendError> {
        self.refuse_closed()?;
        let capacity = self.slot_capacity();
        if payload_max > capacity {
            return Err(TrySendError::TooLarge { length: payload_max, max: capacity });
        }
        let claim = with_end!(&mut self.end, end => end.claim(1))?;
        Ok(Reserved { claim, capacity })
    }

    /// Copies bytes into a reservation.
    #[inline]
    pub fn write(
        &mut self,
        reserved: &Reserved,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), OutOfBounds> {
        let capacity = reserved.capacity;
        if offset > capacity || bytes.len() > capacity - offset {
            return Err(OutOfBounds { offset, length: bytes.len(), capacity });
        }
        self.slots().write_body(reserved.claim.position, offset, bytes);
        Ok(())
    }

    /// Address of a reservation's payload: [`Reserved::capacity`] bytes, aligned to 16.
    pub fn body_ptr(&self, reserved: &Reserved) -> *mut u8 {
        self.slots().body_address(reserved.claim.position)
    }

    /// Publishes a reservation with the first `length` bytes of its payload (at most its capacity). Returns the
    /// sequence.
    #[inline]
    pub fn commit(&mut self, reserved: Reserved, length: usize) -> u64 {
        let claim = reserved.claim;
        let length = length.min(reserved.capacity);
        let header = header(0, 0, length);
        with_end!(&mut self.end, end => {
            let slot = end.slots().at(claim.position);
            slot.write_header(header);
            slot.store(end.published(claim.position, 1));
            end.finish(claim);
        });
        self.count(1, length as u64);
        claim.position
    }

    /// Gives a reservation up. On an mpmc ring a tombstone remains, which consumers skip.
    pub fn abort(&mut self, reserved: Reserved) {
        with_end!(&mut self.end, end => end.abandon(reserved.claim));
    }

    /// What the queue does with a message for which there is no room. Not looked at by the forms above.
    pub fn overflow(&self) -> Overflow {
        overflow_rule(&self.control)
    }

    /// Runs an attempt to send or to reserve, for which messages may be dropped if there is no room; on an mpmc ring only.
    /// Its result, and whether slots were freed: then producers that sleep are to be woken.
    pub fn dropping<T>(&mut self, attempt: impl FnOnce(&mut Self) -> T) -> (T, bool) {
        if let End::Mpmc(end) = &mut self.end {
            end.start_dropping();
        }
        let result = attempt(self);
        let freed = match &mut self.end {
            End::Mpmc(end) => end.stop_dropping(),
            End::Spsc(_) => false,
        };
        (result, freed)
    }

    /// Position of the next claim.
    #[inline]
    pub fn position(&self) -> u64 {
        with_end!(&self.end, end => end.position())
    }

    /// Where producers of this ring sleep.
    pub fn own_park(&self) -> &Park {
        &self.own_park
    }

    /// Where consumers of this ring sleep: to be woken after sending.
    #[inline(always)]
    pub fn peer_park(&self) -> &Park {
        &self.peer_park
    }

    /// This handle's line.
    pub fn line(&self) -> &HandleLine {
        &self.line
    }

    /// This handle's index.
    pub fn handle(&self) -> u8 {
        self.handle
    }
}

/// Slots for a message of these lengths, or why it can never be sent.
#[inline(always)]
fn slots_for(geometry: &Geometry, metadata: usize, payload: usize) -> Result<u32, TrySendError> {
    let body = Header::payload_offset(metadata) + payload;
    if body <= geometry.first_body_bytes() && payload <= geometry.max_message() {
        return Ok(1);
    }
    slots_for_long(geometry, metadata, payload)
}

#[inline(never)]
fn slots_for_long(
    geometry: &Geometry,
    metadata: usize,
    payload: usize,
) -> Result<u32, TrySendError> {
    if payload > geometry.max_message() {
        return Err(TrySendError::TooLarge { length: payload, max: geometry.max_message() });
    }
    let body = Header::payload_offset(metadata) + payload;
    let n = geometry.slots_for(body);
    if metadata > usize::from(u16::MAX) || n > u64::from(geometry.claim_slots_max()) {
        let max = geometry.body_bytes(geometry.claim_slots_max()) as usize;
        return Err(TrySendError::TooLarge { length: body, max });
    }
    Ok(u32::try_from(n).unwrap_or(u32::MAX))
}

/// The packed header of a message whose lengths `slots_for` has bounded.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // bounded before
fn header(flags: u16, metadata: usize, payload: usize) -> u64 {
    Header { length: payload as u32, flags, metadata_length: metadata as u16 }.pack()
}

/// One message. Everything that can be computed is computed before the claim: between claim and publication a waiting
/// consumer pulls at the cache line, and on an mpmc ring everybody else waits.
#[inline(always)]
fn send(
    end: &mut impl SendEnd,
    flags: u16,
    metadata: &[u8],
    payload: &[u8],
) -> Result<u64, TrySendError> {
    let n = slots_for(&end.slots().geometry, metadata.len(), payload.len())?;
    let header = header(flags, metadata.len(), payload.len());
    if Header::payload_offset(metadata.len()) + payload.len() > FIRST_LINE_BODY {
        end.prepare_long();
    }
    let claim = end.claim(n)?;
    let published = end.published(claim.position, n);
    let slots = end.slots();
    let slot = slots.at(claim.position);
    if planted(Canary::PublishBeforeCopy) {
        slot.store(published);
    }
    if n == 1 && metadata.is_empty() {
        write_single(slots, slot, header, payload);
    } else {
        write_message(slots, claim.position, header, metadata, payload);
    }
    slot.store(published);
    end.finish(claim);
    Ok(claim.position)
}

/// As [`write_message`], of a message without metadata in one slot.
#[inline(always)]
fn write_single(slots: &Slots, slot: Slot<'_>, header: u64, payload: &[u8]) {
    let (first, behind) = payload.split_at(FIRST_LINE_BODY.min(payload.len()));
    if !behind.is_empty() {
        slots.write_single(slot.offset, first.len(), behind);
    }
    slot.write_header(header);
    slots.write_single(slot.offset, 0, first);
}

/// Writes header, metadata and payload. The first cache line, which has the word that a consumer waits on, comes last:
/// written first, it would be pulled away while the others are fetched.
#[inline(always)]
fn write_message(slots: &Slots, position: u64, header: u64, metadata: &[u8], payload: &[u8]) {
    let start = Header::payload_offset(metadata.len());
    let (first, behind) =
        payload.split_at(FIRST_LINE_BODY.saturating_sub(start).min(payload.len()));
    if !behind.is_empty() {
        slots.write_body(position, start + first.len(), behind);
    }
    slots.at(position).write_header(header);
    if !metadata.is_empty() {
        slots.write_body(position, 0, metadata);
    }
    slots.write_body(position, start, first);
}

/// A batch under one claim; the sequence of its first message and its payload bytes.
#[inline(always)]
fn send_batch(end: &mut impl SendEnd, payloads: &[&[u8]]) -> Result<(u64, u64), TrySendError> {
    let geometry = end.slots().geometry;
    let (mut longest, mut payload_bytes) = (0, 0);
    for payload in payloads {
        longest = payload.len().max(longest);
        payload_bytes += payload.len();
    }
    let n = if longest <= geometry.first_body_bytes().min(geometry.max_message()) {
        payloads.len() as u64
    } else {
        slots_for_batch(&geometry, 0, payloads)?
    };
    let n = one_claim(&geometry, n, payload_bytes)?;
    let claim = end.claim(n)?;
    if n as usize == payloads.len() {
        write_singles(end, claim.position, payloads);
        end.prepare_next(claim);
    } else {
        write_batch(end, claim.position, |_| &[], payloads);
    }
    end.finish(claim);
    Ok((claim.position, payload_bytes as u64))
}

/// A batch written in place; whether it was sent. The first message comes last, as in [`write_singles`].
#[inline(always)]
fn fill_batch(end: &mut impl SendEnd, claim: Claim, length: usize, fill: &mut impl Fill) -> bool {
    let mut filling = Filling { end, claim, fill, sent: false };
    let (slots, header, count) =
        (filling.end.slots().clone(), header(0, 0, length), claim.n as usize);
    let mut index = 1;
    while index <= count {
        // The last round is for the first message.
        let at = if index == count { 0 } else { index };
        let position = claim.position.wrapping_add(at as u64);
        let run = if at == 0 { 1 } else { slots.until_wrap(position).min(count - index) };
        let word = filling.end.published(position, 1);
        if !slots.fill_run(position, word, header, at..at + run, filling.fill) {
            return false;
        }
        index += run;
    }
    filling.sent = true;
    filling.end.prepare_next(claim);
    filling.end.finish(claim);
    true
}

/// A claim that is given up again if whoever fills it panics.
struct Filling<'a, E: SendEnd, F: Fill> {
    end: &'a mut E,
    claim: Claim,
    fill: &'a mut F,
    sent: bool,
}

impl<E: SendEnd, F: Fill> Drop for Filling<'_, E, F> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.sent && self.fill.may_go_on() {
            self.end.abandon(self.claim);
        }
    }
}

/// A batch with metadata under one claim; as [`send_batch`].
#[inline(never)]
fn send_batch_with<const N: usize>(
    end: &mut impl SendEnd,
    metadata: &[[u8; N]],
    payloads: &[&[u8]],
) -> Result<(u64, u64), TrySendError> {
    let geometry = end.slots().geometry;
    let payload_bytes = payloads.iter().map(|payload| payload.len()).sum();
    let n = one_claim(&geometry, slots_for_batch(&geometry, N, payloads)?, payload_bytes)?;
    let claim = end.claim(n)?;
    write_batch(end, claim.position, |index| &metadata[index], payloads);
    end.finish(claim);
    Ok((claim.position, payload_bytes as u64))
}

/// So many slots, if one claim may take them.
fn one_claim(geometry: &Geometry, n: u64, payload_bytes: usize) -> Result<u32, TrySendError> {
    match u32::try_from(n) {
        Ok(n) if n <= geometry.claim_slots_max() => Ok(n),
        _ => {
            let max = geometry.body_bytes(geometry.claim_slots_max()) as usize;
            Err(TrySendError::TooLarge { length: payload_bytes, max })
        }
    }
}

#[inline(never)]
fn slots_for_batch(
    geometry: &Geometry,
    metadata: usize,
    payloads: &[&[u8]],
) -> Result<u64, TrySendError> {
    payloads.iter().try_fold(0, |total, payload| {
        Ok(total + u64::from(slots_for(geometry, metadata, payload.len())?))
    })
}

/// A batch of messages that take a slot each. The first comes last: nobody looks at the others before its word is there, and
/// its line, on which a consumer may wait, is pulled away but once.
#[inline(always)]
fn write_singles(end: &mut impl SendEnd, first: u64, payloads: &[&[u8]]) {
    let slots = end.slots();
    let mut position = first.wrapping_add(1);
    let mut rest = &payloads[1..];
    while !rest.is_empty() {
        let (run, behind) = rest.split_at(slots.until_wrap(position).min(rest.len()));
        slots.write_run(position, end.published(position, 1), run);
        position = position.wrapping_add(run.len() as u64);
        rest = behind;
    }
    slots.write_run(first, end.published(first, 1), &payloads[..1]);
}

/// A batch in which some message takes more than a slot, or has metadata; otherwise as [`write_singles`].
#[inline(never)]
fn write_batch<'a>(
    end: &mut impl SendEnd,
    first: u64,
    metadata: impl Fn(usize) -> &'a [u8],
    payloads: &[&[u8]],
) {
    let slots = end.slots();
    let slots_of = |index: usize| {
        let body = Header::payload_offset(metadata(index).len()) + payloads[index].len();
        slots.geometry.slots_for(body)
    };
    let write = |position: u64, index: usize| {
        let (metadata, payload) = (metadata(index), payloads[index]);
        let header = header(0, metadata.len(), payload.len());
        write_message(slots, position, header, metadata, payload);
        let n = u32::try_from(slots_of(index)).unwrap_or(u32::MAX);
        slots.store(position, end.published(position, n));
    };
    let mut position = first;
    for index in 1..payloads.len() {
        position = position.wrapping_add(slots_of(index - 1));
        write(position, index);
    }
    write(first, 0);
}
