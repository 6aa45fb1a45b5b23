//! How a handle waits: when to look again at once, when to pause, when to let others run, when to sleep.
//!
//! Pure policy: no clock, no system call, no shared memory. [`Wait::next`] says what to do before the next look at the
//! ring, and the caller says what time it is when it is asked for it.
//!
//! `adaptive` goes through four phases:
//!
//! 1. [`PLAIN_LOOKS`] looks without a pause: one `pause` instruction takes longer than a cache line takes from one
//!    core to another.
//! 2. Looks with a pause between them, in rounds of [`LOOKS_PER_ROUND`], the clock read once a round, until the
//!    budget is spent.
//! 3. [`YIELDS`] times it lets other threads run. Where more threads are busy than there are cores, the one that is
//!    waited for needs the core that the waiter burns.
//! 4. Sleep.
//!
//! The budget follows what waits have cost lately. A wait that ended within [`BUDGET_MAX_NS`] pulls an average
//! towards its length, and the budget is [`BUDGET_PER_AVERAGE`] times that average; each wait that ended later halves
//! the average, because to spin for it would have been in vain. A yield that brought what was waited for, or that kept
//! the thread off its core for long, halves it as well: then the partner needs this very core.
//!
//! A handle that waits for a disk ([`Tuner::set_for_disk`]) spins only while that pays: as soon as the average has come down to
//! the least it sleeps at once. Whoever has the disk's work to do may need this very core, and a core that falls idle just
//! when the disk has done is slow to wake.

use std::fmt;
use std::str::FromStr;

/// Looks without a pause at the start of each wait.
pub const PLAIN_LOOKS: u32 = 64;

/// Looks with a pause between two readings of the clock, each about 35 ns long.
pub const LOOKS_PER_ROUND: u32 = 32;

/// Shortest spinning phase of `adaptive` in nanoseconds: what two readings of the clock can resolve.
pub const BUDGET_MIN_NS: u64 = 2_000;

/// Longest spinning phase of `adaptive` in nanoseconds: about what going to sleep and being woken costs.
pub const BUDGET_MAX_NS: u64 = 50_000;

/// The budget is this many times the average wait, so that most waits end within it.
pub const BUDGET_PER_AVERAGE: u64 = 4;

/// Least average wait, in nanoseconds.
const AVERAGE_MIN_NS: u64 = BUDGET_MIN_NS / BUDGET_PER_AVERAGE;

/// How often `adaptive` yields its core between spinning and sleeping.
pub const YIELDS: u32 = 2;

/// A yield that took this long in nanoseconds ran somebody else; one that finds nobody takes a few hundred.
pub const YIELD_SWITCHED_NS: u64 = 1_000;

/// A yield that took this long in nanoseconds ran somebody else for long: the cores are contended.
pub const YIELD_CONTENDED_NS: u64 = 20_000;

/// What being woken costs, about, in nanoseconds: a wait that was slept through would have been shorter by this much.
pub const WAKE_NS: u64 = 30_000;

/// `spin` yields between its rounds once it has spun for this long in nanoseconds, or sooner where yields have brought
/// what was waited for: a partner that has no core to run on does not come sooner for being waited for with a busy one.
pub const SPIN_ALONE_NS: u64 = 200_000;

/// What the patience of `spin` grows from when yields no longer help, in nanoseconds.
const PATIENCE_MIN_NS: u64 = 1_000;

/// How a handle waits for room or for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WaitPolicy {
    /// Looks at the ring until there is something: lowest latency, one busy core for each waiting handle.
    Spin,
    /// Spins for about as long as waits took lately, at most 50 µs, then sleeps.
    #[default]
    Adaptive,
    /// Looks once, then sleeps: least work, at the price of a wake-up by the kernel for each wait.
    Park,
}

impl WaitPolicy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Spin, Self::Adaptive, Self::Park];

    fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Park => "park",
        }
    }
}

impl fmt::Display for WaitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("wait policy {0:?}: must be spin, adaptive or park")]
pub struct UnknownPolicy(String);

impl FromStr for WaitPolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}

/// What to do before the next look at the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: look again at once.
    Look,
    /// Execute one `pause`.
    Pause,
    /// Read the clock and tell it to [`Wait::clock`].
    Clock,
    /// Read the clock and tell it to [`Wait::clock`] as after [`Step::Clock`], let another thread run, then read the
    /// clock again and tell it as well.
    Yield,
    /// The same around a sleep until woken.
    Sleep,
}

