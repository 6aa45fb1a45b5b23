//! How much those get in a turn who are far behind.
//!
//! Whoever replays a backlog from the disk asks for all that there is. What he gets makes the turn longer, and everybody who waits
//! for a confirmation waits for the end of the turn, for the disk and for a processor. So while somebody publishes, he gets a
//! small part of the time, and what he has earned by what is published in his own queue; else as much as a turn may take. Those
//! who are near are not counted: they cannot ask for more than is published.

use crate::journal::FarTurn;

/// Messages in a turn at most: some tens of microseconds.
const MESSAGES_MAX: u32 = 512;
/// While somebody publishes, to those who have earned none: few more would make the turn long, fewer would have a consumer woken for
/// each few.
const MESSAGES_BESIDE: u32 = 256;
/// While somebody publishes, the pause behind them is so much longer than what giving them out took. That is the least of what they
/// cost: their acknowledgements are written and the consumer is woken in the same thread, and the disk reads for them.
const PAUSE: u64 = 60;
/// Somebody publishes until so many nanoseconds after the last message.
const BESIDE_NS: u64 = 5_000_000;

/// All times in nanoseconds of one clock.
#[derive(Debug, Default)]
pub(super) struct FarShare {
    published_at_ns: Option<u64>,
    opens_at_ns: u64,
}

impl FarShare {
    /// Messages came in.
    pub(super) fn published(&mut self, now_ns: u64) {
        self.published_at_ns = Some(now_ns);
    }

    /// When nobody publishes any more, unless something comes in before; `None`: nobody does.
    fn beside_until_ns(&self, now_ns: u64) -> Option<u64> {
        let until_ns = self.published_at_ns?.saturating_add(BESIDE_NS);
        (now_ns < until_ns).then_some(until_ns)
    }

    /// What may be given out now.
    pub(super) fn turn(&self, now_ns: u64) -> FarTurn {
        let unearned = match self.beside_until_ns(now_ns) {
            None => MESSAGES_MAX,
            Some(_) if now_ns >= self.opens_at_ns => MESSAGES_BESIDE,
            Some(_) => 0,
        };
        FarTurn::new(MESSAGES_MAX, unearned)
    }

    /// Some were given out to those who had earned none, which took so long.
    pub(super) fn given(&mut self, took_ns: u64, now_ns: u64) {
        // The clock goes on while the shard is off its processor: that is no reason for a long pause.
        let pause_ns = took_ns.saturating_mul(PAUSE).min(BESIDE_NS);
        self.opens_at_ns = now_ns.saturating_add(pause_ns);
    }

    /// When those may have more who have earned none.
    pub(super) fn opens_at_ns(&self, now_ns: u64) -> u64 {
        self.beside_until_ns(now_ns).map_or(now_ns, |until_ns| self.opens_at_ns.min(until_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_producers_a_small_part_of_the_time_and_else_all() {
        let mut share = FarShare::default();
        let unearned = |share: &FarShare, now_ns| share.turn(now_ns).unearned;
        assert_eq!(unearned(&share, 1), MESSAGES_MAX);
        share.given(1_000, 1_001);
        assert_eq!((unearned(&share, 1_001), share.opens_at_ns(1_001)), (MESSAGES_MAX, 1_001));
        share.published(2_000);
        share.given(10_000, 12_000);
        let opens_at_ns = share.opens_at_ns(12_000);
        assert_eq!(opens_at_ns, 12_000 + PAUSE * 10_000);
        assert_eq!((unearned(&share, 12_000), unearned(&share, opens_at_ns - 1)), (0, 0));
        assert_eq!(unearned(&share, opens_at_ns), MESSAGES_BESIDE);
        assert_eq!(unearned(&share, 2_000 + BESIDE_NS), MESSAGES_MAX);
        // Who has earned them need not wait.
        assert_eq!(share.turn(12_000).all, MESSAGES_MAX);
    }

    #[test]
    fn a_turn_that_was_interrupted_makes_no_long_pause() {
        let mut share = FarShare::default();
        share.published(1_000_000_000);
        share.given(1_000_000_000, 1_001_000_000);
        let opens_at_ns = share.opens_at_ns(1_001_000_000);
        assert_eq!(opens_at_ns, 1_000_000_000 + BESIDE_NS);
        assert_eq!(share.turn(opens_at_ns).unearned, MESSAGES_MAX);
    }
}
