//! The only file that calls `futex(2)`.
//!
//! The words lie in memory that several processes map, so the private variants are of no use here. A word that the
//! caller has mapped read-only can be waited on as well.

use std::time::Duration;

use crate::sync::atomic::AtomicU32;

/// How a wait ended. Every outcome may be spurious: the caller looks at its condition again in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody called [`wake`].
    Woken,
    /// The word had another value than expected: it never slept.
    Changed,
    /// The time is over.
    TimedOut,
    /// A signal came.
    Interrupted,
}

/// Longest sleep after a refusal that has no other explanation, so that a retry loop does not burn a core.
const REFUSED_SLEEP: Duration = Duration::from_millis(1);

/// Sleeps while `word` holds `expected`, until [`wake`], a signal or the time-out; `None` sleeps without bound.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Outcome {
    let time = timeout.map(timespec);
    let time_pointer = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is a live, aligned u32 and `time` outlives the call; the kernel writes to neither.
    let result = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, time_pointer)
    };
    if result == 0 {
        return Outcome::Woken;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Outcome::Changed,
        Some(libc::EINTR) => Outcome::Interrupted,
        Some(libc::ETIMEDOUT) => Outcome::TimedOut,
        _ => {
            // No futex here (a system-call filter, for example): waiting becomes polling.
            std::thread::sleep(timeout.unwrap_or(REFUSED_SLEEP).min(REFUSED_SLEEP));
            Outcome::TimedOut
        }
    }
}

/// Wakes up to `count` of those who sleep on `word`, in this process and all others; returns how many.
pub fn wake(word: &AtomicU32, count: u32) -> u32 {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    // SAFETY: the word is a live, aligned u32; the kernel uses only its address.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
    u32::try_from(result).unwrap_or(0)
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sync::atomic::Ordering;

    #[test]
    fn a_changed_word_does_not_sleep() {
        let word = AtomicU32::new(7);
        assert_eq!(wait(&word, 6, None), Outcome::Changed);
    }

    #[test]
    fn a_wait_is_bounded() {
        let word = AtomicU32::new(7);
        assert_eq!(wait(&word, 7, Some(Duration::from_millis(2))), Outcome::TimedOut);
    }

    #[test]
    fn a_sleeper_is_woken() {
        let word = Arc::new(AtomicU32::new(0));
        let sleeper = {
            let word = Arc::clone(&word);
            std::thread::spawn(move || {
                // Relaxed: the word itself is all that is looked at.
                while word.load(Ordering::Relaxed) == 0 {
                    wait(&word, 0, None);
                }
            })
        };
        word.store(1, Ordering::Relaxed);
        while !sleeper.is_finished() {
            wake(&word, u32::MAX);
            std::thread::yield_now();
        }
        sleeper.join().expect("the sleeper returns");
    }
}
