//! Taking handles on brokered queues back: the shard first takes what their clients sent.

use std::collections::BTreeSet;

use ringmain_client::protocol::{ErrorCode, HandleKey};

use super::super::broker::Broker;
use super::super::connections::{Failure, refuse};
use super::super::entries::{BrokeredHandleEntry, Key};
use super::super::link::LinkLost;
use super::super::log::log;
use super::super::sessions::Session;
use super::Departing;
use crate::shard::control::ToShard;

impl Broker {
    /// Whether this is a handle of the session.
    pub(in super::super) fn check_brokered_handle(
        &self,
        session: u64,
        key: HandleKey,
    ) -> Result<(), Failure> {
        let queue = self.brokered.queues.get(&key.queue);
        match queue.and_then(|queue| queue.handles.get(&key.handle)) {
            Some(handle)
                if handle.entry.session == session
                    && handle.entry.epoch == key.epoch
                    && !handle.closing =>
            {
                Ok(())
            }
            _ => refuse(
                ErrorCode::NotFound,
                format!(
                    "handle {} on queue {} does not belong to this process",
                    key.handle, key.queue
                ),
            ),
        }
    }

    /// Takes a handle back from a living process, or from a dead one. Its index is free when the shard says so.
    pub(in super::super) fn close_brokered(&mut self, queue: u64, index: u8, died: bool) {
        let Some(found) = self.brokered.queues.get_mut(&queue) else { return };
        let shard = found.entry.shard;
        let Some(handle) = found.handles.get_mut(&index) else { return };
        // A process may die after it gave its handle back: nothing changes for the shard.
        if !std::mem::replace(&mut handle.closing, true) {
            let key = HandleKey { queue, handle: index, epoch: handle.entry.epoch };
            self.brokered.tell(shard, ToShard::Gone { key, died });
        }
    }

    /// The process of this session is dead. What it has on the brokered plane is forgotten piece by piece; `Some` if it has
    /// nothing there.
    pub(in super::super) fn depart(&mut self, number: u64, session: Session) -> Option<Session> {
        let handles: BTreeSet<(u64, u8)> = session
            .handles
            .iter()
            .filter(|(queue, _)| self.brokered.queues.contains_key(queue))
            .copied()
            .collect();
        if handles.is_empty() {
            return Some(session);
        }
        for (queue, index) in &handles {
            self.close_brokered(*queue, *index, true);
        }
        self.brokered.departing.insert(number, Departing { session, handles });
        None
    }

    /// Nothing of a handle is in use any more.
    pub(super) fn on_released(&mut self, key: HandleKey) -> Result<(), LinkLost> {
        let Some(queue) = self.brokered.queues.get_mut(&key.queue) else {
            return Ok(());
        };
        if queue.handles.get(&key.handle).is_none_or(|handle| handle.entry.epoch != key.epoch) {
            return Ok(());
        }
        let Some(handle) = queue.handles.remove(&key.handle) else {
            return Ok(());
        };
        let stored = Key::BrokeredHandle { queue: key.queue, handle: key.handle };
        self.keeper.apply(vec![stored.bytes()], Vec::new())?;
        self.forget_brokered_handle(key.queue, key.handle, &handle.entry)
    }

    /// After the handle itself is forgotten: what its session has of it.
    pub(super) fn forget_brokered_handle(
        &mut self,
        queue: u64,
        index: u8,
        entry: &BrokeredHandleEntry,
    ) -> Result<(), LinkLost> {
        if let Some(link) = self.brokered.links.get_mut(&entry.session) {
            link.indexes.remove(&entry.ready_index);
        }
        if let Some(session) = self.sessions.get_mut(&entry.session) {
            session.handles.remove(&(queue, index));
            return self.forget_if_unneeded(entry.session);
        }
        let Some(departing) = self.brokered.departing.get_mut(&entry.session) else {
            return Ok(());
        };
        departing.handles.remove(&(queue, index));
        if !departing.handles.is_empty() {
            return Ok(());
        }
        let stored = departing.session.stored;
        self.brokered.departing.remove(&entry.session);
        let mut deletes = self.forget_link(entry.session);
        if stored {
            deletes.push(Key::Session(entry.session).bytes());
        }
        self.keeper.apply(deletes, Vec::new())
    }

    /// The session is at its end. The keys to be deleted.
    pub(in super::super) fn forget_link(&mut self, session: u64) -> Vec<Vec<u8>> {
        let Some(link) = self.brokered.links.remove(&session) else {
            return Vec::new();
        };
        for shard in link.told {
            self.brokered.tell(shard, ToShard::Unlink { session });
        }
        vec![Key::Link(session).bytes()]
    }

    /// A client saw what a shard never does. Its handle is of no use to it, and worth a line.
    pub(in super::super) fn report_brokered_fault(&mut self, key: HandleKey, what: &str) {
        let Some(handle) = self.brokered.handle_mut(key) else { return };
        if std::mem::replace(&mut handle.faulty, true) {
            return;
        }
        let text: String = what.chars().take(200).filter(|c| !c.is_control()).collect();
        let name =
            self.brokered.queues.get(&key.queue).map_or("", |queue| queue.entry.name.as_str());
        log!("queue {name}: a client reports a fault of the shard: {text}");
    }

    /// A client broke the rules. It is told by its control page; everybody else is none the wiser.
    /// Rings a doorbell that a handle has named in shared memory, if it is of the same session.
    pub(super) fn ring_brokered(&mut self, key: HandleKey, doorbell: u32, bit: u32) {
        let Some(handle) = self.brokered.handle_mut(key) else { return };
        let session = handle.entry.session;
        let found = self.doorbells.get(&doorbell).filter(|found| found.session == session);
        if let Some(doorbell) = found {
            doorbell.ring(bit);
        }
    }

    pub(super) fn on_brokered_fault(&mut self, key: HandleKey, what: &str) {
        let Some(handle) = self.brokered.handle_mut(key) else { return };
        handle.faulty = true;
        let session = handle.entry.session;
        let pid = self.sessions.get(&session).map_or(0, |session| session.pid);
        let name =
            self.brokered.queues.get(&key.queue).map_or("", |queue| queue.entry.name.as_str());
        log!("queue {name}: a handle of process {pid} is closed: {what}");
    }
}
