//! `ringmain bench durable`: confirmed publishes, next to raw durable writes and bare futex wakes of the same run.

mod answer;
mod place;
pub(super) mod placement;
mod probe;
pub(super) mod publish;
pub(crate) mod receive;

use std::time::Duration;

use ringmain_client::raw::layout::Geometry;
use ringmain_client::raw::protocol::{Kind, Plane, QueueSpec};

use super::pair::{Medium, Window};
use super::queues::Shape;
use super::rtt;
use crate::cli::Socket;
use crate::cli::args::{BackendArg, DurableArgs};
use crate::cli::crew::{Crew, Member};
use crate::cli::exit::{Failure, Outcome};
use crate::cli::helper::{Order, Task};
use crate::cli::output::{Progress, Style, print, print_json};
use crate::cli::signals;
use crate::cli::statistics::{Packed, Samples};
pub(crate) use answer::Microseconds;
use answer::{Answer, Pair};
use place::DurablePlace;
pub(crate) use place::file_system;
use placement::{Lie, Placement};
use probe::RawWriter;
use publish::Load;

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

/// What the journal puts around each message, and around each batch, in bytes: enough to know how many blocks a batch
/// takes.
const RECORD_OVERHEAD_BYTES: u64 = 64;
const BATCH_OVERHEAD_BYTES: u64 = 256;

/// Batches do not grow beyond this while they can be written in several.
const BATCH_BYTES_MAX: u64 = 256 << 10;

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
        if args.receive && args.size < receive::SIZE_MIN {
            return Err(Failure::usage(
                "--receive needs messages of at least 8 bytes: the time is in them",
            ));
        }
        let most = ringmain::shard::start::message_bytes_max(true, None);
        if u64::from(args.size) > most {
            return Err(Failure::usage(format_args!(
                "--size {}: the journal takes messages of at most {most} bytes",
                args.size
            )));
        }
        // Room for those that are confirmed and not yet told, beside the window.
        let slots = args.window.saturating_mul(2).next_power_of_two().max(64);
        let slots = slots.max(slots_for_quarter(args.size));
        let shape = Shape::new(Kind::Spsc, slots, None, args.size)?;
        Ok(Self {
            size: args.size,
            window: args.window,
            queues: args.queues,
            duration: args.duration,
            receive: args.receive,
            shape,
        })
    }

    fn spec(&self) -> QueueSpec {
        QueueSpec { plane: Some(Plane::Brokered), durable: true, ..self.shape.spec() }
    }

    /// Bytes that the journal writes at once when everything that is on the way goes into one batch, or into full ones.
    fn batch_bytes(&self) -> u64 {
        let messages = u64::from(self.window) * u64::from(self.queues);
        let record = u64::from(self.size) + RECORD_OVERHEAD_BYTES;
        let all = messages.saturating_mul(record) + BATCH_OVERHEAD_BYTES;
        // Two are in flight: while one is written the other half gathers.
        let one = if messages > 1 { all / 2 } else { all };
        one.max(record + BATCH_OVERHEAD_BYTES)
            .min(BATCH_BYTES_MAX.max(record + BATCH_OVERHEAD_BYTES))
            .next_multiple_of(ringmain::disk::BLOCK_BYTES as u64)
    }
}

/// A message may take a quarter of a ring.
fn slots_for_quarter(size: u32) -> u32 {
    let most = u64::from(Geometry::SLOT_SIZE_MAX);
    let slots = (u64::from(size) + 16).div_ceil(most) * 4;
    u32::try_from(slots.next_power_of_two()).unwrap_or(u32::MAX)
}

pub(crate) fn run(socket: &Socket, args: &DurableArgs) -> Outcome {
    let config = Config::new(args)?;
    signals::catch()?;
    let mut place = DurablePlace::new(socket, args, config.queues)?;
    let answer = measure(&mut place, &config, args.journal_backend, &mut Progress::new())?;
    if args.format.json { print_json(&answer) } else { print(&answer.text(Style::stdout())) }
}

