//! How much those get in a turn who are far behind.
//!
//! Whoever replays a backlog from the disk asks for all that there is. What he gets makes the turn longer, and everybody who waits
//! for a confirmation waits for the end of the turn, for the disk and for a processor. So while somebody publishes, he gets a
//! small part of the time, or a little more than is published, so that he comes nearer; else as much as a turn may take. Those who
//! are near are not counted: they cannot ask for more than is published.

/// Messages in a turn at most: some tens of microseconds.
const MESSAGES_MAX: u32 = 512;
/// While somebody publishes: few more would make the turn long, fewer would have a consumer woken for each few.
const MESSAGES_BESIDE: u32 = 256;
/// While somebody publishes, the pause behind them is so much longer than what they took.
const PAUSE: u64 = 15;
/// For this many published messages he may have one more than they are, without a pause.
const CATCH_UP: u32 = 8;
/// Somebody publishes until so many nanoseconds after the last message.
const BESIDE_NS: u64 = 5_000_000;

/// All times in nanoseconds of one clock.
#[derive(Debug, Default)]
pub(super) struct FarShare {
    published_at_ns: Option<u64>,
    /// Messages that may be given out because others came in.
    earned: u32,
    opens_at_ns: u64,
}

impl FarShare {
    /// So many messages came in.
    pub(super) fn published(&mut self, messages: u32, now_ns: u64) {
        self.published_at_ns = Some(now_ns);
        let earned = messages.saturating_add(messages.div_ceil(CATCH_UP));
        self.earned = self.earned.saturating_add(earned).min(2 * MESSAGES_MAX);
    }

    fn is_beside(&self, now_ns: u64) -> bool {
        self.published_at_ns.is_some_and(|at_ns| now_ns.saturating_sub(at_ns) < BESIDE_NS)
    }

    fn has_earned(&self) -> bool {
        self.earned >= MESSAGES_BESIDE
    }

    /// How many far messages may be given out now.
    pub(super) fn allowed(&self, now_ns: u64) -> u32 {
        if !self.is_beside(now_ns) {
            MESSAGES_MAX
        } else if self.has_earned() || now_ns >= self.opens_at_ns {
            self.earned.clamp(MESSAGES_BESIDE, MESSAGES_MAX)
        } else {
            0
        }
    }

    /// So many were given out, in the time from then until now.
    pub(super) fn given(&mut self, messages: u32, begun_ns: u64, now_ns: u64) {
        self.earned = self.earned.saturating_sub(messages);
        // The clock goes on while the shard is off its processor: that is no reason for a long pause.
        let pause_ns = now_ns.saturating_sub(begun_ns).saturating_mul(PAUSE).min(BESIDE_NS);
        self.opens_at_ns = now_ns.saturating_add(pause_ns);
    }

    /// When those may have more who got too little.
    pub(super) fn opens_at_ns(&self, now_ns: u64) -> u64 {
        match self.published_at_ns {
            Some(at_ns) if self.is_beside(now_ns) && !self.has_earned() => {
                self.opens_at_ns.min(at_ns.saturating_add(BESIDE_NS))
            }
            _ => now_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_producers_a_small_part_of_the_time_and_else_all() {
        let mut share = FarShare::default();
        assert_eq!(share.allowed(1), MESSAGES_MAX);
        share.given(MESSAGES_MAX, 1, 1_001);
        assert_eq!((share.allowed(1_001), share.opens_at_ns(1_001)), (MESSAGES_MAX, 1_001));
        share.published(1, 2_000);
        share.given(MESSAGES_BESIDE, 2_000, 12_000);
        let opens_at_ns = share.opens_at_ns(12_000);
        assert_eq!(opens_at_ns, 12_000 + PAUSE * 10_000);
        assert_eq!((share.allowed(12_000), share.allowed(opens_at_ns - 1)), (0, 0));
        assert_eq!(share.allowed(opens_at_ns), MESSAGES_BESIDE);
        assert_eq!(share.allowed(2_000 + BESIDE_NS), MESSAGES_MAX);
    }

    #[test]
    fn a_turn_that_was_interrupted_makes_no_long_pause() {
        let mut share = FarShare::default();
        share.published(1, 1_000_000_000);
        share.given(MESSAGES_BESIDE, 1_000_000, 1_001_000_000);
        let opens_at_ns = share.opens_at_ns(1_001_000_000);
        assert_eq!(opens_at_ns, 1_000_000_000 + BESIDE_NS);
        assert_eq!(share.allowed(opens_at_ns), MESSAGES_MAX);
    }

    #[test]
    fn whoever_is_behind_comes_nearer_whatever_is_published() {
        let mut share = FarShare::default();
        let (mut published, mut given) = (0, 0);
        for turn in 0..1000 {
            let now_ns = turn * 100_000;
            share.published(100, now_ns);
            published += 100;
            let allowed = share.allowed(now_ns);
            if allowed > 0 {
                share.given(allowed, now_ns, now_ns + 90_000);
                given += allowed;
            }
        }
        assert!(given > published + published / 10, "{given} of {published}");
        // And what nobody took does not pile up.
        share.published(1_000_000, 1);
        assert_eq!(share.allowed(1), MESSAGES_MAX);
        share.given(MESSAGES_MAX, 1, 2);
        share.given(MESSAGES_MAX, 2, 3);
        assert_eq!(share.allowed(3), 0);
    }
}
