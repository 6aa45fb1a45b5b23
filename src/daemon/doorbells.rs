//! Doorbells: how a process is told about many queues at once. The daemon keeps their descriptors, hands them to those who
//! publish, and rings them itself after a repair or a close.

use std::os::fd::{AsFd, OwnedFd};

use ringmain_client::layout::doorbell as layout;
use ringmain_client::protocol::{ErrorCode, HandleKey, Reply};
use ringmain_client::ring::Region;
use ringmain_client::sync::atomic::{Ordering, fence};
use ringmain_client::sys::datagram::SignalSender;
use ringmain_client::sys::futex;
use ringmain_client::sys::map::{Access, Mapping, Populate};
use ringmain_client::sys::memory::verify_sealed;

use super::broker::{Broker, bug};
use super::connections::{Answer, Failure, refuse};
use super::entries::{DoorbellEntry, Key, encode};
use super::link::Item;
use super::queues::{clone_descriptor, no_room};
use super::rings::Ring;

/// One process needs one; libraries inside it may each have their own.
const DOORBELLS_PER_SESSION: usize = 16;

/// Each costs keeper and broker two descriptors.
const DOORBELLS_PER_USER: usize = 2048;

/// One doorbell.
#[derive(Debug)]
pub(super) struct Doorbell {
    pub(super) session: u64,
    region: Region,
    _mapping: Mapping,
    memory: OwnedFd,
    sender: SignalSender,
}

impl Doorbell {
    /// Takes the descriptors of a client, or those that the keeper held. The error says what is wrong with them.
    pub(super) fn new(session: u64, memory: OwnedFd, socket: OwnedFd) -> Result<Self, String> {
        verify_sealed(memory.as_fd(), layout::BYTES)
            .map_err(|error| format!("first descriptor (the doorbell's memory): {error}"))?;
        let sender = SignalSender::from_descriptor(socket)
            .map_err(|error| format!("second descriptor (the doorbell's socket): {error}"))?;
        let mapping = Mapping::map(memory.as_fd(), layout::BYTES, Access::ReadWrite, Populate::Now)
            .map_err(|error| format!("the doorbell's memory cannot be mapped: {error}"))?;
        // SAFETY: page-aligned, readable and writable for its length as long as the mapping, which this value keeps; the
        // file cannot shrink; accessed through atomics only.
        let region = unsafe { Region::new(mapping.base(), mapping.len()) };
        Ok(Self { session, region, _mapping: mapping, memory, sender })
    }
}

impl Doorbell {
    /// Rings for the queue with this bit; a bit out of range comes from a hostile member and rings nothing.
    pub(super) fn ring(&self, bit: u32) {
        let bit = bit as usize;
        if bit >= layout::QUEUES_MAX {
            return;
        }
        let pending = self.region.u64_at(layout::PENDING + bit / 64 * 8);
        // Release: whoever takes the bit sees what it was rung for.
        pending.fetch_or(1 << (bit % 64), Ordering::Release);
        // SeqCst: partner of the owner's fence between setting its mode and its last look at the bits.
        fence(Ordering::SeqCst);
        match self.region.u32_at(layout::MODE).load(Ordering::Relaxed) {
            layout::MODE_FUTEX => {
                let event = self.region.u32_at(layout::EVENT);
                // Release: before the wake, so that a sleeper on its way notices.
                event.fetch_add(1, Ordering::Release);
                futex::wake(event, u32::MAX);
            }
            layout::MODE_SOCKET => self.sender.signal(),
            _ => {}
        }
    }
}

