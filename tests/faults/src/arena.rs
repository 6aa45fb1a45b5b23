//! A queue's memory as the daemon makes it: one memfd a region, mapped three times with the rights of the daemon, of a
//! producer and of a consumer, and an inaccessible page before and behind each mapping.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use ringmain_client::layout::{Geometry, control, spsc_page};
use ringmain_client::protocol::Kind;
use ringmain_client::ring::{Region, RingMemory, repair};

const PAGE: usize = ringmain_client::layout::PAGE_BYTES;

/// One mapping with its guard pages.
#[derive(Debug)]
struct Guarded {
    whole: *mut libc::c_void,
    length: usize,
}

impl Guarded {
    fn map(file: &OwnedFd, length: usize, writable: bool) -> Self {
        let protection =
            if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let whole = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length + 2 * PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(whole, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        // SAFETY: the fixed address lies within the mapping made above, which nobody uses yet.
        let inner = unsafe {
            libc::mmap(
                whole.byte_add(PAGE),
                length,
                protection,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(inner, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { whole, length }
    }

    fn base(&self) -> *mut u8 {
        // SAFETY: the mapping is longer than a page.
        unsafe { self.whole.byte_add(PAGE) }.cast()
    }

    fn region(&self) -> Region {
        // SAFETY: page-aligned and mapped as long as the arena lives, which every case keeps longer than its handles;
        // only atomics and copies access it while others do.
        unsafe { Region::new(self.base(), self.length) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` has mapped.
        unsafe { libc::munmap(self.whole, self.length + 2 * PAGE) };
    }
}

fn memfd(length: usize) -> OwnedFd {
    // SAFETY: the name is a C string.
    let raw = unsafe { libc::memfd_create(c"ringmain-faults".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(raw >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else owns.
    let file = unsafe { OwnedFd::from_raw_fd(raw) };
    let length = libc::off_t::try_from(length).expect("a small region");
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { libc::ftruncate(raw, length) }, 0, "{}", std::io::Error::last_os_error());
    file
}

/// The memory of one queue.
#[derive(Debug)]
pub struct Arena {
    /// Kind of the queue.
    pub kind: Kind,
    /// Its sizes.
    pub geometry: Geometry,
    /// Everything writable, as the daemon has it.
    pub daemon: RingMemory,
    /// With a producer's rights.
    pub producer: RingMemory,
    /// With a consumer's rights.
    pub consumer: RingMemory,
    /// The daemon's mappings, for snapshots; first the control page.
    own: Vec<Guarded>,
    /// Kept for their mappings.
    _others: Vec<Guarded>,
}

/// A copy of all regions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(pub Vec<Vec<u8>>);

impl Arena {
    /// A new queue, empty.
    pub fn new(kind: Kind, geometry: Geometry) -> Self {
        let lengths: &[usize] = match kind {
            Kind::Mpmc => &[control::BYTES, geometry.region_bytes(kind)],
            Kind::Spsc => {
                &[control::BYTES, geometry.region_bytes(kind), spsc_page::BYTES, spsc_page::BYTES]
            }
        };
        // Rights of the producer and the consumer, region by region.
        let rights: [&[bool]; 2] = match kind {
            Kind::Mpmc => [&[false, true], &[false, true]],
            Kind::Spsc => [&[false, true, true, false], &[false, false, false, true]],
        };
        let files: Vec<OwnedFd> = lengths.iter().map(|length| memfd(*length)).collect();
        let view = |rights: &[bool]| -> Vec<Guarded> {
            files
                .iter()
                .zip(lengths)
                .zip(rights)
                .map(|((file, length), writable)| Guarded::map(file, *length, *writable))
                .collect()
        };
        let own = view(&[true; 4][..lengths.len()]);
        let mut producer = view(rights[0]);
        let consumer = view(rights[1]);
        let memory = |maps: &[Guarded]| match kind {
            Kind::Mpmc => RingMemory::Mpmc { control: maps[0].region(), ring: maps[1].region() },
            Kind::Spsc => RingMemory::Spsc {
                control: maps[0].region(),
                slots: maps[1].region(),
                producer: maps[2].region(),
                consumer: maps[3].region(),
            },
        };
        let arena = Self {
            kind,
            geometry,
            daemon: memory(&own),
            producer: memory(&producer),
            consumer: memory(&consumer),
            own,
            _others: {
                producer.extend(consumer);
                producer
            },
        };
        arena.clear();
        arena
    }

    /// Everything as it was when the queue was new. Nobody else may use it meanwhile.
    pub fn clear(&self) {
        for map in &self.own {
            // SAFETY: the mapping is writable, and nobody else accesses it now.
            unsafe { std::ptr::write_bytes(map.base(), 0, map.length) };
        }
        repair::init_control(self.daemon.control(), 1, self.kind, &self.geometry);
    }

    /// Copies all regions. Nobody else may use them meanwhile.
    pub fn snapshot(&self) -> Snapshot {
        // SAFETY: mapped and readable, and nobody else writes it now.
        let copy =
            |map: &Guarded| unsafe { std::slice::from_raw_parts(map.base(), map.length).to_vec() };
        Snapshot(self.own.iter().map(copy).collect())
    }

    /// Undoes everything since the snapshot. Nobody else may use the arena meanwhile.
    pub fn restore(&self, snapshot: &Snapshot) {
        for (map, bytes) in self.own.iter().zip(&snapshot.0) {
            // SAFETY: the same length as when it was copied, writable, and nobody else accesses it now.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.base(), map.length) };
        }
    }

    /// The regions with the daemon's rights, the control page first.
    pub fn regions(&self) -> Vec<Region> {
        self.own.iter().map(Guarded::region).collect()
    }

    /// The region with the slots, and the offset of the first slot in it.
    pub fn slots(&self) -> (&Region, usize) {
        match &self.daemon {
            RingMemory::Mpmc { ring, .. } => (ring, ringmain_client::layout::mpmc::SLOTS),
            RingMemory::Spsc { slots, .. } => (slots, 0),
        }
    }
}

/// Shared memory beside the queue in which a child tells what it did; its accesses are no steps.
#[derive(Debug)]
pub struct Outbox(Guarded);

impl Outbox {
    /// Words that fit one page.
    pub const WORDS: usize = PAGE / 8;

    /// One empty page.
    pub fn new() -> Self {
        Self::with_words(Self::WORDS)
    }

    /// At least this many words, all zero.
    pub fn with_words(words: usize) -> Self {
        let length = (words * 8).next_multiple_of(PAGE);
        Self(Guarded::map(&memfd(length), length, true))
    }

    /// One word. Panics beyond the last.
    pub fn word(&self, index: usize) -> &std::sync::atomic::AtomicU64 {
        assert!(index < self.0.length / 8);
        // SAFETY: in bounds, aligned, mapped as long as the outbox lives, only accessed as atomics.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.0.base().cast::<u64>().add(index)) }
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}
