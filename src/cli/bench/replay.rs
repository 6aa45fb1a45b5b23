//! `ringmain bench replay`: how fast one consumer gets through a backlog that lies on the disk only, and what the producers
//! of another queue notice of it.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringmain::disk::Buffer;
use ringmain_client::raw::protocol::Kind;
use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{Client, ConsumerOptions, Delivery, affinity};
use serde::{Deserialize, Serialize};

use super::brokered::place::need_room;
use super::brokered::publish::{Content, Flow, Load};
use super::brokered::{LIMIT, check_numbered, consume, durable, file_system, refuse_socket, shape};
use super::queues::Shape;
use crate::cli::Socket;
use crate::cli::args::ReplayArgs;
use crate::cli::crew::{Crew, Member};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::helper::{Order, Parent, Task as HelperTask};
use crate::cli::host::Host;
use crate::cli::output::{Facts, Progress, Style, print, print_json};
use crate::cli::private::{PrivateBroker, Storage};
use crate::cli::signals;
use crate::cli::statistics::Microseconds;
use crate::cli::units;

/// Of a message in the journal, beside its payload, with its share of what lies around.
const RECORD_BYTES: u64 = 64;

/// What else lies on the disk meanwhile: spare segments, what is produced beside.
const ROOM_BYTES: u64 = 512 << 20;

/// Messages on the way while the backlog is made.
const WINDOW: u32 = 4096;

/// Raw reads have this many bytes.
const RAW_READ_BYTES: usize = 1 << 20;

/// Producing goes on in windows of this length, next to the replay and without it.
const SLICE: Duration = Duration::from_millis(250);

/// Messages that the consumer has at a time: the most that the lease table allows when there are to be more entries than credit.
const CREDIT: u32 = 2048;

/// For the consuming process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    socket: PathBuf,
    queue: String,
    messages: u64,
    size: u32,
    /// Where it runs.
    cpu: Option<usize>,
}

/// One for each if there are so many, so that nobody is moved to where another one runs: a producer that leaves the shard's processor
/// because a replay begins has other wake-ups, whatever the replay costs.
#[derive(Debug, Clone, Copy, Serialize)]
struct Cpus {
    shard: usize,
    consumer: usize,
    /// On the consumer's if there are only two.
    producer: usize,
}

impl Cpus {
    /// `None` if there are not two.
    fn choose() -> Option<Self> {
        match affinity::available_cpus().unwrap_or_default()[..] {
            [consumer, shard] => Some(Self { shard, consumer, producer: consumer }),
            [consumer, shard, producer, ..] => Some(Self { shard, consumer, producer }),
            _ => None,
        }
    }
}

/// What the consuming process found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Replayed {
    /// From the order to begin, so with the time of the first read.
    nanoseconds: u64,
}

/// What producers of another queue did meanwhile.
#[derive(Debug, Serialize)]
struct Beside {
    window: u32,
    /// Without the replay: before and after it.
    alone_per_s: f64,
    /// While it went on.
    beside_per_s: f64,
    ratio_rate: f64,
    alone_us: Microseconds,
    beside_us: Microseconds,
    ratio_p99: f64,
}

#[derive(Debug, Serialize)]
struct Answer {
    size: u32,
    messages: u64,
    payload_bytes: u64,
    /// The daemon was killed and started between publishing and consuming, and reads past the page cache.
    cold: bool,
    seconds: f64,
    messages_per_s: f64,
    bytes_per_s: f64,
    /// Reading the same segment files in order, past the page cache, 1 MiB at a time, before and after the replay.
    raw_read_bytes_per_s: [f64; 2],
    /// Payload bytes over raw reading.
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    beside: Option<Beside>,
    /// Where the shard and the consumer ran, each pinned.
    cpus: Option<Cpus>,
    file_system: String,
    host: Host,
}

pub(crate) fn run(socket: &Socket, args: &ReplayArgs) -> Outcome {
    refuse_socket(socket, "bench replay", "kills its daemon to empty its memory")?;
    check_numbered(args.size)?;
    let messages = args.backlog / u64::from(args.size);
    if messages == 0 {
        return Err(Failure::usage("--backlog is smaller than one message"));
    }
    let shape = shape(Kind::Spsc, args.size, WINDOW)?;
    let journal = messages.saturating_mul(u64::from(args.size) + RECORD_BYTES);
    need_room("bench replay", &args.disk, journal.saturating_add(ROOM_BYTES))?;
    signals::catch()?;
    let answer = measure(args, messages, &shape)?;
    if args.format.json { print_json(&answer) } else { print(&answer.text(Style::stdout())) }
}

