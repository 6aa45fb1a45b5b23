//! Two ways to publish, compared within one run: windows of both in turn, a probe of the disk before and after each of them.

use std::time::Duration;

use serde::Serialize;

use super::super::pairs::{Between, Judged};
use super::conditions::Conditions;
use super::place::DurablePlace;
use super::probe::RawWriter;
use super::publish::Flow;
use crate::cli::exit::Outcome;
use crate::cli::output::{Facts, Progress, Style};
use crate::cli::signals;
use crate::cli::statistics::{Microseconds, Samples};
use crate::cli::units;

/// At least this many pairs.
const PAIRS_MIN: u64 = 15;

/// As long as this one of these takes at least.
const PAIR_DURATION: Duration = Duration::from_millis(800);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli::bench) enum Side {
    /// What is compared with.
    Base,
    /// What is judged.
    Other,
}

/// What the ratio of a pair is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli::bench) enum Measure {
    /// Messages per second.
    Rate,
    /// The median of the times until the confirmation.
    Median,
}

/// How long all of it takes.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli::bench) struct Plan {
    pairs: u64,
    pair: Duration,
}

impl Plan {
    /// Windows and probes take so long together.
    pub(in crate::cli::bench) fn new(duration: Duration) -> Self {
        let most = duration.as_nanos() / PAIR_DURATION.as_nanos();
        let pairs = u64::try_from(most).unwrap_or(u64::MAX).max(PAIRS_MIN);
        Self { pairs, pair: duration.div_f64(pairs.max(1) as f64) }
    }

    fn share(&self, percent: u32) -> Duration {
        self.pair * percent / 100
    }
}

/// All that was measured.
#[derive(Debug)]
pub(in crate::cli::bench) struct Contrast {
    flows: [Flow; 2],
    rates: Vec<Between>,
    medians: Vec<Between>,
    probe: Samples,
}

impl Contrast {
    /// `window` publishes on one side for some time; what it does before and after that is in none of the figures.
    pub(in crate::cli::bench) fn measure(
        plan: Plan,
        raw: &mut RawWriter,
        progress: &mut Progress,
        mut window: impl FnMut(Side, Duration) -> Outcome<Flow>,
    ) -> Outcome<Self> {
        let mut found = Self {
            flows: [Flow::new(), Flow::new()],
            rates: Vec::new(),
            medians: Vec::new(),
            probe: Samples::new(),
        };
        // Files are laid out and caches warm before anything counts.
        raw.sample(plan.share(10), &mut Samples::new())?;
        for side in [Side::Base, Side::Other] {
            window(side, plan.share(20))?;
        }
        let mut before = raw.sample(plan.share(15), &mut found.probe)?;
        for number in 0..plan.pairs {
            signals::check()?;
            progress.show(|| format!("pair {} of {}", number + 1, plan.pairs));
            let base = window(Side::Base, plan.share(35))?;
            // Each begins behind such a pause, in which the journal makes the files that the window before has used up.
            raw.sample(plan.share(15), &mut found.probe)?;
            let other = window(Side::Other, plan.share(35))?;
            let after = raw.sample(plan.share(15), &mut found.probe)?;
            found.add(before, [base, other], after);
            before = after;
        }
        progress.clear();
        Ok(found)
    }

    #[allow(clippy::cast_precision_loss)] // nanoseconds
    fn add(&mut self, before: Option<u64>, [base, other]: [Flow; 2], after: Option<u64>) {
        let over = |other: Option<f64>, base: Option<f64>| Some(other? / base?);
        let rate = |flow: &Flow| (flow.messages() > 0).then(|| flow.rate());
        let median = |flow: &Flow| flow.median().map(|median| median as f64);
        let pair = |ratio| Between { before, after, ratio };
        self.rates.push(pair(over(rate(&other), rate(&base))));
        self.medians.push(pair(over(median(&other), median(&base))));
        self.flows[0].add(&base);
        self.flows[1].add(&other);
    }
}

/// What passed on one side.
#[derive(Debug, Clone, Copy, Serialize)]
struct Passed {
    messages: u64,
    seconds: f64,
    messages_per_s: f64,
    confirm_us: Microseconds,
    /// Times that the publishing thread slept.
    sleeps_per_message: f64,
}

impl Passed {
    #[allow(clippy::cast_precision_loss)] // rates and shares
    fn of(flow: &Flow) -> Self {
        Self {
            messages: flow.messages(),
            seconds: flow.nanoseconds as f64 / 1e9,
            messages_per_s: flow.rate(),
            confirm_us: Microseconds::of(&flow.samples),
            sleeps_per_message: flow.sleeps as f64 / flow.messages().max(1) as f64,
        }
    }
}

