//! What `bench durable` answers.

use serde::Serialize;

use super::placement::Seen;
use crate::cli::bench::brokered::conditions::Conditions;
use crate::cli::bench::brokered::publish::Flow;
use crate::cli::bench::pairs::{Between, Judged};
use crate::cli::output::{Facts, Style};
use crate::cli::statistics::{Microseconds, Samples, curve, microseconds};
use crate::cli::units;

/// Who sleeps for whom, and how often per message.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Wakes {
    producer_to_shard: &'static str,
    disk_to_shard: String,
    shard_to_producer: &'static str,
    /// Times that the publishing thread slept.
    producer_sleeps_per_message: f64,
    /// Times that the shards' threads slept, over the whole run.
    #[serde(skip_serializing_if = "Option::is_none")]
    shard_sleeps_per_message: Option<f64>,
}

/// What was measured.
pub(super) struct Measured<'a> {
    pub(super) size: u32,
    pub(super) window: u32,
    pub(super) queues: u32,
    pub(super) flow: &'a Flow,
    pub(super) probe: &'a Samples,
    pub(super) raw_bytes_per_s: f64,
    pub(super) pairs: &'a [Between],
    /// Round trips.
    pub(super) wake: &'a Samples,
    pub(super) placements: Vec<Seen>,
    pub(super) received: Option<&'a Samples>,
    pub(super) shard_sleeps: Option<u64>,
    pub(super) conditions: Conditions,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    size: u32,
    window: u32,
    queues: u32,
    messages: u64,
    seconds: f64,
    confirm_us: Microseconds,
    messages_per_s: f64,
    bytes_per_s: f64,
    #[serde(flatten)]
    conditions: Conditions,
    /// Raw durable writes of as many bytes, two at a time.
    probe_bytes_per_s: f64,
    /// Bare futex wake, one way, median, between processors as client and shard lay.
    wake_us: f64,
    /// Processors of client and shard, most frequent first; empty if they could not be told: then the wakes are not pinned.
    placements: Vec<Seen>,
    /// Median of confirm over probe.
    ratio_p50: Option<f64>,
    pairs_kept: usize,
    pairs_dropped: usize,
    /// From just before the send to the receipt in another process.
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_us: Option<Microseconds>,
    wakes: Wakes,
    #[serde(skip)]
    confirm: Samples,
    #[serde(skip)]
    probe: Samples,
}

impl Answer {
    #[allow(clippy::cast_precision_loss)] // rates and shares
    pub(super) fn new(measured: Measured<'_>) -> Self {
        let Measured { flow, conditions, .. } = measured;
        let Judged { ratio, pairs_kept, pairs_dropped } = Judged::of(measured.pairs);
        let messages = flow.messages().max(1) as f64;
        let wakes = Wakes {
            producer_to_shard: "eventfd, only if the shard sleeps",
            disk_to_shard: conditions.journal.completion.to_string(),
            shard_to_producer: "futex, only if the producer sleeps",
            producer_sleeps_per_message: flow.sleeps as f64 / messages,
            shard_sleeps_per_message: measured.shard_sleeps.map(|sleeps| sleeps as f64 / messages),
        };
        Self {
            size: measured.size,
            window: measured.window,
            queues: measured.queues,
            messages: flow.messages(),
            seconds: flow.nanoseconds.max(1) as f64 / 1e9,
            confirm_us: Microseconds::of(&flow.samples),
            messages_per_s: flow.rate(),
            bytes_per_s: flow.rate() * f64::from(measured.size),
            conditions,
            probe_bytes_per_s: measured.raw_bytes_per_s,
            wake_us: microseconds(measured.wake.at(0.5)) / 2.0,
            placements: measured.placements,
            ratio_p50: ratio,
            pairs_kept,
            pairs_dropped,
            receive_us: measured.received.map(Microseconds::of),
            wakes,
            confirm: flow.samples.clone(),
            probe: measured.probe.clone(),
        }
    }

    /// Where the bare wakes were measured.
    fn places(&self) -> String {
        let place = |seen: &Seen| {
            let Seen { lie, share } = seen;
            format!("client on {}, shard on {}: {:.0} %", lie.client, lie.shard, share * 100.0)
        };
        if self.placements.is_empty() {
            return "not pinned: where the shard runs cannot be told".to_string();
        }
        let places: Vec<String> = self.placements.iter().map(place).collect();
        format!("pinned as the run lay, by processors: {}", places.join("; "))
    }

    pub(super) fn text(&self, style: Style) -> String {
        let mut facts = Facts::default();
        self.conditions.add_host(&mut facts);
        facts.add(
            "load",
            format!(
                "{} queue(s), {} on the way in each, messages of {}",
                self.queues,
                self.window,
                units::bytes(self.size.into())
            ),
        );
        facts.add("confirm", self.confirm_us.line());
        if let Some(receive) = &self.receive_us {
            facts.add("publish to receive", receive.line());
        }
        facts.add(
            "rate",
            format!(
                "{}, {}",
                units::rate(self.messages_per_s),
                units::bytes_rate(self.bytes_per_s)
            ),
        );
        self.conditions.add_probe(&mut facts);
        facts.add("raw, two at a time", units::bytes_rate(self.probe_bytes_per_s));
        facts.add(
            "bare futex wake, one way",
            format!("{} ({})", units::micros(self.wake_us), self.places()),
        );
        facts.add(
            "confirm over raw write",
            format!(
                "{} (median; {} pairs kept, {} dropped)",
                self.ratio_p50.map_or_else(|| "-".to_string(), |ratio| format!("{ratio:.2}")),
                self.pairs_kept,
                self.pairs_dropped
            ),
        );
        self.conditions.add_disk(&mut facts);
        facts.add(
            "woken by",
            format!(
                "shard: {} and {}; producer: {}",
                self.wakes.producer_to_shard,
                self.wakes.disk_to_shard,
                self.wakes.shard_to_producer
            ),
        );
        let shard = self.wakes.shard_sleeps_per_message;
        facts.add(
            "sleeps per message",
            format!(
                "producer {:.3}, shard {}",
                self.wakes.producer_sleeps_per_message,
                shard.map_or_else(|| "unknown".to_string(), |sleeps| format!("{sleeps:.3}"))
            ),
        );
        let mut text = facts.render(style);
        text.push_str(self.conditions.warning());
        let drawing = curve(&[('*', "confirm", &self.confirm), ('o', "raw write", &self.probe)]);
        text.push_str(&format!("\n{}", style.cyan(&drawing)));
        text
    }
}
