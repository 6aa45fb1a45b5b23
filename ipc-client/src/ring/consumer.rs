//! The receiving end of either kind.

use super::end::{Claim, ReceiveEnd, Show, show_once};
use super::error::{Closed, Fault, TryReceiveError};
use super::line::{Counters, HandleLine};
use super::park::Park;
use super::region::Region;
use super::slots::{Header, Slots};
use super::{RingMemory, closed_state, mpmc, spsc};
use crate::layout::Geometry;
use crate::protocol::Role;
use crate::sync::canary::{Canary, planted};

/// Receives messages from one ring. Never waits; waking the producers is up to the caller.
#[derive(Debug)]
pub struct Consumer {
    control: Region,
    end: End,
    handle: u8,
    own_park: Park,
    peer_park: Park,
    line: HandleLine,
    counters: Counters,
    /// The same as the end's: reading does not depend on the kind.
    slots: Slots,
}

#[derive(Debug)]
enum End {
    Spsc(spsc::ConsumerEnd),
    Mpmc(mpmc::ConsumerEnd),
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

/// A message that this consumer holds: its slots stay where they are until it is released.
#[derive(Debug)]
#[must_use = "a held message keeps its slots until it is released"]
pub struct Taken {
    claim: Claim,
    /// Offset of the first slot in its region.
    slot: usize,
    header: Header,
    redelivered: bool,
}

impl Taken {
    /// A message without metadata in one slot, whose length was bounded.
    #[inline(always)]
    pub(super) fn single(position: u64, slot: usize, length: u32, redelivered: bool) -> Self {
        let header = Header { length, flags: 0, metadata_length: 0 };
        Self { claim: Claim { position, n: 1 }, slot, header, redelivered }
    }

    /// Payload bytes.
    #[inline(always)]
    pub fn length(&self) -> usize {
        self.header.length as usize
    }

    /// Metadata bytes.
    pub fn metadata_length(&self) -> usize {
        usize::from(self.header.metadata_length)
    }

    /// Flags of the message, see [`crate::layout::slot`].
    pub fn flags(&self) -> u16 {
        self.header.flags
    }

    /// Position of the message's claim: increasing, not dense.
    #[inline(always)]
    pub fn sequence(&self) -> u64 {
        self.claim.position
    }

    /// Whether a consumer that died may have seen it.
    #[inline(always)]
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }
}

/// A message that a consumer has taken, to be read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    slots: &'a Slots,
    taken: &'a Taken,
}

impl<'a> View<'a> {
    /// What is known of the message without reading it.
    #[inline(always)]
    pub fn taken(&self) -> &'a Taken {
        self.taken
    }

    /// Copies payload bytes from `offset` on; returns how many.
    #[inline(always)]
    pub fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        let taken = self.taken;
        let length = into.len().min(taken.length().saturating_sub(offset));
        if length == 0 {
            return 0;
        }
        let start = Header::payload_offset(taken.metadata_length());
        let into = &mut into[..length];
        if taken.claim.n == 1 {
            self.slots.read_single(taken.slot, start + offset, into);
        } else {
            self.slots.read_body(taken.claim.position, start + offset, into);
        }
        length
    }

    /// Copies the metadata; returns how many bytes, at most `into.len()`.
    pub fn read_metadata(&self, into: &mut [u8]) -> usize {
        let length = into.len().min(self.taken.metadata_length());
        self.slots.read_body(self.taken.claim.position, 0, &mut into[..length]);
        length
    }

    /// Address of the payload if the message lies in one slot. The bytes may be changed by a peer that breaks the
    /// rules.
    #[inline(always)]
    pub fn payload_ptr(&self) -> Option<*const u8> {
        if self.taken.claim.n != 1 {
            return None;
        }
        let start = Header::payload_offset(self.taken.metadata_length());
        // SAFETY: the header was checked: metadata and payload fit the body of one slot.
        Some(unsafe { self.slots.body_at(self.taken.slot).add(start) })
    }
}