#[allow(clippy::cast_precision_loss)] // rates and shares
fn measure(args: &ReplayArgs, messages: u64, shape: &Shape) -> Outcome<Answer> {
    let mut progress = Progress::new();
    let cpus = Cpus::choose();
    let storage = Storage {
        parent: args.disk.data_dir.clone(),
        backend: args.disk.journal_backend,
        arguments: cpus
            .map_or_else(Vec::new, |cpus| vec!["--shard-cpu".to_string(), cpus.shard.to_string()]),
    };
    let mut broker = PrivateBroker::durable(&storage)?;
    let spec = durable(shape);
    let client = broker.connect()?;
    client.create_queue("backlog", spec.clone())?;
    client.create_queue("beside", spec)?;
    let numbered = |queue: &str, client: &Client, window| {
        Load::attach(client, &[queue.to_string()], None, Content::Numbered, args.size, window)
    };
    numbered("backlog", &client, WINDOW)?.fill(messages, |number| {
        progress.show(|| format!("publishing {number} of {messages}"));
    })?;
    drop(client);
    progress.show(|| "starting the daemon anew".to_string());
    broker.kill_all()?;
    broker.restart()?;
    let folder = broker.data().ok_or_else(|| Failure::internal("no folder of the journal"))?;
    let (folder, file_system) = (folder.join("shard-0"), file_system(folder));
    let payload_bytes = messages * u64::from(args.size);
    let raw_before = raw_read(&folder, payload_bytes)?;

    let client = broker.connect()?;
    let mut load = match args.beside {
        0 => None,
        window => Some(numbered("beside", &client, window)?),
    };
    let (mut alone, mut beside) = (Flow::new(), Flow::new());
    if let Some(load) = &mut load {
        if let Some(cpus) = cpus {
            pin(cpus.producer)?;
        }
        load.run(SLICE)?;
        publish_alone(load, args.alone, &mut alone)?;
    }
    let task = Task {
        socket: broker.socket().to_path_buf(),
        queue: "backlog".to_string(),
        messages,
        size: args.size,
        cpu: cpus.map(|cpus| cpus.consumer),
    };
    let (mut crew, member) = start(task)?;
    crew.order_all(Order::Go)?;
    let replayed = wait(&mut crew, member, messages, &mut progress, || match &mut load {
        Some(load) => load.run(SLICE).map(|flow| beside.add(&flow)),
        None => Ok(()),
    })?;
    if let Some(load) = &mut load {
        publish_alone(load, args.alone, &mut alone)?;
    }
    progress.clear();
    drop(load);
    let raw_after = raw_read(&folder, payload_bytes)?;
    let seconds = replayed.nanoseconds.max(1) as f64 / 1e9;
    let bytes_per_s = payload_bytes as f64 / seconds;
    Ok(Answer {
        size: args.size,
        messages,
        payload_bytes,
        cold: true,
        seconds,
        messages_per_s: messages as f64 / seconds,
        bytes_per_s,
        raw_read_bytes_per_s: [raw_before, raw_after],
        ratio: bytes_per_s / f64::midpoint(raw_before, raw_after).max(1.0),
        beside: (args.beside > 0).then(|| Beside {
            window: args.beside,
            alone_per_s: alone.rate(),
            beside_per_s: beside.rate(),
            ratio_rate: beside.rate() / alone.rate().max(1e-9),
            alone_us: Microseconds::of(&alone.samples),
            beside_us: Microseconds::of(&beside.samples),
            ratio_p99: beside.samples.at(0.99) as f64 / alone.samples.at(0.99).max(1) as f64,
        }),
        cpus,
        file_system,
        host: Host::look(),
    })
}

fn pin(cpu: usize) -> Outcome {
    affinity::pin_current_thread(cpu)
        .map(|_| ())
        .map_err(|error| Failure::system("pin to a processor", &error))
}

/// Publishes for so long while nobody replays.
fn publish_alone(load: &mut Load, duration: Duration, alone: &mut Flow) -> Outcome {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        signals::check()?;
        alone.add(&load.run(SLICE)?);
    }
    Ok(())
}

/// Reads as many bytes of the segments as the backlog has, oldest first; bytes per second.
#[allow(clippy::cast_precision_loss)] // a rate
fn raw_read(folder: &Path, bytes: u64) -> Outcome<f64> {
    let fail = |error| Failure::file(folder, "read the segments in", &error);
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).map_err(fail)?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let (mut read, mut nanoseconds) = (0, 0);
    let mut buffer = Buffer::new(RAW_READ_BYTES);
    for path in files {
        let file = match open_direct(&path) {
            Ok(file) => file,
            // A spare segment that the daemon has removed meanwhile: nothing of the backlog is in it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(fail(error)),
        };
        let length = file.metadata().map_err(fail)?.len();
        let mut offset = 0;
        while offset + (RAW_READ_BYTES as u64) <= length && read < bytes {
            let start_ns = monotonic_ns();
            file.read_exact_at(&mut buffer, offset).map_err(fail)?;
            nanoseconds += monotonic_ns() - start_ns;
            offset += RAW_READ_BYTES as u64;
            read += RAW_READ_BYTES as u64;
        }
        signals::check()?;
    }
    Ok(read as f64 / (nanoseconds.max(1) as f64 / 1e9))
}

