//! One doorbell for many queues: a word to sleep on, a bit for each queue, a socket for those who poll.
//!
//! ```text
//! owner                                   ringer
//!  1  snapshot = EVENT                     a  PENDING[bit] = 1
//!  2  MODE = how it sleeps                 b  fence
//!  3  fence                                c  MODE = FUTEX:   EVENT += 1, wake
//!  4  any PENDING?  yes: go to 6              MODE = SOCKET:  signal on the socket
//!  5  sleep                                   MODE = AWAKE:   nothing
//!  6  MODE = AWAKE, take PENDING
//! ```
//!
//! Both fences are sequentially consistent: either the owner sees the bit at 4, or the ringer sees the mode at c. A bit
//! that was set already does not spare c: whoever set it may have been stopped in between. One that dies there is made
//! up for by the daemon as well, which rings the doorbells of its queues.
//! Everybody who publishes to one of the queues can write here; the worst they can do is to wake for nothing or to
//! withhold wake-ups, and the owner's sleeps are bounded.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::layout::doorbell::{
    BYTES, EVENT, MODE, MODE_AWAKE, MODE_FUTEX, MODE_SOCKET, PENDING, QUEUES_MAX,
};
use crate::ring::Region;
use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sys::datagram::{SignalReceiver, SignalSender, signal_pair};
use crate::sys::fork::ForkMark;
use crate::sys::futex;
use crate::sys::map::{Access, Mapping, Populate};
use crate::sys::memory::{create_sealed, verify_sealed};

/// Words of pending bits.
const PENDING_WORDS: usize = QUEUES_MAX / 64;

/// A mapped doorbell.
#[derive(Debug)]
struct Bell {
    mapping: ManuallyDrop<Mapping>,
    sender: SignalSender,
    mark: ForkMark,
}

impl Bell {
    fn map(memory: BorrowedFd<'_>, sender: SignalSender, mark: ForkMark) -> io::Result<Self> {
        let mapping = Mapping::map(memory, BYTES, Access::ReadWrite, Populate::Now)?;
        Ok(Self { mapping: ManuallyDrop::new(mapping), sender, mark })
    }

    fn region(&self) -> Region {
        // SAFETY: page-aligned, of this length, sealed; the region does not outlive `self`, which keeps the mapping.
        unsafe { Region::new(self.mapping.base(), self.mapping.len()) }
    }

    fn ring(&self, bit: u32) {
        let Some((word, mask)) = place(bit) else {
            return;
        };
        let region = self.region();
        // AcqRel: partner of the swap in `take_pending`; what was published before is seen by who takes the bit, also
        // when the bit was set already.
        region.u64_at(word).fetch_or(mask, Ordering::AcqRel);
        self.wake(&region);
    }

    fn wake(&self, region: &Region) {
        // SeqCst: partner of the fence in `before_sleep`.
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        match region.u32_at(MODE).load(Ordering::Relaxed) {
            MODE_FUTEX => {
                // Release: partner of the Acquire load of the snapshot.
                region.u32_at(EVENT).fetch_add(1, Ordering::Release);
                futex::wake(region.u32_at(EVENT), 1);
            }
            MODE_SOCKET => self.sender.signal(),
            _ => {}
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if !self.mark.is_forked() {
            // SAFETY: dropped once, here. No region of it is kept anywhere.
            unsafe { ManuallyDrop::drop(&mut self.mapping) };
        }
    }
}

/// Offset of a queue's word and the bit in it; `None` for a number that no queue has.
fn place(bit: u32) -> Option<(usize, u64)> {
    let bit = usize::try_from(bit).ok().filter(|bit| *bit < QUEUES_MAX)?;
    Some((PENDING + bit / 64 * 8, 1 << (bit % 64)))
}

/// The doorbell of another process (or of another part of this one), to be rung.
#[derive(Debug)]
pub(crate) struct PeerDoorbell {
    id: u32,
    bell: Bell,
}

impl PeerDoorbell {
    /// Maps what the daemon handed out; both descriptors are checked.
    pub(crate) fn open(
        id: u32,
        memory: OwnedFd,
        socket: OwnedFd,
        mark: ForkMark,
    ) -> io::Result<Self> {
        verify_sealed(memory.as_fd(), BYTES).map_err(io::Error::other)?;
        let bell = Bell::map(memory.as_fd(), SignalSender::from_descriptor(socket)?, mark)?;
        Ok(Self { id, bell })
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Something may have arrived in the queue with this bit.
    pub(crate) fn ring(&self, bit: u32) {
        self.bell.ring(bit);
    }
}

/// A doorbell that this process waits for.
#[derive(Debug)]
pub(crate) struct OwnDoorbell {
    memory: OwnedFd,
    bell: Bell,
    /// Nobody else has this end.
    receiver: SignalReceiver,
}

impl OwnDoorbell {
    /// A new one, not known to the daemon yet.
    pub(crate) fn new(mark: ForkMark) -> io::Result<Self> {
        let memory = create_sealed("ringmain-doorbell", BYTES).map_err(io::Error::other)?;
        let (receiver, sender) = signal_pair()?;
        let bell = Bell::map(memory.as_fd(), sender, mark)?;
        Ok(Self { memory, bell, receiver })
    }

    /// What the daemon needs to hand it on.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.memory.as_fd(), self.bell.sender.as_fd()]
    }

    /// Readable after a ring while [`Self::arm_socket`] was the last word.
    pub(crate) fn signals(&self) -> &SignalReceiver {
        &self.receiver
    }

