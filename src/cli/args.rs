//! The command line as it is typed. What the arguments mean is decided by the commands themselves.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmain_client::WaitPolicy;
use ringmain_client::raw::protocol::Kind;

use super::units::{parse_duration, parse_run_duration, parse_size, parse_size_u32};

/// A message broker for one Linux host: local processes exchange messages through rings in shared memory.
#[derive(Debug, Parser)]
#[command(name = "ringmain", version, max_term_width = 100, after_help = TOP_EXAMPLES)]
pub(crate) struct Cli {
    /// Socket of the daemon [default: $RINGMAIN_SOCKET, else $XDG_RUNTIME_DIR/ringmain/ringmain.sock, else
    /// /run/ringmain/ringmain.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Sends real records through rings of a private daemon, verifies every one, shows rates and latencies
    Demo(DemoArgs),
    /// Runs the daemon in the foreground
    Serve(ServeArgs),
    /// Shows the running daemon
    Status(StatusArgs),
    /// Starts the broker anew, from the same or another binary, while all rings stay in use
    Upgrade(UpgradeArgs),
    /// Manages queues
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Publishes one message per line of input
    Publish(PublishArgs),
    /// Prints one line per message
    Consume(ConsumeArgs),
    /// Measures round trips and throughput between processes
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Shows what this host allows and costs
    Doctor(DoctorArgs),
    /// The broker process; started by `serve`
    #[command(hide = true)]
    Broker(BrokerArgs),
    /// A child process of `demo`, `bench` or `doctor`
    #[command(hide = true)]
    Helper,
}

/// How the answer is printed.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Format {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub(crate) struct DemoArgs {
    /// Takes the place of the one that all other commands have
    #[arg(long, hide = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) format: Format,
    /// Records to send: one per line, plain or gzip [default: 100,000 flight records that come with ringmain]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Bytes per slot of the rings
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse_size_u32)]
    pub(crate) slot_size: u32,
    /// Slots of the rings, a power of two
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) slots: u32,
    /// How often the records are sent [default: 10, or once with --file]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) passes: Option<u32>,
    /// How long all of it takes at most
    #[arg(long, hide = true, default_value = "45s", value_parser = parse_run_duration)]
    pub(crate) budget: Duration,
    /// How waiting is done: spin, adaptive or park
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub(crate) wait: WaitPolicy,
}

#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub(crate) struct ServeArgs {
    /// Folder that belongs to this daemon alone
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Limits as JSON; flags take precedence
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Queues that one user may have [default: 1024]
    #[arg(long, value_name = "N")]
    pub(crate) limit_queues: Option<u32>,
    /// Shared memory that the queues of one user may take [default: 1GiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) limit_bytes: Option<u64>,
    /// Handles that one user may have [default: 4096]
    #[arg(long, value_name = "N")]
    pub(crate) limit_handles: Option<u32>,
    /// Make rings as on a kernel without membarrier
    #[arg(long, hide = true)]
    pub(crate) force_no_membarrier: bool,
    /// Identify peers as on a kernel without SO_PEERPIDFD
    #[arg(long, hide = true)]
    pub(crate) force_no_peer_pidfd: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// Whatever the keeper passes on
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) rest: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = UPGRADE_EXAMPLES)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    pub(crate) format: Format,
    /// The new binary [default: what is now where the daemon was started from]
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Creates a queue
    Create(QueueCreateArgs),
    /// Lists the queues that you may see
    List(QueueListArgs),
    /// Shows one queue and everybody attached to it
    Info(QueueInfoArgs),
    /// Deletes a queue with its messages; everybody attached is told
    Delete(QueueDeleteArgs),
    /// Discards the messages of a queue
    Purge(QueuePurgeArgs),
}

