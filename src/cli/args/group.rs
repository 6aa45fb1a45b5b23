//! `ringmain group` and `ringmain tail`.

use clap::{Args, Subcommand};
use ringmain_client::StartAt;

use super::Format;
use super::examples::{
    GROUP_CREATE_EXAMPLES, GROUP_DELETE_EXAMPLES, GROUP_INFO_EXAMPLES, GROUP_LIST_EXAMPLES,
    GROUP_RESET_EXAMPLES, TAIL_EXAMPLES,
};
use super::queue::parse_queue_name;
use super::start::parse_start;

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Lists the groups of a brokered queue: how far behind they are, and who consumes
    List(GroupListArgs),
    /// Shows one group
    Info(GroupInfoArgs),
    /// Creates a group before anybody consumes
    Create(GroupCreateArgs),
    /// Puts a group to another start
    Reset(GroupResetArgs),
    /// Deletes a group
    Delete(GroupDeleteArgs),
}

#[derive(Debug, Args)]
#[command(after_help = GROUP_LIST_EXAMPLES)]
pub(crate) struct GroupListArgs {
    /// Name of a brokered queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// A group of a queue.
#[derive(Debug, Args)]
pub(crate) struct GroupName {
    /// Name of a brokered queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// Name of the group: 1 to 200 characters of A-Z a-z 0-9 . _ -; `default` is the one without a name
    #[arg(value_parser = parse_group_name)]
    pub(crate) group: String,
}

#[derive(Debug, Args)]
#[command(after_help = GROUP_INFO_EXAMPLES)]
pub(crate) struct GroupInfoArgs {
    #[command(flatten)]
    pub(crate) name: GroupName,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = GROUP_CREATE_EXAMPLES)]
pub(crate) struct GroupCreateArgs {
    #[command(flatten)]
    pub(crate) name: GroupName,
    /// Where it starts: first, new, a sequence, or a time: RFC 3339 or a duration ago such as -10m
    #[arg(long, value_name = "first|new|SEQ|TIME", default_value = "first", value_parser = parse_start, allow_hyphen_values = true)]
    pub(crate) from: StartAt,
    /// Succeed if there is a group of that name
    #[arg(long)]
    pub(crate) if_not_exists: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = GROUP_RESET_EXAMPLES)]
pub(crate) struct GroupResetArgs {
    #[command(flatten)]
    pub(crate) name: GroupName,
    /// Its new start: first, new, a sequence, or a time: RFC 3339 or a duration ago such as -10m
    #[arg(long, value_name = "first|new|SEQ|TIME", value_parser = parse_start, allow_hyphen_values = true)]
    pub(crate) to: StartAt,
    /// Only say where it would start
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Although consumers are attached: what they have is taken from them
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = GROUP_DELETE_EXAMPLES)]
pub(crate) struct GroupDeleteArgs {
    #[command(flatten)]
    pub(crate) name: GroupName,
    /// Although consumers are attached: they end
    #[arg(long)]
    pub(crate) force: bool,
    /// Succeed if there is no such group
    #[arg(long)]
    pub(crate) if_exists: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = TAIL_EXAMPLES)]
pub(crate) struct TailArgs {
    /// Name of a brokered queue
    #[arg(value_parser = parse_queue_name)]
    pub(crate) queue: String,
    /// The last so many messages that are there
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 10)]
    pub(crate) lines: u64,
    /// Go on with what comes, until a signal
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print the sequence and a tab in front of each message
    #[arg(long)]
    pub(crate) with_sequence: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// As the daemon knows it: `default` is the one without a name.
fn parse_group_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match text {
        "default" => Ok(String::new()),
        _ if (1..=200).contains(&text.len()) && text.chars().all(allowed) => Ok(text.to_string()),
        _ => Err("a group name has 1 to 200 characters of A-Z a-z 0-9 . _ -".to_string()),
    }
}
