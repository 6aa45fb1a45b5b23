//! What `bench soak` answers.

use ringmain::shard::figures::Figures;
use serde::Serialize;

use super::reread::Reread;
use super::{End, busy_processes};
use crate::cli::args::SoakArgs;
use crate::cli::bench::brokered::conditions::Conditions;
use crate::cli::bench::brokered::publish::Flow;
use crate::cli::host::is_oversubscribed;
use crate::cli::output::{Facts, Style};
use crate::cli::statistics::{Microseconds, Samples, curve};
use crate::cli::units;

/// What passed in a minute, or in the rest of one.
#[derive(Debug)]
pub(super) struct Minute {
    flow: Flow,
    /// From the moment at which a message was due.
    pub(super) scheduled: Samples,
    pub(super) probe: Samples,
    /// Most that the journal's files took.
    journal_bytes: u64,
}

impl Minute {
    pub(super) fn new() -> Self {
        Self {
            flow: Flow::new(),
            scheduled: Samples::new(),
            probe: Samples::new(),
            journal_bytes: 0,
        }
    }

    pub(super) fn add(&mut self, flow: &Flow, journal_bytes: u64) {
        self.flow.add(flow);
        self.journal_bytes = self.journal_bytes.max(journal_bytes);
    }

    fn add_all(&mut self, other: &Self) {
        self.add(&other.flow, other.journal_bytes);
        self.scheduled.add(&other.scheduled);
        self.probe.add(&other.probe);
    }

    /// For people who watch.
    pub(super) fn line(&self, number: u32) -> String {
        let of = |samples: &Samples| {
            let all = Microseconds::of(samples);
            let [p50, p99, p999] = [all.p50, all.p99, all.p999].map(units::micros);
            format!("p50 {p50}, p99 {p99}, p99.9 {p999}")
        };
        format!(
            "minute {number}: {}; confirm {}; raw {}; journal {}",
            units::rate(self.flow.rate()),
            of(&self.flow.samples),
            of(&self.probe),
            units::bytes(self.journal_bytes)
        )
    }
}

/// The same, printed.
#[derive(Debug, Serialize)]
struct Passed {
    messages: u64,
    messages_per_s: f64,
    confirm_us: Microseconds,
    scheduled_us: Microseconds,
    raw_us: Microseconds,
    ratio_p999: Option<f64>,
    journal_bytes: u64,
}

impl Passed {
    fn of(minute: &Minute) -> Self {
        Self {
            messages: minute.flow.messages(),
            messages_per_s: minute.flow.rate(),
            confirm_us: Microseconds::of(&minute.flow.samples),
            scheduled_us: Microseconds::of(&minute.scheduled),
            raw_us: Microseconds::of(&minute.probe),
            ratio_p999: over(&minute.flow.samples, &minute.probe, 0.999),
            journal_bytes: minute.journal_bytes,
        }
    }
}

/// One over the other at this quantile.
#[allow(clippy::cast_precision_loss)] // nanoseconds
fn over(samples: &Samples, probe: &Samples, quantile: f64) -> Option<f64> {
    let both = samples.count() > 0 && probe.count() > 0;
    both.then(|| samples.at(quantile) as f64 / probe.at(quantile).max(1) as f64)
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    bench: &'static str,
    size: u32,
    window: u32,
    consumers: u32,
    /// The publishing one, the shard's, the reader of the stream, the consumers.
    busy_processes: u32,
    oversubscribed: bool,
    /// Of the work queue alone, measured first.
    maximum_per_s: f64,
    /// What was asked for, and what came of it.
    rate_per_s: f64,
    messages: u64,
    messages_per_s: f64,
    seconds: f64,
    confirm_us: Microseconds,
    scheduled_us: Microseconds,
    /// Confirm over raw writes of the same minutes.
    ratio_p50: Option<f64>,
    ratio_p99: Option<f64>,
    ratio_p999: Option<f64>,
    /// The same from the moment at which a message was due.
    scheduled_ratio_p999: Option<f64>,
    minutes: Vec<Passed>,
    /// Times that the stream was read to its end, and all messages of it that were received.
    replays: u64,
    replayed_messages: u64,
    replayed_per_s: f64,
    /// Messages that nobody read until the end.
    stuck_messages: u64,
    /// Messages of the work queue that were received, those of the measurement of the maximum among them.
    consumed: u64,
    verified: bool,
    /// Most that the journal's files took, and what was asked for before.
    journal_bytes: u64,
    room_bytes: u64,
    /// What the journal did from its start to its end, as the daemon said when it stopped.
    journal: Option<Figures>,
    #[serde(flatten)]
    conditions: Conditions,
    #[serde(skip)]
    samples: [Samples; 2],
}