#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct QueueCreateArgs {
    /// Name: 1 to 200 characters of A-Z a-z 0-9 . _ -
    #[arg(value_parser = parse_queue_name)]
    pub(crate) name: String,
    /// spsc: one producer and one consumer; mpmc: any number
    #[arg(long, value_enum, default_value_t = KindArg::Mpmc)]
    pub(crate) kind: KindArg,
    /// Messages survive the machine (not available yet)
    #[arg(long)]
    pub(crate) durable: bool,
    /// Slots in the ring, a power of two, at least 64 [default: 4096]
    #[arg(long, value_name = "N")]
    pub(crate) slots: Option<u32>,
    /// Bytes per slot, a multiple of 16, at least 64 [default: 256]
    #[arg(long, value_name = "BYTES", value_parser = parse_size_u32)]
    pub(crate) slot_size: Option<u32>,
    /// Longest message, at most what a quarter of the ring holds [default: 64KiB or that quarter]
    #[arg(long, value_name = "BYTES", value_parser = parse_size_u32)]
    pub(crate) max_message: Option<u32>,
    /// Rights as of a file, octal: r consume, w produce, x manage [default: 700]
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode)]
    pub(crate) mode: Option<u32>,
    /// Group, by name or number [default: yours]
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Succeed if a queue of that name exists
    #[arg(long)]
    pub(crate) if_not_exists: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct QueueListArgs {
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = INFO_EXAMPLES)]
pub(crate) struct QueueInfoArgs {
    /// Name of the queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(crate) struct QueueDeleteArgs {
    /// Name of the queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) name: String,
    /// Succeed if there is no such queue
    #[arg(long)]
    pub(crate) if_exists: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = PURGE_EXAMPLES)]
pub(crate) struct QueuePurgeArgs {
    /// Name of the queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// What a confirmation promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Confirm {
    /// The message is in the ring: it survives the publisher and the daemon, not the machine
    Received,
    /// The message is on stable storage
    Durable,
}

#[derive(Debug, Args)]
#[command(after_help = PUBLISH_EXAMPLES)]
pub(crate) struct PublishArgs {
    /// Name of the queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// Read from this file; - is stdin
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,
    /// What a receipt promises
    #[arg(long, value_enum, default_value_t = Confirm::Received)]
    pub(crate) confirm: Confirm,
    /// Print the sequence of each confirmed message, one a line, in order
    #[arg(long)]
    pub(crate) receipts: bool,
    /// Publish up to this many lines at once if they are there
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) batch: u32,
    /// How to wait for room: spin, adaptive or park
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub(crate) wait: WaitPolicy,
    /// Give up when there was no room for this long (exit code 75) [default: wait on]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// A header for every message; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_header)]
    pub(crate) header: Vec<(String, String)>,
    /// A key for every message
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = CONSUME_EXAMPLES)]
pub(crate) struct ConsumeArgs {
    /// Name of the queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// Consumer group; direct queues have the default group only
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Where a new group starts: first, new or a sequence; a direct queue gives what is there
    #[arg(long, value_name = "first|new|SEQ", value_parser = parse_from)]
    pub(crate) from: Option<Start>,
    /// End after this many messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// End when nothing is left
    #[arg(long)]
    pub(crate) drain: bool,
    /// Print the sequence and a tab in front of each message
    #[arg(long)]
    pub(crate) with_sequence: bool,
    /// End with exit code 75 when nothing came for this long [default: wait on]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// How to wait for messages: spin, adaptive or park
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub(crate) wait: WaitPolicy,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// Where a consumer group starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    First,
    New,
    Sequence(u64),
}

/// `spsc` or `mpmc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindArg {
    /// One producer and one consumer at a time
    Spsc,
    /// Any number of both
    Mpmc,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Spsc => Kind::Spsc,
            KindArg::Mpmc => Kind::Mpmc,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Round trips of one message between two processes, over the floor of the same run
    Rtt(RttArgs),
    /// Messages per second from producer processes to consumer processes, every payload verified
    Throughput(ThroughputArgs),
    /// How long a queue stands still after a process died that held a slot
    Deaths(DeathsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = RTT_EXAMPLES)]
pub(crate) struct RttArgs {
    /// Kind of the two queues
    #[arg(long, value_enum, default_value_t = KindArg::Spsc)]
    pub(crate) kind: KindArg,
    /// Bytes per message
    #[arg(long, value_name = "BYTES", default_value = "48", value_parser = parse_size_u32)]
    pub(crate) size: u32,
    /// How long the windows of all pairs take together
    #[arg(long, value_name = "DURATION", default_value = "6s", value_parser = parse_run_duration)]
    pub(crate) duration: Duration,
    /// How both sides wait: spin, adaptive or park
    #[arg(long, value_name = "POLICY", default_value = "spin")]
    pub(crate) wait: WaitPolicy,
    /// Slots of each ring, a power of two
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) slots: u32,
    /// Bytes per slot [default: the cache lines of one message]
    #[arg(long, value_name = "BYTES", value_parser = parse_size_u32)]
    pub(crate) slot_size: Option<u32>,
    /// The two processors to run on [default: the first two cores]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) cpus: Vec<usize>,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = THROUGHPUT_EXAMPLES)]
