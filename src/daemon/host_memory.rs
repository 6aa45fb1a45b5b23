//! How much memory the host has left for a new ring.
//!
//! Shared memory that is promised and then missing kills processes at random. So a queue is refused that does not fit;
//! the check is a snapshot, the allocation itself has the last word.

use std::fs;
use std::path::{Path, PathBuf};

/// Left to everybody else, in bytes.
const RESERVE: u64 = 64 << 20;

/// Levels of control groups looked at.
const CGROUP_DEPTH_MAX: usize = 32;

/// The tightest of the limits that can be read, in bytes, with what it is for the error text; `None`: none could be.
pub(super) fn available() -> Option<(u64, &'static str)> {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let group = cgroup_left();
    match (host, group) {
        (Some(host), Some(group)) if group < host => Some((group, CGROUP)),
        (Some(host), _) => Some((host, HOST)),
        (None, Some(group)) => Some((group, CGROUP)),
        (None, None) => None,
    }
}

const HOST: &str = "the host has";
const CGROUP: &str = "the daemon's control group (memory.max) has";

/// Whether this many bytes fit; else the reason.
pub(super) fn check(bytes: u64) -> Result<(), String> {
    match available() {
        Some((left, whose)) if bytes.saturating_add(RESERVE) > left => Err(format!(
            "a queue of {bytes} bytes does not fit: {whose} {left} bytes of memory left, and {RESERVE} of them stay in \
             reserve; ask for fewer or smaller slots, or free memory"
        )),
        _ => Ok(()),
    }
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// What the control groups (version 2) of this process allow, the tightest of its ancestors.
fn cgroup_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let mut left: Option<u64> = None;
    let mut path: PathBuf = root.join(own);
    for _ in 0..CGROUP_DEPTH_MAX {
        if let Some(here) = left_in(&path) {
            left = Some(left.map_or(here, |left| left.min(here)));
        }
        if path == root || !path.pop() {
            break;
        }
    }
    left
}

fn left_in(group: &Path) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
    };
    // "max" is no number: no limit here.
    let max = number("memory.max")?;
    let used = number("memory.current")?;
    // Clean page cache counts as used but is given back on demand.
    let cache = fs::read_to_string(group.join("memory.stat"))
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok())
        })
        .unwrap_or(0);
    Some(max.saturating_sub(used).saturating_add(cache).min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_understood() {
        let text = "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   24006572 kB\n";
        assert_eq!(mem_available(text), Some(24_006_572 * 1024));
        assert_eq!(mem_available("MemAvailable: x kB"), None);
        assert_eq!(mem_available(""), None);
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        assert!(check(1 << 60).unwrap_err().contains("does not fit"));
        assert_eq!(check(0), Ok(()));
    }
}
