//! Queues that are deleted when the session of their creator ends: when its process exits, or its connection is closed and it
//! has neither handles nor doorbells. A broker that takes over finds out in its first round.

use std::os::fd::{AsFd, OwnedFd};

use ringmain_client::protocol::{ErrorCode, QueueSpec};

use super::broker::{Broker, bug};
use super::connections::{Failure, refuse};
use super::entries::{Key, SessionQueueEntry, encode};
use super::link::{Item, LinkLost};
use super::log::log;
use super::queues::clone_descriptor;

impl Broker {
    /// The session that a new queue is bound to, if that is asked for.
    pub(super) fn bound_session(
        &self,
        connection: u64,
        spec: &QueueSpec,
    ) -> Result<Option<u64>, Failure> {
        match (spec.session, spec.durable) {
            (false, _) => Ok(None),
            (true, false) => self.session_of(connection).map(Some),
            (true, true) => refuse(
                ErrorCode::Invalid,
                "a session queue vanishes with its session: it cannot be durable",
            ),
        }
    }

    /// What the keeper has to store together with a new queue, and the descriptor for it.
    pub(super) fn binding(
        &self,
        queue: u64,
        session: Option<u64>,
    ) -> Result<(Vec<Item>, Option<OwnedFd>), Failure> {
        let Some(number) = session else { return Ok((Vec::new(), None)) };
        let Some(session) = self.sessions.get(&number) else {
            return Err(bug("session without entry").into());
        };
        let bytes = encode(&SessionQueueEntry { session: number });
        let binding = Item { key: Key::SessionQueue(queue).bytes(), bytes, descriptors: 0 };
        if session.stored {
            return Ok((vec![binding], None));
        }
        let pidfd = clone_descriptor(session.pidfd.as_fd())?;
        Ok((vec![session.item(number), binding], Some(pidfd)))
    }

    /// The keeper has stored it.
    pub(super) fn bind(&mut self, queue: u64, session: Option<u64>) {
        let Some(number) = session else { return };
        self.session_queues.insert(queue, number);
        if let Some(session) = self.sessions.get_mut(&number) {
            session.stored = true;
        }
    }

    /// The key to be deleted with a queue, if it was bound to a session.
    pub(super) fn unbind(&mut self, queue: u64) -> Option<Vec<u8>> {
        self.session_queues.remove(&queue).map(|_| Key::SessionQueue(queue).bytes())
    }

    /// Deletes the queues of sessions that have ended.
    pub(super) fn end_session_queues(&mut self) -> Result<(), LinkLost> {
        if !std::mem::take(&mut self.session_ended) {
            return Ok(());
        }
        let over: Vec<u64> = self
            .session_queues
            .iter()
            .filter(|(_, session)| !self.sessions.contains_key(session))
            .map(|(queue, _)| *queue)
            .collect();
        for queue in over {
            if self.queues.contains_key(&queue) {
                self.remove_queue(queue)?;
            } else if self.brokered.queues.contains_key(&queue) {
                self.delete_session_queue(queue);
            } else if let Some(key) = self.unbind(queue) {
                log!("session queue {queue} is there no more");
                self.keeper.apply(vec![key], Vec::new())?;
            }
        }
        Ok(())
    }
}
