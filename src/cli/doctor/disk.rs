//! What a durable write costs, and how the journal would write.

use std::path::Path;

use ringmain::disk::{self, Backend, DiskReport, Latency};
use serde::Serialize;

use super::Mode;
use crate::cli::bench::brokered::file_system;
use crate::cli::output::Facts;
use crate::cli::units;

/// Measured in one folder.
#[derive(Debug, Serialize)]
pub(super) struct Disk {
    folder: String,
    file_system: String,
    #[serde(flatten)]
    report: Option<DiskReport>,
    /// Why nothing was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Disk {
    /// In this folder, or in that of temporary files. Leaves nothing there.
    pub(super) fn measure(folder: Option<&Path>) -> Self {
        let default = std::env::temp_dir();
        let parent = folder.unwrap_or(&default);
        let (report, problem) = match measured(parent) {
            Ok(report) => (Some(report), None),
            Err(error) => (None, Some(format!("{}: {error}", parent.display()))),
        };
        Self {
            folder: parent.display().to_string(),
            file_system: file_system(parent),
            report,
            problem,
        }
    }

    pub(super) fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        facts.add("folder", format!("{} ({})", self.folder, self.file_system));
        let Some(report) = &self.report else {
            facts.add("problem", self.problem.as_deref().unwrap_or("not measured"));
            return facts;
        };
        facts.add("durable write of 4 KiB", latency(&report.write_4k));
        facts.add("durable write of 256 KiB", latency(&report.write_256k));
        facts.add("256 KiB, two at a time", format!("{}/s", units::bytes(report.bytes_per_s)));
        for reason in &report.reasons {
            facts.add("", reason);
        }
        facts
    }

    pub(super) fn mode(&self) -> Mode {
        let (chosen, why) = match &self.report {
            Some(report) => {
                let cache = if report.direct { "O_DIRECT" } else { "through the page cache" };
                (
                    format!("{}, {}, {cache}", report.backend, report.sync_mode),
                    report.reasons.join("; "),
                )
            }
            None => ("unknown".to_string(), self.problem.clone().unwrap_or_default()),
        };
        Mode { name: "journal of durable queues", chosen, why }
    }

    pub(super) fn advice(&self) -> Option<String> {
        if self.file_system == "tmpfs" {
            return Some(format!(
                "{} is memory: its figures say nothing about a disk; name a folder on the disk in \
                 question with --data-dir",
                self.folder
            ));
        }
        self.problem.as_ref().map(|problem| format!("the disk could not be measured: {problem}"))
    }
}

fn measured(parent: &Path) -> std::io::Result<DiskReport> {
    let folder = tempfile::Builder::new().prefix("ringmain-doctor-").tempdir_in(parent)?;
    disk::report(folder.path(), Backend::Auto)
}

fn latency(latency: &Latency) -> String {
    format!(
        "p50 {}  p99 {}  ({} samples)",
        units::nanos(latency.p50_ns),
        units::nanos(latency.p99_ns),
        latency.samples
    )
}
