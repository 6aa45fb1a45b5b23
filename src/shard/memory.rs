//! The memory of the brokered plane as the daemon has it: files, mapped, behind the types of [`ringmain_client::pair`].
//!
//! Clients write their own files at any time; whatever is read from there is bounded by the rings. The shard's files are
//! written by the daemon alone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringmain_client::layout::metadata::DEAD_LETTER_BYTES;
use ringmain_client::layout::pair::{link, shard_page};
use ringmain_client::layout::{Geometry, control, spsc_page};
use ringmain_client::pair::{Link, Pair, PairError, PairGeometry, ShardPage};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{Region, repair};
use ringmain_client::sync::atomic::Ordering;
use ringmain_client::sys::map::{Access, Mapping, Populate};
use ringmain_client::sys::memory::{MemoryError, create_sealed, verify_sealed};
use ringmain_client::wire::DELIVERY_HEADER_BYTES;
use serde::{Deserialize, Serialize};

/// Metadata is padded to a multiple of this in front of a payload.
const METADATA_ALIGNMENT: usize = 16;

/// Sizes of a handle's memory, as they are agreed with the client and stored by the keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairSize {
    /// Produce or consume.
    pub role: Role,
    /// Slots of the ring with messages.
    pub slots: u32,
    /// Bytes per slot of that ring.
    pub slot_size: u32,
    /// Longest payload of a message, delivery header not included.
    pub max_message: u32,
    /// Slots of the ring with records.
    pub record_slots: u32,
    /// Entries of the lease table; 0 for producers.
    pub leases: u32,
}

impl PairSize {
    /// Checked.
    ///
    /// # Errors
    /// What does not fit.
    pub fn geometry(&self) -> Result<PairGeometry, PairError> {
        PairGeometry::new(
            self.role,
            self.slots,
            self.slot_size,
            self.max_message,
            self.record_slots,
            self.leases,
        )
    }
}

/// Bytes of both files.
pub fn pair_bytes(geometry: &PairGeometry) -> u64 {
    geometry.client_file_bytes() as u64 + geometry.shard_file_bytes() as u64
}

/// Most bytes of metadata that are taken of a message: as a dead letter it has more.
pub const METADATA_BYTES_MAX: usize = u16::MAX as usize - DEAD_LETTER_BYTES;

/// Bytes that a delivery with metadata and payload of these lengths takes in a ring.
pub fn body_bytes(metadata: usize, payload: usize) -> u64 {
    (metadata.next_multiple_of(METADATA_ALIGNMENT) + DELIVERY_HEADER_BYTES + payload) as u64
}

/// Whether a message of these lengths fits the delivery ring of a consumer of the queue, given the lane's geometry, also as a dead
/// letter.
pub fn is_deliverable(lane: &PairGeometry, metadata: usize, payload: usize) -> bool {
    let geometry = lane.up();
    let body = body_bytes(metadata, payload) + DEAD_LETTER_BYTES as u64;
    body <= u64::from(geometry.body_bytes(geometry.claim_slots_max()))
}

/// Metadata and payload bytes of the longest message that fits.
pub fn deliverable_bytes(lane: &PairGeometry) -> u64 {
    let geometry = lane.up();
    let most = geometry.body_bytes(geometry.claim_slots_max()) as usize;
    most.saturating_sub(DELIVERY_HEADER_BYTES + METADATA_ALIGNMENT + DEAD_LETTER_BYTES) as u64
}

/// Bytes of header, metadata and payload that the delivery rings of a queue carry at once.
pub fn carried_bytes(slots: u32, slot_size: u32) -> u64 {
    Geometry::new(Some(slots), Some(slot_size), Some(0))
        .map_or(0, |geometry| u64::from(geometry.body_bytes(geometry.claim_slots_max())))
}

/// The same of the longest dead letter of a queue: as long as what its own lanes carry, or as metadata and payload may be.
pub fn letter_bytes(slots: u32, slot_size: u32, max_message: u32) -> u64 {
    let metadata = usize::from(u16::MAX).next_multiple_of(METADATA_ALIGNMENT);
    let longest = (DELIVERY_HEADER_BYTES + metadata) as u64 + u64::from(max_message);
    carried_bytes(slots, slot_size).min(longest)
}

/// The descriptors of a handle's memory, writable.
#[derive(Debug)]
pub struct PairFiles {
    /// The client's.
    pub client: OwnedFd,
    /// The shard's.
    pub shard: OwnedFd,
}

impl PairFiles {
    /// New memory. The name shows in `/proc/PID/maps`.
    ///
    /// # Errors
    /// There is not that much memory, or the kernel refuses.
    pub fn create(name: &str, geometry: &PairGeometry) -> Result<Self, MemoryError> {
        let create = |part: &str, bytes| create_sealed(&format!("ringmain:{name}:{part}"), bytes);
        Ok(Self {
            client: create("client", geometry.client_file_bytes())?,
            shard: create("shard", geometry.shard_file_bytes())?,
        })
    }
}

