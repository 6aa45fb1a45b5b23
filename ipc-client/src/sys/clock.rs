//! The clock that all processes of the host share.

/// `CLOCK_MONOTONIC` in nanoseconds: the same time base in every process of the host.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// `CLOCK_REALTIME` in nanoseconds since 1970. It may jump.
#[must_use]
pub fn realtime_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for one timespec for the whole call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut now) };
    // The clocks always exist; were one missing, zero would only make waits look longer than they are.
    if result != 0 {
        return 0;
    }
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_forward() {
        let first = monotonic_ns();
        assert_ne!(first, 0);
        assert!(monotonic_ns() >= first);
    }
}
