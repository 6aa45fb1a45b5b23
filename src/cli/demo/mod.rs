//! `ringmain demo`: real records through real rings, verified, with rates and latencies.

pub(crate) mod durable;
pub(crate) mod flow;
mod records;
mod text;

use std::time::Duration;

use ringmain_client::WaitPolicy;
use ringmain_client::raw::layout::Geometry;
use ringmain_client::raw::protocol::Kind;
use ringmain_client::raw::sys::clock::monotonic_ns;
use serde::Serialize;

use super::args::DemoArgs;
use super::bench::queues::{Place, Shape};
use super::bench::rtt;
use super::exit::{Exit, Failure, Outcome};
use super::host::Host;
use super::output::{Progress, bar, print, print_json};
use super::signals;
use super::units;
use durable::{Durable, DurableAnswer};
use flow::{Flow, FlowAnswer};
use records::{Records, Source};

/// The built-in sample is small: this often makes a run that takes a moment.
const SAMPLE_PASSES: u32 = 10;

/// How long the round trips of each kind are measured.
const LATENCY_DURATION: Duration = Duration::from_secs(2);

/// What a stage takes beside its records and its windows: starting processes, comparing, round trips under way when
/// their window ends.
const STAGE_OVERHEAD: Duration = Duration::from_secs(2);

/// What the direct queues leave of the time for the durable part, of which there is one pass: at most this.
const DURABLE_RESERVE: Duration = Duration::from_secs(10);

/// Slots of the rings that the round trips go through.
const LATENCY_SLOTS: u32 = 256;

/// A demonstration that can be run.
#[derive(Debug)]
pub(crate) struct Config {
    source: Source,
    passes: u64,
    /// How long all of it takes at most, on a host that needs no longer for a single pass.
    budget: Duration,
    slots: u32,
    slot_size: u32,
    wait: WaitPolicy,
    json: bool,
}

impl Config {
    pub(crate) fn new(args: DemoArgs) -> Outcome<Self> {
        if args.socket.is_some() {
            return Err(Failure::usage(
                "demo starts a daemon of its own; leave --socket out, or use 'ringmain bench'",
            ));
        }
        Geometry::new(Some(args.slots), Some(args.slot_size), None).map_err(Failure::usage)?;
        let default = if args.file.is_some() { 1 } else { SAMPLE_PASSES };
        let passes = args.passes.unwrap_or(default);
        Ok(Self {
            // The processes have the same working directory; a name is as good as a path.
            source: args.file.map_or(Source::Sample, Source::File),
            passes: passes.into(),
            budget: args.budget,
            slots: args.slots,
            slot_size: args.slot_size,
            wait: args.wait,
            json: args.format.json,
        })
    }

    fn flow(&self, kind: Kind, members: u64, max_message: u32) -> Flow {
        Flow {
            kind,
            producers: members,
            consumers: members,
            source: self.source.clone(),
            passes: self.passes,
            until_ns: u64::MAX,
            slots: self.slots,
            slot_size: self.slot_size,
            max_message,
            wait: self.wait.to_string(),
        }
    }
}

/// One row of the table.
#[derive(Debug, Serialize)]
struct Stage {
    name: &'static str,
    #[serde(flatten)]
    flow: FlowAnswer,
    latency: rtt::Answer,
}

/// The row of the durable part.
#[derive(Debug, Serialize)]
struct DurableStage {
    name: &'static str,
    #[serde(flatten)]
    answer: DurableAnswer,
}

/// What is measured differs: a durable queue has no floor of cache lines.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum AnyStage {
    Direct(Box<Stage>),
    Durable(Box<DurableStage>),
}

impl AnyStage {
    fn verified(&self) -> bool {
        match self {
            Self::Direct(stage) => stage.flow.check.verified,
            Self::Durable(stage) => stage.answer.check.verified,
        }
    }
}

/// All of it.
#[derive(Debug, Serialize)]
struct Answer {
    verified: bool,
    source: String,
    records: u64,
    passes: u64,
    wait: String,
    stages: Vec<AnyStage>,
    host: Host,
}

