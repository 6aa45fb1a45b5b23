//! The command line as it is typed. What the arguments mean is decided by the commands themselves.

mod bench;
mod examples;
mod group;
mod journal;
mod messages;
mod queue;
mod request;
mod start;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmain_client::WaitPolicy;

use super::units::{parse_run_duration, parse_size, parse_size_u32};
use examples::{
    DEMO_EXAMPLES, DOCTOR_EXAMPLES, SERVE_EXAMPLES, STATUS_EXAMPLES, TOP_EXAMPLES, UPGRADE_EXAMPLES,
};

pub(crate) use bench::{
    BenchCommand, DeathsArgs, DiskArgs, DurableArgs, FanOutArgs, NamedArgs, ReplayArgs, RttArgs,
    SoakArgs, ThroughputArgs, TransactionArgs,
};
pub(crate) use group::{
    GroupCommand, GroupCreateArgs, GroupDeleteArgs, GroupInfoArgs, GroupListArgs, GroupName,
    GroupResetArgs, TailArgs,
};
pub(crate) use journal::{
    JournalCommand, JournalInspectArgs, JournalRepairArgs, JournalVerifyArgs,
};
pub(crate) use messages::{
    Confirm, ConsumeArgs, DeadLetterCommand, DeadLetterListArgs, DeadLetterRedriveArgs, PeekArgs,
    PublishArgs,
};
pub(crate) use queue::{
    DeliveryArgs, PlaneArg, QueueCommand, QueueCreateArgs, QueueDeleteArgs, QueueEditArgs,
    QueueInfoArgs, QueueListArgs, QueuePurgeArgs,
};
pub(crate) use request::{ReplyArgs, RequestArgs};

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
    /// Shows messages of a brokered queue without taking them
    Peek(PeekArgs),
    /// Shows the last messages of a brokered queue, and what comes, without taking them
    Tail(TailArgs),
    /// Manages the consumer groups of brokered queues
    #[command(subcommand)]
    Group(GroupCommand),
    /// Shows dead letters, and sends them back to where they came from
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
    /// Sends one request per line of input and prints the replies
    Request(RequestArgs),
    /// Serves the requests of a queue with a command
    Reply(ReplyArgs),
    /// Looks into the journal of a daemon that does not run
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Measures round trips, throughput and confirmed publishes between processes
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
    /// Folder that belongs to this daemon alone, created if need be; the journal of durable queues lies in it. Without it
    /// there are no durable queues
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// How the journal reaches the disk [default: auto]
    #[arg(long, value_name = "BACKEND", value_enum)]
    pub(crate) journal_backend: Option<BackendArg>,
    /// Bytes per file of the journal, a multiple of 4 KiB [default: 64MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) segment_size: Option<u64>,
    /// Processor that the threads of brokered queues run on [default: any below four processors, else the last]
    #[arg(long, value_name = "N")]
    pub(crate) shard_cpu: Option<usize>,
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

/// How the journal reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    /// io_uring where it is allowed, else blocking
    Auto,
    /// io_uring, or the daemon does not start
    Uring,
    /// Worker threads with plain system calls
    Blocking,
}

impl BackendArg {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Blocking => "blocking",
        }
    }
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

#[derive(Debug, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// Folder on the disk whose durable writes are measured [default: the folder of temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) format: Format,
}
