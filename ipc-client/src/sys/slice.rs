//! The time slice that a thread asks of the fair scheduler.

use std::io;

use libc::sched_attr;

const ATTR_BYTES: u32 = 48;
/// From `linux/sched.h`.
const SCHED_FLAG_RESET_ON_FORK: u64 = 1;
const _: () = assert!(size_of::<sched_attr>() == ATTR_BYTES as usize);

/// Attributes of the calling thread.
fn current() -> io::Result<sched_attr> {
    // SAFETY: all fields are integers, for which zeros are valid.
    let mut attr: sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `ATTR_BYTES` to the struct, which has as many and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, ATTR_BYTES, 0) };
    if done == 0 { Ok(attr) } else { Err(io::Error::last_os_error()) }
}

/// Asks for slices of this many nanoseconds for the calling thread, not for those that it begins later; needs no rights. Whoever has shorter ones may then take its
/// processor when he wakes up, instead of waiting for the end of its slice. Returns what the kernel says afterwards: before Linux 6.12
/// nothing changes, and it says zero.
///
/// # Errors
/// The thread is not scheduled as `SCHED_OTHER` or `SCHED_BATCH`, or the kernel refuses the system call.
pub fn set_for_current_thread(nanoseconds: u64) -> io::Result<u64> {
    let mut attr = current()?;
    if !matches!(attr.sched_policy.cast_signed(), libc::SCHED_OTHER | libc::SCHED_BATCH) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the thread is not scheduled by the fair scheduler",
        ));
    }
    attr.size = ATTR_BYTES;
    attr.sched_runtime = nanoseconds;
    attr.sched_flags |= SCHED_FLAG_RESET_ON_FORK;
    // SAFETY: the kernel reads `size` bytes of the struct, which has as many and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(current()?.sched_runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_the_slice_it_asks_for_and_keeps_its_priority() {
        std::thread::spawn(|| {
            let before = current().unwrap();
            let slice = set_for_current_thread(4_000_000).unwrap();
            let after = current().unwrap();
            assert!(slice == 4_000_000 || slice == before.sched_runtime, "{slice}");
            assert_eq!(
                (after.sched_policy, after.sched_nice),
                (before.sched_policy, before.sched_nice)
            );
            let its_own = std::thread::spawn(|| current().unwrap().sched_runtime).join().unwrap();
            assert_eq!(its_own, before.sched_runtime);
        })
        .join()
        .unwrap();
    }
}