impl Answer {
    #[allow(clippy::cast_precision_loss)] // rates
    pub(super) fn new(
        args: &SoakArgs,
        room_bytes: u64,
        (maximum_per_s, rate_per_s): (f64, f64),
        minutes: &[Minute],
        end: End,
    ) -> Self {
        let mut all = Minute::new();
        minutes.iter().for_each(|minute| all.add_all(minute));
        let Minute { flow, scheduled, probe, journal_bytes } = all;
        let Reread { rounds, messages, nanoseconds } = end.reread;
        let ratio = |quantile| over(&flow.samples, &probe, quantile);
        Self {
            bench: "soak",
            size: args.size,
            window: args.window,
            consumers: args.consumers,
            busy_processes: busy_processes(args),
            oversubscribed: is_oversubscribed(busy_processes(args)),
            maximum_per_s,
            rate_per_s,
            messages: flow.messages(),
            messages_per_s: flow.rate(),
            seconds: flow.nanoseconds as f64 / 1e9,
            confirm_us: Microseconds::of(&flow.samples),
            scheduled_us: Microseconds::of(&scheduled),
            ratio_p50: ratio(0.5),
            ratio_p99: ratio(0.99),
            ratio_p999: ratio(0.999),
            scheduled_ratio_p999: over(&scheduled, &probe, 0.999),
            minutes: minutes.iter().map(Passed::of).collect(),
            replays: rounds,
            replayed_messages: messages,
            replayed_per_s: messages as f64 / (nanoseconds.max(1) as f64 / 1e9),
            stuck_messages: end.stuck,
            consumed: end.consumed,
            // What does not verify ends the command.
            verified: true,
            journal_bytes,
            room_bytes,
            journal: end.journal,
            conditions: end.conditions,
            samples: [flow.samples, probe],
        }
    }

    pub(super) fn text(&self, style: Style) -> String {
        let mut facts = Facts::default();
        let number = |ratio: Option<f64>| {
            ratio.map_or_else(|| "-".to_string(), |ratio| format!("{ratio:.2}"))
        };
        self.conditions.add_host(&mut facts);
        facts.add(
            "load",
            format!(
                "{} asked for, {} came, {:.0} s, messages of {}, {} consumer(s); {} busy processes{}",
                units::rate(self.rate_per_s),
                units::rate(self.messages_per_s),
                self.seconds,
                units::bytes(self.size.into()),
                self.consumers,
                self.busy_processes,
                if self.oversubscribed { ", more than processors" } else { "" }
            ),
        );
        facts.add("maximum, measured first", units::rate(self.maximum_per_s));
        facts.add("confirm", self.confirm_us.line());
        facts.add("since it was due", self.scheduled_us.line());
        self.conditions.add_probe(&mut facts);
        facts.add("p99.9 of confirm over raw write", style.bold(&number(self.ratio_p999)));
        let [p50, p99, due] =
            [self.ratio_p50, self.ratio_p99, self.scheduled_ratio_p999].map(number);
        facts.add("others", format!("p50 {p50}, p99 {p99}; p99.9 since it was due {due}"));
        facts.add(
            "replay",
            format!(
                "{} times to the end, {}",
                units::count(self.replays),
                units::rate(self.replayed_per_s)
            ),
        );
        facts.add(
            "journal",
            format!(
                "{} at most of {} allowed for",
                units::bytes(self.journal_bytes),
                units::bytes(self.room_bytes)
            ),
        );
        if let Some(journal) = &self.journal {
            facts.add("", journal);
        }
        facts.add(
            "verified",
            format!(
                "{} messages of the work queue once, {} of the queue that nobody read, {} of the stream",
                units::count(self.consumed),
                units::count(self.stuck_messages),
                units::count(self.replayed_messages)
            ),
        );
        self.conditions.add_disk(&mut facts);
        let [confirm, raw] = &self.samples;
        let drawing = curve(&[('*', "confirm", confirm), ('o', "raw write", raw)]);
        format!("{}{}\n{}", facts.render(style), self.conditions.warning(), style.cyan(&drawing))
    }
}
