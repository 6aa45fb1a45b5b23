//! The memory of a brokered handle as the daemon has it: the two rings, the status page, the lease table, and the lane's
//! ledger. See [`ringmain_client::layout::pair`].
//!
//! The client writes its own file at any time; whatever is read from there is bounded by the rings. The shard's file and
//! the ledger are written by the daemon alone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringmain_client::layout::pair::{client_file, lease, link, shard_file, shard_page};
use ringmain_client::layout::{Geometry, GeometryError, control, spsc_page};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{Region, RingMemory, repair};
use ringmain_client::sync::atomic::Ordering;
use ringmain_client::sys::map::{Access, Mapping, Populate};
use ringmain_client::sys::memory::{MemoryError, create_sealed, verify_sealed};
use ringmain_client::wire::{DELIVERY_HEADER_BYTES, RECORD_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// Slots of a ring that carries records are this long.
const RECORD_SLOT_BYTES: u32 = 64;

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
    /// Entries of the lease table.
    pub leases: u32,
}

impl PairSize {
    /// Geometry of the ring with messages; a delivery has its header in front of the payload.
    ///
    /// # Errors
    /// What does not fit.
    pub fn messages(&self) -> Result<Geometry, GeometryError> {
        let header = match self.role {
            Role::Produce => 0,
            Role::Consume => DELIVERY_HEADER_BYTES as u32,
        };
        let max_message = self.max_message.saturating_add(header);
        Geometry::new(Some(self.slots), Some(self.slot_size), Some(max_message))
    }

    /// Geometry of the ring with records.
    ///
    /// # Errors
    /// What does not fit.
    pub fn records(&self) -> Result<Geometry, GeometryError> {
        let longest = RECORD_BYTES_MAX as u32;
        Geometry::new(Some(self.record_slots), Some(RECORD_SLOT_BYTES), Some(longest))
    }

    /// Both rings, up and down.
    fn rings(&self) -> Result<(Geometry, Geometry), GeometryError> {
        Ok(match self.role {
            Role::Produce => (self.messages()?, self.records()?),
            Role::Consume => (self.records()?, self.messages()?),
        })
    }

    /// Bytes of the files, in the order of [`PairFiles`].
    ///
    /// # Errors
    /// What does not fit.
    pub fn bytes(&self) -> Result<[usize; 3], GeometryError> {
        let (up, down) = self.rings()?;
        let leases = self.leases as usize;
        let ledger = match self.role {
            Role::Produce => (self.slots as usize * 8).next_multiple_of(control::BYTES),
            Role::Consume => 0,
        };
        Ok([
            client_file::UP_SLOTS + up.region_bytes(Kind::Spsc),
            shard_file::down_slots(leases) + down.region_bytes(Kind::Spsc),
            ledger,
        ])
    }

    /// All of them.
    ///
    /// # Errors
    /// What does not fit.
    pub fn total_bytes(&self) -> Result<u64, GeometryError> {
        Ok(self.bytes()?.iter().map(|bytes| *bytes as u64).sum())
    }

    /// Whether a message that was sent with these lengths fits the delivery ring of a consumer of the same queue.
    pub fn is_deliverable(&self, metadata: usize, payload: usize) -> bool {
        let consumer = Self { role: Role::Consume, ..*self };
        consumer.messages().is_ok_and(|geometry| {
            let body =
                metadata.next_multiple_of(METADATA_ALIGNMENT) + DELIVERY_HEADER_BYTES + payload;
            payload <= self.max_message as usize
                && geometry.slots_for(body) <= u64::from(geometry.claim_slots_max())
        })
    }
}

/// The descriptors of a handle's memory, writable.
#[derive(Debug)]
pub struct PairFiles {
    /// The client's.
    pub client: OwnedFd,
    /// The shard's.
    pub shard: OwnedFd,
    /// Producers: the lane's ledger, which no client gets.
    pub ledger: Option<OwnedFd>,
}

impl PairFiles {
    /// New memory. The name shows in `/proc/PID/maps`.
    ///
    /// # Errors
    /// There is not that much memory, or the kernel refuses.
    pub fn create(name: &str, size: &PairSize) -> Result<Self, MemoryError> {
        let [client, shard, ledger] = bytes_of(size)?;
        let create = |part: &str, bytes| create_sealed(&format!("ringmain:{name}:{part}"), bytes);
        Ok(Self {
            client: create("client", client)?,
            shard: create("shard", shard)?,
            ledger: if ledger > 0 { Some(create("ledger", ledger)?) } else { None },
        })
    }

    /// From descriptors in this order; `None` if there are too few or too many.
    pub fn from_descriptors(size: &PairSize, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let (client, shard) = (descriptors.next()?, descriptors.next()?);
        let ledger = descriptors.next();
        let complete = ledger.is_some() == (size.role == Role::Produce);
        (complete && descriptors.next().is_none()).then_some(Self { client, shard, ledger })
    }

