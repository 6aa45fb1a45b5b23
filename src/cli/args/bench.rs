//! `ringmain bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use ringmain_client::WaitPolicy;

use super::examples::{
    DEATHS_EXAMPLES, DURABLE_EXAMPLES, FAN_OUT_EXAMPLES, NAMED_EXAMPLES, REPLAY_EXAMPLES,
    RTT_EXAMPLES, SOAK_EXAMPLES, THROUGHPUT_EXAMPLES, TRANSACTION_EXAMPLES,
};
use super::queue::{KindArg, PlaneArg};
use super::{BackendArg, Format};
use crate::cli::units::{parse_run_duration, parse_size, parse_size_u32};

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Round trips of one message between two processes, over the floor of the same run
    Rtt(RttArgs),
    /// Messages per second from producer processes to consumer processes, every payload verified
    Throughput(ThroughputArgs),
    /// How long a queue stands still after a process died that held a slot
    Deaths(DeathsArgs),
    /// Confirmed publishes to durable queues, over raw durable writes of the same run
    Durable(DurableArgs),
    /// One consumer through a backlog that lies on the disk only, over raw reading of the same run
    Replay(ReplayArgs),
    /// What several groups on a durable queue leave of the producer's rate, over that with one group
    FanOut(FanOutArgs),
    /// A transaction of two publishes and an acknowledgement, over a plain durable confirmation of the same run
    Transaction(TransactionArgs),
    /// A producer with a name, over one without
    Named(NamedArgs),
    /// Confirmations at half the maximum rate while segments are used again and cleaned and a stream is replayed
    Soak(SoakArgs),
}

/// Where durable queues are measured.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// How the journal reaches the disk [default: auto]
    #[arg(long, value_name = "BACKEND", value_enum)]
    pub(crate) journal_backend: Option<BackendArg>,
    /// Folder on the disk to measure; a temporary folder is made in it [default: the folder of temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
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
    /// Plane of the queue [default: direct, with --durable brokered]
    #[arg(long, value_enum)]
    pub(crate) plane: Option<PlaneArg>,
    /// The queue is durable
    #[arg(long)]
    pub(crate) durable: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = DURABLE_EXAMPLES)]
pub(crate) struct DurableArgs {
    /// Bytes per message
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse_size_u32)]
    pub(crate) size: u32,
    /// Messages of each queue that are on the way without a confirmation
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) window: u32,
    /// Durable queues, one producer each, all in one process
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) queues: u32,
    /// How long the windows of all pairs take together
    #[arg(long, value_name = "DURATION", default_value = "6s", value_parser = parse_run_duration)]
    pub(crate) duration: Duration,
    /// Another process consumes and acknowledges, and the time from publish to receive is measured as well
    #[arg(long)]
    pub(crate) receive: bool,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = REPLAY_EXAMPLES)]
pub(crate) struct ReplayArgs {
    /// Bytes per message, at least 8
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse_size_u32)]
    pub(crate) size: u32,
    /// Payload bytes of the backlog
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = parse_size)]
    pub(crate) backlog: u64,
    /// Publish to another queue meanwhile, so many messages on the way; 0: do not
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub(crate) beside: u32,
    /// How long that is measured without the replay, once before it and once after it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_run_duration)]
    pub(crate) alone: Duration,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = FAN_OUT_EXAMPLES)]
pub(crate) struct FanOutArgs {
    /// Bytes per message, at least 8
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse_size_u32)]
    pub(crate) size: u32,
    /// Messages that are on the way without a confirmation
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) window: u32,
    /// Groups of the queue that is compared with one of one group
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub(crate) groups: u32,
    /// Messages that the slowest group may be behind before the producer waits
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub(crate) backlog: u64,
    /// How long the windows and probes of all pairs take together
    #[arg(long, value_name = "DURATION", default_value = "12s", value_parser = parse_run_duration)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = TRANSACTION_EXAMPLES)]
pub(crate) struct TransactionArgs {
    /// Bytes per message, at least 8
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse_size_u32)]
    pub(crate) size: u32,
    /// How long the windows and probes of all pairs take together
    #[arg(long, value_name = "DURATION", default_value = "12s", value_parser = parse_run_duration)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = NAMED_EXAMPLES)]
pub(crate) struct NamedArgs {
    /// Bytes per message, at least 8
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse_size_u32)]
    pub(crate) size: u32,
    /// Messages that are on the way without a confirmation
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) window: u32,
    /// How long the windows and probes of all pairs take together
    #[arg(long, value_name = "DURATION", default_value = "12s", value_parser = parse_run_duration)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = SOAK_EXAMPLES)]
pub(crate) struct SoakArgs {
    /// Bytes per message, at least 8
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse_size_u32)]
    pub(crate) size: u32,
    /// Messages that are on the way without a confirmation
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) window: u32,
    /// Consuming processes of the work queue
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) consumers: u32,
    /// How long it goes on after the maximum rate is known
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_run_duration)]
    pub(crate) duration: Duration,
    /// Messages per second [default: half of what is measured first]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Messages per second that the stream is replayed at [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) replay_rate: Option<u32>,
    /// Payload bytes of the stream that is replayed
    #[arg(long, value_name = "BYTES", default_value = "128MiB", value_parser = parse_size)]
    pub(crate) stream: u64,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    #[command(flatten)]
    pub(crate) format: Format,
}
