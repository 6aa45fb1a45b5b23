//! Adoption: a new broker takes over what the keeper holds.
//!
//! Entries come in the order of their keys, so that whatever an entry refers to is there already. Processes that died in
//! the meantime are seen on their pidfds in the first round of the main loop, before any request.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use ringmain_client::layout::{HANDLE_DAEMON, LAYOUT_VERSION, LAYOUT_VERSION_MIN};
use ringmain_client::protocol::Role;
use ringmain_client::ring::Closed;

use super::broker::Broker;
use super::brokered::Adopting;
use super::counters::Counters;
use super::doorbells::Doorbell;
use super::entries::{
    CountersEntry, DoorbellEntry, HandleEntry, Key, QueueEntry, SessionEntry, SessionQueueEntry,
    decode,
};
use super::log::log;
use super::queues::{Handle, Queue};
use super::rings::QueueMemory;
use super::sessions::Session;

impl Broker {
    /// Loads everything. An error means that this binary cannot take over; the rings go on without it.
    pub(super) fn adopt(&mut self) -> Result<(), String> {
        let mut after = Vec::new();
        let mut adopting = Adopting::default();
        loop {
            let (items, descriptors) =
                self.keeper.load(&after).map_err(|error| error.to_string())?;
            let Some(last) = items.last() else { break };
            after = last.key.clone();
            let mut descriptors = descriptors.into_iter();
            for item in items {
                let own: Vec<OwnedFd> =
                    descriptors.by_ref().take(usize::from(item.descriptors)).collect();
                let key = Key::parse(&item.key).ok_or_else(|| {
                    format!("stored key {:x?} is not known to this version", item.key)
                })?;
                self.adopt_entry(&mut adopting, key, &item.bytes, own)
                    .map_err(|reason| format!("stored entry {key:?}: {reason}"))?;
            }
        }
        self.finish_what_was_begun().map_err(|error| error.to_string())?;
        self.start_adopted(adopting).map_err(|error| error.to_string())
    }

    fn adopt_entry(
        &mut self,
        adopting: &mut Adopting,
        key: Key,
        bytes: &[u8],
        own: Vec<OwnedFd>,
    ) -> Result<(), String> {
        match key {
            Key::Counters => {
                self.counters = Counters::after(Some(decode::<CountersEntry>(bytes)?));
            }
            Key::Session(number) => {
                let entry: SessionEntry = decode(bytes)?;
                let [pidfd] = exactly(own)?;
                let session = Session {
                    id: entry.id,
                    pid: entry.pid,
                    uid: entry.uid,
                    pidfd,
                    connection: None,
                    stored: true,
                    handles: BTreeSet::new(),
                    doorbells: BTreeSet::new(),
                };
                self.sessions.insert(number, session);
            }
            Key::Doorbell(id) => {
                let entry: DoorbellEntry = decode(bytes)?;
                let [memory, socket] = exactly(own)?;
                let session =
                    self.sessions.get_mut(&entry.session).ok_or("its session is missing")?;
                session.doorbells.insert(id);
                self.doorbells.insert(id, Doorbell::new(entry.session, memory, socket)?);
            }
            Key::Queue(id) => {
                let entry: QueueEntry = decode(bytes)?;
                check_layout(entry.layout_version)?;
                let memory = QueueMemory::adopt(entry.kind, entry.geometry()?, own)
                    .map_err(|error| error.to_string())?;
                self.names.insert(entry.name.clone(), id);
                self.queues.insert(id, Queue { entry, memory, handles: BTreeMap::new() });
            }
            Key::Handle { queue, handle } => {
                let entry: HandleEntry = decode(bytes)?;
                let session =
                    self.sessions.get_mut(&entry.session).ok_or("its session is missing")?;
                let found = self.queues.get_mut(&queue).ok_or("its queue is missing")?;
                session.handles.insert((queue, handle));
                let adopted = Handle {
                    role: entry.role,
                    epoch: entry.epoch,
                    session: entry.session,
                    doorbell: entry.doorbell,
                    reported: false,
                };
                found.handles.insert(handle, adopted);
                if entry.dirty {
                    self.abandoned.push((queue, handle));
                }
            }
            Key::SessionQueue(queue) => {
                let entry: SessionQueueEntry = decode(bytes)?;
                self.session_queues.insert(queue, entry.session);
                // Looked at as soon as the shards are there.
                self.session_ended = true;
            }
            Key::Shard(_)
            | Key::Segment(_)
            | Key::Link(_)
            | Key::BrokeredQueue(_)
            | Key::BrokeredHandle { .. } => {
                self.adopt_brokered(adopting, key, bytes, own)?;
            }
        }
        Ok(())
    }

    /// What the broker before was killed over.
    fn finish_what_was_begun(&mut self) -> Result<(), super::link::LinkLost> {
        // Between the mark in shared memory and the wake-up of those who are to see it.
        for queue in self.queues.values().filter(|queue| queue.memory.closed().is_some()) {
            self.wake(queue);
        }
        let deleted: Vec<u64> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.memory.closed() == Some(Closed::Deleted))
            .map(|(id, _)| *id)
            .collect();
        for id in deleted {
            self.remove_queue(id)?;
        }
        let purging: Vec<u64> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.entry.purging)
            .map(|(id, _)| *id)
            .collect();
        for id in purging {
            let Some(queue) = self.queues.get_mut(&id) else {
                continue;
            };
            queue.entry.purging = false;
            let item = queue.item(id);
            // The proof of death: only one broker runs at a time, and this one has taken nothing yet.
            match queue.memory.repair(&[(HANDLE_DAEMON, Role::Consume)]) {
                Ok(()) => {
                    log!("queue {}: a purge was interrupted, repeat it", queue.entry.name);
                    if let Some(queue) = self.queues.get(&id) {
                        self.wake(queue);
                    }
                }
                Err(fault) => self.close_for_fault(id, &fault.to_string()),
            }
            self.keeper.apply(Vec::new(), vec![item])?;
        }
        for (queue, handle) in std::mem::take(&mut self.abandoned) {
            self.give_back(queue, handle)?;
        }
        self.queues.values().for_each(Queue::adopt_bias);
        let idle: Vec<u64> = self.sessions.keys().copied().collect();
        for session in idle {
            self.forget_if_unneeded(session)?;
        }
        Ok(())
    }
}

/// Whether this version can use memory of that layout.
pub(super) fn check_layout(version: u32) -> Result<(), String> {
    if (LAYOUT_VERSION_MIN..=LAYOUT_VERSION).contains(&version) {
        return Ok(());
    }
    Err(format!(
        "layout version {version}, this version knows {LAYOUT_VERSION_MIN} to {LAYOUT_VERSION}"
    ))
}

fn exactly<const N: usize>(descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; N], String> {
    <[OwnedFd; N]>::try_from(descriptors)
        .map_err(|found| format!("{} descriptors, {N} are needed", found.len()))
}
