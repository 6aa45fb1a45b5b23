//! `ringmain bench durable`: confirmed publishes, next to raw durable writes and bare futex wakes of the same run.

mod answer;
mod placement;

use std::time::Duration;

use ringmain_client::raw::protocol::Kind;

use super::brokered::conditions::Conditions;
use super::brokered::consume::{self, Consumers};
use super::brokered::place::DurablePlace;
use super::brokered::probe::RawWriter;
use super::brokered::publish::{Content, Flow, Load};
use super::brokered::{batch_bytes, durable, shape};
use super::pair::{Medium, Window};
use super::pairs::Between;
use super::queues::Shape;
use super::rtt;
use crate::cli::Socket;
use crate::cli::args::{BackendArg, DurableArgs};
use crate::cli::exit::{Failure, Outcome};
use crate::cli::output::{Progress, Style, print, print_json};
use crate::cli::signals;
use crate::cli::statistics::Samples;
use answer::Answer;
use placement::{Lie, Placement};

/// At least this many windows of publishing, each between two probes.
const PAIRS_MIN: u64 = 15;

/// As long as this one of these takes at least.
const PAIR_DURATION: Duration = Duration::from_millis(400);

/// Bare futex wakes are measured behind every so many pairs, where client and shard mostly were in these.
const PAIRS_PER_WAKE: usize = 5;

/// For so long.
const WAKE_DURATION: Duration = Duration::from_millis(100);

/// Nobody consumes: so much may lie in the journal before it is discarded.
const UNREAD_BYTES_MAX: u64 = 256 << 20;

/// A measurement that can be made.
#[derive(Debug)]
struct Config {
    size: u32,
    window: u32,
    queues: u32,
    duration: Duration,
    receive: bool,
    shape: Shape,
}

impl Config {
    fn new(args: &DurableArgs) -> Outcome<Self> {
        if args.receive && args.queues > 1 {
            return Err(Failure::usage("--receive measures one queue; leave out --queues"));
        }
        if args.receive && args.size < consume::SIZE_MIN {
            return Err(Failure::usage(
                "--receive needs messages of at least 8 bytes: the time is in them",
            ));
        }
        let shape = shape(Kind::Spsc, args.size, args.window)?;
        Ok(Self {
            size: args.size,
            window: args.window,
            queues: args.queues,
            duration: args.duration,
            receive: args.receive,
            shape,
        })
    }
}

pub(crate) fn run(socket: &Socket, args: &DurableArgs) -> Outcome {
    let config = Config::new(args)?;
    signals::catch()?;
    let mut place = place(socket, args)?;
    let answer = measure(&mut place, &config, args.disk.journal_backend, &mut Progress::new())?;
    if args.format.json { print_json(&answer) } else { print(&answer.text(Style::stdout())) }
}

fn place(socket: &Socket, args: &DurableArgs) -> Outcome<DurablePlace> {
    match (socket.given(), &args.disk.data_dir) {
        (None, _) => {
            let more = |number: u32| (number + 64).to_string();
            let (queues, handles) = (more(args.queues), more(2 * args.queues));
            let limits = ["--limit-queues", &queues, "--limit-handles", &handles];
            DurablePlace::private(&args.disk, &limits)
        }
        (Some(path), Some(data)) => DurablePlace::running(path, data),
        (Some(_), None) => Err(Failure::usage(
            "with --socket, --data-dir names a folder on the disk of that daemon's journal: raw writes are \
             measured there",
        )),
    }
}

