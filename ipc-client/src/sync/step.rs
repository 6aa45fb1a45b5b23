//! Test builds only: the process dies at its N-th shared-memory step, or stops there.
//!
//! A step is one access to shared memory: an atomic operation or one chunk of a copy. With the feature `steps` the
//! fault suite arms a countdown in a child process; the step that takes it to zero is not executed, the child kills
//! itself with SIGKILL instead. Or it stops itself with SIGSTOP, and executes the step when it is continued. Without the
//! feature nothing of this exists.

use core::sync::atomic::{AtomicI32, AtomicI64, Ordering};

/// Steps left until the process dies or stops; negative: never.
static LEFT: AtomicI64 = AtomicI64::new(-1);

/// Steps from the first stop to the second; negative: there is none.
static THEN: AtomicI64 = AtomicI64::new(-1);

/// What the process does to itself.
static SIGNAL: AtomicI32 = AtomicI32::new(libc::SIGKILL);

/// Lets the process die in place of its `steps`-th step from now (0: the next one).
pub fn arm(steps: u32) {
    SIGNAL.store(libc::SIGKILL, Ordering::SeqCst);
    LEFT.store(i64::from(steps), Ordering::SeqCst);
}

/// Lets the process stop in front of its `first`-th step from now, and once more in front of the `second`-th one after that.
pub fn arm_stops(first: u32, second: u32) {
    SIGNAL.store(libc::SIGSTOP, Ordering::SeqCst);
    THEN.store(i64::from(second), Ordering::SeqCst);
    LEFT.store(i64::from(first), Ordering::SeqCst);
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
            libc::kill(libc::getpid(), SIGNAL.load(Ordering::Relaxed));
        }
        LEFT.store(THEN.swap(-1, Ordering::SeqCst), Ordering::SeqCst);
    }
}
