//! The spsc ring: plain loads and stores, nothing that either side could take from the other.
//!
//! After FastForward (Giacomoni, Moseley, Vachharajani 2008): the flag that says "there is a message" lies in the
//! message's own cache line, so a small message costs one line transfer. The producer alone writes slots; the consumer
//! writes only its own page.
//!
//! ```text
//! send n slots at the tail t                      take the message at h
//!  1  t + n - head <= slots? if not, read the      1  word[h] published in h's lap?
//!     consumer's position anew                     2  taken = h + n      (own page)
//!  2  write header and body                        3  copy out
//!  3  word[t] = Published                          4  position = h + n   (own page)
//!  4  position = t + n   (own page)
//!
//! show a batch of messages in one slot each, from h on
//!  1  word[h] published in h's lap?
//!  2  shown = h + 1      (own page, a line that nobody else reads): the messages before h are done with
//!  3  show, h = h + 1, again from 1 up to sixteen times
//!  4  position = h       (own page)
//! ```
//!
//! Invariants:
//! - Both positions only grow, and `producer position <= consumer position + slots`.
//! - `consumer position <= producer position`, but for the claim of a producer that is between steps 3 and 4, or died
//!   there: the consumer follows the words and does not wait for the position.
//! - No word beyond the producer's position is published in its lap, save for the one operation between steps 3 and 4
//!   of a producer that died (repair moves the position) and the rest of a batch whose first word was not written
//!   (repair resets the words).
//! - A consumer that died was done with what lies before `position`, and before `shown - 1` if that is more; what lies from
//!   there on before `taken` or `shown` it may have seen ([`progress`]).

use super::consumer::Taken;
use super::end::{Claim, ReceiveEnd, SendEnd, Show};
use super::error::{Fault, Invariant, TryReceiveError, TrySendError};
use super::look::{Stream, end_look};
use super::region::Region;
use super::slots::Slots;
use crate::layout::{Geometry, State, Word, spsc_page};
use crate::sync::atomic::{AtomicU64, Ordering, compiler_fence};
use crate::sync::canary::{Canary, planted};

/// The producer's end.
#[derive(Debug)]
pub(super) struct ProducerEnd {
    pub(super) slots: Slots,
    own: Region,
    peer: Region,
    tail: u64,
    /// The consumer's position as last read: it can only be further by now.
    head: u64,
}

/// The consumer's end.
#[derive(Debug)]
pub(super) struct ConsumerEnd {
    pub(super) slots: Slots,
    own: Region,
    /// Position of the next message to look at; messages before it are taken, and released in order.
    next: u64,
    redelivered_before: u64,
    stream: Stream,
}

/// One end's position, as its page says it.
///
/// Acquire: partner of the Release stores in `ProducerEnd::finish` and `ConsumerEnd::release`; for the producer it
/// means that the consumer's reads of the released slots are over.
#[inline]
pub(super) fn position(page: &Region) -> u64 {
    field(page, spsc_page::POSITION).load(Ordering::Acquire)
}

/// How far a consumer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// It is done with what lies before this position.
    pub released: u64,
    /// It may have looked at what lies before this position.
    pub taken: u64,
}

/// How far the consumer of this page has come. Exact when its process is dead, else a racy look. `taken` may be smaller than
/// `released`; a hostile consumer may have written anything.
pub fn progress(consumer: &Region) -> Progress {
    let position = position(consumer);
    // Relaxed, both: see `take_note`.
    let shown = consumer.u64_at(spsc_page::SHOWN).load(Ordering::Relaxed);
    let taken = consumer.u64_at(spsc_page::TAKEN).load(Ordering::Relaxed);
    if shown > position {
        Progress { released: position.max(shown - 1), taken: taken.max(shown) }
    } else {
        Progress { released: position, taken }
    }
}

/// A field of a page whose length was checked.
#[inline(always)]
fn field(page: &Region, offset: usize) -> &AtomicU64 {
    // SAFETY: the offsets of `spsc_page` are multiples of eight below its length, and whoever calls this has found the
    // pages that long with `check_pages`.
    unsafe { page.u64_at_unchecked(offset) }
}