pub(crate) fn run(config: Config) -> Outcome {
    signals::catch()?;
    let start_ns = monotonic_ns();
    let records = Records::load(&config.source)?;
    let max_message = max_message(&config, &records)?;
    let mut progress = Progress::new();
    let mut place = Place::private()?;
    let mut stages = Vec::new();
    let direct_ns = nanos(config.budget - (config.budget / 4).min(DURABLE_RESERVE));
    let kinds = [("direct spsc", Kind::Spsc, 1), ("direct mpmc", Kind::Mpmc, 2)];
    for (left, (name, kind, members)) in (1..=kinds.len()).rev().zip(kinds) {
        let mut flow = config.flow(kind, members, max_message);
        // Each stage gets an equal share of the time that is left.
        let now_ns = monotonic_ns();
        let share_ns = (start_ns + direct_ns).saturating_sub(now_ns) / left as u64;
        flow.until_ns = now_ns + share_ns.saturating_sub(nanos(LATENCY_DURATION + STAGE_OVERHEAD));
        let stage = stage(name, &flow, &config, &records, &mut place, &mut progress)?;
        stages.push(AnyStage::Direct(Box::new(stage)));
    }
    drop(place);
    let durable = durable_stage(&config, &records, max_message, &mut progress)?;
    stages.push(AnyStage::Durable(Box::new(durable)));
    let answer = Answer {
        verified: stages.iter().all(AnyStage::verified),
        source: config.source.name(),
        records: records.len() as u64,
        passes: config.passes,
        wait: config.wait.to_string(),
        stages,
        host: Host::look(),
    };
    if config.json {
        print_json(&answer)?;
    } else {
        print(&text::text(&answer))?;
    }
    if answer.verified {
        return Ok(());
    }
    Err(Failure::new(Exit::Data, "records were lost, doubled or altered; the table says which"))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The longest record must fit a quarter of the ring.
fn max_message(config: &Config, records: &Records) -> Outcome<u32> {
    let longest = u32::try_from(records.longest()).unwrap_or(u32::MAX);
    Geometry::new(Some(config.slots), Some(config.slot_size), Some(longest)).map_err(|error| {
        Failure::new(
            Exit::Data,
            format_args!("the longest record has {longest} bytes: {error}; use more --slots"),
        )
    })?;
    Ok(longest)
}

fn stage(
    name: &'static str,
    flow: &Flow,
    config: &Config,
    records: &Records,
    place: &mut Place,
    progress: &mut Progress,
) -> Outcome<Stage> {
    let total = records.len() as u64 * config.passes;
    let answer = flow.run(place, records, |received| {
        progress.show(|| {
            #[allow(clippy::cast_precision_loss)] // a share
            let share = received as f64 / total as f64;
            format!(
                "{name}: {} {} of {}",
                bar(share, 30),
                units::count(received),
                units::count(total)
            )
        });
    })?;
    progress.finish(&format!(
        "{name}: {} records from {} to {} processes in {:.2} s, {}",
        units::count(answer.messages),
        answer.producers,
        answer.consumers,
        answer.seconds,
        if answer.check.verified { "verified" } else { "NOT what was sent" }
    ));
    let size = u32::try_from(records.median_length()).unwrap_or(u32::MAX);
    let latency = rtt::Config {
        shape: Shape::new(flow.kind, LATENCY_SLOTS, None, size)?,
        size: records.median_length(),
        duration: LATENCY_DURATION,
        wait: config.wait,
        cpus: rtt::cpus(&[])?,
        until_ns: monotonic_ns() + nanos(LATENCY_DURATION + STAGE_OVERHEAD / 2),
    };
    let latency = rtt::measure(place, &latency, progress)?;
    Ok(Stage { name, flow: answer, latency })
}

fn durable_stage(
    config: &Config,
    records: &Records,
    max_message: u32,
    progress: &mut Progress,
) -> Outcome<DurableStage> {
    let durable = Durable {
        source: &config.source,
        records,
        slots: config.slots,
        slot_size: config.slot_size,
        max_message,
        wait: config.wait,
    };
    let answer = durable.run(progress)?;
    progress.finish(&format!(
        "durable: {} records confirmed in {:.2} s, keeper and broker killed after {}, {}",
        units::count(answer.messages),
        answer.seconds,
        units::count(answer.killed.confirmed),
        if answer.check.verified { "verified" } else { "NOT what was confirmed" }
    ));
    Ok(DurableStage { name: "durable", answer })
}
