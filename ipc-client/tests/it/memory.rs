//! Rings in memory of this process, mapped once for each handle as real processes do.

use std::os::fd::{AsFd, OwnedFd};

use ringmain_client::raw::layout::{Geometry, PAGE_BYTES};
use ringmain_client::raw::protocol::Kind;
use ringmain_client::raw::ring::{Region, RingMemory, repair};
use ringmain_client::raw::sys::map::{Access, Mapping, Populate};
use ringmain_client::raw::sys::memory::create_sealed;

/// The memory files of one queue.
pub(crate) struct Queue {
    pub(crate) geometry: Geometry,
    kind: Kind,
    files: Vec<(OwnedFd, usize)>,
}

impl Queue {
    pub(crate) fn new(kind: Kind, geometry: Geometry) -> Self {
        let ring = geometry.region_bytes(kind);
        let sizes: &[usize] = match kind {
            Kind::Spsc => &[PAGE_BYTES, ring, PAGE_BYTES, PAGE_BYTES],
            Kind::Mpmc => &[PAGE_BYTES, ring],
        };
        let files = sizes
            .iter()
            .map(|bytes| (create_sealed("ringmain-test", *bytes).expect("memory"), *bytes))
            .collect();
        let queue = Self { geometry, kind, files };
        repair::init_control(queue.map().control(), 1, kind, &geometry);
        queue
    }

    /// The queue as one handle sees it. The mappings stay for the life of the test process.
    pub(crate) fn map(&self) -> RingMemory {
        let regions: Vec<Region> = self
            .files
            .iter()
            .map(|(file, bytes)| {
                let mapping = Mapping::map(file.as_fd(), *bytes, Access::ReadWrite, Populate::Now)
                    .expect("address space");
                // SAFETY: page-aligned, sealed, and mapped until the process ends.
                let region = unsafe { Region::new(mapping.base(), mapping.len()) };
                std::mem::forget(mapping);
                region
            })
            .collect();
        match (self.kind, regions.as_slice()) {
            (Kind::Spsc, [control, slots, producer, consumer]) => RingMemory::Spsc {
                control: control.clone(),
                slots: slots.clone(),
                producer: producer.clone(),
                consumer: consumer.clone(),
            },
            (Kind::Mpmc, [control, ring]) => {
                RingMemory::Mpmc { control: control.clone(), ring: ring.clone() }
            }
            _ => unreachable!("as many regions as files"),
        }
    }
}
