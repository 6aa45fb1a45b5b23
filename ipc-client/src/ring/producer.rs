//! The sending end of either kind.

use super::error::{Closed, Fault, TrySendError};
use super::line::HandleLine;
use super::mpmc::{Claim, Ring};
use super::park::Park;
use super::region::Region;
use super::slots::{Header, Slots};
use super::spsc::ProducerEnd;
use super::{RingMemory, closed_state};
use crate::layout::Geometry;
use crate::protocol::Role;
use crate::sync::canary::{Canary, planted};

/// Sends messages into one ring. Never waits; waking the consumers is up to the caller.
#[derive(Debug)]
pub struct Producer {
    control: Region,
    end: End,
    handle: u8,
    own_park: Park,
    peer_park: Park,
    line: HandleLine,
    messages: u64,
    payload_bytes: u64,
}

#[derive(Debug)]
enum End {
    Spsc(ProducerEnd),
    Mpmc(Ring),
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

impl Producer {
    /// The producer of an attached handle. Fails if the memory contradicts the geometry.
    pub fn new(memory: RingMemory, geometry: Geometry, handle: u8) -> Result<Self, Fault> {
        let end = match &memory {
            RingMemory::Spsc { slots, producer, consumer, .. } => {
                End::Spsc(ProducerEnd::new(slots, producer, consumer, geometry)?)
            }
            RingMemory::Mpmc { ring, .. } => End::Mpmc(Ring::new(ring, geometry)?),
        };
        let line = memory.line(Role::Produce, handle);
        line.clear();
        let own_park = memory.park(Role::Produce);
        let peer_park = memory.park(Role::Consume);
        let control = memory.control().clone();
        Ok(Self { control, end, handle, own_park, peer_park, line, messages: 0, payload_bytes: 0 })
    }

    #[inline(always)]
    fn slots(&self) -> &Slots {
        match &self.end {
            End::Spsc(end) => &end.slots,
            End::Mpmc(ring) => &ring.slots,
        }
    }

    /// Why nothing can be sent any more, if so.
    #[inline(always)]
    pub fn closed(&self) -> Option<Closed> {
        closed_state(&self.control)
    }

    #[inline(always)]
    fn claim(&mut self, n: u32) -> Result<Claim, TrySendError> {
        if let Some(closed) = closed_state(&self.control) {
            return Err(TrySendError::Closed(closed));
        }
        match &mut self.end {
            End::Spsc(end) => end.claim(n),
            End::Mpmc(ring) => {
                if let Some(fault) = ring.fault_flag() {
                    return Err(fault.into());
                }
                let claimed = ring.claim(n, self.handle);
                if matches!(claimed, Err(TrySendError::Fault(_))) {
                    ring.set_fault_flag();
                }
                claimed
            }
        }
    }

    #[inline(always)]
    fn publish(&mut self, position: u64, n: u32) {
        match &mut self.end {
            End::Spsc(end) => end.publish(position, n),
            End::Mpmc(ring) => ring.publish(position, n, self.handle),
        }
    }

    /// The claim's messages are published: counts them.
    #[inline(always)]
    fn finish(&mut self, claim: Claim, messages: u64, payload_bytes: u64) {
        if let End::Spsc(end) = &mut self.end {
            end.finish(claim);
        }
        self.messages += messages;
        self.payload_bytes += payload_bytes;
        self.line.set_counters(self.messages, self.payload_bytes);
    }