pub(crate) struct ThroughputArgs {
    /// Kind of the queue
    #[arg(long, value_enum, default_value_t = KindArg::Spsc)]
    pub(crate) kind: KindArg,
    /// Producer processes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) producers: u8,
    /// Consumer processes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) consumers: u8,
    /// Bytes per message, at least 8
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = parse_size_u32)]
    pub(crate) size: u32,
    /// How long producers send
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_run_duration)]
    pub(crate) duration: Duration,
    /// Messages per claim on both sides; 1 is no batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) batch: u32,
    /// How both sides wait: spin, adaptive or park
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub(crate) wait: WaitPolicy,
    /// Slots of the ring, a power of two
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) slots: u32,
    /// Bytes per slot [default: the cache lines of one message]
    #[arg(long, value_name = "BYTES", value_parser = parse_size_u32)]
    pub(crate) slot_size: Option<u32>,
    /// Measure how late each message is; costs three readings of the clock a message
    #[arg(long)]
    pub(crate) latency: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = DEATHS_EXAMPLES)]
pub(crate) struct DeathsArgs {
    /// Processes to kill; rounded up to whole rounds
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) kills: u32,
    /// Kind of the queue; only mpmc is supported
    #[arg(long, value_enum, default_value_t = KindArg::Mpmc)]
    pub(crate) kind: KindArg,
    /// Processes that die at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) at_once: u32,
    /// Kill the broker at the same instant
    #[arg(long)]
    pub(crate) with_broker: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) format: Format,
}

fn parse_queue_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=200).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with(['.', '-'])
    {
        Ok(text.to_string())
    } else {
        Err("a queue name has 1 to 200 characters of A-Z a-z 0-9 . _ - and starts with no dot or \
             dash"
            .to_string())
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permission bits in octal, such as 700 or 770".to_string()),
    }
}

fn parse_from(text: &str) -> Result<Start, String> {
    match text {
        "first" => Ok(Start::First),
        "new" => Ok(Start::New),
        _ => text
            .parse()
            .map(Start::Sequence)
            .map_err(|_| "expected first, new or a sequence number".to_string()),
    }
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err("expected NAME=VALUE".to_string()),
    }
}

const TOP_EXAMPLES: &str = "\
Examples:
  ringmain demo                          see it work; needs no daemon
  ringmain serve &                       start the daemon
  ringmain queue create orders           make a queue
  seq 3 | ringmain publish orders        three messages
  ringmain consume orders --drain        and out again

Exit codes: 0 ok, 64 usage, 65 bad data or not found, 69 daemon unavailable, 70 internal,
73 exists, 74 I/O, 75 time-out or full, 77 not permitted, 78 configuration.";

const DEMO_EXAMPLES: &str = "\
Examples:
  ringmain demo
  ringmain demo --json
  ringmain demo --file records.ndjson.gz --slot-size 64

Takes about 45 seconds at most: when the time is over, no pass but the first goes on.

Exits with 65 if a record was lost, doubled or altered.";

const SERVE_EXAMPLES: &str = "\
Examples:
  ringmain serve
  ringmain serve --socket /tmp/test.sock --limit-bytes 256MiB
  ringmain serve --config limits.json

