//! What producer and consumer handles have in common: identity, memory, waiting state, wake-ups, and the way out.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::connection::Inner;
use super::doorbell::PeerDoorbell;
use super::error::ClientError;
use crate::layout::{Geometry, LAYOUT_VERSION, LAYOUT_VERSION_MIN, PAGE_BYTES};
use crate::protocol::{Attached, ErrorCode, HandleKey, Kind, Memory, Plane, Request, Role};
use crate::ring::{Closed, Fault, Kernel, Park, Region, RingMemory, bias, wake_sleepers};
use crate::sys::affinity::online_cpus;
use crate::sys::clock::monotonic_ns;
use crate::sys::fork::ForkMark;
use crate::sys::kernel::HostKernel;
use crate::sys::map::{Access, Mapping, Populate};
use crate::sys::memory::verify_sealed;
use crate::wait::{Tuner, WaitPolicy};

/// Longest time for giving a handle back: the daemon finds out by itself when the process exits.
const DETACH_TIMEOUT: Duration = Duration::from_millis(500);

/// Doorbells of peers that a handle remembers without asking the client.
const DOORBELLS_MAX: usize = 16;

/// How long a new handle waits for another one to end a claim, and how often it looks.
const HOLDOUT_TIME_MAX: Duration = Duration::from_secs(5);
const HOLDOUT_POLL: Duration = Duration::from_micros(100);

/// How often a handle that finds nothing looks after the connection, in nanoseconds.
const HOUSE_NS: u64 = 100_000_000;

/// Looks of the forms that do not wait between two readings of the clock.
const LOOKS_PER_CLOCK: u32 = 64;

/// Set when the daemon does not know a handle any more.
pub(crate) type Lost = Arc<OnceLock<()>>;

/// A handle, apart from its ring.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) client: Arc<Inner>,
    pub(crate) key: HandleKey,
    pub(crate) queue_name: Box<str>,
    pub(crate) kind: Kind,
    pub(crate) geometry: Geometry,
    pub(crate) kernel: HostKernel,
    pub(crate) tuner: Tuner,
    /// Position of the last look that found nothing.
    pub(crate) looked_at: u64,
    /// When the connection was looked after last.
    kept_ns: u64,
    /// Looks that found nothing.
    looks: u32,
    mark: ForkMark,
    lost: Lost,
    reported: OnceLock<()>,
    doorbells: Vec<Arc<PeerDoorbell>>,
    mappings: ManuallyDrop<Vec<Mapping>>,
}

impl Attachment {
    /// Asks the daemon for a handle on a direct queue and maps its memory.
    pub(crate) fn new(
        client: &Arc<Inner>,
        queue: &str,
        role: Role,
        policy: WaitPolicy,
    ) -> Result<(Self, RingMemory), ClientError> {
        let request = Request::attach(queue, role);
        Self::new_with(client, queue, &request, policy, |attached, descriptors| {
            if attached.brokered.is_some() {
                let form = match role {
                    Role::Produce => "brokered_producer",
                    Role::Consume => "brokered_consumer",
                };
                return Err(wrong_plane(queue, Plane::Brokered, form));
            }
            let geometry = Geometry::new(
                Some(attached.slots),
                Some(attached.slot_size),
                Some(attached.max_message),
            )
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
            let mapped = map_all(attached, &geometry, role, &descriptors)?;
            Ok((geometry, mapped.mappings, mapped.memory))
        })
    }

    /// Asks the daemon for a handle; `map` gets what it needs of the answer and says which mappings the handle keeps.
    pub(crate) fn new_with<T>(
        client: &Arc<Inner>,
        queue: &str,
        request: &Request,
        policy: WaitPolicy,
        map: impl FnOnce(&Attached, Vec<OwnedFd>) -> Result<(Geometry, Vec<Mapping>, T), ClientError>,
    ) -> Result<(Self, T), ClientError> {
        let (attached, descriptors, lost) = client.attach(request)?;
        let mapped = match attached.layout_version {
            LAYOUT_VERSION_MIN..=LAYOUT_VERSION => map(&attached, descriptors),
            other => Err(ClientError::Protocol(format!(
                "queue {queue} has memory layout {other}, this client knows {LAYOUT_VERSION_MIN} to {LAYOUT_VERSION}"
            ))),
        };
        let (geometry, mappings, memory) =
            mapped.inspect_err(|_| client.detach(attached.key, DETACH_TIMEOUT))?;
        let attachment = Self {
            client: Arc::clone(client),
            key: attached.key,
            queue_name: queue.into(),
            kind: attached.kind,
            geometry,
            kernel: HostKernel::new(attached.wake_mode),
            tuner: Tuner::new(policy, online_cpus()),
            looked_at: 0,
            kept_ns: 0,
            looks: 0,
            mark: client.mark(),
            lost,
            reported: OnceLock::new(),
            doorbells: Vec::new(),
            mappings: ManuallyDrop::new(mappings),
        };
        Ok((attachment, memory))
    }