/// Before the bytes of a message that ends here are looked at.
#[inline(always)]
fn take_note(own: &Region, end: u64) {
    // Relaxed: read only after this process is dead. The fence keeps the compiler from moving reads of the payload
    // before it; the processor's order does not matter to those who look after the death.
    field(own, spsc_page::TAKEN).store(end, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
}

/// Before the bytes of a message in one slot that ends here are looked at, and after those of the messages before it.
#[inline(always)]
fn note_shown(own: &Region, end: u64) {
    // Relaxed and fenced as in `take_note`, on both sides: the reads of the message before come before.
    compiler_fence(Ordering::SeqCst);
    field(own, spsc_page::SHOWN).store(end, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
}

/// Messages that a visitor is shown before their slots are the producer's again. A producer that finds no room reads the position
/// over and over: stored for each message, its line would be on its way all the time.
const PART_MESSAGES_MAX: usize = 16;

/// A part of a batch: what was shown is given back when it is dropped, also when the visitor panics.
struct Part<'a, S: Show> {
    own: &'a Region,
    next: &'a mut u64,
    first: u64,
    /// Behind the last message that was shown.
    position: u64,
    payload_bytes: u64,
    show: &'a mut S,
}

impl<S: Show> Drop for Part<'_, S> {
    #[inline(always)]
    fn drop(&mut self) {
        let messages = self.position - self.first;
        if messages > 0 && self.show.may_go_on() {
            *self.next = self.position;
            give_back(self.own, self.position);
            self.show.given_back(messages, self.payload_bytes);
        }
    }
}

/// All slots before this position are the producer's again.
#[inline(always)]
fn give_back(own: &Region, end: u64) {
    // Release: partner of `position`, the reads of the message come before.
    field(own, spsc_page::POSITION).store(end, Ordering::Release);
}

/// Both pages are there in full.
pub(super) fn check_pages(producer: &Region, consumer: &Region) -> Result<(), Fault> {
    let length = producer.len().min(consumer.len());
    if length < spsc_page::BYTES {
        let value = length as u64;
        return Err(Fault { invariant: Invariant::RegionLength, position: 0, value });
    }
    Ok(())
}

/// How many batches lie between one and the one whose lines it asks for.
const PREPARED_AHEAD: u64 = 2;

/// Bytes of lines that are asked for at a time: the processor keeps track of a few dozen lines.
const PREPARED_BYTES_MAX: usize = 4096;

/// No ring ever comes this far; below it positions can be counted on without overflow.
const POSITION_MAX: u64 = 1 << 62;

/// Head and tail if they are in order, at most one ring apart, and where a ring can have come to. A tail that lags behind
/// the head by no more than a claim belongs to a producer that is between its word and its position: it counts as
/// having come as far as the head.
pub(super) fn bounded(geometry: &Geometry, head: u64, tail: u64) -> Result<(u64, u64), Fault> {
    let lags = head > tail && head - tail <= u64::from(geometry.claim_slots_max());
    let real_tail = if lags { head } else { tail };
    if head > real_tail || real_tail - head > geometry.slots() || real_tail > POSITION_MAX {
        return Err(Fault { invariant: Invariant::Positions, position: tail, value: head });
    }
    Ok((head, real_tail))
}

/// The furthest that a consumer can have looked at if the producer's position is this: one claim beyond it.
pub(super) fn taken_max(geometry: &Geometry, tail: u64) -> u64 {
    tail + u64::from(geometry.claim_slots_max())
}

impl ProducerEnd {
    pub(super) fn new(
        slots: &Region,
        own: &Region,
        peer: &Region,
        geometry: Geometry,
    ) -> Result<Self, Fault> {
        check_pages(own, peer)?;
        let (head, tail) = bounded(&geometry, position(peer), position(own))?;
        let slots = Slots::new(slots.clone(), 0, geometry)?;
        Ok(Self { slots, own: own.clone(), peer: peer.clone(), tail, head })
    }