/// The policy of one handle and what it has learnt about its waits.
#[derive(Debug, Clone)]
pub struct Tuner {
    policy: WaitPolicy,
    /// With one CPU the partner runs only while this thread does not.
    alone: bool,
    /// What it waits for takes a disk write.
    disk: bool,
    average_ns: u64,
    /// How long `spin` spins before it yields.
    patience_ns: u64,
}

/// One wait, from the first look that found nothing to the one that found something.
#[derive(Debug, Clone)]
pub struct Wait {
    looks: u32,
    yields: u32,
    slept: bool,
    /// The last step was a yield, and somebody else ran.
    switched: bool,
    started_ns: u64,
    now_ns: u64,
}

impl Tuner {
    /// A handle that has learnt nothing yet, on a host with this many CPUs.
    pub fn new(policy: WaitPolicy, cpus: usize) -> Self {
        let average_ns = BUDGET_MAX_NS / BUDGET_PER_AVERAGE;
        Self { policy, alone: cpus <= 1, disk: false, average_ns, patience_ns: SPIN_ALONE_NS }
    }

    /// For what takes a disk write: where that is short, spinning may pay all the same.
    pub fn set_for_disk(&mut self) {
        self.disk = true;
    }

    /// Waits have ended late for so long that spinning is not tried. One that is slept through and was short brings it back.
    fn gives_up(&self) -> bool {
        self.disk && self.policy == WaitPolicy::Adaptive && self.average_ns <= AVERAGE_MIN_NS
    }

    /// Its policy.
    pub fn policy(&self) -> WaitPolicy {
        self.policy
    }

    /// How long `adaptive` spins now, in nanoseconds.
    pub fn budget_ns(&self) -> u64 {
        if self.alone {
            return 0;
        }
        (self.average_ns * BUDGET_PER_AVERAGE).clamp(BUDGET_MIN_NS, BUDGET_MAX_NS)
    }

    /// A wait begins. Costs nothing, so that a wait that ends at once costs nothing either.
    #[inline]
    pub fn begin(&self) -> Wait {
        Wait { looks: 0, yields: 0, slept: false, switched: false, started_ns: 0, now_ns: 0 }
    }

    /// A wait ended with success at `now_ns`, which is asked for only if the wait was long enough to teach anything.
    #[inline]
    pub fn ended(&mut self, wait: &Wait, now_ns: impl FnOnce() -> u64) {
        if wait.started_ns == 0 {
            return;
        }
        match self.policy {
            WaitPolicy::Spin if wait.switched => self.patience_ns /= 2,
            WaitPolicy::Spin => {
                self.patience_ns = (self.patience_ns * 2).clamp(PATIENCE_MIN_NS, SPIN_ALONE_NS);
            }
            WaitPolicy::Adaptive if wait.switched => self.shrink(),
            WaitPolicy::Adaptive => {
                let length_ns = now_ns().saturating_sub(wait.started_ns);
                self.learn(if wait.slept { length_ns.saturating_sub(WAKE_NS) } else { length_ns });
            }
            WaitPolicy::Park => {}
        }
    }

    fn learn(&mut self, length_ns: u64) {
        if length_ns > BUDGET_MAX_NS {
            self.shrink();
        } else {
            // An eighth of the way: one odd wait does not change the mind, ten do.
            self.average_ns = (self.average_ns * 7 + length_ns) / 8;
        }
    }

    fn shrink(&mut self) {
        // Not to nothing, so that a few short waits can bring it back.
        self.average_ns = (self.average_ns / 2).max(AVERAGE_MIN_NS);
    }
}

impl Wait {
    /// What to do before the next look.
    #[inline]
    pub fn next(&mut self, tuner: &Tuner) -> Step {
        self.looks = self.looks.wrapping_add(1);
        let plain = tuner.policy != WaitPolicy::Park && !tuner.alone && !tuner.gives_up();
        if self.looks <= PLAIN_LOOKS && plain {
            return Step::Look;
        }
        self.after_plain(tuner)
    }

    #[cold]
    fn after_plain(&mut self, tuner: &Tuner) -> Step {
        self.switched = false;
        self.step(tuner)
    }

    fn step(&mut self, tuner: &Tuner) -> Step {
        match tuner.policy {
            WaitPolicy::Park => Step::Sleep,
            WaitPolicy::Spin if tuner.alone => Step::Yield,
            WaitPolicy::Spin if !self.looks.is_multiple_of(LOOKS_PER_ROUND) => Step::Pause,
            WaitPolicy::Spin if self.started_ns != 0 && self.elapsed_ns() >= tuner.patience_ns => {
                Step::Yield
            }
            WaitPolicy::Spin => Step::Clock,
            WaitPolicy::Adaptive => self.adaptive(tuner),
        }
    }