    /// Whether a handle of an mpmc ring may claim without exchanges while the daemon lets it.
    pub(crate) fn takes_part_in_membarriers(&self) -> bool {
        self.kernel.is_membarrier() && self.kernel.may_park()
    }

    /// Another handle had this side of the ring to itself until now, and may be in the middle of a claim that relies on it. It takes
    /// nanoseconds, unless its process was stopped in them, or killed and is not repaired yet.
    pub(crate) fn wait_for_holdout(
        &self,
        memory: &RingMemory,
        role: Role,
    ) -> Result<(), ClientError> {
        let begun = monotonic_ns();
        while let Some(handle) = bias::holdout(memory, role) {
            // There is nothing to claim any more, and no repair of whoever died in the middle of a claim may come.
            if memory.closed().is_some_and(|closed| closed != Closed::Draining) {
                return Ok(());
            }
            if Duration::from_nanos(monotonic_ns() - begun) > HOLDOUT_TIME_MAX {
                let message = format!(
                    "queue {}: handle {handle} is stopped in the middle of a claim: continue or end its process, see \
                     `ringmain queue info {0}`",
                    self.queue_name
                );
                return Err(ClientError::Refused { code: ErrorCode::Busy, message });
            }
            std::thread::sleep(HOLDOUT_POLL);
        }
        Ok(())
    }

    /// Whether it was made by this client.
    pub(crate) fn is_of(&self, client: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.client, client)
    }

    /// Whether this is a forked child, which has neither the mappings nor a right to the connection.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.mark.is_forked()
    }

    /// Whether the daemon does not know this handle any more: its queue is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// Every now and then takes a lost connection up again, in the background; whether the handle is lost.
    pub(crate) fn keep_house(&mut self, now_ns: u64) -> bool {
        if now_ns.saturating_sub(self.kept_ns) >= HOUSE_NS {
            self.kept_ns = now_ns;
            self.client.look_after_connection();
        }
        self.is_lost()
    }

    /// The same for the forms that do not wait, and may be called again and again: reads the clock rarely.
    pub(crate) fn keep_house_rarely(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(LOOKS_PER_CLOCK) {
            return self.keep_house(monotonic_ns());
        }
        self.is_lost()
    }

    /// The mark of the process that made this handle.
    pub(crate) fn mark(&self) -> ForkMark {
        self.mark
    }

    /// Tells the daemon, once and in the background, that the ring is damaged.
    pub(crate) fn report(&self, fault: &Fault) {
        if self.reported.set(()).is_ok() {
            self.client.background.report(&self.client, self.key, fault.to_string());
        }
    }

    /// After publishing or releasing: wakes up to `count` of those who sleep in `park`. No fence and no system call
    /// while nobody does.
    #[inline(always)]
    pub(crate) fn wake_peers(&mut self, park: &Park, count: u32) {
        self.kernel.light_barrier();
        if park.any_sleeper() {
            self.wake_slow(park, count);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_slow(&mut self, park: &Park, count: u32) {
        wake_sleepers(park, &self.kernel, count);
        for sleeper in park.sleepers() {
            if let Some((doorbell, bit)) = park.doorbell_of(sleeper) {
                self.ring_doorbell(doorbell, bit);
            }
        }
    }

    fn ring_doorbell(&mut self, doorbell: u32, bit: u32) {
        if let Some(known) = self.doorbells.iter().find(|known| known.id() == doorbell) {
            known.ring(bit);
            return;
        }
        if let Some(found) = self.client.doorbell(self.key.queue, doorbell, bit) {
            found.ring(bit);
            if self.doorbells.len() == DOORBELLS_MAX {
                self.doorbells.remove(0);
            }
            self.doorbells.push(found);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if self.is_forked() {
            // The range is not mapped here, and what this process maps there now is none of ours.
            return;
        }
        // SAFETY: dropped once, here; the ring that used the mappings was dropped before its attachment.
        unsafe { ManuallyDrop::drop(&mut self.mappings) };
        self.client.background.flush(&self.client, self.key.queue);
        self.client.detach(self.key, DETACH_TIMEOUT);
    }
}

/// The queue belongs to the other plane, whose handles have this form.
pub(crate) fn wrong_plane(queue: &str, plane: Plane, form: &str) -> ClientError {
    let message = format!("queue {queue} is {plane}: attach with Client::{form}");
    ClientError::Refused { code: ErrorCode::Invalid, message }
}

/// As many descriptors came as were announced.
pub(crate) fn check_count(attached: &Attached, descriptors: &[OwnedFd]) -> Result<(), ClientError> {
    let (announced, came) = (attached.descriptors.len(), descriptors.len());
    if announced == came {
        return Ok(());
    }
    Err(ClientError::Protocol(format!("{announced} descriptors announced, {came} came")))
}

/// The descriptor of this memory; their number was checked.
pub(crate) fn descriptor_of<'a>(
    attached: &Attached,
    descriptors: &'a [OwnedFd],
    wanted: Memory,
) -> Result<BorrowedFd<'a>, ClientError> {
    let index = attached.descriptors.iter().position(|memory| *memory == wanted);
    index
        .and_then(|index| descriptors.get(index))
        .map(AsFd::as_fd)
        .ok_or_else(|| ClientError::Protocol(format!("no descriptor for {wanted:?}")))
}

