//! What a hostile peer writes, and where.

use ringmain_client::layout::{Geometry, HANDLES, Word, handle_line, mpmc, slot, spsc_page};
use ringmain_client::protocol::Kind;
use ringmain_client::ring::{Region, RingMemory};
use ringmain_client::sync::atomic::Ordering;

use crate::arena::Arena;
use crate::random::Random;
use crate::structure;

/// Who attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attacker {
    /// A member of an mpmc ring: everything but the control page.
    Member,
    /// The producer of an spsc ring: the slots and its own page.
    Producer,
    /// The consumer of an spsc ring: its own page.
    Consumer,
}

impl Attacker {
    /// On which kind of ring.
    pub fn kind(self) -> Kind {
        match self {
            Self::Member => Kind::Mpmc,
            Self::Producer | Self::Consumer => Kind::Spsc,
        }
    }
}

/// One eight-byte write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutation {
    /// What lies there.
    pub what: What,
    /// Offset in its region.
    pub offset: usize,
    /// New value.
    pub value: u64,
}

/// What a mutation hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Word of the slot with this index.
    Word(u64),
    /// Header of the slot with this index.
    Header(u64),
    /// Somewhere in the body of the slot with this index.
    Body(u64),
    /// Any field of an mpmc ring's header.
    RingField,
    /// A handle line of an mpmc ring.
    Line,
    /// A page of an spsc ring.
    Page,
}

fn region(arena: &Arena, attacker: Attacker, what: What) -> &Region {
    match (&arena.daemon, what, attacker) {
        (RingMemory::Mpmc { ring, .. }, ..) => ring,
        (RingMemory::Spsc { producer, .. }, What::Page, Attacker::Producer) => producer,
        (RingMemory::Spsc { consumer, .. }, What::Page, _) => consumer,
        (RingMemory::Spsc { slots, .. }, ..) => slots,
    }
}

impl Mutation {
    /// One at random: mostly plausible values in places that matter.
    pub fn choose(arena: &Arena, attacker: Attacker, random: &mut Random) -> Self {
        let (what, offset) = place(arena, attacker, random);
        let old = region(arena, attacker, what).u64_at(offset).load(Ordering::Relaxed);
        let value = match (what, random.below(10)) {
            (_, 0) => random.any(),
            (_, 1) => old ^ 1 << random.below(64),
            (What::Word(index), 2..) => plausible_word(arena, index, random),
            (What::Header(_), 2..) => plausible_header(&arena.geometry, random),
            (_, 2..) => plausible_position(arena, old, random),
        };
        Self { what, offset, value }
    }

    /// Writes it.
    pub fn apply(&self, arena: &Arena, attacker: Attacker) {
        region(arena, attacker, self.what).u64_at(self.offset).store(self.value, Ordering::Relaxed);
    }
}