A configuration: {\"limit_queues\": 64, \"limit_bytes\": \"4GiB\", \"limit_handles\": 256}

Prints one line that begins with 'ready' when it accepts connections. SIGTERM stops it. The rings outlive the broker \
process: when it dies, it is started again and takes them over.";

const UPGRADE_EXAMPLES: &str = "\
Examples:
  ringmain upgrade
  ringmain upgrade --binary /usr/local/bin/ringmain";

const STATUS_EXAMPLES: &str = "\
Examples:
  ringmain status
  ringmain status --json | jq .uptime";

const LIST_EXAMPLES: &str = "\
Examples:
  ringmain queue list
  ringmain queue list --json | jq -r '.[].name'";

const INFO_EXAMPLES: &str = "\
Examples:
  ringmain queue info orders
  ringmain queue info orders --json | jq .used_slots";

const DELETE_EXAMPLES: &str = "\
Examples:
  ringmain queue delete orders
  ringmain queue delete orders --if-exists";

const PURGE_EXAMPLES: &str = "\
Examples:
  ringmain queue purge orders
  ringmain queue purge orders --json | jq .messages";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  ringmain doctor
  ringmain doctor --json | jq .modes";

const CREATE_EXAMPLES: &str = "\
Examples:
  ringmain queue create orders
  ringmain queue create ticks --kind spsc --slots 65536 --slot-size 64
  ringmain queue create images --slot-size 4KiB --max-message 1M
  ringmain queue create shared --mode 770 --group staff

On an mpmc queue a member has one right, 'use', and needs r and w. Separate rights exist on spsc queues.";

const PUBLISH_EXAMPLES: &str = "\
Examples:
  ringmain publish orders --file orders.ndjson
  tail -f access.log | ringmain publish access --header host=web1
  seq 1000 | ringmain publish numbers --batch 64 --receipts

The line break is no part of the message; an empty line is an empty message. A full queue is waited for.";

const CONSUME_EXAMPLES: &str = "\
Examples:
  ringmain consume orders
  ringmain consume orders --drain > orders.ndjson
  ringmain consume orders --count 10 --with-sequence

A message is acknowledged after its line was written. SIGINT and SIGTERM end the command cleanly. A message that an \
earlier consumer held when it died comes again; how many is said on stderr at the end.";

const RTT_EXAMPLES: &str = "\
Examples:
  ringmain bench rtt --kind spsc --size 48
  ringmain bench rtt --kind mpmc --size 48 --json
  ringmain bench rtt --wait park --duration 10s

Two processes, pinned to two cores. Windows of the ring alternate with windows of the floor: the round trip of the \
same number of cache lines between the same two processes, without a ring. A message of B bytes takes \
ceil((B + 16) / 64) lines. A pair whose floor probes before and after differ by more than 10 % is dropped and counted. \
ratio_p50 is the median over the kept pairs of the ring's median over the floor's, both interpolated between the ticks \
of the clock, which may be 10 ns apart; rtt_ns and floor_ns are over all windows, as the clock showed them. A round trip is the time \
between two sends of the same process, read from the monotonic clock once, right after each send, in the ring's \
windows and in the floor's; nothing is subtracted. With --wait park a bare futex round trip and the membarrier in front \
of each sleep are measured in the same run.";

const THROUGHPUT_EXAMPLES: &str = "\
Examples:
  ringmain bench throughput --kind spsc --size 64 --batch 16
  ringmain bench throughput --kind mpmc --producers 2 --consumers 2 --size 1KiB
  ringmain bench throughput --kind mpmc --producers 8 --consumers 8 --latency

Every word of every payload is derived from its producer and number and is compared on arrival. With one consumer each \
number is checked against the one before; with several, every consumer checks that the numbers of each producer \
grow, and counts and 128-bit sums of what was sent and what arrived must agree. Exits with 65 if they do not.
\"oversubscribed\": more processes than cores; record such figures, do not compare them.

With --latency every message is written in place and carries two times, and the consumer reads the clock when it has \
its copy. latency_us goes from the producer's call to the receipt, so what it waited for room counts; age_us goes from \
the moment that it had its slot. Compare rates without --latency.";

const DEATHS_EXAMPLES: &str = "\
Examples:
  ringmain bench deaths
  ringmain bench deaths --kills 1000 --at-once 4 --json
  ringmain bench deaths --with-broker

A daemon of its own, a queue of 64 slots, one process that sends and one that receives without a pause. In each round \
other processes attach and hold a slot: in turn consumers that took a message in place, and producers that reserved a \
slot and do not commit it. The two go on until the ring is full up to the held slot and both are stopped, which is \
checked by their counts. Then the holders are killed with SIGKILL, with --with-broker the broker just before them. \
kill_to_success_us is the time from just before the first kill until a send or a receive of the two has succeeded \
again, by the monotonic clock; one figure a round. The two wait as handles do by default (adaptive) and are not pinned.

Exits with 65 if a message that was held does not come again exactly once and marked as redelivered, or if a slot \
that was never committed shows up as a message. An spsc queue has no second member of a role that could go on; it is \
refused.";