    /// The ring looks full: reads the consumer's position anew.
    #[inline(never)]
    fn look_for_room(&mut self, n: u32) -> Result<(), TrySendError> {
        let head = position(&self.peer);
        if head < self.head || head > self.tail {
            let fault = Fault { invariant: Invariant::Positions, position: self.tail, value: head };
            return Err(fault.into());
        }
        self.head = head;
        if self.tail + u64::from(n) - head > self.slots.geometry.slots() {
            return Err(TrySendError::Full);
        }
        Ok(())
    }
}

impl SendEnd for ProducerEnd {
    #[inline(always)]
    fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Stores wait for their lines in the store buffer, in order and without delaying anything else.
    #[inline(always)]
    fn prepare_long(&self) {}

    /// Nothing is written: a claim of one slot that is dropped leaves no trace.
    #[inline(always)]
    fn claim(&mut self, n: u32) -> Result<Claim, TrySendError> {
        if self.tail + u64::from(n) - self.head > self.slots.geometry.slots() {
            self.look_for_room(n)?;
        }
        Ok(Claim { position: self.tail, n })
    }

    #[inline(always)]
    fn published(&self, position: u64, n: u32) -> Word {
        Word::new(self.slots.lap(position), n, 0, State::Published)
    }

    /// Stores wait for their lines one after the other, so that the lines of a later batch are best on their way before it is
    /// written. Only what the consumer is known to have done with is asked for, and no more than fits beside the rest.
    #[inline(always)]
    fn prepare_next(&self, claim: Claim) {
        let n = u64::from(claim.n);
        let from = claim.position + PREPARED_AHEAD * n;
        let few = claim.n as usize * self.slots.geometry.slot_size() <= PREPARED_BYTES_MAX;
        if few && from + n - self.head <= self.slots.geometry.slots() {
            self.slots.prefetch_run(from, claim.n as usize);
        }
    }

    #[inline(always)]
    fn finish(&mut self, claim: Claim) {
        self.tail = claim.position + u64::from(claim.n);
        // Release: partner of `position`; for statistics and for the successor.
        field(&self.own, spsc_page::POSITION).store(self.tail, Ordering::Release);
    }

    /// The first word was not written, so that nobody has looked at the others.
    fn abandon(&mut self, claim: Claim) {
        self.slots.reset_continuations(claim.position, claim.n);
    }

    fn position(&self) -> u64 {
        self.tail
    }
}

impl ConsumerEnd {
    pub(super) fn new(
        slots: &Region,
        own: &Region,
        peer: &Region,
        geometry: Geometry,
    ) -> Result<Self, Fault> {
        check_pages(own, peer)?;
        let (next, tail) = bounded(&geometry, progress(own).released, position(peer))?;
        let slots = Slots::new(slots.clone(), 0, geometry)?;
        // Relaxed: written by a predecessor whose exit the daemon has seen, or by the daemon before this handle existed.
        let redelivered = field(own, spsc_page::REDELIVERED).load(Ordering::Relaxed);
        let redelivered_before = redelivered.min(taken_max(&geometry, tail));
        let stream = Stream::new(geometry.slots());
        Ok(Self { slots, own: own.clone(), next, redelivered_before, stream })
    }

    /// Whatever is not a message in one slot.
    #[inline(never)]
    fn take_other(&self, position: u64, word: Word) -> Result<u32, TryReceiveError> {
        let lap = self.slots.lap(position);
        if word.lap() != lap {
            // Slots behind the first of a message keep the word of the lap in which they last were a first slot.
            let ahead = word.lap().wrapping_sub(lap) & Word::LAP_MASK;
            if ahead <= Word::LAP_MASK / 2 {
                return Err(Slots::word_fault(position, word, word.state()).into());
            }
            return Err(TryReceiveError::Empty);
        }
        match word.state() {
            Some(State::Published) => Ok(self.slots.claim_length(position, word)?),
            Some(State::Free) => Err(TryReceiveError::Empty),
            state => Err(Slots::word_fault(position, word, state).into()),
        }
    }
}

