//! `ringmain journal verify|inspect|repair`: looking into the journal of a daemon that does not run.

mod folders;
mod show;

use std::path::Path;

use ringmain::disk::{BlockingDisk, SyncMode};
use ringmain::journal::{self, OpenError};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{JournalCommand, JournalInspectArgs, JournalRepairArgs, JournalVerifyArgs};
use super::exit::{Exit, Failure, Outcome};
use super::output::{Style, print, print_json};
use folders::{Folder, journals};

pub(crate) fn run(command: JournalCommand) -> Outcome {
    match command {
        JournalCommand::Verify(args) => verify(&args),
        JournalCommand::Inspect(args) => inspect(&args),
        JournalCommand::Repair(args) => repair(&args),
    }
}

/// What one journal has to say.
struct Answer {
    document: Value,
    /// The first thing that is wrong.
    failure: Option<Failure>,
}

impl Answer {
    fn good(folder: &Folder, verified: Option<bool>, report: &impl Serialize) -> Outcome<Self> {
        let mut document = json!({ "folder": folder.path });
        if let Some(verified) = verified {
            document["verified"] = verified.into();
        }
        let report = serde_json::to_value(report).map_err(Failure::internal)?;
        for (key, value) in report.as_object().into_iter().flatten() {
            document[key] = value.clone();
        }
        Ok(Self { document, failure: None })
    }

    /// Damage is an answer; everything else is a failure of the command.
    fn damaged(folder: &Folder, error: OpenError) -> Outcome<Self> {
        let OpenError::Corrupt(damage) = &error else {
            return Err(failed(folder, &error));
        };
        let document = json!({
            "folder": folder.path,
            "verified": false,
            "damage": {
                "lsn": damage.lsn,
                "file": damage.file,
                "offset": damage.offset,
                "what": damage.what,
            },
        });
        let failure = Failure::new(Exit::Data, format_args!("{}: {damage}", folder.path.display()));
        Ok(Self { document, failure: Some(failure) })
    }
}

fn failed(folder: &Folder, error: &OpenError) -> Failure {
    let exit = match error {
        OpenError::Corrupt(_) => Exit::Data,
        OpenError::Locked { .. } => Exit::Temporary,
        OpenError::Version { .. } => Exit::Config,
        OpenError::Io { .. } => Exit::Io,
    };
    Failure::new(exit, format_args!("{}: {error}", folder.path.display()))
}

fn open(folder: &Folder) -> Outcome<BlockingDisk> {
    // Offline nothing is in a hurry: plain system calls do.
    BlockingDisk::new(&folder.path, SyncMode::Fdatasync)
        .map_err(|error| Failure::file(&folder.path, "open", &error))
}

fn verify(args: &JournalVerifyArgs) -> Outcome {
    answer(&args.folder, args.format.json, |folder| match journal::verify(&mut open(folder)?) {
        Ok(report) => Answer::good(folder, Some(true), &report),
        Err(error) => Answer::damaged(folder, error),
    })
}

fn inspect(args: &JournalInspectArgs) -> Outcome {
    answer(&args.folder, args.format.json, |folder| match journal::inspect(&mut open(folder)?) {
        Ok(report) => Answer::good(folder, None, &report),
        Err(error) => Answer::damaged(folder, error),
    })
}

fn repair(args: &JournalRepairArgs) -> Outcome {
    answer(&args.folder, args.format.json, |folder| {
        if !args.accept_loss {
            return match journal::verify(&mut open(folder)?) {
                Ok(report) => Answer::good(folder, Some(true), &report),
                Err(error) => {
                    let mut answer = Answer::damaged(folder, error)?;
                    if let Some(Failure::Message { message, .. }) = &mut answer.failure {
                        message.push_str(
                            "; with --accept-loss that record and what depends on it is given up, and \
                             damaged files are moved aside",
                        );
                    }
                    Ok(answer)
                }
            };
        }
        match journal::repair(&mut open(folder)?) {
            Ok(report) => Answer::good(folder, None, &report),
            Err(error) => Err(failed(folder, &error)),
        }
    })
}

/// Asks every journal of a folder; all answers are printed, then the first failure ends the command.
fn answer(
    folder: &Path,
    json: bool,
    mut ask: impl FnMut(&Folder) -> Outcome<Answer>,
) -> Outcome {
    let mut documents = Vec::new();
    let mut failure = None;
    for folder in journals(folder)? {
        let answer = ask(&folder)?;
        documents.push(answer.document);
        failure = failure.or(answer.failure);
    }
    if json {
        print_json(&documents)?;
    } else {
        let style = Style::stdout();
        // What is damaged is said on stderr.
        let whole = documents.iter().filter(|document| document.get("damage").is_none());
        print(&whole.map(|document| show::text(document, style)).collect::<String>())?;
    }
    failure.map_or(Ok(()), Err)
}