fn place(arena: &Arena, attacker: Attacker, random: &mut Random) -> (What, usize) {
    let first = arena.slots().1;
    let slots = arena.geometry.slots();
    let (head, tail) = structure::ends(arena);
    // Mostly near the ends, where the next operations look.
    let position = match random.below(4) {
        0 => random.any(),
        1 => head.wrapping_add(random.any() % 4),
        2 => tail.wrapping_add(random.any() % 4),
        _ => tail.wrapping_sub(random.any() % 12),
    };
    let index = position % slots;
    let at = first + arena.geometry.slot_offset(index);
    let in_slot = |random: &mut Random| match random.below(10) {
        0..6 => (What::Word(index), at + slot::WORD),
        6..9 => (What::Header(index), at + slot::HEADER),
        _ => {
            let cells = arena.geometry.slot_size() / 8 - 2;
            (What::Body(index), at + slot::BODY + 8 * random.below(cells))
        }
    };
    match attacker {
        Attacker::Member => match random.below(10) {
            0..5 => in_slot(random),
            5..9 => {
                let fields = [
                    mpmc::TAIL,
                    mpmc::HEAD,
                    mpmc::TAIL,
                    mpmc::HEAD,
                    mpmc::RETURNED,
                    mpmc::FAULT,
                    mpmc::CONSUMER_EVENT,
                    mpmc::PRODUCER_EVENT,
                    mpmc::CONSUMER_SLEEPERS + 8 * random.below(4),
                    mpmc::PRODUCER_SLEEPERS + 8 * random.below(4),
                    8 * random.below(mpmc::HANDLE_LINES / 8),
                ];
                (What::RingField, random.pick(&fields))
            }
            _ if random.below(2) == 0 => {
                // Of the honest handles: whether they are in the middle of a claim without exchanges.
                let line = mpmc::HANDLE_LINES + handle_line::BYTES * (2 + random.below(2));
                (What::Line, line + handle_line::INSIDE)
            }
            _ => {
                let line = mpmc::HANDLE_LINES + handle_line::BYTES * random.below(HANDLES);
                (What::Line, line + 8 * random.below(handle_line::BYTES / 8))
            }
        },
        Attacker::Producer if random.below(3) > 0 => in_slot(random),
        Attacker::Producer | Attacker::Consumer => {
            let fields = [
                spsc_page::POSITION,
                spsc_page::POSITION,
                spsc_page::TAKEN,
                spsc_page::REDELIVERED,
                spsc_page::SHOWN,
                spsc_page::SHOWN,
                spsc_page::SLEEPERS + 8 * random.below(4),
                spsc_page::EVENT,
                spsc_page::HANDLE_LINE + 8 * random.below(16),
                8 * random.below(spsc_page::BYTES / 8),
            ];
            (What::Page, random.pick(&fields))
        }
    }
}

fn plausible_word(arena: &Arena, index: u64, random: &mut Random) -> u64 {
    let (head, tail) = structure::ends(arena);
    let slots = arena.geometry.slots();
    let near = random.pick(&[head, tail]);
    let lap = arena.geometry.lap(near).wrapping_add(random.pick(&[0, 0, 0, 1, 2, u64::MAX]));
    let lap = if random.below(16) == 0 { random.any() } else { lap };
    let quarter = arena.geometry.claim_slots_max();
    let n = random.pick(&[0, 1, 1, 1, 2, 3, quarter - 1, quarter, quarter + 1, 64, Word::N_MAX]);
    let any = random.any() & 0xff;
    let owner = random.pick(&[0, 1, 2, 3, 4, 255, any]);
    let state = random.any() % 8;
    debug_assert!(index < slots);
    (lap & Word::LAP_MASK) << 28 | u64::from(n) << 11 | owner << 3 | state
}

fn plausible_header(geometry: &Geometry, random: &mut Random) -> u64 {
    let first = geometry.first_body_bytes() as u64;
    let max = geometry.max_message() as u64;
    let lengths =
        [0, 1, first - 1, first, first + 1, max - 1, max, max + 1, u64::from(u32::MAX), 1 << 31];
    let length = random.pick(&lengths);
    let metadata = random.pick(&[0, 0, 1, 8, first, first + 1, 65528, 65535]);
    length | (random.any() & 0xffff) << 32 | metadata << 48
}

fn plausible_position(arena: &Arena, old: u64, random: &mut Random) -> u64 {
    let (head, tail) = structure::ends(arena);
    let slots = arena.geometry.slots();
    let small = random.any() % 80;
    random.pick(&[
        0,
        1,
        head,
        tail,
        head.wrapping_add(small),
        tail.wrapping_add(small),
        tail.wrapping_sub(small),
        tail.wrapping_add(slots),
        tail.wrapping_sub(slots),
        old.wrapping_add(1),
        old.wrapping_sub(1),
        u64::MAX,
        u64::MAX - small,
        1 << 63,
        u64::from(u32::MAX),
        small,
    ])
}
