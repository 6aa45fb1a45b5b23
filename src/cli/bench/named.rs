//! `ringmain bench named`: what a name costs a producer.

use std::time::Duration;

use ringmain_client::raw::protocol::Kind;
use serde::Serialize;

use super::brokered::consume;
use super::brokered::contrast::{Answer, Contrast, Measure, Names, Plan, Side};
use super::brokered::place::{DurablePlace, need_room};
use super::brokered::probe::RawWriter;
use super::brokered::publish::{Content, Flow, Load};
use super::brokered::{batch_bytes, check_numbered, durable, refuse_socket, shape};
use crate::cli::Socket;
use crate::cli::args::NamedArgs;
use crate::cli::exit::Outcome;
use crate::cli::output::{Progress, Style, print, print_json};
use crate::cli::signals;
use crate::cli::units;

/// What a window leaves, with what lies around it until it is freed, and the raw file.
const ROOM_BYTES: u64 = 2 << 30;

/// Messages of each window that are received and checked; the others are discarded.
const CHECKED: u64 = 1024;

/// What is measured.
#[derive(Debug, Serialize)]
struct Config {
    size: u32,
    window: u32,
}

pub(crate) fn run(socket: &Socket, args: &NamedArgs) -> Outcome {
    refuse_socket(socket, "bench named", "measures a disk that nobody else uses")?;
    check_numbered(args.size)?;
    let shape = shape(Kind::Spsc, args.size, args.window)?;
    need_room("bench named", &args.disk, ROOM_BYTES)?;
    signals::catch()?;
    let mut place = DurablePlace::private(&args.disk, &[])?;
    let mut attach = |purpose, name| -> Outcome<(String, Load)> {
        let queue = place.make(purpose, &durable(&shape))?;
        let (queues, size, window) = ([queue.clone()], args.size, args.window);
        let load = Load::attach(place.client(), &queues, name, Content::Numbered, size, window)?;
        Ok((queue, load))
    };
    let mut unnamed = attach("unnamed", None)?;
    let mut named = attach("named", Some("bench"))?;
    let bytes = batch_bytes(args.size, args.window.into());
    let mut raw = RawWriter::open(&place, args.disk.journal_backend, bytes)?;
    let plan = Plan::new(args.duration);
    let found = Contrast::measure(plan, &mut raw, &mut Progress::new(), |side, duration| {
        let (queue, load) = if side == Side::Base { &mut unnamed } else { &mut named };
        window(&place, queue, load, args.size, duration)
    })?;
    let load =
        format!("{} on the way, messages of {}", args.window, units::bytes(args.size.into()));
    let names = Names {
        bench: "named",
        base: "producer without a name".to_string(),
        other: "producer with a name".to_string(),
        measure: Measure::Rate,
        checked:
            "each message was stored once, in its place; the first of each window were received"
                .to_string(),
    };
    let config = Config { size: args.size, window: args.window };
    let answer = Answer::new(names, config, &found, &place, &raw);
    if args.format.json { print_json(&answer) } else { print(&answer.text(&load, Style::stdout())) }
}

fn window(
    place: &DurablePlace,
    queue: &str,
    load: &mut Load,
    size: u32,
    duration: Duration,
) -> Outcome<Flow> {
    // What nobody consumes would fill the disk. What its own window before has left goes in front of each window: one that came
    // right behind the purge of the other would pay for that.
    place.purge(queue)?;
    let first = load.sent(0);
    let flow = load.run(duration)?;
    consume::drain(place.client(), queue, size, first..load.sent(0).min(first + CHECKED))?;
    Ok(flow)
}