/// Whom [`Consumer::try_visit`] shows messages to.
pub trait Visit {
    /// One message. It is given back when this returns or panics.
    fn message(&mut self, message: View<'_>);
    /// Whether the memory of the ring may still be touched: it may not in a child that was forked meanwhile.
    fn may_go_on(&self) -> bool;
    /// Messages were given back; producers that sleep here are to be woken.
    fn given_back(&mut self, producers: &Park);
}

impl Consumer {
    /// The consumer of an attached handle. Fails if the memory contradicts the geometry.
    pub fn new(memory: RingMemory, geometry: Geometry, handle: u8) -> Result<Self, Fault> {
        let end = match &memory {
            RingMemory::Spsc { slots, producer, consumer, .. } => {
                End::Spsc(spsc::ConsumerEnd::new(slots, consumer, producer, geometry)?)
            }
            RingMemory::Mpmc { control, ring } => {
                End::Mpmc(mpmc::ConsumerEnd::new(control, ring, geometry, handle)?)
            }
        };
        let line = memory.line(Role::Consume, handle);
        line.clear();
        let own_park = memory.park(Role::Consume);
        let peer_park = memory.park(Role::Produce);
        let control = memory.control().clone();
        let slots = with_end!(&end, end => end.slots().clone());
        Ok(Self {
            control,
            end,
            handle,
            own_park,
            peer_park,
            line,
            counters: Counters::default(),
            slots,
        })
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

    /// For whoever has other rings to look at: a consumer that has caught up with a stream of messages does not look away for a
    /// moment.
    #[must_use]
    pub fn busy(mut self) -> Self {
        with_end!(&mut self.end, end => end.set_busy());
        self
    }

    /// Why nothing will come any more, if so; what was sent before `Draining` can still be received.
    pub fn closed(&self) -> Option<Closed> {
        closed_state(&self.control)
    }

    /// Takes the next message and holds it. Several may be held at once.
    #[inline(always)]
    pub fn try_take(&mut self) -> Result<Taken, TryReceiveError> {
        // Looked at before the ring: what was sent before the queue was closed is still found.
        let closed = closed_state(&self.control);
        if let Some(closed) = closed.filter(|closed| *closed != Closed::Draining) {
            return Err(TryReceiveError::Closed(closed));
        }
        match with_end!(&mut self.end, end => take(end)) {
            Err(TryReceiveError::Empty) => {
                Err(closed.map_or(TryReceiveError::Empty, TryReceiveError::Closed))
            }
            taken => taken,
        }
    }

    /// Shows up to `max` messages, as many as there are, to a visitor, and gives each back before it takes the next.
    /// Returns how many. An error only if there is none. On an spsc ring no message may be held meanwhile.
    #[inline(always)]
    pub fn try_visit(
        &mut self,
        max: usize,
        visitor: &mut impl Visit,
    ) -> Result<usize, TryReceiveError> {
        if max == 0 {
            return Ok(0);
        }
        // Looked at before the ring, as in `try_take`.
        let closed = closed_state(&self.control);
        if let Some(closed) = closed.filter(|closed| *closed != Closed::Draining) {
            return Err(TryReceiveError::Closed(closed));
        }
        let mut show = Showing {
            visitor,
            line: &self.line,
            counters: &mut self.counters,
            peers: &self.peer_park,
        };
        match with_end!(&mut self.end, end => visit(end, max, &mut show)) {
            Err(TryReceiveError::Empty) => {
                Err(closed.map_or(TryReceiveError::Empty, TryReceiveError::Closed))
            }
            visited => visited,
        }
    }

    /// Takes up to `max` messages, at least one, into a vector that has room for them. An error only if there is none.
    pub fn try_take_batch(
        &mut self,
        taken: &mut Vec<Taken>,
        max: usize,
    ) -> Result<(), TryReceiveError> {
        let room = max.min(taken.capacity() - taken.len());
        if room == 0 {
            return Ok(());
        }
        taken.push(self.try_take()?);
        for _ in 1..room {
            match with_end!(&mut self.end, end => take(end)) {
                Ok(next) => taken.push(next),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Whether [`Self::try_take`] would probably not answer `Empty`: there is a message, the queue is closed, or it is
    /// damaged. Takes nothing; another consumer may be faster.
    pub fn has_message(&self) -> bool {
        self.closed().is_some() || with_end!(&self.end, end => end.has_message())
    }

    /// Copies payload bytes from `offset` on; returns how many.
    #[inline(always)]
    pub fn read(&self, taken: &Taken, offset: usize, into: &mut [u8]) -> usize {
        self.view(taken).read(offset, into)
    }

    /// Copies the metadata; returns how many bytes, at most `into.len()`.
    pub fn read_metadata(&self, taken: &Taken, into: &mut [u8]) -> usize {
        self.view(taken).read_metadata(into)
    }

    /// Address of the payload if the message lies in one slot. The bytes may be changed by a peer that breaks the
    /// rules.
    pub fn payload_ptr(&self, taken: &Taken) -> Option<*const u8> {
        self.view(taken).payload_ptr()
    }

    /// A message that this consumer has taken, to be read.
    #[inline(always)]
    pub fn view<'a>(&'a self, taken: &'a Taken) -> View<'a> {
        View { slots: &self.slots, taken }
    }

    /// Gives the slots of a message back. On an spsc ring messages are released in the order in which they were taken.
    #[inline(always)]
    pub fn release(&mut self, taken: Taken) {
        if !planted(Canary::ReleaseBeforeCopy) {
            with_end!(&mut self.end, end => end.release(taken.claim));
        }
        self.counters.count(&self.line, 1, u64::from(taken.header.length));
    }

    /// Messages of this ring that producers have dropped for room.
    pub fn dropped(&self) -> u64 {
        match &self.end {
            End::Mpmc(end) => end.dropped(),
            End::Spsc(_) => 0,
        }
    }

    /// Position of the next message.
    pub fn position(&self) -> u64 {
        with_end!(&self.end, end => end.position())
    }

    /// Where consumers of this ring sleep.
    pub fn own_park(&self) -> &Park {
        &self.own_park
    }

    /// Where producers of this ring sleep: to be woken after releasing.
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

/// Takes one message and reads its header.
#[inline(always)]
fn take(end: &mut impl ReceiveEnd) -> Result<Taken, TryReceiveError> {
    let (claim, redelivered) = end.take()?;
    let slot = end.slots().at(claim.position);
    match end.slots().read_header(slot, claim.position, claim.n) {
        Ok(header) => {
            let slot = slot.offset;
            end.accept(claim);
            if planted(Canary::ReleaseBeforeCopy) {
                end.release(claim);
            }
            Ok(Taken { claim, slot, header, redelivered })
        }
        Err(fault) => {
            end.refuse();
            Err(fault.into())
        }
    }
}

/// Takes messages and shows them, see [`Consumer::try_visit`].
#[inline(always)]
fn visit(
    end: &mut impl ReceiveEnd,
    max: usize,
    show: &mut impl Show,
) -> Result<usize, TryReceiveError> {
    let slots = end.slots().clone();
    let mut count = 0;
    loop {
        count += end.visit_quickly(max - count, show);
        if count == max || !show.may_go_on() {
            return Ok(count);
        }
        let taken = match take(end) {
            Ok(taken) => taken,
            Err(error) if count == 0 => return Err(error),
            // Whatever it is, the next call meets it again.
            Err(_) => return Ok(count),
        };
        let claim = taken.claim;
        show_once(show, &slots, taken, || {
            if !planted(Canary::ReleaseBeforeCopy) {
                end.release(claim);
            }
        });
        count += 1;
    }
}

/// A visitor, and where its messages are counted.
struct Showing<'a, V> {
    visitor: &'a mut V,
    line: &'a HandleLine,
    counters: &'a mut Counters,
    peers: &'a Park,
}

impl<V: Visit> Show for Showing<'_, V> {
    #[inline(always)]
    fn show(&mut self, slots: &Slots, taken: &Taken) {
        self.visitor.message(View { slots, taken });
    }

    #[inline(always)]
    fn may_go_on(&self) -> bool {
        self.visitor.may_go_on()
    }

    #[inline(always)]
    fn given_back(&mut self, messages: u64, payload_bytes: u64) {
        self.counters.count(self.line, messages, payload_bytes);
        self.visitor.given_back(self.peers);
    }
}
