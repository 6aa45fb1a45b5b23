//! Rings over private heap memory, laid out as the daemon lays out shared memory.

use std::alloc::{Layout, alloc_zeroed};

use ringmain_client::layout::{Geometry, PAGE_BYTES};
use ringmain_client::protocol::Kind;
use ringmain_client::ring::{Region, RingMemory, repair};

/// Zeroed memory that is never freed: a region has no owner.
pub(crate) fn region(bytes: usize) -> Region {
    let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a page-aligned layout");
    // SAFETY: the layout has a size; the memory is never freed and nothing else refers to it.
    unsafe {
        let base = alloc_zeroed(layout);
        assert!(!base.is_null());
        Region::new(base, bytes)
    }
}

/// The memory of one queue.
pub(crate) fn ring_memory(kind: Kind, geometry: &Geometry) -> RingMemory {
    let control = region(PAGE_BYTES);
    repair::init_control(&control, 7, kind, geometry);
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
