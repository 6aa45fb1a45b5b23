//! The kernel's part of sleeping and waking, as the rings ask for it.

use std::time::Duration;

use super::{futex, membarrier};
use crate::protocol::WakeMode;
use crate::ring::Kernel;
use crate::sync::atomic::{AtomicU32, Ordering, compiler_fence, fence};

/// Barriers and futex calls for the rings of one [`WakeMode`], with what this process is able to do.
#[derive(Debug, Clone, Copy)]
pub struct HostKernel {
    wake_mode: WakeMode,
    /// Publishing runs a fence: the ring wants it, or this process is out of reach of others' membarriers.
    fences: bool,
    may_park: bool,
}

impl HostKernel {
    /// Registers the process for membarrier if the ring relies on it. Once for each handle, before its first use.
    pub fn new(wake_mode: WakeMode) -> Self {
        match wake_mode {
            WakeMode::Fence => Self { wake_mode, fences: true, may_park: true },
            WakeMode::Membarrier => {
                let able = membarrier::register();
                Self { wake_mode, fences: !able, may_park: able }
            }
        }
    }

    /// Whether the heavy barrier is a membarrier, which is a fence on this thread, too.
    pub fn is_membarrier(&self) -> bool {
        self.wake_mode == WakeMode::Membarrier
    }

    /// Whether a sleep on this ring is safe: a process that cannot issue membarrier has to poll instead.
    pub fn may_park(&self) -> bool {
        self.may_park
    }
}

impl Kernel for HostKernel {
    fn heavy_barrier(&self) {
        // A membarrier that is refused although it was offered leaves this thread's own fence; the bound of the sleep
        // then limits the damage.
        if self.wake_mode == WakeMode::Fence || !membarrier::issue() {
            // SeqCst: partner of the fence in `light_barrier` of a publisher.
            fence(Ordering::SeqCst);
        }
    }

    #[inline(always)]
    fn light_barrier(&self) {
        if self.fences {
            // SeqCst: partner of the barrier that a sleeper runs in `heavy_barrier`.
            fence(Ordering::SeqCst);
        } else {
            // The processor's half is the sleeper's membarrier, which interrupts every registered process.
            compiler_fence(Ordering::SeqCst);
        }
    }

    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        futex::wait(word, expected, timeout);
    }

    fn wake(&self, word: &AtomicU32, count: u32) {
        futex::wake(word, count);
    }
}
