//! Access to slots by position: words, headers, bodies. The only place that turns positions into offsets.

use core::ops::Range;

use super::error::{Fault, Invariant};
use super::producer::{Body, Fill};
use super::region::Region;
use crate::layout::{Geometry, State, Word, slot};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Lengths and flags of one message, as its first slot says; bounded by [`Header::read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) flags: u16,
    pub(super) metadata_length: u16,
}

impl Header {
    /// Body bytes in front of the payload: the metadata, padded so that the payload starts at a multiple of eight.
    #[inline(always)]
    pub(super) const fn payload_offset(metadata_length: usize) -> usize {
        (metadata_length + 7) & !7
    }

    /// Packed, for a payload without metadata whose length was bounded.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // bounded before
    pub(super) const fn of_payload(length: usize) -> u64 {
        Self { length: length as u32, flags: 0, metadata_length: 0 }.pack()
    }

    #[inline(always)]
    pub(super) const fn pack(self) -> u64 {
        self.length as u64 | (self.flags as u64) << 32 | (self.metadata_length as u64) << 48
    }

    #[allow(clippy::cast_possible_truncation)] // the fields are these bits
    const fn unpack(value: u64) -> Self {
        Self {
            length: value as u32,
            flags: (value >> 32) as u16,
            metadata_length: (value >> 48) as u16,
        }
    }
}

/// One slot: the way to its word and header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    region: &'a Region,
    /// Within the region, as `Slots::new` found, and so are the 64 bytes behind it; a multiple of eight.
    pub(super) offset: usize,
}

impl Slot<'_> {
    #[inline(always)]
    fn word(&self) -> &AtomicU64 {
        // SAFETY: see `offset`.
        unsafe { self.region.u64_at_unchecked(self.offset + slot::WORD) }
    }

    /// Loads the word. Acquire: partner of every Release store and AcqRel exchange of a word, so that what its writer
    /// did before (the body, or the reading of the previous body, or moving head and tail) is visible.
    #[inline(always)]
    pub(super) fn load(&self) -> Word {
        Word(self.word().load(Ordering::Acquire))
    }

    /// Stores a word that only the caller may change. Release: partner of [`Self::load`].
    #[inline(always)]
    pub(super) fn store(&self, word: Word) {
        self.word().store(word.0, Ordering::Release);
    }

    /// Replaces the word if it is still what the caller saw. AcqRel: takes over what its last writer did and hands on
    /// what the caller did; partner of [`Self::load`] on both sides.
    #[inline(always)]
    pub(super) fn exchange(&self, current: Word, new: Word) -> bool {
        // Relaxed on failure: the caller starts again with a fresh load.
        self.word().compare_exchange(current.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Writes a packed header. Ordered by the word.
    #[inline(always)]
    pub(super) fn write_header(&self, packed: u64) {
        // SAFETY: see `offset`: a slot has at least 64 bytes.
        unsafe { self.region.write_cell(self.offset + slot::HEADER, packed) };
    }

    /// Reads the packed header once. Ordered by the word.
    #[inline(always)]
    pub(super) fn read_header(&self) -> u64 {
        // SAFETY: see `offset`: a slot has at least 64 bytes.
        unsafe { self.region.read_cell(self.offset + slot::HEADER) }
    }
}

/// The slots of one ring. Positions of an mpmc ring come from memory that every member writes: they may be anything,
/// are counted on with wrapping arithmetic and reduced to the ring.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    region: Region,
    first: usize,
    pub(super) geometry: Geometry,
}

impl Slots {
    /// Slots that start at offset `first` of a region; a fault if they do not fit.
    pub(super) fn new(region: Region, first: usize, geometry: Geometry) -> Result<Self, Fault> {
        if region.len() < first + geometry.slots_bytes() {
            let value = region.len() as u64;
            return Err(Fault { invariant: Invariant::RegionLength, position: 0, value });
        }
        Ok(Self { region, first, geometry })
    }

    #[inline(always)]
    fn offset(&self, position: u64) -> usize {
        self.first + self.geometry.slot_offset(position)
    }

    /// The slot of a position.
    #[inline(always)]
    pub(super) fn at(&self, position: u64) -> Slot<'_> {
        Slot { region: &self.region, offset: self.offset(position) }
    }

    /// Asks for the second cache line of a position's slot, if it has one.
    #[inline(always)]
    pub(super) fn prefetch_second_line(&self, position: u64, write: bool) {
        if self.geometry.slot_size() > 64 {
            self.region.prefetch(self.offset(position) + 64, write);
        }
    }

    /// As [`Slot::load`].
    #[inline(always)]
    pub(super) fn load(&self, position: u64) -> Word {
        self.at(position).load()
    }

    /// As [`Slot::store`].
    #[inline(always)]
    pub(super) fn store(&self, position: u64, word: Word) {
        self.at(position).store(word);
    }

    /// As [`Slot::exchange`].
    #[inline(always)]
    pub(super) fn exchange(&self, position: u64, current: Word, new: Word) -> bool {
        self.at(position).exchange(current, new)
    }

    /// Lap of a position as a word has it.
    #[inline(always)]
    pub(super) fn lap(&self, position: u64) -> u64 {
        self.geometry.lap(position) & Word::LAP_MASK
    }

    /// The free word of a position's slot in the lap of that position, `ahead` laps later.
    #[inline(always)]
    pub(super) fn free_word(&self, position: u64, ahead: u64) -> Word {
        Word::free(self.geometry.lap(position).wrapping_add(ahead))
    }

    /// The length of a claim, bounded: at least one slot, at most a quarter of the ring.
    #[inline(always)]
    pub(super) fn claim_length(&self, position: u64, word: Word) -> Result<u32, Fault> {
        let n = word.n();
        if n == 0 || n > self.geometry.claim_slots_max() {
            return Err(Fault { invariant: Invariant::ClaimLength, position, value: word.0 });
        }
        Ok(n)
    }

    /// Reads the header of the message in `slot` once and bounds it: the body needs exactly the `n` slots of its claim.
    #[inline(always)]
    pub(super) fn read_header(
        &self,
        slot: Slot<'_>,
        position: u64,
        n: u32,
    ) -> Result<Header, Fault> {
        let value = slot.read_header();
        let header = Header::unpack(value);
        let body = Header::payload_offset(header.metadata_length as usize) + header.length as usize;
        if header.length as usize <= self.geometry.max_message() {
            let one = body <= self.geometry.first_body_bytes();
            if if one { n == 1 } else { self.fills_slots(body, n) } {
                return Ok(header);
            }
        }
        Err(Fault { invariant: Invariant::MessageLength, position, value })
    }

    /// Whether a body needs this many slots. Out of line: it divides.
    #[inline(never)]
    fn fills_slots(&self, body: usize, n: u32) -> bool {
        self.geometry.slots_for(body) == u64::from(n)
    }

    /// Asks for the first two cache lines of a position's slot, as far as it has them, to write them.
    #[inline(always)]
    pub(super) fn prefetch_two_lines(&self, position: u64) {
        let start = self.offset(position);
        self.region.prefetch(start, true);
        if self.geometry.slot_size() > 64 {
            self.region.prefetch(start + 64, true);
        }
    }

    /// Asks for the lines of `n` slots from this position on, to write them, as far as they come before the end of the ring.
    #[inline(always)]
    pub(super) fn prefetch_run(&self, position: u64, n: usize) {
        let size = self.geometry.slot_size();
        let start = self.offset(position);
        let end = start + self.until_wrap(position).min(n) * size;
        for line in (start..end).step_by(64) {
            self.region.prefetch(line, true);
        }
    }

    /// Slots from this position on up to the end of the ring.
    #[inline(always)]
    pub(super) fn until_wrap(&self, position: u64) -> usize {
        let slots = self.geometry.slots();
        usize::try_from(slots - (position & (slots - 1))).unwrap_or(usize::MAX)
    }

    /// Writes messages that take one slot each into slots that follow each other, and the same word into each slot.
    #[inline(always)]
    pub(super) fn write_run(&self, position: u64, word: Word, payloads: &[&[u8]]) {
        let region = self.region.clone();
        let mut slot = Slot { region: &region, offset: self.offset(position) };
        for payload in payloads {
            region.copy_in(slot.offset + slot::BODY, payload);
            slot.write_header(Header::of_payload(payload.len()));
            slot.store(word);
            slot.offset += self.geometry.slot_size();
        }
    }

    /// Has the messages `which` of a batch written in place, one slot each, from this position on, and publishes each with the
    /// same header and word. `false`: not all of them, the memory may not be touched any more.
    #[inline(always)]
    pub(super) fn fill_run(
        &self,
        position: u64,
        word: Word,
        header: u64,
        which: Range<usize>,
        fill: &mut impl Fill,
    ) -> bool {
        let length = Header::unpack(header).length as usize;
        let mut slot = Slot { region: &self.region, offset: self.offset(position) };
        for index in which {
            fill.fill(index, &mut Body::new(self, slot.offset, length));
            if !fill.may_go_on() {
                return false;
            }
            slot.write_header(header);
            slot.store(word);
            slot.offset += self.geometry.slot_size();
        }
        true
    }

    /// Writes part of a body that lies in this slot.
    #[inline(always)]
    pub(super) fn write_single(&self, slot: usize, offset: usize, bytes: &[u8]) {
        self.region.copy_in(slot + slot::BODY + offset, bytes);
    }

    /// Reads part of a body that lies in this slot.
    #[inline(always)]
    pub(super) fn read_single(&self, slot: usize, offset: usize, into: &mut [u8]) {
        self.region.copy_out(slot + slot::BODY + offset, into);
    }

    /// Writes part of a body that starts in the slot of `position`.
    #[inline(always)]
    pub(super) fn write_body(&self, position: u64, offset: usize, bytes: &[u8]) {
        if offset + bytes.len() <= self.geometry.first_body_bytes() {
            self.region.copy_in(self.offset(position) + slot::BODY + offset, bytes);
            return;
        }
        let mut done = 0;
        self.pieces(position, offset, bytes.len(), &mut |at, length| {
            self.region.copy_in(at, &bytes[done..done + length]);
            done += length;
        });
    }

    /// Reads part of a body that starts in the slot of `position`.
    #[inline(always)]
    pub(super) fn read_body(&self, position: u64, offset: usize, into: &mut [u8]) {
        if offset + into.len() <= self.geometry.first_body_bytes() {
            self.region.copy_out(self.offset(position) + slot::BODY + offset, into);
            return;
        }
        let mut done = 0;
        let length = into.len();
        self.pieces(position, offset, length, &mut |at, piece| {
            self.region.copy_out(at, &mut into[done..done + piece]);
            done += piece;
        });
    }

    /// Cuts a range of a body at the slot boundaries and calls `each` with offset and length in the region.
    fn pieces(
        &self,
        position: u64,
        offset: usize,
        length: usize,
        each: &mut dyn FnMut(usize, usize),
    ) {
        let first = self.geometry.first_body_bytes();
        let next = self.geometry.next_body_bytes();
        let (mut offset, mut left) = (offset, length);
        while left > 0 {
            let (at, room) = if offset < first {
                (self.offset(position) + slot::BODY + offset, first - offset)
            } else {
                let behind = (offset - first) / next;
                let within = (offset - first) % next;
                let slot_position = position.wrapping_add(1 + behind as u64);
                (self.offset(slot_position) + slot::BODY_CONTINUED + within, next - within)
            };
            let piece = room.min(left);
            each(at, piece);
            offset += piece;
            left -= piece;
        }
    }

    /// Address of the body of a message that lies in one slot.
    #[inline(always)]
    pub(super) fn body_address(&self, position: u64) -> *mut u8 {
        self.region.address(self.offset(position) + slot::BODY)
    }

    /// As [`Self::body_address`], of the slot at this offset.
    #[inline(always)]
    pub(super) fn body_at(&self, slot: usize) -> *mut u8 {
        self.region.address(slot + slot::BODY)
    }

    /// Sets the `n` slots from `position` free for the next lap, the first slot last: whoever sees the first one
    /// free may rely on all of them. Only the owner of the first word may call this.
    #[inline(always)]
    pub(super) fn free(&self, position: u64, n: u32) {
        if n == 1 {
            return self.store(position, self.free_word(position, 1));
        }
        for behind in (0..u64::from(n)).rev() {
            let at = position.wrapping_add(behind);
            self.store(at, self.free_word(at, 1));
        }
    }

    /// Sets the words behind the first of `n` slots back to free in their own lap.
    pub(super) fn reset_continuations(&self, position: u64, n: u32) {
        for behind in (1..u64::from(n)).rev() {
            let at = position.wrapping_add(behind);
            self.store(at, self.free_word(at, 0));
        }
    }

    /// The fault for a word that cannot be where it was found.
    #[cold]
    pub(super) fn word_fault(position: u64, word: Word, state: Option<State>) -> Fault {
        let invariant = if state.is_none() { Invariant::WordState } else { Invariant::WordLap };
        Fault { invariant, position, value: word.0 }
    }
}
