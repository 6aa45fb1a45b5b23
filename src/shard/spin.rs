//! Whether it pays to look on for a moment before a sleep.

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
}