    /// Sleeps until a ring, at most this long. The caller takes the pending bits afterwards.
    pub(crate) fn sleep(&self, timeout: Duration) {
        let region = self.bell.region();
        let event: &AtomicU32 = region.u32_at(EVENT);
        // Acquire: partner of the Release in `wake`.
        let snapshot = event.load(Ordering::Acquire);
        if !self.before_sleep(&region, MODE_FUTEX) {
            futex::wait(event, snapshot, Some(timeout));
        }
        self.awake();
    }

    /// From now on a ring makes the socket readable. Returns whether a bit is pending already.
    pub(crate) fn arm_socket(&self) -> bool {
        self.before_sleep(&self.bell.region(), MODE_SOCKET)
    }

    /// Its owner looks at the pending bits itself.
    pub(crate) fn awake(&self) {
        // Relaxed: a ringer that still sees the old mode wakes for nothing.
        self.bell.region().u32_at(MODE).store(MODE_AWAKE, Ordering::Relaxed);
    }

    /// As new, for another user. A ring that comes late finds nobody and harms nobody.
    pub(crate) fn reset(&self) {
        self.awake();
        self.take_pending(|_| ());
        self.signals().drain();
    }

    /// Takes one pending bit; whether it was set.
    #[cfg(feature = "tokio")]
    pub(crate) fn take_bit(&self, bit: u32) -> bool {
        let Some((word, mask)) = place(bit) else {
            return false;
        };
        // AcqRel: partner of the fetch_or in `ring`.
        self.bell.region().u64_at(word).fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    fn before_sleep(&self, region: &Region, mode: u32) -> bool {
        // Relaxed: ordered by the fence.
        region.u32_at(MODE).store(mode, Ordering::Relaxed);
        // SeqCst: partner of the fence in `wake`.
        fence(Ordering::SeqCst);
        (0..PENDING_WORDS).any(|word| {
            // Relaxed: ordered by the fence; the bits are taken with `take_pending`.
            region.u64_at(PENDING + word * 8).load(Ordering::Relaxed) != 0
        })
    }

    /// Takes all pending bits and calls `queue` with the number of each.
    pub(crate) fn take_pending(&self, mut queue: impl FnMut(u32)) {
        let region = self.bell.region();
        for word in 0..PENDING_WORDS {
            let cell = region.u64_at(PENDING + word * 8);
            // Relaxed: a bit that is missed now is seen before the next sleep.
            if cell.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // AcqRel: partner of the fetch_or in `ring`.
            let mut bits = cell.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let first = bits.trailing_zeros();
                bits &= bits - 1;
                queue(u32::try_from(word * 64).unwrap_or(0) + first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bells() -> (OwnDoorbell, PeerDoorbell) {
        let mark = ForkMark::get().expect("a page is there");
        let own = OwnDoorbell::new(mark).expect("memory is there");
        let [memory, socket] = own.descriptors().map(|fd| fd.try_clone_to_owned().expect("dup"));
        let peer = PeerDoorbell::open(7, memory, socket, mark).expect("what was made fits");
        (own, peer)
    }

    #[test]
    fn a_ringer_that_stopped_half_way_silences_nobody() {
        let (own, peer) = bells();
        assert!(!own.arm_socket());
        let (word, mask) = place(3).expect("a queue's number");
        // As a ringer does that is stopped before it looks at the mode.
        own.bell.region().u64_at(word).fetch_or(mask, Ordering::AcqRel);
        peer.ring(3);
        assert!(own.signals().drain());
    }

    fn pending(own: &OwnDoorbell) -> Vec<u32> {
        let mut bits = Vec::new();
        own.take_pending(|bit| bits.push(bit));
        bits
    }

    #[test]
    fn bits_arrive_once() {
        let (own, peer) = bells();
        for bit in [4095, 0, 64, 63, 0] {
            peer.ring(bit);
        }
        peer.ring(4096);
        peer.ring(u32::MAX);
        assert_eq!(pending(&own), [0, 63, 64, 4095]);
        assert_eq!(pending(&own), [0_u32; 0]);
    }

    #[test]
    fn a_pending_bit_keeps_its_owner_awake() {
        let (own, peer) = bells();
        peer.ring(3);
        own.sleep(Duration::from_secs(3600));
        assert_eq!(pending(&own), [3]);
        assert!(!own.signals().drain(), "nobody asked for the socket");
    }

    #[test]
    fn a_ring_wakes_a_sleeper() {
        let (own, peer) = bells();
        let ringer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            peer.ring(9);
        });
        let mut bits = Vec::new();
        while bits.is_empty() {
            own.sleep(Duration::from_secs(3600));
            bits = pending(&own);
        }
        assert_eq!(bits, [9]);
        ringer.join().expect("the ringer ends well");
    }

    #[test]
    fn an_armed_socket_becomes_readable() {
        let (own, peer) = bells();
        assert!(!own.arm_socket());
        peer.ring(1);
        assert!(own.signals().drain());
        assert!(own.arm_socket(), "the bit is pending");
    }

    #[test]
    fn foreign_memory_is_refused() {
        let mark = ForkMark::get().expect("a page is there");
        let short = create_sealed("test", 8192).expect("memory is there");
        let socket = OwnedFd::from(signal_pair().expect("descriptors are left").1);
        assert!(PeerDoorbell::open(1, short, socket, mark).is_err());
    }
}
