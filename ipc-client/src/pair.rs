//! The memory of a brokered handle as both of its sides use it: the two rings, the session's link, the shard's page, the lease
//! table. [`crate::layout::pair`] has the bytes.
//!
//! # How the client wakes the shard
//!
//! A shard serves many handles and sleeps for all of them at once, in the kernel, on an eventfd. So a client does not count up
//! an event word, as the sides of a direct ring do for each other; it leaves its handle's READY word set and, if the shard
//! sleeps, writes to the eventfd.
//!
//! ```text
//! client                                      shard
//!  a  publish into `up`, or release `down`     1  for each READY word that is not 0: swap it to 0, then look at
//!     (Release)                                   the handle's rings
//!  b  READY = 1  (Release)                     2  ASLEEP = number of this sleep
//!  c  light barrier                            3  heavy barrier
//!  d  ASLEEP = 0, or rung for: done            4  step 1 for all READY words once more; one was set: go to 6
//!  e  write the eventfd                        5  sleep until the eventfd is readable (or the disk is done)
//!                                              6  ASLEEP = 0, then from the start
//! ```
//!
//! No message is overlooked:
//! - a to b and the swap of 1: READY is set after the ring was written, whether it was set or not. A swap that comes before b leaves that 1 for the next look. A swap that comes after b
//!   reads its 1 (or a later one), and as it acquires what b released, the look behind it sees what a wrote.
//! - The heavy barrier forces a full fence on every processor that runs a registered process somewhere between its b and its
//!   d (`membarrier`; or both barriers are sequentially consistent fences). So either d sees the ASLEEP of 2, and e ends
//!   the sleep of 5 whether it has begun or not, because an eventfd keeps what was written; or 4 sees the READY of b.
//! - One ring a sleep is enough: a client that finds at d the number of a sleep for which it has rung already may leave it at
//!   that. The ring came after 2, so this sleep is over or about to be, and before the next one 4 looks again, behind
//!   a barrier. So a client that publishes while the shard is on its way out of its sleep makes no system call for each message.
//! - A client may skip b to e after releasing `down` slots while nobody waits for them: a shard that finds no room in `down`
//!   announces so in its own half of the ring's [`crate::ring::Park`] and looks for room once more behind a heavy
//!   barrier (that of 3 serves) before it relies on being told; the client looks at that bit behind a light barrier.
//!
//! The other way round, from the shard to a client, nothing is special: the client sleeps as on any spsc ring, on the event word
//! of the shard's page of that ring.
//!
//! # What each side owes the other
//!
//! - A completion is in `down` before the lane slots of its messages are released, and both before either is announced to
//!   sleepers. So a producer that waits for room knows which of the two it waits for.
//! - Once there is room in `down`, answers go in first, then submissions are taken, then deliveries follow: a consumer that
//!   waits for room in `up` gets it whatever else is to be delivered.

#[cfg(not(loom))]
use crate::layout::PAGE_BYTES;
use crate::layout::pair::{client_file, lease, link, shard_file, shard_page, status};
use crate::layout::{Geometry, GeometryError};
use crate::protocol::{Kind, Role};
use crate::ring::Region;
#[cfg(not(loom))]
use crate::ring::RingMemory;
use crate::sync::atomic::Ordering;
use crate::wire::{DELIVERY_HEADER_BYTES, LeaseToken, RECORD_BYTES_MAX};

/// Bytes of a slot of the ring that carries only records.
pub const RECORD_SLOT_BYTES: u32 = 64;

/// Sizes of the two rings of one handle, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairGeometry {
    role: Role,
    messages: Geometry,
    records: Geometry,
    leases: u32,
}

/// Why a pair of rings was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PairError {
    /// The ring that carries messages. A consumer's must take the header of a delivery besides the longest message.
    #[error(transparent)]
    Messages(#[from] GeometryError),
    /// The ring that carries records.
    #[error("record-slots={0}: must be a power of two from {min} to {max}", min = Geometry::SLOTS_MIN, max = Geometry::SLOTS_MAX)]
    RecordSlots(u32),
    /// More leases than a table can have, or leases of a producer.
    #[error("leases={0}: must be 0 for a producer and 1 to {max} for a consumer", max = lease::LEASES_MAX)]
    Leases(u32),
}

