//! What waiting, waking and crossing to another core cost on this host.

use ringmain_client::raw::sync::atomic::AtomicU32;
use std::hint::black_box;
use std::time::Duration;

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::raw::sys::{futex, membarrier};
use serde::Serialize;

use crate::cli::bench::pair::{Medium, Window};
use crate::cli::bench::rtt;
use crate::cli::exit::Outcome;
use crate::cli::output::Facts;
use crate::cli::statistics::{Percentiles, Samples};
use crate::cli::units;

/// Calls per timing: long against the reading of the clock.
const CALLS: u64 = 100;

/// Timings, of which the median counts.
const TIMINGS: usize = 101;

/// Everything in nanoseconds. Those between two processes are missing where the host does not let them be measured.
#[derive(Debug, Serialize)]
pub(super) struct Costs {
    clock_read_ns: u64,
    futex_wake_without_sleeper_ns: u64,
    membarrier_alone_ns: Option<u64>,
    /// Two processes on two cores, one cache line each way.
    cache_line_round_trip_ns: Percentiles,
    /// Two processes that sleep and wake each other.
    futex_round_trip_ns: Percentiles,
    /// In front of a sleep, while the peer is waking.
    membarrier_before_sleep_ns: Option<Percentiles>,
    pinned_cpus: Option<[usize; 2]>,
}

impl Costs {
    pub(super) fn measure() -> Outcome<Self> {
        let word = AtomicU32::new(0);
        let barrier = membarrier::register();
        let window = |medium, milliseconds: u64| Window {
            medium,
            duration_ns: u64::try_from(Duration::from_millis(milliseconds).as_nanos())
                .unwrap_or(u64::MAX),
        };
        let mut windows = vec![window(Medium::Floor, 300), window(Medium::Futex, 300)];
        if barrier {
            windows.push(window(Medium::Membarrier, 300));
        }
        let (report, pinned_cpus) =
            rtt::run_pair(&windows, 1, None, rtt::cpus(&[])?, u64::MAX, |_| {})?;
        let samples = |medium| {
            let found = report.samples.iter().find(|(used, _)| *used == medium);
            found.map_or_else(Samples::new, |(_, packed)| packed.unpack()).percentiles()
        };
        Ok(Self {
            clock_read_ns: per_call(|| {
                black_box(monotonic_ns());
            }),
            futex_wake_without_sleeper_ns: per_call(|| {
                futex::wake(&word, 1);
            }),
            membarrier_alone_ns: barrier.then(|| {
                per_call(|| {
                    membarrier::issue();
                })
            }),
            cache_line_round_trip_ns: samples(Medium::Floor),
            futex_round_trip_ns: samples(Medium::Futex),
            membarrier_before_sleep_ns: barrier.then(|| samples(Medium::Membarrier)),
            pinned_cpus,
        })
    }

    pub(super) fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        facts.add(
            "cache line, round trip",
            format!(
                "{} ({})",
                rtt::percentile_line(&self.cache_line_round_trip_ns),
                self.pinned_cpus.map_or_else(
                    || "not pinned".to_string(),
                    |[first, second]| format!("processors {first} and {second}")
                )
            ),
        );
        facts.add("futex, round trip", rtt::percentile_line(&self.futex_round_trip_ns));
        facts.add("futex wake, nobody sleeps", units::nanos(self.futex_wake_without_sleeper_ns));
        if let Some(alone) = self.membarrier_alone_ns {
            facts.add("membarrier, nobody to interrupt", units::nanos(alone));
        }
        if let Some(percentiles) = &self.membarrier_before_sleep_ns {
            facts.add("membarrier before a sleep", rtt::percentile_line(percentiles));
        }
        facts.add("clock", units::nanos(self.clock_read_ns));
        facts
    }
}

/// Median over timings of many calls each.
fn per_call(call: impl Fn()) -> u64 {
    let mut timings: Vec<u64> = (0..TIMINGS)
        .map(|_| {
            let start_ns = monotonic_ns();
            (0..CALLS).for_each(|_| call());
            monotonic_ns().saturating_sub(start_ns) / CALLS
        })
        .collect();
    timings.sort_unstable();
    timings[TIMINGS / 2]
}
