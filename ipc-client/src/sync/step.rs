//! Test builds only: the process dies at its N-th shared-memory step.
//!
//! A step is one access to shared memory: an atomic operation or one chunk of a copy. With the feature `steps` the
//! fault suite arms a countdown in a child process; the step that takes it to zero is not executed, the child kills
//! itself with SIGKILL instead. Without the feature nothing of this exists.

use core::sync::atomic::{AtomicI64, Ordering};

/// Steps left until the process dies; negative: never.
static LEFT: AtomicI64 = AtomicI64::new(-1);

/// Lets the process die in place of its `steps`-th step from now (0: the next one).
pub fn arm(steps: u32) {
    LEFT.store(i64::from(steps), Ordering::SeqCst);
}

/// Stops the countdown; returns how many steps were left, or `None` if it was not armed.
pub fn disarm() -> Option<u32> {
    u32::try_from(LEFT.swap(-1, Ordering::SeqCst)).ok()
}

/// Counts one step.
#[inline]
pub fn tick() {
    let left = LEFT.load(Ordering::Relaxed);
    if left < 0 {
        return;
    }
    if LEFT.fetch_sub(1, Ordering::SeqCst) == 0 {
        // SAFETY: both calls take no pointer; SIGKILL to oneself does not return.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
        }
    }
}
