//! `ringmain request` and `reply`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Format;
use super::examples::{REPLY_EXAMPLES, REQUEST_EXAMPLES};
use super::queue::parse_queue_name;
use crate::cli::units::parse_duration;

#[derive(Debug, Args)]
#[command(after_help = REQUEST_EXAMPLES)]
pub(crate) struct RequestArgs {
    /// Name of the queue that servers receive from
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// Read requests from this file; - is stdin
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,
    /// End with exit code 75 when a reply did not come within this time
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = REPLY_EXAMPLES)]
pub(crate) struct ReplyArgs {
    /// Name of the queue with the requests
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// Run this shell command for each request: the request is a line on its input, its output is the reply
    #[arg(long, value_name = "CMD", conflicts_with = "echo", required_unless_present = "echo")]
    pub(crate) exec: Option<String>,
    /// Send each request back
    #[arg(long)]
    pub(crate) echo: bool,
    /// End after this many messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) format: Format,
}