    fn adaptive(&mut self, tuner: &Tuner) -> Step {
        if self.slept {
            return Step::Sleep;
        }
        let gives_up = tuner.gives_up();
        if !tuner.alone && !gives_up && self.yields == 0 {
            if !self.looks.is_multiple_of(LOOKS_PER_ROUND) {
                return Step::Pause;
            }
            if self.started_ns == 0 || self.elapsed_ns() < tuner.budget_ns() {
                return Step::Clock;
            }
        }
        if self.yields < YIELDS && !gives_up {
            self.yields += 1;
            return Step::Yield;
        }
        self.slept = true;
        Step::Sleep
    }

    /// The time, in nanoseconds of any clock that never shows zero, after [`Step::Clock`], [`Step::Yield`] or
    /// [`Step::Sleep`].
    pub fn clock(&mut self, now_ns: u64, after: Step, tuner: &mut Tuner) {
        if self.started_ns == 0 {
            self.started_ns = now_ns;
        } else if after == Step::Yield {
            let yield_ns = now_ns.saturating_sub(self.now_ns);
            self.switched = yield_ns > YIELD_SWITCHED_NS;
            if yield_ns > YIELD_CONTENDED_NS {
                tuner.shrink();
            }
        }
        self.now_ns = now_ns;
    }

    /// When the wait began, in nanoseconds: the first time that [`Self::clock`] was told; zero before.
    pub fn started_ns(&self) -> u64 {
        self.started_ns
    }

