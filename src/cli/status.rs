//! `ringmain status`.

use ringmain_client::raw::protocol::{JournalInfo, Status};

use super::Socket;
use super::args::StatusArgs;
use super::exit::Outcome;
use super::output::{Facts, Style, print, print_json};
use super::units;

pub(crate) fn run(socket: &Socket, args: StatusArgs) -> Outcome {
    let status = socket.connect()?.status()?;
    if args.format.json {
        return print_json(&status);
    }
    print(&facts(&status).render(Style::stdout()))
}

/// The daemon, for people.
pub(crate) fn facts(status: &Status) -> Facts {
    let mut facts = Facts::default();
    facts.add("version", &status.version);
    facts.add("protocol", status.protocol);
    facts.add("socket", &status.socket);
    facts.add("uptime", units::seconds(status.uptime_s));
    facts.add("keeper pid", status.keeper_pid);
    facts.add("broker pid", status.broker_pid);
    facts.add("broker starts", status.broker_starts);
    facts.add("queues", status.queues);
    facts.add("clients", status.clients);
    facts.add("handles", status.handles);
    facts.add("shared memory", units::bytes(status.memory_bytes));
    for journal in &status.journals {
        facts.add(&format!("journal {}", journal.shard), line(journal));
    }
    for journal in status.journals.iter().filter(|journal| journal.stalled_groups > 0) {
        let groups = units::counted(journal.stalled_groups.into(), "group");
        let what = format!(
            "shard {}: the next message of {groups} cannot be read; see the queues in state fault",
            journal.shard
        );
        facts.add("trouble", what);
    }
    for trouble in &status.troubles {
        facts.add("trouble", trouble);
    }
    facts
}

/// A journal in one line.
fn line(journal: &JournalInfo) -> String {
    let place = journal.folder.as_deref().unwrap_or("in memory");
    format!(
        "{place}: {} and {} spare, {}, {} of them needed; {} written; {} cleaned, {} copied for that, {} freed",
        units::counted(journal.segments, "segment"),
        units::count(journal.spare_segments),
        units::bytes(journal.file_bytes),
        units::bytes(journal.live_bytes),
        units::bytes(journal.written_bytes),
        units::count(journal.cleaned_segments),
        units::bytes(journal.copied_bytes),
        units::count(journal.freed_segments),
    )
}
