//! What `bench durable` answers.

use serde::Serialize;

use super::placement::Seen;
use super::probe::Journal;
use super::publish::Totals;
use crate::cli::host::Host;
use crate::cli::output::{Facts, Style};
use crate::cli::statistics::{Samples, curve, median};
use crate::cli::units;

/// Two probes that differ by more than this share were taken on a disk in different moods.
const DRIFT_MAX: f64 = 0.10;

/// Medians of one window of publishing and of the probes before and after it, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub(super) before: Option<u64>,
    pub(super) confirmed: Option<u64>,
    pub(super) after: Option<u64>,
}

impl Pair {
    /// Confirm over probe.
    #[allow(clippy::cast_precision_loss)] // nanoseconds
    fn ratio(&self) -> Option<f64> {
        let probe = f64::midpoint(self.before? as f64, self.after? as f64);
        Some(self.confirmed? as f64 / probe.max(1.0))
    }

    #[allow(clippy::cast_precision_loss)] // nanoseconds
    fn steady(&self) -> bool {
        let (Some(before), Some(after)) = (self.before, self.after) else {
            return false;
        };
        let (low, high) = (before.min(after), before.max(after));
        self.confirmed.is_some() && low > 0 && (high - low) as f64 <= DRIFT_MAX * low as f64
    }
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Microseconds {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    pub(crate) samples: u64,
}

impl Microseconds {
    pub(crate) fn of(samples: &Samples) -> Self {
        let all = samples.percentiles();
        Self {
            p50: microseconds(all.p50),
            p99: microseconds(all.p99),
            p999: microseconds(all.p999),
            max: microseconds(all.max),
            samples: all.samples,
        }
    }
}

#[allow(clippy::cast_precision_loss)] // nanoseconds
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

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
    pub(super) totals: Totals,
    pub(super) confirm: &'a Samples,
    pub(super) probe: &'a Samples,
    pub(super) probe_bytes: u64,
    pub(super) raw_bytes_per_s: f64,
    pub(super) pairs: &'a [Pair],
    /// Round trips.
    pub(super) wake: &'a Samples,
    pub(super) placements: Vec<Seen>,
    pub(super) received: Option<&'a Samples>,
    pub(super) shard_sleeps: Option<u64>,
    pub(super) journal: Journal,
    pub(super) chosen: Option<String>,
    pub(super) file_system: String,
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
    /// Raw durable writes, one at a time.
    probe_us: Microseconds,
    probe_bytes: u64,
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
    #[serde(flatten)]
    journal: Journal,
    /// What the daemon said of its own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon_says: Option<String>,
    file_system: String,
    wakes: Wakes,
    host: Host,
    #[serde(skip)]
    confirm: Samples,
    #[serde(skip)]
    probe: Samples,
}

impl Answer {
    #[allow(clippy::cast_precision_loss)] // rates and shares
    pub(super) fn new(measured: Measured<'_>) -> Self {
        let Measured { totals, .. } = measured;
        let seconds = totals.nanoseconds.max(1) as f64 / 1e9;
        let kept: Vec<&Pair> = measured.pairs.iter().filter(|pair| pair.steady()).collect();
        // On a disk that is never steady the ratio is still worth knowing; `pairs_kept` says what it is worth.
        let judged: Vec<&Pair> =
            if kept.is_empty() { measured.pairs.iter().collect() } else { kept.clone() };
        let mut ratios: Vec<f64> = judged.into_iter().filter_map(Pair::ratio).collect();
        let messages = totals.messages.max(1) as f64;
        let wakes = Wakes {
            producer_to_shard: "eventfd, only if the shard sleeps",
            disk_to_shard: measured.journal.completion.to_string(),
            shard_to_producer: "futex, only if the producer sleeps",
            producer_sleeps_per_message: totals.sleeps as f64 / messages,
            shard_sleeps_per_message: measured.shard_sleeps.map(|sleeps| sleeps as f64 / messages),
        };
        Self {
            size: measured.size,
            window: measured.window,
            queues: measured.queues,
            messages: totals.messages,
            seconds,
            confirm_us: Microseconds::of(measured.confirm),
            messages_per_s: totals.messages as f64 / seconds,
            bytes_per_s: totals.messages as f64 * f64::from(measured.size) / seconds,
            probe_us: Microseconds::of(measured.probe),
            probe_bytes: measured.probe_bytes,
            probe_bytes_per_s: measured.raw_bytes_per_s,
            wake_us: microseconds(measured.wake.at(0.5)) / 2.0,
            placements: measured.placements,
            ratio_p50: median(&mut ratios),
            pairs_kept: kept.len(),
            pairs_dropped: measured.pairs.len() - kept.len(),
            receive_us: measured.received.map(Microseconds::of),
            journal: measured.journal,
            daemon_says: measured.chosen,
            file_system: measured.file_system,
            wakes,
            host: Host::look(),
            confirm: measured.confirm.clone(),
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
        let line = |of: &Microseconds| {
            format!(
                "p50 {}  p99 {}  p99.9 {}  max {}  ({} samples)",
                units::micros(of.p50),
                units::micros(of.p99),
                units::micros(of.p999),
                units::micros(of.max),
                units::count(of.samples)
            )
        };
        let mut facts = Facts::default();
        facts.add("host", self.host.line());
        facts.add(
            "load",
            format!(
                "{} queue(s), {} on the way in each, messages of {}",
                self.queues,
                self.window,
                units::bytes(self.size.into())
            ),
        );
        facts.add("confirm", line(&self.confirm_us));
        if let Some(receive) = &self.receive_us {
            facts.add("publish to receive", line(receive));
        }
        facts.add(
            "rate",
            format!(
                "{}, {}",
                units::rate(self.messages_per_s),
                units::bytes_rate(self.bytes_per_s)
            ),
        );
        facts.add(
            "raw durable write",
            format!("{} of {}", line(&self.probe_us), units::bytes(self.probe_bytes)),
        );
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
        facts.add(
            "disk",
            format!("{}, {}, {}", self.file_system, self.journal.backend, self.journal.sync_mode),
        );
        for reason in &self.journal.reasons {
            facts.add("", reason);
        }
        if let Some(says) = &self.daemon_says {
            facts.add("the daemon says", says);
        }
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
        if self.file_system == "tmpfs" {
            text.push_str("\nThis folder is memory, not a disk: use --data-dir.\n");
        }
        let drawing = curve(&[('*', "confirm", &self.confirm), ('o', "raw write", &self.probe)]);
        text.push_str(&format!("\n{}", style.cyan(&drawing)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsteady_pairs_are_told_apart() {
        let pair = |before, confirmed, after| Pair {
            before: Some(before),
            confirmed: Some(confirmed),
            after: Some(after),
        };
        assert!(pair(100, 120, 110).steady());
        assert!(!pair(100, 120, 111).steady());
        assert!(!Pair { before: None, ..pair(100, 120, 100) }.steady());
        assert!(!Pair { confirmed: None, ..pair(100, 120, 100) }.steady());
        assert!((pair(100, 126, 110).ratio().unwrap() - 1.2).abs() < 1e-9);
    }
}