    /// All of them, in order.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.client.as_fd(), self.shard.as_fd()];
        all.extend(self.ledger.as_ref().map(AsFd::as_fd));
        all
    }
}

/// A handle's memory, mapped.
#[derive(Debug)]
pub struct PairMemory {
    /// Sizes.
    pub size: PairSize,
    /// Towards the shard.
    pub up: RingMemory,
    /// Geometry of `up`.
    pub up_geometry: Geometry,
    /// Towards the client.
    pub down: RingMemory,
    /// Geometry of `down`.
    pub down_geometry: Geometry,
    /// The whole file of the shard.
    shard: Region,
    ledger: Option<Region>,
    /// Behind the regions: dropped after them.
    _mappings: Vec<Mapping>,
}

impl PairMemory {
    /// Maps the files after a check of their sizes and seals.
    ///
    /// # Errors
    /// Something about them is not as agreed, or the kernel refuses.
    pub fn map(size: &PairSize, files: &PairFiles) -> Result<Self, MemoryError> {
        let bytes = bytes_of(size)?;
        let (up_geometry, down_geometry) = size.rings().map_err(|_| MemoryError::Kind)?;
        let mut mappings = Vec::with_capacity(3);
        for (descriptor, bytes) in files.descriptors().into_iter().zip(bytes) {
            mappings.push(map(descriptor, bytes)?);
        }
        let part = |file: usize, offset: usize, length: usize| {
            let mapping: &Mapping = &mappings[file];
            assert!(offset <= mapping.len() && length <= mapping.len() - offset);
            // SAFETY: in bounds (checked), page-aligned as all offsets of the layout are, mapped readable and writable as
            // long as `_mappings` lives, which is as long as the regions: they never leave this value but for the rings
            // that are dropped before it. The file cannot shrink, and this process accesses it through the rings and
            // atomics alone.
            unsafe { Region::new(mapping.base().add(offset), length) }
        };
        let page = spsc_page::BYTES;
        let down_slots = shard_file::down_slots(size.leases as usize);
        let control = part(1, shard_file::CONTROL, control::BYTES);
        let up = RingMemory::Spsc {
            control: control.clone(),
            slots: part(0, client_file::UP_SLOTS, bytes[0] - client_file::UP_SLOTS),
            producer: part(0, client_file::UP_PRODUCER, page),
            consumer: part(1, shard_file::UP_CONSUMER, page),
        };
        let down = RingMemory::Spsc {
            control,
            slots: part(1, down_slots, bytes[1] - down_slots),
            producer: part(1, shard_file::DOWN_PRODUCER, page),
            consumer: part(0, client_file::DOWN_CONSUMER, page),
        };
        let shard = part(1, 0, bytes[1]);
        let ledger = files.ledger.as_ref().map(|_| part(2, 0, bytes[2]));
        Ok(Self {
            size: *size,
            up,
            up_geometry,
            down,
            down_geometry,
            shard,
            ledger,
            _mappings: mappings,
        })
    }

    /// Writes the first page of new memory.
    pub fn initialise(&self, queue: u64) {
        repair::init_control(self.down.control(), queue, Kind::Spsc, &self.up_geometry);
    }

    /// Closes the handle, unless it is closed more firmly already; the caller wakes the client.
    pub fn close(&self, value: u64) {
        let page = self.down.control();
        // Relaxed: this process is the only writer.
        if value > page.u64_at(control::CLOSED).load(Ordering::Relaxed) {
            repair::close(page, value);
        }
    }

    /// Sets a field of the status page.
    pub fn set_status(&self, field: usize, value: u64) {
        // Relaxed: read on its own, for display and bounds.
        self.shard.u64_at(shard_file::STATUS + field).store(value, Ordering::Relaxed);
    }

    /// An entry of the lease table in use: attempt, sequence, position. `None` if it is free or there is none.
    pub fn lease(&self, slot: u32) -> Option<(u32, u64, u64)> {
        if slot >= self.size.leases {
            return None;
        }
        let at = shard_file::LEASES + slot as usize * lease::BYTES;
        // Acquire: partner of the Release in `set_lease`, of a broker that is gone.
        let attempt = self.shard.u64_at(at + lease::ATTEMPT).load(Ordering::Acquire);
        // Relaxed, both: after the Acquire.
        let sequence = self.shard.u64_at(at + lease::SEQUENCE).load(Ordering::Relaxed);
        let position = self.shard.u64_at(at + lease::POSITION).load(Ordering::Relaxed);
        let attempt = u32::try_from(attempt).ok().filter(|attempt| *attempt != 0)?;
        Some((attempt, sequence, position))
    }

