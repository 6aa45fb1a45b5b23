//! The host under a measurement: without it a figure means nothing.

use std::collections::BTreeSet;
use std::fs;

use ringmain_client::affinity;
use serde::Serialize;

/// Conditions of a measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Host {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    /// Processors that this process may use.
    pub(crate) cpus: Vec<usize>,
    /// Processors of the host.
    pub(crate) cpus_online: usize,
    pub(crate) virtual_machine: bool,
    pub(crate) clock_source: String,
    /// Unoptimised builds are several times slower.
    pub(crate) optimised: bool,
    /// Built together with the fault suites, whose switches slow the rings down.
    pub(crate) instrumented: bool,
}

impl Host {
    pub(crate) fn look() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let flags = value("flags").unwrap_or_default();
        Self {
            kernel: first_line("/proc/sys/kernel/osrelease"),
            processor: value("model name").unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            cpus: affinity::available_cpus().unwrap_or_default(),
            cpus_online: info.lines().filter(|line| line.starts_with("processor")).count(),
            virtual_machine: flags.split(' ').any(|flag| flag == "hypervisor"),
            clock_source: first_line(
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            ),
            optimised: !cfg!(debug_assertions),
            instrumented: ringmain_client::raw::sync::INSTRUMENTED,
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        format!(
            "{}{}, {} of {} processors, Linux {}{}{}",
            self.processor,
            if self.virtual_machine { " (virtual machine)" } else { "" },
            self.cpus.len(),
            self.cpus_online,
            self.kernel,
            if self.optimised { "" } else { ", NOT an optimised build" },
            if self.instrumented {
                ", built with the fault suites: NOT to be compared"
            } else {
                ""
            }
        )
    }
}

/// Whether so many busy processes have to take turns on the processors.
pub(crate) fn is_oversubscribed(busy_processes: u32) -> bool {
    affinity::available_cpus().map_or(1, |cpus| cpus.len()) < busy_processes as usize
}

/// First line of a file, or nothing.
pub(crate) fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_string()
}

/// One processor of each core that this process may use; then, if there are fewer cores than `wanted`, their siblings.
pub(crate) fn cores(wanted: usize) -> Vec<usize> {
    let cpus = affinity::available_cpus().unwrap_or_default();
    let mut seen = BTreeSet::new();
    let (mut chosen, siblings): (Vec<usize>, Vec<usize>) =
        cpus.into_iter().partition(|cpu| seen.insert(core_of(*cpu)));
    if chosen.len() < wanted {
        chosen.extend(siblings);
    }
    chosen
}

/// The processors that share a core with this one, as the kernel writes them; or the processor itself.
fn core_of(cpu: usize) -> String {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let siblings = first_line(&path);
    if siblings.is_empty() { cpu.to_string() } else { siblings }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_distinct_processors() {
        let chosen = cores(1024);
        let distinct: BTreeSet<usize> = chosen.iter().copied().collect();
        assert!(!chosen.is_empty());
        assert_eq!(distinct.len(), chosen.len());
    }
}
