//! Deaths: the exit of a process, seen on its pidfd, and nothing else.

use std::collections::BTreeMap;
use std::time::Instant;

use ringmain_client::protocol::Role;

use super::broker::Broker;
use super::entries::Key;
use super::link::LinkLost;
use super::log::log;
use super::sessions::Session;

/// Keys of one message to the keeper, so that it fits a frame.
const DELETES_AT_ONCE: usize = 1024;

/// A repair that takes longer than this is worth a line.
const SLOW_MS: u128 = 10;

impl Broker {
    /// These processes have exited: their slots become what others can use, everybody is woken, then their indexes are free.
    pub(super) fn on_exits(&mut self, sessions: &[u64]) -> Result<(), LinkLost> {
        if sessions.is_empty() {
            return Ok(());
        }
        self.session_ended = true;
        let dead: Vec<(u64, Session)> = sessions
            .iter()
            .filter_map(|number| Some((*number, self.sessions.remove(number)?)))
            .collect();
        // All repairs before the first message to the keeper: survivors wait for these only. If this broker dies in
        // between, the next one finds the same sessions dead and repairs again, which changes nothing.
        let mut of_queue: BTreeMap<u64, Vec<(u8, Role)>> = BTreeMap::new();
        for (_, session) in &dead {
            if let Some(connection) = session.connection {
                self.connections.remove(&connection);
            }
            for (id, index) in &session.handles {
                let queue = self.queues.get_mut(id);
                if let Some(handle) = queue.and_then(|queue| queue.handles.remove(index)) {
                    of_queue.entry(*id).or_default().push((*index, handle.role));
                }
            }
        }
        for (id, handles) in of_queue {
            let begun = Instant::now();
            self.repair(id, &handles);
            if let Some(queue) = self.queues.get(&id) {
                queue.settle_bias(Role::Produce);
                queue.settle_bias(Role::Consume);
            }
            let took_ms = begun.elapsed().as_millis();
            if took_ms > SLOW_MS
                && let Some(queue) = self.queues.get(&id)
            {
                let (name, count) = (&queue.entry.name, handles.len());
                log!("queue {name}: the repair of {count} handles after a death took {took_ms} ms");
            }
        }
        let mut deletes = Vec::new();
        for (number, session) in dead {
            // Its lanes and leases first; the rest below, or when the shards have let go.
            let doorbells = session.doorbells.clone();
            for doorbell in doorbells {
                deletes.push(Key::Doorbell(doorbell).bytes());
                self.doorbells.remove(&doorbell);
            }
            let direct: Vec<(u64, u8)> = session
                .handles
                .iter()
                .filter(|(queue, _)| !self.brokered.queues.contains_key(queue))
                .copied()
                .collect();
            for (queue, handle) in direct {
                deletes.push(Key::Handle { queue, handle }.bytes());
            }
            let Some(session) = self.depart(number, session) else { continue };
            deletes.extend(self.forget_link(number));
            if session.stored {
                deletes.push(Key::Session(number).bytes());
            }
        }
        for chunk in deletes.chunks(DELETES_AT_ONCE) {
            self.keeper.apply(chunk.to_vec(), Vec::new())?;
        }
        Ok(())
    }

    /// Repairs these handles of a queue in one pass, and wakes everybody. Nobody uses them any more.
    pub(super) fn repair(&self, id: u64, handles: &[(u8, Role)]) {
        let Some(queue) = self.queues.get(&id) else {
            return;
        };
        match queue.memory.repair(handles) {
            Ok(()) => self.wake(queue),
            Err(fault) => self.close_for_fault(id, &fault.to_string()),
        }
    }
}