/// Windows of everything in turn.
fn measure(
    place: &mut DurablePlace,
    config: &Config,
    backend: Option<BackendArg>,
    progress: &mut Progress,
) -> Outcome<Answer> {
    let queues = place.make(config.queues, &config.spec())?;
    let mut receiver = config.receive.then(|| start_receiver(place, &queues[0])).transpose()?;
    let mut raw = RawWriter::open(place, backend, config.batch_bytes())?;
    let mut load = Load::attach(place.client(), &queues, config.size, config.window)?;
    let total = u64::try_from(config.duration.as_nanos()).unwrap_or(u64::MAX);
    let each = u64::try_from(PAIR_DURATION.as_nanos()).unwrap_or(u64::MAX);
    let count = (total / each).max(PAIRS_MIN);
    let slice = |percent: u64| Duration::from_nanos(total / count * percent / 100);
    let (mut pairs, mut confirm, mut probe) = (Vec::new(), Samples::new(), Samples::new());
    let (mut wake, mut purged) = (Samples::new(), 0);
    let mut placement = Placement::new(place.shard_stat());
    // Files are laid out and caches warm before anything counts.
    raw.sample(slice(20), &mut Samples::new())?;
    load.run(slice(20), &mut placement, &mut Samples::new())?;
    placement.forget();
    let sleeps_before = place.shard_sleeps();
    load.reset_totals();
    let mut before = raw.sample(slice(35), &mut probe)?;
    for number in 0..usize::try_from(count).unwrap_or(usize::MAX) {
        signals::check()?;
        progress.show(|| format!("pair {} of {count}", number + 1));
        let confirmed = load.run(slice(65), &mut placement, &mut confirm)?;
        let unread = (load.totals().messages - purged).saturating_mul(u64::from(config.size) + 64);
        if !config.receive && unread >= UNREAD_BYTES_MAX {
            // What nobody consumes would fill the disk.
            place.purge(&queues)?;
            purged = load.totals().messages;
        }
        if number % PAIRS_PER_WAKE == PAIRS_PER_WAKE - 1 {
            wake.add(&bare_wakes(placement.most_frequent())?);
        }
        let after = raw.sample(slice(35), &mut probe)?;
        pairs.push(Pair { before, confirmed, after });
        before = after;
    }
    let totals = load.totals();
    let raw_bytes_per_s = raw.bytes_per_s(slice(100).max(Duration::from_millis(200)))?;
    let shard_sleeps =
        place.shard_sleeps().zip(sleeps_before).map(|(after, before)| after - before);
    let received = receiver.as_mut().map(finish_receiver).transpose()?;
    progress.clear();
    Ok(Answer::new(answer::Measured {
        size: config.size,
        window: config.window,
        queues: config.queues,
        totals,
        confirm: &confirm,
        probe: &probe,
        probe_bytes: config.batch_bytes(),
        raw_bytes_per_s,
        pairs: &pairs,
        wake: &wake,
        placements: placement.seen(),
        received: received.as_ref(),
        shard_sleeps,
        journal: raw.description(),
        chosen: place.chosen(),
        file_system: place.file_system(),
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

fn start_receiver(place: &DurablePlace, queue: &str) -> Outcome<(Crew, Member)> {
    let mut crew = Crew::new();
    let task = receive::Task { socket: place.socket().to_path_buf(), queue: queue.to_string() };
    let member = crew.start("receiving", &Task::Receive(task), &[])?;
    crew.wait_ready()?;
    crew.order_all(Order::Go)?;
    Ok((crew, member))
}

fn finish_receiver((crew, member): &mut (Crew, Member)) -> Outcome<Samples> {
    crew.order(&[*member], Order::Stop)?;
    let packed = crew.results::<Packed>(&[*member], |_, _| {})?.pop();
    Ok(packed.ok_or_else(|| Failure::internal("no result"))?.unpack())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(size: u32, window: u32, queues: u32) -> Config {
        let shape = Shape::new(Kind::Spsc, 64, None, 64).unwrap();
        let duration = Duration::from_secs(1);
        Config { size, window, queues, duration, receive: false, shape }
    }

    #[test]
    fn the_probe_writes_what_the_journal_writes() {
        let bytes = |size, window, queues| config(size, window, queues).batch_bytes();
        assert_eq!(bytes(256, 1, 1), 4096);
        assert_eq!(bytes(4096, 1, 1), 8192);
        assert_eq!(bytes(256, 1, 100), 4 * 4096);
        assert_eq!(bytes(256, 4096, 1), BATCH_BYTES_MAX);
        assert_eq!(bytes(1 << 20, 1, 1), (1 << 20) + 4096);
    }
}
