//! `ringmain doctor`: what this host allows and costs, and which modes follow from that.

mod costs;
mod disk;
mod probes;

use ringmain_client::Status;
use serde::Serialize;

use super::Socket;
use super::args::DoctorArgs;
use super::exit::Outcome;
use super::host::Host;
use super::output::{Facts, Progress, Style, print, print_json};
use super::signals;
use super::units;
use costs::Costs;
use disk::Disk;
use probes::Probes;

/// All of it.
#[derive(Debug, Serialize)]
struct Answer {
    host: Host,
    #[serde(flatten)]
    probes: Probes,
    costs: Costs,
    disk: Disk,
    modes: Vec<Mode>,
    daemon: Option<Status>,
    daemon_problem: Option<String>,
    /// What to do about what is not as it could be.
    advice: Vec<String>,
}

/// A choice that ringmain makes on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Mode {
    name: &'static str,
    chosen: String,
    why: String,
}

pub(crate) fn run(socket: &Socket, args: DoctorArgs) -> Outcome {
    signals::catch()?;
    let mut progress = Progress::new();
    progress.show(|| "measuring for two seconds".to_string());
    let host = Host::look();
    let probes = Probes::look(&socket.path());
    let costs = Costs::measure()?;
    let disk = Disk::measure(args.data_dir.as_deref());
    progress.clear();
    let (daemon, daemon_problem) = match ask(socket) {
        Ok(status) => (Some(status), None),
        Err(problem) => (None, Some(problem)),
    };
    let mut modes = modes(&probes, &host);
    modes.push(disk.mode());
    let mut advice = advice(&probes, &host);
    advice.extend(disk.advice());
    let answer = Answer { host, probes, costs, disk, modes, daemon, daemon_problem, advice };
    if args.format.json { print_json(&answer) } else { print(&text(&answer)) }
}

/// A daemon that does not run is no fault of the host.
fn ask(socket: &Socket) -> Result<Status, String> {
    use super::exit::Failure;
    let status = socket.connect().and_then(|client| Ok(client.status()?));
    status.map_err(|failure| match failure {
        Failure::Message { message, .. } => message,
        other => format!("{other:?}"),
    })
}

fn modes(probes: &Probes, host: &Host) -> Vec<Mode> {
    let mode = |name, chosen: &str, why: String| Mode { name, chosen: chosen.to_string(), why };
    let mut modes = Vec::new();
    modes.push(if probes.membarrier.global_expedited {
        mode(
            "wake mode of new rings",
            "membarrier",
            "the sleeper pays for the barrier; publishing runs no fence".to_string(),
        )
    } else {
        mode(
            "wake mode of new rings",
            "fence",
            format!("no membarrier: {}", probes.membarrier.problem()),
        )
    });
    modes.push(if probes.processes.peer_pidfd {
        mode("identity of clients", "SO_PEERPIDFD", "the kernel names the process behind a socket".to_string())
    } else if probes.processes.pidfd {
        mode("identity of clients", "pidfd_open", "no SO_PEERPIDFD before Linux 6.5: process ids are checked twice, and clients of other pid namespaces are refused".to_string())
    } else {
        mode("identity of clients", "none", "no pidfd: deaths cannot be proven, the daemon does not start".to_string())
    });
    modes.push(if host.cpus.len() > 1 {
        mode(
            "adaptive waiting",
            "spin, then sleep",
            format!("{} processors to use", host.cpus.len()),
        )
    } else {
        mode(
            "adaptive waiting",
            "sleep at once",
            "one processor: the one that is waited for needs it".to_string(),
        )
    });
    modes
}