/// A handle's memory, mapped.
#[derive(Debug)]
pub struct PairMemory {
    /// The rings and tables in it.
    pub pair: Pair,
    /// Behind the regions: dropped after them.
    _mappings: [Mapping; 2],
}

impl PairMemory {
    /// Maps the files after a check of their sizes and seals.
    ///
    /// # Errors
    /// Something about them is not as agreed, or the kernel refuses.
    pub fn map(geometry: PairGeometry, files: &PairFiles) -> Result<Self, MemoryError> {
        let (client, client_mapping) = map(files.client.as_fd(), geometry.client_file_bytes())?;
        let (shard, shard_mapping) = map(files.shard.as_fd(), geometry.shard_file_bytes())?;
        let pair = Pair::new(geometry, client, shard).ok_or(MemoryError::Kind)?;
        Ok(Self { pair, _mappings: [client_mapping, shard_mapping] })
    }

    /// Writes the first page of new memory.
    pub fn initialise(&self, queue: u64) {
        repair::init_control(&self.pair.control(), queue, Kind::Spsc, &self.pair.geometry().up());
    }

    /// Closes the handle, unless it is closed more firmly already; the caller wakes the client.
    pub fn close(&self, value: u64) {
        let page = self.pair.control();
        // Relaxed: this process is the only writer.
        if value > page.u64_at(control::CLOSED).load(Ordering::Relaxed) {
            repair::close(&page, value);
        }
    }

    /// Position behind what was sent to the client, as the shard's own page has it.
    pub fn sent_position(&self) -> u64 {
        let ringmain_client::ring::RingMemory::Spsc { producer, .. } = self.pair.down() else {
            return 0;
        };
        // Relaxed: written by this process, or by one that is gone.
        producer.u64_at(spsc_page::POSITION).load(Ordering::Relaxed)
    }

    /// How far the client has come in the ring towards it. Anything: the client writes it.
    pub fn client_position(&self) -> u64 {
        let ringmain_client::ring::RingMemory::Spsc { consumer, .. } = self.pair.down() else {
            return 0;
        };
        // Acquire: partner of the client's Release: its reads of what lies before are over.
        consumer.u64_at(spsc_page::POSITION).load(Ordering::Acquire)
    }
}

/// A session's link, mapped.
#[derive(Debug)]
pub struct LinkMemory {
    /// Its words.
    pub link: Link,
    _mapping: Mapping,
}

// SAFETY: the words are only ever accessed through atomics, from whichever thread.
unsafe impl Sync for LinkMemory {}

impl LinkMemory {
    /// New memory for a session.
    ///
    /// # Errors
    /// There is not that much memory, or the kernel refuses.
    pub fn create() -> Result<OwnedFd, MemoryError> {
        create_sealed("ringmain:link", link::BYTES)
    }

    /// Maps it after a check.
    ///
    /// # Errors
    /// Something about it is not as agreed, or the kernel refuses.
    pub fn map(descriptor: BorrowedFd<'_>) -> Result<Self, MemoryError> {
        let (region, mapping) = map(descriptor, link::BYTES)?;
        let link = Link::new(region).ok_or(MemoryError::Kind)?;
        Ok(Self { link, _mapping: mapping })
    }
}

/// A shard's page, mapped.
#[derive(Debug)]
pub struct PageMemory {
    /// Its fields.
    pub page: ShardPage,
    _mapping: Mapping,
}

impl PageMemory {
    /// New memory for a shard.
    ///
    /// # Errors
    /// There is not that much memory, or the kernel refuses.
    pub fn create(shard: u32) -> Result<OwnedFd, MemoryError> {
        create_sealed(&format!("ringmain:shard-{shard}"), shard_page::BYTES)
    }

    /// Maps it after a check.
    ///
    /// # Errors
    /// Something about it is not as agreed, or the kernel refuses.
    pub fn map(descriptor: BorrowedFd<'_>) -> Result<Self, MemoryError> {
        let (region, mapping) = map(descriptor, shard_page::BYTES)?;
        let page = ShardPage::new(region).ok_or(MemoryError::Kind)?;
        Ok(Self { page, _mapping: mapping })
    }
}

fn map(descriptor: BorrowedFd<'_>, bytes: usize) -> Result<(Region, Mapping), MemoryError> {
    verify_sealed(descriptor, bytes)?;
    let mapping = Mapping::map(descriptor, bytes, Access::ReadWrite, Populate::OnTouch).map_err(
        |source| match source.kind() {
            std::io::ErrorKind::OutOfMemory => MemoryError::NoRoom { bytes, source },
            _ => MemoryError::Io { what: "mmap", source },
        },
    )?;
    // SAFETY: page-aligned, mapped readable and writable for its length as long as the mapping, which every caller keeps
    // beside what it makes of the region; the file cannot shrink; accessed through the rings and atomics alone.
    let region = unsafe { Region::new(mapping.base(), mapping.len()) };
    Ok((region, mapping))
}