/// Windows of everything in turn.
fn measure(
    place: &mut DurablePlace,
    config: &Config,
    backend: Option<BackendArg>,
    progress: &mut Progress,
) -> Outcome<Answer> {
    let spec = durable(&config.shape);
    let make = |number| place.make(&format!("durable-{number}"), &spec);
    let queues: Vec<String> = (0..config.queues).map(make).collect::<Outcome<_>>()?;
    let (size, window) = (config.size, config.window);
    let mut receiver =
        config.receive.then(|| start_receiver(place, &queues[0], size)).transpose()?;
    let bytes = batch_bytes(size, u64::from(window) * u64::from(config.queues));
    let mut raw = RawWriter::open(place, backend, bytes)?;
    let mut load = Load::attach(place.client(), &queues, None, Content::Timed, size, window)?;
    let total = u64::try_from(config.duration.as_nanos()).unwrap_or(u64::MAX);
    let each = u64::try_from(PAIR_DURATION.as_nanos()).unwrap_or(u64::MAX);
    let count = (total / each).max(PAIRS_MIN);
    let slice = |percent: u64| Duration::from_nanos(total / count * percent / 100);
    let (mut pairs, mut flow, mut probe) = (Vec::new(), Flow::new(), Samples::new());
    let (mut wake, mut purged) = (Samples::new(), 0);
    let mut placement = Placement::new(place.shard_stat());
    // Files are laid out and caches warm before anything counts.
    raw.sample(slice(20), &mut Samples::new())?;
    load.run_watched(slice(20), |now_ns| placement.look(now_ns))?;
    placement.forget();
    let sleeps_before = place.shard_sleeps();
    let mut before = raw.sample(slice(35), &mut probe)?;
    for number in 0..usize::try_from(count).unwrap_or(usize::MAX) {
        signals::check()?;
        progress.show(|| format!("pair {} of {count}", number + 1));
        let window = load.run_watched(slice(65), |now_ns| placement.look(now_ns))?;
        flow.add(&window);
        let unread = (flow.messages() - purged).saturating_mul(u64::from(config.size) + 64);
        if !config.receive && unread >= UNREAD_BYTES_MAX {
            // What nobody consumes would fill the disk.
            queues.iter().try_for_each(|queue| place.purge(queue))?;
            purged = flow.messages();
        }
        if number % PAIRS_PER_WAKE == PAIRS_PER_WAKE - 1 {
            wake.add(&bare_wakes(placement.most_frequent())?);
        }
        let after = raw.sample(slice(35), &mut probe)?;
        let ratio = over_probes(before, &window, after);
        pairs.push(Between { before, after, ratio });
        before = after;
    }
    let raw_bytes_per_s = raw.bytes_per_s(slice(100).max(Duration::from_millis(200)))?;
    let shard_sleeps =
        place.shard_sleeps().zip(sleeps_before).map(|(after, before)| after - before);
    let received = receiver.as_mut().map(finish_receiver).transpose()?;
    progress.clear();
    Ok(Answer::new(answer::Measured {
        size: config.size,
        window: config.window,
        queues: config.queues,
        flow: &flow,
        probe: &probe,
        raw_bytes_per_s,
        pairs: &pairs,
        wake: &wake,
        placements: placement.seen(),
        received: received.as_ref(),
        shard_sleeps,
        conditions: Conditions::new(place, &raw, &probe),
    }))
}

/// Round trips of two processes that wake each other, pinned where client and shard have lain; half of one is one way.
fn bare_wakes(lie: Option<Lie>) -> Outcome<Samples> {
    let duration_ns = u64::try_from(WAKE_DURATION.as_nanos()).unwrap_or(u64::MAX);
    let window = Window { medium: Medium::Futex, duration_ns };
    let cpus = lie.map_or([None; 2], |lie| [Some(lie.client), Some(lie.shard)]);
    let (report, _) = rtt::run_pair(&[window], 1, None, cpus, u64::MAX, |_| {})?;
    let found = report.samples.iter().find(|(medium, _)| *medium == Medium::Futex);
    Ok(found.map_or_else(Samples::new, |(_, packed)| packed.unpack()))
}

/// Confirm over probe, in medians.
#[allow(clippy::cast_precision_loss)] // nanoseconds
fn over_probes(before: Option<u64>, window: &Flow, after: Option<u64>) -> Option<f64> {
    let probe = f64::midpoint(before? as f64, after? as f64);
    Some(window.median()? as f64 / probe.max(1.0))
}

fn start_receiver(place: &DurablePlace, queue: &str, size: u32) -> Outcome<Consumers> {
    let task = consume::Task {
        socket: place.socket().to_path_buf(),
        queue: queue.to_string(),
        group: String::new(),
        content: Content::Timed,
        size,
        alone: true,
    };
    Consumers::start([task])
}

fn finish_receiver(receiver: &mut Consumers) -> Outcome<Samples> {
    let consumed = receiver.finish()?.pop();
    Ok(consumed.ok_or_else(|| Failure::internal("no result"))?.age.unpack())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_judged_over_the_probes_around_it() {
        let mut window = Flow::new();
        assert_eq!(over_probes(Some(100), &window, Some(110)), None);
        window.samples.record(126);
        assert!((over_probes(Some(100), &window, Some(110)).unwrap() - 1.2).abs() < 1e-9);
        assert_eq!(over_probes(None, &window, Some(110)), None);
    }
}