impl PairGeometry {
    /// Checks and keeps the sizes. `slots`, `slot_size` and `max_message` (of the payload alone) belong to the ring that carries
    /// messages; `leases` is 0 for producers.
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn new(
        role: Role,
        slots: u32,
        slot_size: u32,
        max_message: u32,
        record_slots: u32,
        leases: u32,
    ) -> Result<Self, PairError> {
        let header = match role {
            Role::Produce => 0,
            Role::Consume => DELIVERY_HEADER_BYTES,
        };
        let longest = max_message.saturating_add(u32::try_from(header).unwrap_or(u32::MAX));
        let messages = Geometry::new(Some(slots), Some(slot_size), Some(longest))?;
        let record_bytes = u32::try_from(RECORD_BYTES_MAX).ok();
        let records = Geometry::new(Some(record_slots), Some(RECORD_SLOT_BYTES), record_bytes)
            .map_err(|_| PairError::RecordSlots(record_slots))?;
        let fits = match role {
            Role::Produce => leases == 0,
            Role::Consume => leases > 0 && leases as usize <= lease::LEASES_MAX,
        };
        if fits {
            Ok(Self { role, messages, records, leases })
        } else {
            Err(PairError::Leases(leases))
        }
    }

    /// What the handle does.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The ring from the client to the shard: a producer's lane, a consumer's submissions.
    pub const fn up(&self) -> Geometry {
        match self.role {
            Role::Produce => self.messages,
            Role::Consume => self.records,
        }
    }

    /// The ring from the shard to the client: a producer's completions, a consumer's deliveries.
    pub const fn down(&self) -> Geometry {
        match self.role {
            Role::Produce => self.records,
            Role::Consume => self.messages,
        }
    }

    /// Entries of the lease table.
    pub const fn leases(&self) -> u32 {
        self.leases
    }

    /// Bytes of the client's file.
    pub const fn client_file_bytes(&self) -> usize {
        client_file::UP_SLOTS + self.up().region_bytes(Kind::Spsc)
    }

    /// Bytes of the shard's file.
    pub const fn shard_file_bytes(&self) -> usize {
        shard_file::down_slots(self.leases as usize) + self.down().region_bytes(Kind::Spsc)
    }
}

/// The two files of one handle, mapped. It owns nothing: whoever keeps the mappings keeps them longer than this.
#[cfg(not(loom))]
#[derive(Debug, Clone)]
pub struct Pair {
    geometry: PairGeometry,
    client: Region,
    shard: Region,
}

#[cfg(not(loom))]
impl Pair {
    /// The files of a handle. `None` if one of them has another length than the geometry says.
    pub fn new(geometry: PairGeometry, client: Region, shard: Region) -> Option<Self> {
        let fits = client.len() == geometry.client_file_bytes()
            && shard.len() == geometry.shard_file_bytes();
        fits.then_some(Self { geometry, client, shard })
    }

    /// The sizes.
    pub fn geometry(&self) -> &PairGeometry {
        &self.geometry
    }

    /// The control page of both rings.
    pub fn control(&self) -> Region {
        self.shard.part(shard_file::CONTROL, PAGE_BYTES)
    }

    /// The ring from the client to the shard. The client writes `producer` and `slots`, the shard `consumer`.
    pub fn up(&self) -> RingMemory {
        RingMemory::Spsc {
            control: self.control(),
            slots: self
                .client
                .part(client_file::UP_SLOTS, self.geometry.up().region_bytes(Kind::Spsc)),
            producer: self.client.part(client_file::UP_PRODUCER, PAGE_BYTES),
            consumer: self.shard.part(shard_file::UP_CONSUMER, PAGE_BYTES),
        }
    }

    /// The ring from the shard to the client. The shard writes `producer` and `slots`, the client `consumer`.
    pub fn down(&self) -> RingMemory {
        let slots = shard_file::down_slots(self.geometry.leases as usize);
        RingMemory::Spsc {
            control: self.control(),
            slots: self.shard.part(slots, self.geometry.down().region_bytes(Kind::Spsc)),
            producer: self.shard.part(shard_file::DOWN_PRODUCER, PAGE_BYTES),
            consumer: self.client.part(client_file::DOWN_CONSUMER, PAGE_BYTES),
        }
    }

    /// The status page of the handle. The shard writes it.
    pub fn status(&self) -> HandleStatus {
        HandleStatus(self.shard.part(shard_file::STATUS, PAGE_BYTES))
    }