/// Maps a memory file after it was found to have this size and all seals.
pub(crate) fn map_verified(
    descriptor: BorrowedFd<'_>,
    what: Memory,
    bytes: usize,
    access: Access,
) -> Result<Mapping, ClientError> {
    verify_sealed(descriptor, bytes)
        .map_err(|error| ClientError::Protocol(format!("{what:?}: {error}")))?;
    Mapping::map(descriptor, bytes, access, Populate::Now).map_err(|error| {
        let text = format!("cannot map {bytes} bytes: {error}");
        std::io::Error::new(error.kind(), text).into()
    })
}

struct Mapped {
    memory: RingMemory,
    mappings: Vec<Mapping>,
}

fn map_all(
    attached: &Attached,
    geometry: &Geometry,
    role: Role,
    descriptors: &[OwnedFd],
) -> Result<Mapped, ClientError> {
    check_count(attached, descriptors)?;
    let mut mappings = Vec::new();
    let mut region = |wanted: Memory| -> Result<Region, ClientError> {
        let (bytes, access) = shape(wanted, role, attached.kind, geometry);
        let descriptor = descriptor_of(attached, descriptors, wanted)?;
        let mapping = map_verified(descriptor, wanted, bytes, access)?;
        // SAFETY: page-aligned, of this length, from a file that cannot shrink; the handle keeps the mapping longer
        // than the ring that gets the region. The rings write to a region only where `shape` says read-write.
        let region = unsafe { Region::new(mapping.base(), mapping.len()) };
        mappings.push(mapping);
        Ok(region)
    };
    let control = region(Memory::Control)?;
    let memory = match attached.kind {
        Kind::Spsc => RingMemory::Spsc {
            control,
            slots: region(Memory::Slots)?,
            producer: region(Memory::ProducerPage)?,
            consumer: region(Memory::ConsumerPage)?,
        },
        Kind::Mpmc => RingMemory::Mpmc { control, ring: region(Memory::Ring)? },
    };
    Ok(Mapped { memory, mappings })
}

/// Bytes of a region and what this role may do there.
fn shape(memory: Memory, role: Role, kind: Kind, geometry: &Geometry) -> (usize, Access) {
    let writable_by = |writer: Role| {
        if role == writer { Access::ReadWrite } else { Access::ReadOnly }
    };
    match memory {
        Memory::Control => (PAGE_BYTES, Access::ReadOnly),
        Memory::Ring => (geometry.region_bytes(kind), Access::ReadWrite),
        Memory::Slots => (geometry.region_bytes(kind), writable_by(Role::Produce)),
        Memory::ProducerPage => (PAGE_BYTES, writable_by(Role::Produce)),
        Memory::ConsumerPage => (PAGE_BYTES, writable_by(Role::Consume)),
        Memory::ClientFile
        | Memory::ShardFile
        | Memory::Link
        | Memory::ShardPage
        | Memory::ShardBell => unreachable!("asked for by brokered handles only"),
    }
}
