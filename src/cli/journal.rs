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
        OpenError::Io { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Exit::NotPermitted
        }
        OpenError::Io { .. } => Exit::Io,
    };
    Failure::new(exit, format_args!("{}: {error}", folder.path.display()))
}

fn open(folder: &Folder) -> Outcome<BlockingDisk> {
    folder.look_for_holder()?;
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
    answer(&args.folder, args.format.json, |folder| {
        // Damage is no failure of a look: it is part of what is seen.
        let seen = journal::inspect(&mut open(folder)?).map_err(|error| failed(folder, &error))?;
        let mut answer = Answer::good(folder, None, &seen.report)?;
        answer.document["segment_count"] = answer.document["segments"].take();
        answer.document["segments"] =
            serde_json::to_value(&seen.segments).map_err(Failure::internal)?;
        if let Some(damage) = seen.damage {
            answer.document["damage"] = damage.into();
        }
        Ok(answer)
    })
}

fn repair(args: &JournalRepairArgs) -> Outcome {
    answer(&args.folder, args.format.json, |folder| {
        folder.look_for_holder()?;
        let disk = || BlockingDisk::new(&folder.path, SyncMode::Fdatasync);
        let report =
            journal::repair(disk, args.accept_loss).map_err(|error| failed(folder, &error))?;
        let mut answer = Answer::good(folder, None, &report)?;
        if !report.damages.is_empty() && !report.repaired {
            // That is found out by repairing: it can be more than what cannot be read.
            answer.document["lost"] = serde_json::Value::Null;
            answer.failure = Some(Failure::new(
                Exit::Data,
                format_args!(
                    "{}: {}; use --accept-loss to give up what cannot be read, damaged files are moved \
                     aside",
                    folder.path.display(),
                    report.damages.join("; "),
                ),
            ));
        }
        Ok(answer)
    })
}

/// Asks every journal of a folder; all answers are printed, then the first failure ends the command.
fn answer(folder: &Path, json: bool, mut ask: impl FnMut(&Folder) -> Outcome<Answer>) -> Outcome {
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
        // What is wrong is said on stderr.
        let whole = documents.iter().filter(|document| document["verified"] != false);
        print(&whole.map(|document| show::text(document, style)).collect::<String>())?;
    }
    failure.map_or(Ok(()), Err)
}
