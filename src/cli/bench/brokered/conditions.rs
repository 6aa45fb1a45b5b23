//! Under which conditions durable queues were measured: the disk, what a raw write costs on it, the host.

use serde::Serialize;

use super::place::DurablePlace;
use super::probe::{Journal, RawWriter};
use crate::cli::host::Host;
use crate::cli::output::Facts;
use crate::cli::statistics::{Microseconds, Samples};
use crate::cli::units;

/// What every answer about durable queues says.
#[derive(Debug, Serialize)]
pub(in crate::cli::bench) struct Conditions {
    /// Raw durable writes, one at a time.
    pub(in crate::cli::bench) probe_us: Microseconds,
    probe_bytes: u64,
    #[serde(flatten)]
    pub(in crate::cli::bench) journal: Journal,
    /// What the daemon said of its own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon_says: Option<String>,
    file_system: String,
    host: Host,
}

impl Conditions {
    pub(in crate::cli::bench) fn new(
        place: &DurablePlace,
        raw: &RawWriter,
        probe: &Samples,
    ) -> Self {
        Self {
            probe_us: Microseconds::of(probe),
            probe_bytes: raw.bytes(),
            journal: raw.description(),
            daemon_says: place.chosen(),
            file_system: place.file_system(),
            host: Host::look(),
        }
    }

    pub(in crate::cli::bench) fn add_host(&self, facts: &mut Facts) {
        facts.add("host", self.host.line());
    }

    pub(in crate::cli::bench) fn add_probe(&self, facts: &mut Facts) {
        let bytes = units::bytes(self.probe_bytes);
        facts.add("raw durable write", format!("{} of {bytes}", self.probe_us.line()));
    }

    pub(in crate::cli::bench) fn add_disk(&self, facts: &mut Facts) {
        let Journal { backend, sync_mode, reasons, .. } = &self.journal;
        facts.add("disk", format!("{}, {backend}, {sync_mode}", self.file_system));
        for reason in reasons {
            facts.add("", reason);
        }
        if let Some(says) = &self.daemon_says {
            facts.add("the daemon says", says);
        }
    }

    /// Behind everything else.
    pub(in crate::cli::bench) fn warning(&self) -> &'static str {
        match self.file_system.as_str() {
            "tmpfs" => "\nThis folder is memory, not a disk: use --data-dir.\n",
            _ => "",
        }
    }
}
