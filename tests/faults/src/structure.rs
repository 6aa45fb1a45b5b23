//! Whether the words of a ring that nobody is working on fit together.

use ringmain_client::layout::{State, Word, mpmc, slot, spsc_page};
use ringmain_client::protocol::Role;
use ringmain_client::ring::{Region, RingMemory};
use ringmain_client::sync::atomic::Ordering;

use crate::arena::Arena;

/// The word of a position's slot.
pub fn word(arena: &Arena, position: u64) -> Word {
    let (region, first) = arena.slots();
    let offset = first + arena.geometry.slot_offset(position) + slot::WORD;
    Word(region.u64_at(offset).load(Ordering::Acquire))
}

/// Lap of a position as words have it.
pub fn lap(arena: &Arena, position: u64) -> u64 {
    arena.geometry.lap(position) & Word::LAP_MASK
}

/// Whether a message that starts at this position is visible to consumers or is already held by one.
pub fn published(arena: &Arena, position: u64) -> bool {
    let word = word(arena, position);
    word.lap() == lap(arena, position) && word.state() == Some(State::Published)
}

/// One end of an spsc ring.
pub fn page_position(page: &Region) -> u64 {
    page.u64_at(spsc_page::POSITION).load(Ordering::Acquire)
}

/// Head and tail.
pub fn ends(arena: &Arena) -> (u64, u64) {
    match &arena.daemon {
        RingMemory::Mpmc { ring, .. } => (
            ring.u64_at(mpmc::HEAD).load(Ordering::Acquire),
            ring.u64_at(mpmc::TAIL).load(Ordering::Acquire),
        ),
        RingMemory::Spsc { producer, consumer, .. } => {
            (page_position(consumer), page_position(producer))
        }
    }
}

/// Position of the next claim, even if a member died before it moved the tail.
pub fn next_claim(arena: &Arena) -> u64 {
    let (_, tail) = ends(arena);
    let word = word(arena, tail);
    let begun = word.lap() == lap(arena, tail) && word.state() == Some(State::Writing);
    if matches!(arena.daemon, RingMemory::Mpmc { .. }) && begun {
        tail + u64::from(word.n())
    } else {
        tail
    }
}

/// Whether a handle of an mpmc ring has changed the word at its end of the ring and not moved that end.
pub fn is_half_claimed(arena: &Arena, handle: u8, role: Role) -> bool {
    let (head, tail) = ends(arena);
    let end = if role == Role::Produce { tail } else { head };
    let word = word(arena, end);
    let owned = match role {
        Role::Produce => word.is(State::Writing),
        Role::Consume => word.is(State::Held) || word.is(State::Skipping),
    };
    owned && word.lap() == lap(arena, end) && word.owner() == handle
}

/// Checks every word. `live` are the handles that may own slots.
pub fn check(arena: &Arena, live: &[u8]) -> Result<(), String> {
    let (head, tail) = ends(arena);
    if tail.wrapping_sub(head) > arena.geometry.slots() {
        return Err(format!("head {head} and tail {tail} are too far apart"));
    }
    match &arena.daemon {
        RingMemory::Mpmc { .. } => check_mpmc(arena, head, tail, live),
        RingMemory::Spsc { .. } => check_spsc(arena, head, tail),
    }
}

fn check_spsc(arena: &Arena, head: u64, tail: u64) -> Result<(), String> {
    let mut position = head;
    while position < tail {
        let word = word(arena, position);
        if !published(arena, position) || word.n() == 0 {
            return Err(format!("position {position} before the tail {tail} holds {word:?}"));
        }
        position += u64::from(word.n());
    }
    if position != tail {
        return Err(format!("a message ends at {position}, beyond the tail {tail}"));
    }
    for position in tail..head + arena.geometry.slots() {
        if published(arena, position) {
            let word = word(arena, position);
            return Err(format!("position {position} beyond the tail {tail} holds {word:?}"));
        }
    }
    Ok(())
}

fn check_mpmc(arena: &Arena, head: u64, tail: u64, live: &[u8]) -> Result<(), String> {
    let slots = arena.geometry.slots();
    let mut covered = vec![false; usize::try_from(slots).expect("a small ring")];
    let index = |position: u64| usize::try_from(position % slots).expect("a small ring");
    for back in (1..=slots).rev() {
        let position = tail.wrapping_sub(back);
        let word = word(arena, position);
        let (owned, before_head) = match word.state() {
            Some(State::Free) => continue,
            Some(State::Writing) => (true, false),
            Some(State::Published | State::Tombstone) => (false, false),
            Some(State::Held | State::Skipping) => (true, true),
            Some(State::Returned) => (false, true),
            None => return Err(format!("position {position} holds {word:?}")),
        };
        let n = u64::from(word.n());
        let end = position.wrapping_add(n);
        if word.lap() != lap(arena, position) || n == 0 || end > tail {
            return Err(format!("position {position} before the tail {tail} holds {word:?}"));
        }
        if owned && !live.contains(&word.owner()) {
            return Err(format!("position {position} belongs to nobody alive: {word:?}"));
        }
        if before_head != (end <= head) || (!before_head && position < head) {
            return Err(format!("position {position} with the head at {head} holds {word:?}"));
        }
        for behind in 0..n {
            let at = position + behind;
            if std::mem::replace(&mut covered[index(at)], true) {
                return Err(format!("position {at} belongs to two claims"));
            }
            let word = self::word(arena, at);
            if behind > 0 && word != Word::free(arena.geometry.lap(at)) {
                return Err(format!(
                    "position {at} behind the first slot of a claim holds {word:?}"
                ));
            }
        }
    }
    for position in tail..tail + slots {
        let word = word(arena, position);
        if !covered[index(position)] && word != Word::free(arena.geometry.lap(position)) {
            return Err(format!("position {position}, free, holds {word:?}"));
        }
    }
    for position in head..tail {
        if !covered[index(position)] {
            return Err(format!("position {position} between head and tail belongs to no claim"));
        }
    }
    Ok(())
}