    /// Takes an entry into use, or frees it.
    pub fn set_lease(&self, slot: u32, lease: Option<(u32, u64, u64)>) {
        if slot >= self.size.leases {
            return;
        }
        let at = shard_file::LEASES + slot as usize * lease::BYTES;
        let word = |field: usize| self.shard.u64_at(at + field);
        match lease {
            Some((attempt, sequence, position)) => {
                // Relaxed: published by the next store. The entry was free before.
                word(lease::SEQUENCE).store(sequence, Ordering::Relaxed);
                word(lease::POSITION).store(position, Ordering::Relaxed);
                // Release: partner of the Acquire in `lease`: an entry in use is complete.
                word(lease::ATTEMPT).store(u64::from(attempt), Ordering::Release);
            }
            // Release: what was done with the message comes before.
            None => word(lease::ATTEMPT).store(0, Ordering::Release),
        }
    }

    /// Remembers what became of the message at this position of the lane: a broker that takes over completes it so.
    pub fn set_ledger(&self, position: u64, entry: u64) {
        if let Some(ledger) = &self.ledger {
            let slot = (position & (self.up_geometry.slots() - 1)) as usize;
            // Relaxed: read only by a broker that runs when this one is gone.
            ledger.u64_at(slot * 8).store(entry, Ordering::Relaxed);
        }
    }

    /// What [`Self::set_ledger`] stored last for this slot.
    pub fn ledger(&self, position: u64) -> u64 {
        self.ledger.as_ref().map_or(0, |ledger| {
            let slot = (position & (self.up_geometry.slots() - 1)) as usize;
            // Relaxed: its writer is gone.
            ledger.u64_at(slot * 8).load(Ordering::Relaxed)
        })
    }
}

/// A session's link: the words by which its handles say that they have something for a shard.
#[derive(Debug)]
pub struct LinkMemory {
    region: Region,
    _mapping: Mapping,
}

// SAFETY: the region is only ever accessed through atomics; both shards and the control thread may share it.
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
        let (region, mapping) = map_whole(descriptor, link::BYTES)?;
        Ok(Self { region, _mapping: mapping })
    }

    /// Whether the handle with this index has said so since the last look.
    #[inline]
    pub fn take_ready(&self, index: u32) -> bool {
        let index = index as usize;
        if index >= link::HANDLES_MAX {
            return false;
        }
        let word = self.region.u64_at(link::READY + index * 8);
        // Relaxed: a word that is missed here is seen by the next look, at the latest by the one behind the heavy barrier in
        // front of a sleep.
        if word.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // AcqRel: partner of the client's Release store: what it published before is seen after this.
        word.swap(0, Ordering::AcqRel) != 0
    }
}

/// A shard's page.
#[derive(Debug)]
pub struct PageMemory {
    region: Region,
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
        let (region, mapping) = map_whole(descriptor, shard_page::BYTES)?;
        Ok(Self { region, _mapping: mapping })
    }

    /// Says that the shard sleeps or is about to, or that it is awake.
    pub fn set_asleep(&self, asleep: bool) {
        let word = self.region.u32_at(shard_page::ASLEEP);
        // Release: the caller's heavy barrier follows and orders it before the last look.
        word.store(u32::from(asleep), Ordering::Release);
    }

    /// Says that the journal failed.
    pub fn set_failed(&self, errno: i32, lsn: u64) {
        let word = |field: usize| self.region.u64_at(field);
        // Relaxed: published by the next store.
        word(shard_page::FAILED_LSN).store(lsn, Ordering::Relaxed);
        let errno = u64::try_from(errno).unwrap_or(1).max(1);
        // Release: whoever sees the errno sees the LSN.
        word(shard_page::FAILED_ERRNO).store(errno, Ordering::Release);
    }

    /// Takes that back: a new journal was opened.
    pub fn clear_failed(&self) {
        // Release: nothing was written before that a reader could confuse.
        self.region.u64_at(shard_page::FAILED_ERRNO).store(0, Ordering::Release);
    }
}

fn bytes_of(size: &PairSize) -> Result<[usize; 3], MemoryError> {
    // Sizes are checked before memory is asked for; stored ones that do not fit belong to something else.
    size.bytes().map_err(|_| MemoryError::Kind)
}

fn map(descriptor: BorrowedFd<'_>, bytes: usize) -> Result<Mapping, MemoryError> {
    verify_sealed(descriptor, bytes)?;
    Mapping::map(descriptor, bytes, Access::ReadWrite, Populate::OnTouch).map_err(|source| {
        match source.kind() {
            std::io::ErrorKind::OutOfMemory => MemoryError::NoRoom { bytes, source },
            _ => MemoryError::Io { what: "mmap", source },
        }
    })
}

fn map_whole(
    descriptor: BorrowedFd<'_>,
    bytes: usize,
) -> Result<(Region, Mapping), MemoryError> {
    let mapping = map(descriptor, bytes)?;
    // SAFETY: page-aligned, mapped readable and writable for its length as long as the mapping, which the caller keeps
    // beside the region; the file cannot shrink; accessed through atomics only.
    let region = unsafe { Region::new(mapping.base(), mapping.len()) };
    Ok((region, mapping))
}