/// Past the page cache where the file system can.
fn open_direct(path: &Path) -> std::io::Result<File> {
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    direct.or_else(|_| File::open(path))
}

fn start(task: Task) -> Outcome<(Crew, Member)> {
    let mut crew = Crew::new();
    let member = crew.start("consuming", &HelperTask::Replay(task), &[])?;
    crew.wait_ready()?;
    Ok((crew, member))
}

fn wait(
    crew: &mut Crew,
    member: Member,
    messages: u64,
    progress: &mut Progress,
    mut meanwhile: impl FnMut() -> Outcome,
) -> Outcome<Replayed> {
    while !crew.has_results(&[member]) {
        meanwhile()?;
        crew.listen(&mut |_, done| progress.show(|| format!("replayed {done} of {messages}")))?;
    }
    let found = crew.results::<Replayed>(&[member], |_, _| {})?.pop();
    found.ok_or_else(|| Failure::internal("no result"))
}

/// Receives and acknowledges the whole backlog, and checks every message.
pub(crate) fn replay(task: &Task, parent: &Parent) -> Outcome<Replayed> {
    let client = Client::connect(&task.socket)?;
    if let Some(cpu) = task.cpu {
        pin(cpu)?;
    }
    parent.wait_for_go()?;
    let start_ns = monotonic_ns();
    // With this the daemon begins to read.
    let mut consumer = client
        .brokered_consumer(&task.queue, ConsumerOptions::default().credit(CREDIT))
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let mut delivery = Delivery::default();
    for number in 0..task.messages {
        consume::next(&mut consumer, &mut delivery)?;
        if consume::check(&task.queue, &delivery, task.size)? != number {
            return Err(Failure::new(
                Exit::Data,
                format_args!("message {} did not come in its turn", number + 1),
            ));
        }
        consumer.ack(&delivery).map_err(consume::unacknowledged)?;
        if number % 262_144 == 0 {
            parent.progress(number);
        }
    }
    consumer.flush(LIMIT).map_err(consume::unacknowledged)?;
    Ok(Replayed { nanoseconds: monotonic_ns() - start_ns })
}

impl Answer {
    fn text(&self, style: Style) -> String {
        let mut facts = Facts::default();
        facts.add("host", self.host.line());
        facts.add(
            "backlog",
            format!(
                "{} messages of {}, on the disk only: the daemon was killed and started in between",
                units::count(self.messages),
                units::bytes(self.size.into())
            ),
        );
        facts.add(
            "replay",
            format!(
                "{}, {} in {:.2} s, every message checked and acknowledged",
                units::rate(self.messages_per_s),
                units::bytes_rate(self.bytes_per_s),
                self.seconds
            ),
        );
        let [before, after] = self.raw_read_bytes_per_s;
        facts.add(
            "raw reading",
            format!(
                "{} before, {} after: the same files in order, past the page cache, 1 MiB at a time",
                units::bytes_rate(before),
                units::bytes_rate(after)
            ),
        );
        facts.add("payload over raw reading", format!("{:.2}", self.ratio));
        if let Some(beside) = &self.beside {
            let line = |of: &Microseconds, rate| {
                format!(
                    "{}; p50 {}, p99 {}",
                    units::rate(rate),
                    units::micros(of.p50),
                    units::micros(of.p99)
                )
            };
            facts.add(
                "producer of another queue, alone",
                format!(
                    "{} ({} on the way)",
                    line(&beside.alone_us, beside.alone_per_s),
                    beside.window
                ),
            );
            facts.add("the same beside the replay", line(&beside.beside_us, beside.beside_per_s));
            facts.add(
                "beside over alone",
                format!("rate {:.2}, p99 {:.2}", beside.ratio_rate, beside.ratio_p99),
            );
        }
        match self.cpus {
            Some(Cpus { shard, consumer, producer }) => facts.add(
                "pinned",
                format!(
                    "shard to processor {shard}, consumer to {consumer}, producer to {producer}"
                ),
            ),
            None => facts.add("pinned", "nothing: there are not two processors"),
        }
        facts.add("disk", &self.file_system);
        facts.render(style)
    }
}