impl Broker {
    pub(super) fn register_doorbell(
        &mut self,
        number: u64,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        let Ok([memory, socket]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            return Err(bug("descriptors were not counted").into());
        };
        let Some(session) = self.sessions.get(&number) else {
            return Err(bug("session without entry").into());
        };
        if session.doorbells.len() >= DOORBELLS_PER_SESSION {
            let text =
                format!("a process has at most {DOORBELLS_PER_SESSION} doorbells: share one");
            return refuse(ErrorCode::Limit, text);
        }
        let of_user: usize = self
            .sessions
            .values()
            .filter(|other| other.uid == session.uid)
            .map(|other| other.doorbells.len())
            .sum();
        if of_user >= DOORBELLS_PER_USER {
            let text = format!(
                "the processes of user {} have {of_user} doorbells, the most possible: share one in each process",
                session.uid
            );
            return refuse(ErrorCode::Limit, text);
        }
        let doorbell = match Doorbell::new(number, memory, socket) {
            Ok(doorbell) => doorbell,
            Err(reason) => return refuse(ErrorCode::Invalid, reason),
        };
        let Some(id) = self.counters.doorbell(&mut self.keeper)? else {
            return refuse(ErrorCode::Limit, "no doorbell numbers are left: restart the daemon");
        };
        let mut items = Vec::new();
        let mut beside = Vec::new();
        if !session.stored {
            items.push(session.item(number));
            beside.push(session.pidfd.as_fd());
        }
        let bytes = encode(&DoorbellEntry { session: number });
        items.push(Item { key: Key::Doorbell(id).bytes(), bytes, descriptors: 2 });
        beside.extend([doorbell.memory.as_fd(), doorbell.sender.as_fd()]);
        self.keeper.apply_with(Vec::new(), items, &beside)?.or_else(no_room)?;
        if let Some(session) = self.sessions.get_mut(&number) {
            session.stored = true;
            session.doorbells.insert(id);
        }
        self.doorbells.insert(id, doorbell);
        Ok(Answer::of(Reply::Doorbell { doorbell: id }))
    }

    pub(super) fn bind_doorbell(
        &mut self,
        number: u64,
        key: HandleKey,
        doorbell: u32,
    ) -> Result<Answer, Failure> {
        if self.doorbells.get(&doorbell).is_none_or(|found| found.session != number) {
            return refuse(ErrorCode::NotFound, not_yours(doorbell));
        }
        if self.has_brokered(number, key) {
            // Its shard rings through the daemon; nobody else has to find the doorbell.
            return Ok(Answer::of(Reply::Done));
        }
        self.check_handle(number, key)?;
        self.update_handle(key.queue, key.handle, |handle| handle.doorbell = Some(doorbell))?;
        Ok(Answer::of(Reply::Done))
    }

    /// The number is not used again: handles that are still bound to it are bound to nothing, and whoever still has the
    /// descriptors rings nobody.
    pub(super) fn release_doorbell(
        &mut self,
        number: u64,
        doorbell: u32,
    ) -> Result<Answer, Failure> {
        let session = self.sessions.get_mut(&number);
        if !session.is_some_and(|session| session.doorbells.remove(&doorbell)) {
            return refuse(ErrorCode::NotFound, not_yours(doorbell));
        }
        self.doorbells.remove(&doorbell);
        self.keeper.apply(vec![Key::Doorbell(doorbell).bytes()], Vec::new())?;
        Ok(Answer::of(Reply::Done))
    }

    pub(super) fn fetch_doorbell(
        &self,
        number: u64,
        queue: u64,
        doorbell: u32,
    ) -> Result<Answer, Failure> {
        let is_member = self.sessions.get(&number).is_some_and(|session| {
            session.handles.range((queue, 0)..=(queue, u8::MAX)).next().is_some()
        });
        if !is_member {
            return refuse(ErrorCode::NotFound, format!("no handle on queue {queue}"));
        }
        let is_bound = self.queues.get(&queue).is_some_and(|queue| {
            queue.handles.values().any(|handle| handle.doorbell == Some(doorbell))
        });
        let Some(found) = self.doorbells.get(&doorbell).filter(|_| is_bound) else {
            let text = format!("no doorbell {doorbell} on queue {queue}: its process may be gone");
            return refuse(ErrorCode::NotFound, text);
        };
        let descriptors =
            vec![clone_descriptor(found.memory.as_fd())?, clone_descriptor(found.sender.as_fd())?];
        Ok(Answer { descriptors, ..Answer::of(Reply::Doorbell { doorbell }) })
    }
}

fn not_yours(doorbell: u32) -> String {
    format!("doorbell {doorbell} does not belong to this process")
}

impl super::queues::Queue {
    /// The doorbell that a sleeping handle names in shared memory, if it is really bound to that handle.
    pub(super) fn doorbell_of(&self, ring: &Ring) -> Option<u32> {
        let handle = match self.entry.kind {
            ringmain_client::protocol::Kind::Mpmc => self.handles.get(&ring.handle),
            ringmain_client::protocol::Kind::Spsc => {
                self.handles.values().find(|handle| handle.role == ring.role)
            }
        };
        handle.and_then(|handle| handle.doorbell).filter(|doorbell| *doorbell == ring.doorbell)
    }
}