    /// The lease table. The shard writes it.
    pub fn leases(&self) -> LeaseTable {
        let bytes = shard_file::down_slots(self.geometry.leases as usize) - shard_file::LEASES;
        LeaseTable {
            table: self.shard.part(shard_file::LEASES, bytes),
            entries: self.geometry.leases,
        }
    }
}

/// The status page of a handle.
#[derive(Debug, Clone)]
pub struct HandleStatus(Region);

impl HandleStatus {
    /// Producer: position behind the last message that the shard has taken out of the lane.
    pub fn taken(&self) -> u64 {
        // Relaxed: for people.
        self.0.u64_at(status::TAKEN).load(Ordering::Relaxed)
    }

    /// See [`Self::taken`].
    pub fn set_taken(&self, position: u64) {
        // Relaxed: for people.
        self.0.u64_at(status::TAKEN).store(position, Ordering::Relaxed);
    }

    /// Consumer: behind the deliveries of which some may not be its own any more; see [`LeaseTable::names`].
    #[inline]
    pub fn recalled(&self) -> u64 {
        // Acquire: partner of the Release in `set_recalled`: the table shows what was freed before.
        self.0.u64_at(status::RECALLED).load(Ordering::Acquire)
    }

    /// See [`Self::recalled`]. After the entries were freed.
    pub fn set_recalled(&self, position: u64) {
        // Release: partner of the Acquire in `recalled`.
        self.0.u64_at(status::RECALLED).store(position, Ordering::Release);
    }

    /// Consumer: most messages that may be unacknowledged at a time, as the shard has accepted it.
    pub fn credit(&self) -> u64 {
        // Relaxed: for people.
        self.0.u64_at(status::CREDIT).load(Ordering::Relaxed)
    }

    /// See [`Self::credit`].
    pub fn set_credit(&self, credit: u64) {
        // Relaxed: for people.
        self.0.u64_at(status::CREDIT).store(credit, Ordering::Relaxed);
    }
}

/// One entry of a lease table that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseEntry {
    /// Number of the delivery, from 1.
    pub attempt: u32,
    /// Sequence of the message.
    pub sequence: u64,
    /// Position of the delivery in the ring towards the client.
    pub position: u64,
}

/// The messages that are with one consumer.
#[derive(Debug, Clone)]
pub struct LeaseTable {
    table: Region,
    entries: u32,
}

impl LeaseTable {
    /// Entries, in use or not.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    fn offset(&self, slot: u32) -> Option<usize> {
        (slot < self.entries).then_some(slot as usize * lease::BYTES)
    }

    /// Sets an entry, or frees it. Nothing happens if there is no such slot.
    pub fn set(&self, slot: u32, entry: Option<LeaseEntry>) {
        let Some(offset) = self.offset(slot) else { return };
        let attempt = self.table.u64_at(offset + lease::ATTEMPT);
        let Some(entry) = entry else {
            // Release: partner of the Acquire in `get`.
            attempt.store(0, Ordering::Release);
            return;
        };
        // Not in use while it changes: a shard that dies half-way leaves no mixed entry. Relaxed: ordered by the Release below
        // and read only after this process is dead.
        attempt.store(0, Ordering::Relaxed);
        self.table.u64_at(offset + lease::SEQUENCE).store(entry.sequence, Ordering::Release);
        self.table.u64_at(offset + lease::POSITION).store(entry.position, Ordering::Release);
        // Release: partner of the Acquire in `get`.
        attempt.store(u64::from(entry.attempt), Ordering::Release);
    }

    /// Whether an entry is for this delivery, which lay at this position of the ring. Read while the shard changes the entry it may
    /// be that of a moment before: an acknowledgement may always come too late.
    pub fn names(&self, lease: LeaseToken, position: u64) -> bool {
        let LeaseToken { slot, attempt, sequence } = lease;
        // A message that is delivered again before anybody looked at it has the same attempt, and lies farther behind.
        self.get(slot).is_some_and(|entry| {
            entry.attempt == attempt && entry.sequence == sequence && entry.position <= position
        })
    }

    /// An entry that is in use; `None` also for an attempt that no delivery has.
    pub fn get(&self, slot: u32) -> Option<LeaseEntry> {
        let offset = self.offset(slot)?;
        // Acquire: partner of the Release in `set`.
        let attempt = self.table.u64_at(offset + lease::ATTEMPT).load(Ordering::Acquire);
        let attempt = u32::try_from(attempt).ok().filter(|attempt| *attempt != 0)?;
        // Relaxed: behind the Acquire.
        Some(LeaseEntry {
            attempt,
            sequence: self.table.u64_at(offset + lease::SEQUENCE).load(Ordering::Relaxed),
            position: self.table.u64_at(offset + lease::POSITION).load(Ordering::Relaxed),
        })
    }
}