impl ReceiveEnd for ConsumerEnd {
    #[inline(always)]
    fn slots(&self) -> &Slots {
        &self.slots
    }

    #[inline(always)]
    fn take(&mut self) -> Result<(Claim, bool), TryReceiveError> {
        let position = self.next;
        let word = self.slots.load(position);
        let redelivered = position < self.redelivered_before;
        // The common cases in one comparison each: a message in one slot, whose length the next position need not wait
        // for, and the word of the lap before.
        let lap = self.slots.lap(position);
        if word == Word::new(lap, 1, 0, State::Published) {
            return Ok((Claim { position, n: 1 }, redelivered));
        }
        if word == Word::new(lap.wrapping_sub(1), 1, 0, State::Published) {
            self.stream.ended();
            end_look();
            self.slots.prefetch_second_line(position, false);
            return Err(TryReceiveError::Empty);
        }
        // Whoever waits here wants the second line as soon as it is written, not when the word has come.
        self.slots.prefetch_second_line(position, false);
        match self.take_other(position, word) {
            Ok(n) => Ok((Claim { position, n }, redelivered)),
            Err(error) => {
                self.stream.ended();
                end_look();
                Err(error)
            }
        }
    }

    /// Messages in one slot each, without metadata. What [`Self::take`] and its like compute for each message is carried
    /// along here; whatever is not that simple ends it.
    #[inline(always)]
    fn visit_quickly(&mut self, max: usize, show: &mut impl Show) -> usize {
        if planted(Canary::ReleaseBeforeCopy) {
            return 0;
        }
        let slots = self.slots.clone();
        let size = slots.geometry.slot_size();
        let longest = slots.geometry.first_body_bytes().min(slots.geometry.max_message()) as u64;
        let redelivered_before = self.redelivered_before;
        let mut count = 0;
        while count < max {
            let first = self.next;
            let length = slots.until_wrap(first).min(max - count).min(PART_MESSAGES_MAX);
            let published = Word::new(slots.lap(first), 1, 0, State::Published);
            let mut slot = slots.at(first);
            let end = first + length as u64;
            let mut part = Part {
                own: &self.own,
                next: &mut self.next,
                first,
                position: first,
                payload_bytes: 0,
                show,
            };
            while part.position < end {
                if slot.load() != published {
                    break;
                }
                let header = slot.read_header();
                if header > longest {
                    break;
                }
                #[allow(clippy::cast_possible_truncation)] // a length and nothing else
                let length = header as u32;
                let position = part.position;
                let taken =
                    Taken::single(position, slot.offset, length, position < redelivered_before);
                part.position += 1;
                part.payload_bytes += header;
                note_shown(part.own, part.position);
                part.show.show(&slots, &taken);
                if !part.show.may_go_on() {
                    return count;
                }
                slot.offset += size;
            }
            let position = part.position;
            drop(part);
            let shown = usize::try_from(position - first).unwrap_or(length);
            count += shown;
            self.stream.took(u32::try_from(shown).unwrap_or(u32::MAX));
            if position < end {
                break;
            }
        }
        count
    }

    fn has_message(&self) -> bool {
        let word = self.slots.load(self.next);
        !matches!(self.take_other(self.next, word), Err(TryReceiveError::Empty))
    }

    fn set_busy(&mut self) {
        self.stream.set_busy();
    }

    #[inline(always)]
    fn accept(&mut self, claim: Claim) {
        self.stream.took(1);
        self.next = claim.position + u64::from(claim.n);
        take_note(&self.own, self.next);
    }

    #[inline(always)]
    fn release(&mut self, claim: Claim) {
        give_back(&self.own, claim.position + u64::from(claim.n));
    }

    fn refuse(&mut self) {}

    fn position(&self) -> u64 {
        self.next
    }
}