    /// The last time that [`Self::clock`] was told; zero before the first.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// How long it lasts already, in nanoseconds, by what [`Self::clock`] was told.
    pub fn elapsed_ns(&self) -> u64 {
        self.now_ns.saturating_sub(self.started_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs one wait on a virtual clock until `arrival_ns`; returns what it did, and when it slept first.
    fn run(tuner: &mut Tuner, arrival_ns: u64, yield_ns: u64) -> (Vec<Step>, Option<u64>) {
        let start_ns = 1_000;
        let mut now_ns = start_ns;
        let mut steps = Vec::new();
        let mut slept_at = None;
        let mut wait = tuner.begin();
        while now_ns - start_ns < arrival_ns {
            let step = wait.next(tuner);
            steps.push(step);
            match step {
                Step::Look => now_ns += 3,
                Step::Pause => now_ns += 35,
                Step::Clock => {}
                Step::Yield => {
                    wait.clock(now_ns, Step::Clock, tuner);
                    now_ns += yield_ns;
                }
                Step::Sleep => {
                    wait.clock(now_ns, Step::Clock, tuner);
                    slept_at.get_or_insert(now_ns - start_ns);
                    now_ns = start_ns + arrival_ns + WAKE_NS;
                }
            }
            if matches!(step, Step::Clock | Step::Yield | Step::Sleep) {
                wait.clock(now_ns, step, tuner);
            }
        }
        tuner.ended(&wait, || now_ns);
        (steps, slept_at)
    }

    #[test]
    fn names_go_there_and_back() {
        for policy in WaitPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert!("Spin".parse::<WaitPolicy>().is_err());
        assert_eq!(
            "x".parse::<WaitPolicy>().unwrap_err().to_string(),
            "wait policy \"x\": must be spin, adaptive or park"
        );
    }

    #[test]
    fn park_sleeps_at_once() {
        let mut tuner = Tuner::new(WaitPolicy::Park, 4);
        assert_eq!(run(&mut tuner, 1_000_000, 300).0, [Step::Sleep]);
    }

    #[test]
    fn spin_never_sleeps_and_yields_only_after_long() {
        let mut tuner = Tuner::new(WaitPolicy::Spin, 4);
        let (steps, _) = run(&mut tuner, 190_000, 300);
        assert!(!steps.contains(&Step::Yield));
        let (steps, slept) = run(&mut tuner, 20_000_000, 300);
        assert!(slept.is_none());
        assert!(steps.contains(&Step::Yield));
        assert!(steps[..PLAIN_LOOKS as usize].iter().all(|step| *step == Step::Look));
    }

    #[test]
    fn one_cpu_never_spins() {
        let mut tuner = Tuner::new(WaitPolicy::Adaptive, 1);
        let (steps, _) = run(&mut tuner, 10_000_000, 300);
        assert_eq!(steps, [Step::Yield, Step::Yield, Step::Sleep]);
        let mut tuner = Tuner::new(WaitPolicy::Spin, 1);
        assert!(run(&mut tuner, 100_000, 300).0.iter().all(|step| *step == Step::Yield));
    }

    #[test]
    fn a_quick_answer_reads_no_clock() {
        let mut tuner = Tuner::new(WaitPolicy::Adaptive, 2);
        let (steps, _) = run(&mut tuner, 500, 300);
        assert!(steps.iter().all(|step| matches!(step, Step::Look | Step::Pause)));
    }

    #[test]
    fn the_budget_shrinks_when_spinning_is_in_vain_and_comes_back() {
        let mut tuner = Tuner::new(WaitPolicy::Adaptive, 2);
        assert_eq!(tuner.budget_ns(), BUDGET_MAX_NS);
        for _ in 0..20 {
            run(&mut tuner, 5_000_000, 300);
        }
        assert_eq!(tuner.budget_ns(), BUDGET_MIN_NS);
        let (_, slept) = run(&mut tuner, 5_000_000, 300);
        assert!(slept.is_some_and(|after_ns| after_ns < 3 * BUDGET_MIN_NS), "{slept:?}");
        for _ in 0..40 {
            run(&mut tuner, 20_000, 300);
        }
        assert_eq!(tuner.budget_ns(), BUDGET_MAX_NS);
        let (_, slept) = run(&mut tuner, 20_000, 300);
        assert!(slept.is_none(), "a wait of 20 µs is spun through");
    }

    #[test]
    fn for_a_disk_nobody_spins_in_vain() {
        let mut tuner = Tuner::new(WaitPolicy::Adaptive, 2);
        tuner.set_for_disk();
        for _ in 0..20 {
            run(&mut tuner, 120_000, 300);
        }
        assert_eq!(run(&mut tuner, 120_000, 300).0, [Step::Sleep]);
        // It is told that waits are short by those that it has slept through.
        for _ in 0..40 {
            run(&mut tuner, 10_000, 300);
        }
        assert!(run(&mut tuner, 10_000, 300).1.is_none());
    }

    #[test]
    fn the_budget_follows_short_waits_down() {
        let mut tuner = Tuner::new(WaitPolicy::Adaptive, 2);
        for _ in 0..60 {
            run(&mut tuner, 4_000, 300);
        }
        assert!((8_000..20_000).contains(&tuner.budget_ns()), "{}", tuner.budget_ns());
    }

    #[test]
    fn where_only_a_yield_helps_it_comes_soon() {
        for policy in [WaitPolicy::Spin, WaitPolicy::Adaptive] {
            let mut tuner = Tuner::new(policy, 2);
            // The partner shares this core: it answers as soon as it is let run.
            let mut wait_ns = 0;
            for _ in 0..30 {
                let mut wait = tuner.begin();
                let mut now_ns = 1_000;
                loop {
                    let step = wait.next(&tuner);
                    now_ns += if step == Step::Pause { 35 } else { 3 };
                    if matches!(step, Step::Clock | Step::Yield) {
                        wait.clock(now_ns, Step::Clock, &mut tuner);
                    }
                    if step == Step::Yield {
                        now_ns += 3_000;
                        wait.clock(now_ns, step, &mut tuner);
                        break;
                    }
                    assert_ne!(step, Step::Sleep);
                }
                tuner.ended(&wait, || now_ns);
                wait_ns = now_ns - 1_000;
            }
            assert!(wait_ns < 9_000, "{policy}: {wait_ns}");
            // And with a core of its own it is waited for again.
            for _ in 0..40 {
                run(&mut tuner, 20_000, 300);
            }
            assert!(run(&mut tuner, 20_000, 300).1.is_none());
            assert_eq!(tuner.policy(), policy);
        }
    }

    #[test]
    fn a_long_yield_shrinks_the_budget() {
        let mut tuner = Tuner::new(WaitPolicy::Adaptive, 2);
        run(&mut tuner, 60_000, 3_000_000);
        assert!(tuner.budget_ns() <= BUDGET_MAX_NS / 2);
    }

    #[test]
    fn it_sleeps_within_the_longest_budget() {
        let mut tuner = Tuner::new(WaitPolicy::Adaptive, 8);
        let (_, slept) = run(&mut tuner, 100_000_000, 300);
        assert!(slept.is_some_and(|after_ns| after_ns < BUDGET_MAX_NS + 5_000), "{slept:?}");
    }
}