    /// Slots for a message of these lengths, or why it can never be sent.
    #[inline(always)]
    fn slots_for(&self, metadata: usize, payload: usize) -> Result<u32, TrySendError> {
        let geometry = &self.slots().geometry;
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

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // both lengths were bounded by `slots_for`
    fn write_message(&self, position: u64, flags: u16, metadata: &[u8], payload: &[u8]) {
        let slots = self.slots();
        let header =
            Header { length: payload.len() as u32, flags, metadata_length: metadata.len() as u16 };
        slots.write_header(position, header);
        if !metadata.is_empty() {
            slots.write_body(position, 0, metadata);
        }
        slots.write_body(position, Header::payload_offset(metadata.len()), payload);
    }

    /// Sends one message, copying it. Returns its sequence: the position of its claim.
    #[inline(always)]
    pub fn try_send(
        &mut self,
        flags: u16,
        metadata: &[u8],
        payload: &[u8],
    ) -> Result<u64, TrySendError> {
        let n = self.slots_for(metadata.len(), payload.len())?;
        let claim = self.claim(n)?;
        if planted(Canary::PublishBeforeCopy) {
            self.publish(claim.position, n);
        }
        self.write_message(claim.position, flags, metadata, payload);
        self.publish(claim.position, n);
        self.finish(claim, 1, payload.len() as u64);
        Ok(claim.position)
    }

    /// Sends all of these messages under one claim, or none of them. A process that dies on the way sends none.
    /// Returns the sequence of the first. Together they take at most a quarter of the ring, else `TooLarge`.
    pub fn try_send_batch(&mut self, payloads: &[&[u8]]) -> Result<u64, TrySendError> {
        let geometry = self.slots().geometry;
        let mut total = 0u64;
        let mut payload_bytes = 0;
        for payload in payloads {
            total += u64::from(self.slots_for(0, payload.len())?);
            payload_bytes += payload.len() as u64;
        }
        if total > u64::from(geometry.claim_slots_max()) {
            let max = geometry.body_bytes(geometry.claim_slots_max()) as usize;
            return Err(TrySendError::TooLarge {
                length: payloads.iter().map(|p| p.len()).sum(),
                max,
            });
        }
        if payloads.is_empty() {
            return Ok(self.position());
        }
        let claim = self.claim(u32::try_from(total).unwrap_or(u32::MAX))?;
        let slots_of =
            |payload: &[u8]| u32::try_from(geometry.slots_for(payload.len())).unwrap_or(u32::MAX);
        // The bytes upwards, as the processor's prefetchers like it ...
        let mut position = claim.position;
        for payload in payloads {
            self.write_message(position, 0, &[], payload);
            position = position.wrapping_add(u64::from(slots_of(payload)));
        }
        // ... the words from the last to the first: the first one makes the whole batch visible.
        for payload in payloads.iter().rev() {
            let n = slots_of(payload);
            position = position.wrapping_sub(u64::from(n));
            self.publish(position, n);
        }
        self.finish(claim, payloads.len() as u64, payload_bytes);
        Ok(claim.position)
    }

    /// Claims one slot for a payload of at most this many bytes, to be written in place.
    pub fn try_reserve(&mut self, payload_max: usize) -> Result<Reserved, TrySendError> {
        let geometry = self.slots().geometry;
        let capacity = geometry.first_body_bytes().min(geometry.max_message());
        if payload_max > capacity {
            return Err(TrySendError::TooLarge { length: payload_max, max: capacity });
        }
        let claim = self.claim(1)?;
        Ok(Reserved { claim, capacity })
    }

    /// Copies bytes into a reservation.
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
    pub fn commit(&mut self, reserved: Reserved, length: usize) -> u64 {
        let claim = reserved.claim;
        let length = length.min(reserved.capacity);
        let header = Header {
            length: u32::try_from(length).unwrap_or(u32::MAX),
            flags: 0,
            metadata_length: 0,
        };
        self.slots().write_header(claim.position, header);
        self.publish(claim.position, 1);
        self.finish(claim, 1, length as u64);
        claim.position
    }

    /// Gives a reservation up. On an mpmc ring a tombstone remains, which consumers skip.
    pub fn abort(&mut self, reserved: Reserved) {
        if let End::Mpmc(ring) = &self.end {
            ring.bury(reserved.claim);
        }
    }

    /// Position of the next claim.
    pub fn position(&self) -> u64 {
        match &self.end {
            End::Spsc(end) => end.position(),
            End::Mpmc(ring) => ring.tail_position(),
        }
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