fn advice(probes: &Probes, host: &Host) -> Vec<String> {
    let mut advice = Vec::new();
    let mut add = |text: String| advice.push(text);
    if host.cpus.len() < 2 {
        add("one processor: round trips take a context switch each way; allow a second one (taskset, cpuset)".to_string());
    }
    if host.clock_source != "tsc" && cfg!(target_arch = "x86_64") && !host.clock_source.is_empty() {
        add(format!(
            "clock source {}: reading the time may be a system call; boot with tsc=reliable if the TSC is",
            host.clock_source
        ));
    }
    if !probes.io_uring.available {
        add(format!(
            "io_uring: {}; the journal uses threads with plain system calls instead",
            probes.io_uring.detail
        ));
    }
    if !probes.membarrier.global_expedited {
        add("membarrier is not available: a container's seccomp profile may forbid it; every message then costs a fence".to_string());
    }
    if !probes.processes.pidfd {
        add("pidfd_open is not available: Linux 5.3 or a seccomp profile that allows it is needed"
            .to_string());
    }
    if !probes.memory_files.sealing {
        add("memfd with seals is not available: a seccomp profile that allows memfd_create is needed".to_string());
    }
    if !probes.socket.fits {
        add(format!(
            "the socket path has {} bytes, {} are possible: use --socket with a shorter one",
            probes.socket.length, probes.socket.max
        ));
    }
    if !host.optimised {
        add("this is not an optimised build: use cargo build --release for figures".to_string());
    }
    advice
}

fn text(answer: &Answer) -> String {
    let style = Style::stdout();
    let mut text = format!("{}\n", style.bold("host"));
    text.push_str(&host_facts(answer).render(style));
    text.push_str(&format!("\n{}\n", style.bold("costs")));
    text.push_str(&answer.costs.facts().render(style));
    text.push_str(&format!("\n{}\n", style.bold("disk")));
    text.push_str(&answer.disk.facts().render(style));
    text.push_str(&format!("\n{}\n", style.bold("modes")));
    let mut modes = Facts::default();
    for mode in &answer.modes {
        modes.add(mode.name, format!("{} ({})", mode.chosen, mode.why));
    }
    text.push_str(&modes.render(style));
    text.push_str(&format!("\n{}\n", style.bold("daemon")));
    text.push_str(&match (&answer.daemon, &answer.daemon_problem) {
        (Some(status), _) => super::status::facts(status).render(style),
        (None, problem) => format!("{}\n", problem.as_deref().unwrap_or("does not run")),
    });
    if !answer.advice.is_empty() {
        text.push_str(&format!("\n{}\n", style.bold("advice")));
        for line in &answer.advice {
            text.push_str(&format!("- {line}\n"));
        }
    }
    text
}

fn host_facts(answer: &Answer) -> Facts {
    let Answer { host, probes, .. } = answer;
    let yes = |value: bool| if value { "yes" } else { "no" };
    let limit = |bytes: Option<u64>| bytes.map_or_else(|| "unlimited".to_string(), units::bytes);
    let mut facts = Facts::default();
    facts.add("kernel", format!("Linux {}", host.kernel));
    facts.add(
        "processors",
        format!(
            "{}{}; {} of {} may be used: {:?}",
            host.processor,
            if host.virtual_machine { " (virtual machine)" } else { "" },
            host.cpus.len(),
            host.cpus_online,
            host.cpus
        ),
    );
    facts.add("clock source", &host.clock_source);
    facts.add("io_uring", &probes.io_uring.detail);
    facts.add(
        "membarrier",
        format!("global expedited: {}", yes(probes.membarrier.global_expedited)),
    );
    facts.add(
        "processes",
        format!(
            "pidfd: {}, SO_PEERPIDFD: {}",
            yes(probes.processes.pidfd),
            yes(probes.processes.peer_pidfd)
        ),
    );
    facts.add(
        "memory files",
        format!(
            "sealing: {}, no-exec seal: {}",
            yes(probes.memory_files.sealing),
            yes(probes.memory_files.noexec_seal)
        ),
    );
    facts.add("memory available", limit(probes.memory.available_bytes));
    facts.add("memory limit of the cgroup", limit(probes.memory.cgroup_max_bytes));
    facts.add("locked memory (memlock)", limit(probes.memory.memlock_soft_bytes));
    facts.add("file size limit", limit(probes.memory.file_size_bytes));
    facts.add(
        "socket",
        format!(
            "{} ({} of at most {} bytes)",
            probes.socket.path, probes.socket.length, probes.socket.max
        ),
    );
    facts
}
