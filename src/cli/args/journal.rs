//! `ringmain journal`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Format;
use super::examples::{INSPECT_EXAMPLES, REPAIR_EXAMPLES, VERIFY_EXAMPLES};

#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Checks every byte; exit code 65 and the first damage if there is one
    Verify(JournalVerifyArgs),
    /// Shows the files, what they hold and how they end
    Inspect(JournalInspectArgs),
    /// Gives up what damage makes unreadable, so that the daemon starts again
    Repair(JournalRepairArgs),
}

#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(crate) struct JournalVerifyArgs {
    /// The --data-dir of a daemon, or the folder of one journal
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(crate) struct JournalInspectArgs {
    /// The --data-dir of a daemon, or the folder of one journal
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = REPAIR_EXAMPLES)]
pub(crate) struct JournalRepairArgs {
    /// The --data-dir of a daemon, or the folder of one journal
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Without it nothing is changed and only said what is damaged
    #[arg(long)]
    pub(crate) accept_loss: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}