/// What is printed of it, in every command that compares.
#[derive(Debug, Serialize)]
pub(in crate::cli::bench) struct Answer<C: Serialize> {
    bench: &'static str,
    #[serde(flatten)]
    config: C,
    base: Passed,
    other: Passed,
    /// What the two are, and what `ratio` is.
    base_is: String,
    other_is: String,
    ratio_of: &'static str,
    #[serde(flatten)]
    judged: Judged,
    /// The same of the other measure.
    ratio_rate: Option<f64>,
    ratio_p50: Option<f64>,
    verified: bool,
    #[serde(skip)]
    checked: String,
    #[serde(flatten)]
    conditions: Conditions,
}

/// How an answer is called and what it says.
#[derive(Debug)]
pub(in crate::cli::bench) struct Names {
    pub(in crate::cli::bench) bench: &'static str,
    pub(in crate::cli::bench) base: String,
    pub(in crate::cli::bench) other: String,
    pub(in crate::cli::bench) measure: Measure,
    /// What was checked of every message.
    pub(in crate::cli::bench) checked: String,
}

impl<C: Serialize> Answer<C> {
    pub(in crate::cli::bench) fn new(
        names: Names,
        config: C,
        found: &Contrast,
        place: &DurablePlace,
        raw: &RawWriter,
    ) -> Self {
        let (rates, medians) = (Judged::of(&found.rates), Judged::of(&found.medians));
        let (judged, ratio_of) = match names.measure {
            Measure::Rate => (rates, "messages_per_s"),
            Measure::Median => (medians, "confirm_us.p50"),
        };
        let [base, other] = &found.flows;
        Self {
            bench: names.bench,
            config,
            base: Passed::of(base),
            other: Passed::of(other),
            base_is: names.base,
            other_is: names.other,
            ratio_of,
            judged,
            ratio_rate: rates.ratio,
            ratio_p50: medians.ratio,
            // What does not verify ends the command.
            verified: true,
            checked: names.checked,
            conditions: Conditions::new(place, raw, &found.probe),
        }
    }

    pub(in crate::cli::bench) fn text(&self, load: &str, style: Style) -> String {
        let mut facts = Facts::default();
        let line = |side: &Passed| {
            format!("{}; confirm {}", units::rate(side.messages_per_s), side.confirm_us.line())
        };
        let number = |ratio: Option<f64>| {
            ratio.map_or_else(|| "-".to_string(), |ratio| format!("{ratio:.3}"))
        };
        self.conditions.add_host(&mut facts);
        facts.add("load", load);
        facts.add(&self.base_is, line(&self.base));
        facts.add(&self.other_is, line(&self.other));
        let Judged { ratio, pairs_kept, pairs_dropped } = self.judged;
        facts.add(
            "ratio",
            format!(
                "{} (second over first by {}, median; {pairs_kept} pairs kept, {pairs_dropped} dropped)",
                style.bold(&number(ratio)),
                self.ratio_of
            ),
        );
        facts.add("by rate", number(self.ratio_rate));
        facts.add("by p50", number(self.ratio_p50));
        facts.add("verified", &self.checked);
        self.conditions.add_probe(&mut facts);
        self.conditions.add_disk(&mut facts);
        facts.render(style) + self.conditions.warning()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_enough_pairs() {
        let of = |seconds| Plan::new(Duration::from_secs(seconds));
        assert_eq!((of(1).pairs, of(12).pairs, of(80).pairs), (15, 15, 100));
        assert_eq!(of(12).pair, Duration::from_millis(800));
    }

    #[test]
    fn a_pair_is_the_second_over_the_first() {
        let flow = |nanoseconds: u64| {
            let mut flow = Flow::new();
            flow.samples.record(nanoseconds);
            flow.nanoseconds = nanoseconds;
            flow
        };
        let mut found = Contrast {
            flows: [Flow::new(), Flow::new()],
            rates: Vec::new(),
            medians: Vec::new(),
            probe: Samples::new(),
        };
        found.add(Some(100), [flow(1000), flow(2000)], Some(100));
        assert_eq!((found.rates[0].ratio, found.medians[0].ratio), (Some(0.5), Some(2.0)));
        found.add(Some(100), [flow(1000), Flow::new()], Some(100));
        assert_eq!((found.rates[1].ratio, found.medians[1].ratio), (None, None));
    }
}
