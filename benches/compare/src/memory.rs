//! Shared anonymous memory, pinning and forked children: what the comparisons need from the operating system.

use std::hint::spin_loop;
use std::io;

use ringmain_client::layout::{Geometry, PAGE_BYTES};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{Region, RingMemory, bias, repair};
use ringmain_client::sync::atomic::{AtomicU64, Ordering};

/// Shared, zeroed, pre-faulted memory that a forked child sees as well. Never unmapped.
pub(crate) fn region(bytes: usize) -> Region {
    let bytes = bytes.next_multiple_of(PAGE_BYTES);
    // SAFETY: a new anonymous mapping; the kernel chooses the address.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        )
    };
    assert!(base != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    // SAFETY: page-aligned, mapped for ever, no references to it exist.
    unsafe { Region::new(base.cast(), bytes) }
}

/// Index of the producer.
pub(crate) const PRODUCER: u8 = 1;
/// Index of the consumer.
pub(crate) const CONSUMER: u8 = 2;

/// Who is attached to an mpmc queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Members {
    /// The producer and the consumer that are measured: the daemon lets each claim without exchanges.
    OneOfEachRole,
    /// Others as well, which do nothing: every claim is an exchange.
    More,
}

/// The memory of one queue, as the daemon lays it out.
pub(crate) fn ring_memory(kind: Kind, members: Members, geometry: &Geometry) -> RingMemory {
    let memory = new_memory(kind, geometry);
    if members == Members::OneOfEachRole {
        bias::grant(&memory, Role::Produce, PRODUCER);
        bias::grant(&memory, Role::Consume, CONSUMER);
    }
    memory
}

fn new_memory(kind: Kind, geometry: &Geometry) -> RingMemory {
    let control = region(PAGE_BYTES);
    repair::init_control(&control, 1, kind, geometry);
    match kind {
        Kind::Spsc => RingMemory::Spsc {
            control,
            slots: region(geometry.region_bytes(kind)),
            producer: region(PAGE_BYTES),
            consumer: region(PAGE_BYTES),
        },
        Kind::Mpmc => RingMemory::Mpmc { control, ring: region(geometry.region_bytes(kind)) },
    }
}

/// One page of shared words for results and signals.
pub(crate) fn board() -> Region {
    region(PAGE_BYTES)
}

/// Pins the calling thread and checks that the kernel did it.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: a zeroed cpu_set_t is an empty set; the calls write only into it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        let size = std::mem::size_of_val(&set);
        assert_eq!(libc::sched_setaffinity(0, size, &raw const set), 0, "cannot pin to cpu {cpu}");
    }
}

/// Lets the calling thread run anywhere again.
fn pin_to_any() {
    // SAFETY: a zeroed cpu_set_t is an empty set; the calls write only into it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for cpu in 0..libc::CPU_SETSIZE as usize {
            libc::CPU_SET(cpu, &mut set);
        }
        libc::sched_setaffinity(0, std::mem::size_of_val(&set), &raw const set);
    }
}

/// Spins until the word is set.
pub(crate) fn wait_for(word: &AtomicU64) {
    // Acquire: partner of whoever sets it.
    while word.load(Ordering::Acquire) == 0 {
        spin_loop();
    }
}

/// Runs `child` in another process, pinned to cpu 1, while `parent` runs here, pinned to cpu 0. `parent` begins when the child
/// is about to: making a process takes milliseconds, which are no part of what is measured.
pub(crate) fn two_processes<T>(child: impl FnOnce(), parent: impl FnOnce() -> T) -> T {
    let ready = board();
    // Before the fork: a child that inherits cpu 0 from a spinning parent could wait for it for ever.
    pin_to_any();
    // SAFETY: the process has one thread at this point, so the child may do anything.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        // A panic must not run the parent's code in the child.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: takes no pointer.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            pin(1);
            ready.u64_at(0).store(1, Ordering::Release);
            child();
        }));
        // SAFETY: does not return.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    pin(0);
    wait_for(ready.u64_at(0));
    let value = parent();
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0, "the other process failed");
    value
}
