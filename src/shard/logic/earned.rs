//! What somebody who is far behind in a queue may have at once, because as much was published there.
//!
//! Reading from the disk costs those who publish: see [`crate::shard::far`]. But whoever is behind in a queue that others publish to
//! must come nearer, however little time there is for far reads: he has earned a little more than is published there. And where
//! producers wait for room, they wait for him: then he may have whatever there is.

use super::queue::Queue;

/// For every so many messages that are published he has earned one more.
const CATCH_UP: u64 = 8;
/// What nobody takes does not pile up without end.
const EARNED_MAX: u32 = 1024;

#[derive(Debug, Default)]
pub(super) struct Earned {
    /// Messages below it were counted.
    counted: u64,
    /// Of these, those that have not earned him one more yet.
    odd: u64,
    left: u32,
}

impl Earned {
    /// What there is now.
    pub(super) fn look(&mut self, next_sequence: u64, is_waited_for: bool) -> u32 {
        let published = next_sequence.saturating_sub(self.counted);
        self.counted = next_sequence;
        let odd = self.odd.saturating_add(published);
        self.odd = odd % CATCH_UP;
        let earned = published.saturating_add(odd / CATCH_UP);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(earned).min(EARNED_MAX);
        if is_waited_for {
            self.left = EARNED_MAX;
        }
        self.left
    }

    /// So much of it was not taken.
    pub(super) fn leave(&mut self, left: u32) {
        self.left = left;
    }
}

impl Queue {
    /// Whether producers wait until messages of this queue are done with.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_more_than_is_published() {
        for step in [1, 7, 100] {
            let mut earned = Earned::default();
            let (mut published, mut taken) = (0, 0);
            for _ in 0..800 {
                published += step;
                taken += u64::from(earned.look(published, false));
                earned.leave(0);
            }
            assert_eq!(taken, published + published / CATCH_UP);
            assert_eq!(earned.look(published, false), 0);
        }
    }

    #[test]
    fn what_nobody_took_does_not_pile_up() {
        let (mut earned, published) = (Earned::default(), 1);
        assert_eq!(earned.look(published + 1_000_000, false), EARNED_MAX);
        earned.leave(0);
        assert_eq!(earned.look(published + 1_000_000, true), EARNED_MAX);
    }
}
