//! `ringmain bench fan-out`: what the groups of a durable queue leave of its producer's rate.

use std::time::Duration;

use ringmain_client::raw::protocol::{DeliverySpec, Kind, QueueSpec};
use ringmain_client::raw::sys::clock::monotonic_ns;
use serde::Serialize;

use super::brokered::consume::{self, Consumers};
use super::brokered::contrast::{Answer, Contrast, Measure, Names, Plan, Side};
use super::brokered::place::{DurablePlace, need_room};
use super::brokered::probe::RawWriter;
use super::brokered::publish::{Content, Flow, Load};
use super::brokered::{batch_bytes, check_numbered, durable, refuse_socket, shape};
use crate::cli::Socket;
use crate::cli::args::FanOutArgs;
use crate::cli::exit::Outcome;
use crate::cli::host::is_oversubscribed;
use crate::cli::output::{Progress, Style, print, print_json};
use crate::cli::signals;
use crate::cli::units;

/// Beside twice what the queues hold: segments that are begun, free or held ready, and the raw file.
const ROOM_BYTES: u64 = 768 << 20;

/// What is measured.
#[derive(Debug, Serialize)]
struct Config {
    size: u32,
    window: u32,
    groups: u32,
    /// Messages that the slowest group may be behind.
    backlog: u64,
    /// Busy while there are all groups: the producer, the shard, a consumer for each group.
    busy_processes: u32,
    oversubscribed: bool,
}

pub(crate) fn run(socket: &Socket, args: &FanOutArgs) -> Outcome {
    refuse_socket(socket, "bench fan-out", "measures a disk that nobody else uses")?;
    check_numbered(args.size)?;
    // An spsc queue has one consumer at a time, whatever its group.
    let shape = shape(Kind::Mpmc, args.size, args.window)?;
    let held = args.backlog.max(args.window.into()) * (u64::from(args.size) + 64);
    need_room("bench fan-out", &args.disk, 2 * held + ROOM_BYTES)?;
    signals::catch()?;
    let mut place = DurablePlace::private(&args.disk, &[])?;
    let limit = DeliverySpec { max_messages: Some(args.backlog), ..DeliverySpec::default() };
    let spec = QueueSpec { delivery: limit, ..durable(&shape) };
    let mut one = Lane::start(&mut place, "one-group", &spec, 1, args)?;
    let mut all = Lane::start(&mut place, "groups", &spec, args.groups, args)?;
    let mut raw = RawWriter::open(
        &place,
        args.disk.journal_backend,
        batch_bytes(args.size, args.window.into()),
    )?;
    let plan = Plan::new(args.duration);
    let found = Contrast::measure(plan, &mut raw, &mut Progress::new(), |side, duration| {
        let lane = if side == Side::Base { &mut one } else { &mut all };
        lane.window(&place, duration)
    })?;
    let messages = one.finish()? + all.finish()?;
    let busy_processes = args.groups + 2;
    let config = Config {
        size: args.size,
        window: args.window,
        groups: args.groups,
        backlog: args.backlog,
        busy_processes,
        oversubscribed: is_oversubscribed(busy_processes),
    };
    let load = format!(
        "{} on the way, messages of {}, no group more than {} behind; {busy_processes} busy processes{}",
        args.window,
        units::bytes(args.size.into()),
        units::count(args.backlog),
        if config.oversubscribed { ", more than processors" } else { "" }
    );
    let names = Names {
        bench: "fan-out",
        base: "producer with 1 group".to_string(),
        other: format!("producer with {} groups", args.groups),
        measure: Measure::Rate,
        checked: format!(
            "{} messages, each by each group, once and in order",
            units::count(messages)
        ),
    };
    let answer = Answer::new(names, config, &found, &place, &raw);
    if args.format.json { print_json(&answer) } else { print(&answer.text(&load, Style::stdout())) }
}

/// A queue with its producer and a consumer process for each of its groups.
struct Lane {
    queue: String,
    // Dropped in this order: nobody must meet a daemon that stops.
    load: Load,
    consumers: Consumers,
}

impl Lane {
    fn start(
        place: &mut DurablePlace,
        purpose: &str,
        spec: &QueueSpec,
        groups: u32,
        args: &FanOutArgs,
    ) -> Outcome<Self> {
        let queue = place.make(purpose, spec)?;
        // The default group is always there.
        let name = |number| if number == 0 { String::new() } else { format!("group-{number}") };
        let task = |number| consume::Task {
            socket: place.socket().to_path_buf(),
            queue: queue.clone(),
            group: name(number),
            content: Content::Numbered,
            size: args.size,
            alone: true,
        };
        let consumers = Consumers::start((0..groups).map(task))?;
        let queues = [queue.clone()];
        let load =
            Load::attach(place.client(), &queues, None, Content::Numbered, args.size, args.window)?;
        Ok(Self { queue, load, consumers })
    }

    /// The time goes on until every group has acknowledged everything.
    fn window(&mut self, place: &DurablePlace, duration: Duration) -> Outcome<Flow> {
        let start_ns = monotonic_ns();
        let published = self.load.run(duration);
        let mut flow = self.consumers.explain(published)?;
        self.consumers.wait_until_read(place.client(), &self.queue)?;
        // A rate that the groups do not keep up with would be none.
        flow.nanoseconds = monotonic_ns() - start_ns;
        Ok(flow)
    }

    /// Messages, after it was verified that each group had each of them.
    fn finish(&mut self) -> Outcome<u64> {
        let sent = self.load.sent(0);
        for consumed in self.consumers.finish()? {
            consume::verify(&self.queue, [&consumed], sent)?;
        }
        Ok(sent)
    }
}
