//! `ringmain publish`, `consume`, `peek` and `dead-letter`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ringmain_client::{StartAt, WaitPolicy};

use super::Format;
use super::examples::{
    CONSUME_EXAMPLES, DEAD_LETTER_LIST_EXAMPLES, PEEK_EXAMPLES, PUBLISH_EXAMPLES, REDRIVE_EXAMPLES,
};
use super::queue::parse_queue_name;
use super::start::parse_start;
use crate::cli::units::parse_duration;

/// What a confirmation promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Confirm {
    /// The message is in the ring: it survives the publisher and the broker, not the machine
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
    /// What is waited for and what a receipt promises [default: durable on a durable queue, else received]
    #[arg(long, value_enum)]
    pub(crate) confirm: Option<Confirm>,
    /// Print the sequence of each confirmed message, one a line, in order
    #[arg(long)]
    pub(crate) receipts: bool,
    /// Publish up to this many lines at once if they are there; what is longer than a quarter of a direct queue's ring goes line by
    /// line
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) batch: u32,
    /// Brokered: messages that may be on the way without a confirmation [default: as many as the ring takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub(crate) window: Option<u32>,
    /// How to wait for room: spin, adaptive or park
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub(crate) wait: WaitPolicy,
    /// Give up when there was no room, or no confirmation of what was sent, for this long (exit code 75) [default: wait
    /// on]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// A header for every message; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_header)]
    pub(crate) header: Vec<(String, String)>,
    /// A key for every message, at most 65,531 bytes long, for a brokered queue 64,995
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Brokered: publish under this name; a line that was stored under it before is not stored again, so a command that was
    /// killed can be run again from the start. The number of a line is its own sequence
    #[arg(long, value_name = "NAME", value_parser = parse_producer)]
    pub(crate) producer: Option<String>,
    /// Own sequence of the first line; those after it have the following ones [default: 1]
    #[arg(long, value_name = "N", requires = "producer", value_parser = clap::value_parser!(u64).range(1..=1 << 62))]
    pub(crate) first_sequence: Option<u64>,
    /// Brokered: how long after its publishing each message is given out; the queue's own, if shorter, counts
    #[arg(long, value_name = "DURATION", value_parser = parse_time)]
    pub(crate) ttl: Option<Duration>,
    /// Brokered: nobody gets a message before this long after its publishing
    #[arg(long, value_name = "DURATION", value_parser = parse_time)]
    pub(crate) delay: Option<Duration>,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = CONSUME_EXAMPLES)]
pub(crate) struct ConsumeArgs {
    /// Name of the queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// Consumer group: each group sees every message. Direct queues have the default group only
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Where a group starts that does not exist yet: first, new, a sequence, or a time: RFC 3339 or a duration ago such as
    /// -10m; a direct queue gives what is there
    #[arg(long, value_name = "first|new|SEQ|TIME", value_parser = parse_start, allow_hyphen_values = true)]
    pub(crate) from: Option<StartAt>,
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
    /// Brokered: messages that may be here without an acknowledgement [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) credit: Option<u32>,
    /// How to wait for messages: spin, adaptive or park
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub(crate) wait: WaitPolicy,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = PEEK_EXAMPLES)]
pub(crate) struct PeekArgs {
    /// Name of a brokered queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// At most this many messages; 0 for all
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) count: u64,
    /// The first message to show: a sequence or a time as with consume [default: the oldest one that is there]
    #[arg(long, value_name = "first|SEQ|TIME", value_parser = parse_start, allow_hyphen_values = true)]
    pub(crate) from: Option<StartAt>,
    /// Print the sequence and a tab in front of each message
    #[arg(long)]
    pub(crate) with_sequence: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetterCommand {
    /// Shows dead letters: why, where from, how often delivered
    List(DeadLetterListArgs),
    /// Sends dead letters back to the queues that they came from, oldest first
    Redrive(DeadLetterRedriveArgs),
}

#[derive(Debug, Args)]
#[command(after_help = DEAD_LETTER_LIST_EXAMPLES)]
pub(crate) struct DeadLetterListArgs {
    /// Name of a dead-letter queue, or of another queue that has one: then only its own dead letters are shown
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// At most this many messages; 0 for all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) count: u64,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = REDRIVE_EXAMPLES)]
pub(crate) struct DeadLetterRedriveArgs {
    /// Name of the dead-letter queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// At most this many messages; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) count: u64,
    #[command(flatten)]
    pub(crate) format: Format,
}

fn parse_producer(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=200).contains(&text.len()) && text.bytes().all(good) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 200 characters of A-Z a-z 0-9 . _ -".to_owned())
}

fn parse_time(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected more than nothing; leave it out instead".to_string()),
        time => Ok(time),
    }
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err("expected NAME=VALUE".to_string()),
    }
}
