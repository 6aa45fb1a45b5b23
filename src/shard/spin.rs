//! Whether it pays to look on for a moment before a sleep, or to let those run who were just woken.

use ringmain_client::sys::affinity::online_cpus;
use ringmain_client::sys::clock::monotonic_ns;

/// Longest look in nanoseconds.
const LONGEST_NS: u64 = 50_000;
/// Shorter than this is none.
const SHORTEST_NS: u64 = 2_000;
/// While it does not pay, every so many sleeps it is tried again.
const TRIED_EVERY: u32 = 32;
/// Looks between two readings of the clock.
const LOOKS: u32 = 16;

/// Grows with every look that found something and shrinks with every one that did not, down to nothing.
#[derive(Debug)]
pub(super) struct Spin {
    budget_ns: u64,
    sleeps: u32,
    pays: bool,
}

impl Spin {
    pub(super) fn new() -> Self {
        // With one CPU whoever is waited for cannot run meanwhile.
        Self { budget_ns: 0, sleeps: 0, pays: online_cpus() > 1 }
    }

    /// Looks on; whether there was something.
    pub(super) fn look(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if !self.pays {
            return false;
        }
        self.sleeps = self.sleeps.wrapping_add(1);
        let budget_ns = if self.budget_ns >= SHORTEST_NS {
            self.budget_ns
        } else if self.sleeps.is_multiple_of(TRIED_EVERY) {
            SHORTEST_NS
        } else {
            return false;
        };
        let begun_ns = monotonic_ns();
        loop {
            for _ in 0..LOOKS {
                if found() {
                    self.budget_ns = (budget_ns * 2).min(LONGEST_NS);
                    return true;
                }
                std::hint::spin_loop();
            }
            if monotonic_ns().saturating_sub(begun_ns) >= budget_ns {
                self.budget_ns = budget_ns / 2;
                return false;
            }
        }
    }
}

/// A yield that took longer than this in nanoseconds ran somebody who has other things to do.
const LONG_NS: u64 = 50_000;
/// While it does not pay, it is tried again after at most so many sleeps.
const YIELDED_EVERY: u32 = 1024;

/// A client that was woken on this very processor runs when this thread sleeps. If it sends again at once, to let it run first spares
/// both the sleep and the wake. Where it runs elsewhere, or does something else, that is soon not tried any more.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    sleeps: u32,
    every: u32,
}

impl Courtesy {
    /// Lets others run; whether there was something afterwards.
    pub(super) fn yields(&mut self, found: impl FnOnce() -> bool) -> bool {
        self.yields_with(found, || {
            let begun_ns = monotonic_ns();
            std::thread::yield_now();
            monotonic_ns().saturating_sub(begun_ns)
        })
    }

    fn yields_with(
        &mut self,
        found: impl FnOnce() -> bool,
        yield_now: impl FnOnce() -> u64,
    ) -> bool {
        self.sleeps += 1;
        if self.sleeps < self.every {
            return false;
        }
        self.sleeps = 0;
        let took_ns = yield_now();
        let found = found();
        let pays = found && took_ns <= LONG_NS;
        self.every = if pays { 0 } else { (self.every * 2).clamp(2, YIELDED_EVERY) };
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_pay_is_given_up() {
        let mut spin = Spin { budget_ns: LONGEST_NS, sleeps: 0, pays: true };
        for _ in 0..20 {
            assert!(!spin.look(|| false));
        }
        assert!(spin.budget_ns < SHORTEST_NS);
        // Every now and then it is tried again, and pays.
        assert!((0..TRIED_EVERY).any(|_| spin.look(|| true)));
        assert!(spin.budget_ns >= SHORTEST_NS && spin.look(|| true));
    }

    #[test]
    fn a_courtesy_that_does_not_pay_becomes_rare() {
        let mut courtesy = Courtesy::default();
        let mut yields = |found, took_ns| {
            let mut yielded = 0;
            for _ in 0..8 * YIELDED_EVERY {
                courtesy.yields_with(
                    || found,
                    || {
                        yielded += 1;
                        took_ns
                    },
                );
            }
            yielded
        };
        assert_eq!(yields(true, 2_000), 8 * YIELDED_EVERY);
        assert!(yields(true, 1_000_000) < 20, "somebody else had work to do");
        assert!(yields(false, 300) < 20, "nobody was there");
        assert!(yields(true, 2_000) > 6 * YIELDED_EVERY);
    }
}
