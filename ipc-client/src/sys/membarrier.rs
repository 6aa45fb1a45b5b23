//! `membarrier(2)`: a fence that the one who sleeps executes on behalf of all who publish.
//!
//! A process is interrupted by [`issue`] only if it has called [`register`]. So a publisher that runs no fence of its
//! own must have registered before its handle is usable.

use std::sync::OnceLock;

const QUERY: libc::c_int = 0;
const GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;

fn call(command: libc::c_int) -> libc::c_long {
    // SAFETY: membarrier takes no pointer and changes no memory of the process.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0_u32, 0_i32) }
}

/// Whether this kernel (and its system-call filter) offers both commands. Asked once per process.
pub fn supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let needed = libc::c_long::from(GLOBAL_EXPEDITED | REGISTER_GLOBAL_EXPEDITED);
        let offered = call(QUERY);
        offered >= 0 && offered & needed == needed
    })
}

/// Lets this process take part in the barriers of others; `false` if it cannot, and then it must run fences itself.
///
/// Cheap to repeat. A child after `fork` calls it again before it publishes.
pub fn register() -> bool {
    supported() && call(REGISTER_GLOBAL_EXPEDITED) == 0
}

/// Executes a full memory barrier on every CPU that runs a registered process, this thread included; `false` if the
/// kernel refuses.
pub fn issue() -> bool {
    call(GLOBAL_EXPEDITED) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_supported_works() {
        if supported() {
            assert!(register());
            assert!(register(), "a second registration is harmless");
            assert!(issue());
        } else {
            assert!(!register());
        }
    }
}
