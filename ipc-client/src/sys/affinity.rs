//! Pinning a thread to a CPU, and reading back what the kernel made of it.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

fn current() -> io::Result<CpuSet> {
    Ok(sched_getaffinity(Pid::from_raw(0))?)
}

fn members(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

/// CPUs that the calling thread may run on, by number, in ascending order.
///
/// # Errors
/// The kernel refuses to say, for example because the host has more than 1024 CPUs.
pub fn available_cpus() -> io::Result<Vec<usize>> {
    Ok(members(&current()?))
}

/// CPUs of the host that are switched on, whoever may use them; at least one.
///
/// A thread that is pinned to one CPU may well have a partner on another one.
#[must_use]
pub fn online_cpus() -> usize {
    // SAFETY: sysconf takes no pointer.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).unwrap_or(1).max(1)
}

/// Lets the calling thread run on this CPU only; returns the CPU that the kernel reports afterwards.
///
/// # Errors
/// No such CPU, or not one that this process may use (see [`available_cpus`]); or the kernel accepted the call and
/// then reports something else, which happens where another tool manages the affinity.
pub fn pin_current_thread(cpu: usize) -> io::Result<usize> {
    let mut wanted = CpuSet::new();
    wanted.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &wanted).map_err(|error| {
        let cause = io::Error::from(error);
        io::Error::new(cause.kind(), format!("cannot pin to CPU {cpu}: {cause}"))
    })?;
    match members(&current()?).as_slice() {
        [only] if *only == cpu => Ok(*only),
        others => {
            Err(io::Error::other(format!("pinned to CPU {cpu}, but the kernel reports {others:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_reports_its_cpu() {
        std::thread::spawn(|| {
            let cpus = available_cpus().expect("the kernel says");
            let last = *cpus.last().expect("this thread runs somewhere");
            assert_eq!(pin_current_thread(last).expect("the CPU is available"), last);
            assert_eq!(available_cpus().expect("the kernel says"), [last]);
        })
        .join()
        .expect("the thread ends well");
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        assert!(pin_current_thread(1023).is_err());
        assert!(pin_current_thread(usize::MAX).is_err());
    }
}