/// A session's link: the READY words of its handles.
#[derive(Debug, Clone)]
pub struct Link(Region);

impl Link {
    /// The link in this memory; `None` if it is too short.
    pub fn new(region: Region) -> Option<Self> {
        (region.len() >= link::BYTES).then_some(Self(region))
    }

    /// Client, step b: this handle has something for the shard. Nothing happens if there is no such word.
    #[inline]
    pub fn set_ready(&self, index: u32) {
        if index as usize >= link::HANDLES_MAX {
            return;
        }
        let word = self.0.u64_at(link::READY + 8 * index as usize);
        // Release: partner of the swap in `take_ready`.
        #[cfg(not(loom))]
        word.store(1, Ordering::Release);
        // loom forgets that no store comes between a swap and the value that it has read, so that the word could still be 0
        // after the store. An exchange, which orders nothing else either, has the memory model's answer.
        #[cfg(loom)]
        word.swap(1, Ordering::Release);
    }

    /// Shard: whether the word is set; it is left as it is. Relaxed: [`Self::take_ready`] orders.
    #[inline]
    pub fn is_ready(&self, index: u32) -> bool {
        (index as usize) < link::HANDLES_MAX
            && self.0.u64_at(link::READY + 8 * index as usize).load(Ordering::Relaxed) != 0
    }

    /// Shard, step 1: takes the word back; whether it was set. The rings are looked at after this.
    #[inline]
    pub fn take_ready(&self, index: u32) -> bool {
        // AcqRel: acquires what the Release in `set_ready` published, and is ordered after the looks of the turn before.
        self.is_ready(index)
            && self.0.u64_at(link::READY + 8 * index as usize).swap(0, Ordering::AcqRel) != 0
    }
}

/// A shard's page.
#[derive(Debug, Clone)]
pub struct ShardPage(Region);

impl ShardPage {
    /// The page in this memory; `None` if it is too short.
    pub fn new(region: Region) -> Option<Self> {
        (region.len() >= shard_page::BYTES).then_some(Self(region))
    }

    /// Client, step d, behind the light barrier: the number of the sleep, 0 while the shard is awake.
    #[inline]
    pub fn sleep(&self) -> u32 {
        // Relaxed: ordered by the barriers, see the module.
        self.0.u32_at(shard_page::ASLEEP).load(Ordering::Relaxed)
    }

    /// Shard, steps 2 and 6; the heavy barrier of step 3 follows a `true`.
    pub fn set_asleep(&self, asleep: bool) {
        let mut number = 0;
        if asleep {
            let sleeps = self.0.u32_at(shard_page::SLEEPS);
            // Relaxed: the shard alone reads and writes it. A number comes again after four thousand million sleeps, and
            // nobody who rang for it is that late.
            number = sleeps.load(Ordering::Relaxed).wrapping_add(1).max(1);
            sleeps.store(number, Ordering::Relaxed);
        }
        // Relaxed: ordered by the barriers, see the module.
        self.0.u32_at(shard_page::ASLEEP).store(number, Ordering::Relaxed);
    }

    /// After the journal failed: the errno, and the first LSN that was not confirmed.
    #[inline]
    pub fn failed(&self) -> Option<(i32, u64)> {
        // Acquire: partner of the Release in `set_failed`.
        let errno = self.0.u64_at(shard_page::FAILED_ERRNO).load(Ordering::Acquire);
        if errno == 0 {
            return None;
        }
        // Relaxed: behind the Acquire.
        let lsn = self.0.u64_at(shard_page::FAILED_LSN).load(Ordering::Relaxed);
        Some((i32::try_from(errno).unwrap_or(i32::MAX), lsn))
    }

    /// Shard: the journal failed.
    pub fn set_failed(&self, errno: i32, lsn: u64) {
        // Relaxed: ordered by the Release below.
        self.0.u64_at(shard_page::FAILED_LSN).store(lsn, Ordering::Relaxed);
        let errno = u64::from(errno.unsigned_abs().max(1));
        // Release: partner of the Acquire in `failed`.
        self.0.u64_at(shard_page::FAILED_ERRNO).store(errno, Ordering::Release);
    }
}
