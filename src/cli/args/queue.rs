//! `ringmain queue`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ringmain_client::raw::protocol::{Kind, Overflow, Plane, Retention};

use super::Format;
use super::examples::{
    CREATE_EXAMPLES, DELETE_EXAMPLES, EDIT_EXAMPLES, INFO_EXAMPLES, LIST_EXAMPLES, PURGE_EXAMPLES,
};
use crate::cli::units::{parse_duration, parse_size, parse_size_u32};

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

/// The way of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlaneArg {
    /// From process to process through one shared ring
    Direct,
    /// Through the daemon: acknowledgements, redelivery, dead letters
    Brokered,
}

impl From<PlaneArg> for Plane {
    fn from(plane: PlaneArg) -> Self {
        match plane {
            PlaneArg::Direct => Plane::Direct,
            PlaneArg::Brokered => Plane::Brokered,
        }
    }
}

/// How long a message is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RetentionArg {
    /// Until every group has acknowledged it
    Acknowledged,
    /// Until a limit discards it, whoever has acknowledged it
    Stream,
}

impl From<RetentionArg> for Retention {
    fn from(retention: RetentionArg) -> Self {
        match retention {
            RetentionArg::Acknowledged => Retention::Acknowledged,
            RetentionArg::Stream => Retention::Stream,
        }
    }
}

/// What happens to a message for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverflowArg {
    /// Producers wait
    Block,
    /// New messages are refused
    Reject,
    /// The oldest messages are discarded and counted; not for durable queues, nor for direct spsc ones
    DropOldest,
}

impl From<OverflowArg> for Overflow {
    fn from(overflow: OverflowArg) -> Self {
        match overflow {
            OverflowArg::Block => Overflow::Block,
            OverflowArg::Reject => Overflow::Reject,
            OverflowArg::DropOldest => Overflow::DropOldest,
        }
    }
}

/// What a queue does with messages that are not acknowledged, and with those for which there is no room: the rules of a new
/// queue, or what an edit changes.
#[derive(Debug, Args)]
pub(crate) struct DeliveryArgs {
    /// Brokered: deliveries before a message becomes a dead letter; 0 for any number [a new queue: 0]
    #[arg(long, value_name = "N")]
    pub(crate) max_deliveries: Option<u32>,
    /// Brokered: queue that takes dead letters; without one they are discarded and counted
    #[arg(long, value_name = "QUEUE", value_parser = parse_queue_name)]
    pub(crate) dead_letter: Option<String>,
    /// Brokered: how long a consumer may hold a message before it is given to another one; 0s for as long as the
    /// consumer lives [a new queue: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) lease: Option<Duration>,
    /// Brokered: how long a message is kept [a new queue: acknowledged]
    #[arg(long, value_enum)]
    pub(crate) retention: Option<RetentionArg>,
    /// Brokered: most messages; 0 for any number [a new queue: 0]
    #[arg(long, value_name = "N")]
    pub(crate) max_messages: Option<u64>,
    /// Brokered: most bytes of payload and metadata; 0 for any number [a new queue: 0]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) max_bytes: Option<u64>,
    /// Streams: how long a message stays; 0s for ever [a new queue: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) max_age: Option<Duration>,
    /// What happens to a message for which there is no room, at a limit of a brokered queue or in the full ring of a direct
    /// one; a stream discards its oldest messages instead [a new queue: block]
    #[arg(long, value_enum)]
    pub(crate) overflow: Option<OverflowArg>,
    /// Brokered: how long after its publishing a message is given out; then it becomes a dead letter or is discarded and
    /// counted; 0s for ever [a new queue: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) ttl: Option<Duration>,
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
    /// Changes the rules of a queue; of a direct one only --overflow
    Edit(QueueEditArgs),
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
    /// Brokered, and every confirmed message is on stable storage; needs a daemon with --data-dir
    #[arg(long)]
    pub(crate) durable: bool,
    /// Way of the messages [default: direct, with --durable brokered]
    #[arg(long, value_enum)]
    pub(crate) plane: Option<PlaneArg>,
    #[command(flatten)]
    pub(crate) delivery: DeliveryArgs,
    /// Slots in the ring, a power of two, at least 64; brokered: in the ring of each handle [default: 4096, brokered
    /// 1024]
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
    /// Succeed if a queue of that name exists; not if it is of another plane than asked for, mpmc and shall be spsc, or not durable and shall be
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

#[derive(Debug, Args)]
#[command(after_help = EDIT_EXAMPLES)]
pub(crate) struct QueueEditArgs {
    /// Name of the queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) delivery: DeliveryArgs,
    /// Dead letters are discarded and counted from now on
    #[arg(long, conflicts_with = "dead_letter")]
    pub(crate) no_dead_letter: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

pub(super) fn parse_queue_name(text: &str) -> Result<String, String> {
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
