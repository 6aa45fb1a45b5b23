//! Sessions: what a process has with the daemon, across connections and across brokers.
//!
//! A session is {the id that the client chose, the process that the kernel vouches for}. It outlives its connection while
//! it has handles or doorbells, because only the exit of the process proves that nobody uses them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use ringmain_client::protocol::{ErrorCode, HandleKey, Reply};

use super::broker::{Broker, bug};
use super::connections::{Answer, Failure, refuse};
use super::entries::{Key, SessionEntry, encode};
use super::link::{Item, LinkLost};
use super::peer::{Peer, is_same_process};

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    /// Chosen by the client.
    pub(super) id: u64,
    pub(super) pid: u32,
    /// Whose limits its handles count against.
    pub(super) uid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) connection: Option<u64>,
    /// Whether the keeper knows it.
    pub(super) stored: bool,
    /// {queue, index}
    pub(super) handles: BTreeSet<(u64, u8)>,
    pub(super) doorbells: BTreeSet<u32>,
}

impl Session {
    fn is_needed(&self) -> bool {
        self.connection.is_some() || !self.handles.is_empty() || !self.doorbells.is_empty()
    }

    /// What the keeper has to store before it stores the first thing of this session.
    pub(super) fn item(&self, number: u64) -> Item {
        let entry = SessionEntry { id: self.id, pid: self.pid, uid: self.uid };
        Item { key: Key::Session(number).bytes(), bytes: encode(&entry), descriptors: 1 }
    }
}

impl Broker {
    /// The session of a connection.
    pub(super) fn session_of(&self, connection: u64) -> Result<u64, Failure> {
        let session = self.connections.get(&connection).and_then(|connection| connection.session);
        match session {
            Some(session) => Ok(session),
            None => refuse(ErrorCode::Invalid, "the first message of a connection must be Hello"),
        }
    }

    pub(super) fn hello(
        &mut self,
        number: u64,
        id: u64,
        handles: &[HandleKey],
    ) -> Result<Answer, Failure> {
        if id == 0 {
            return refuse(ErrorCode::Invalid, "session=0: a session id must not be zero");
        }
        let Some(connection) = self.connections.get_mut(&number) else {
            return Err(bug("connection without entry").into());
        };
        if connection.session.is_some() {
            return refuse(ErrorCode::Invalid, "Hello was said already on this connection");
        }
        let Some(pidfd) = connection.pidfd.take() else {
            return Err(bug("connection without pidfd").into());
        };
        let peer = Peer { user: connection.user.clone(), pid: connection.pid, pidfd };
        let known = self.sessions.iter().find(|(_, session)| {
            session.id == id && is_same_process(session.pid, session.pidfd.as_fd(), &peer)
        });
        let session = match known.map(|(session, _)| *session) {
            Some(session) => session,
            None => self.new_session(id, peer)?,
        };
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.session = Some(session);
        }
        let before =
            self.sessions.get_mut(&session).and_then(|session| session.connection.replace(number));
        if let Some(before) = before {
            // The client gave it up before we noticed.
            self.connections.remove(&before);
        }
        let lost = self.keep_only(session, handles)?;
        Ok(Answer::of(Reply::Welcome {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            broker_generation: self.config.broker_starts,
            lost,
        }))
    }

    fn new_session(&mut self, id: u64, peer: Peer) -> Result<u64, LinkLost> {
        let number = self.counters.session(&mut self.keeper)?;
        let session = Session {
            id,
            pid: peer.pid,
            uid: peer.user.uid,
            pidfd: peer.pidfd,
            connection: None,
            stored: false,
            handles: BTreeSet::new(),
            doorbells: BTreeSet::new(),
        };
        self.sessions.insert(number, session);
        Ok(number)
    }

    /// Gives back the handles of a session that its client does not know of (any more). Returns those that it believes to
    /// have and has not.
    fn keep_only(
        &mut self,
        session: u64,
        wanted: &[HandleKey],
    ) -> Result<Vec<HandleKey>, LinkLost> {
        let wanted: BTreeSet<HandleKey> = wanted.iter().copied().collect();
        let mut lost = wanted.clone();
        let handles = self.sessions.get(&session).map(|session| session.handles.clone());
        for (queue, index) in handles.unwrap_or_default() {
            if self.brokered.queues.contains_key(&queue) {
                self.keep_brokered(queue, index, &mut lost);
                continue;
            }
            let Some(handle) = self.queues.get(&queue).and_then(|queue| queue.handles.get(&index))
            else {
                continue;
            };
            let key = HandleKey { queue, handle: index, epoch: handle.epoch };
            if !lost.remove(&key) {
                self.give_back(queue, index)?;
            }
        }
        Ok(lost.into_iter().collect())
    }

    /// The same for a handle on a brokered queue.
    fn keep_brokered(&mut self, queue: u64, index: u8, lost: &mut BTreeSet<HandleKey>) {
        let found = self.brokered.queues.get(&queue);
        let Some(handle) = found.and_then(|found| found.handles.get(&index)) else { return };
        let key = HandleKey { queue, handle: index, epoch: handle.entry.epoch };
        if !handle.closing && !lost.remove(&key) {
            self.close_brokered(queue, index, false);
        }
    }

    /// A connection ended. Its session stays as long as it has something.
    pub(super) fn on_disconnect(&mut self, number: u64) -> Result<(), LinkLost> {
        let Some(connection) = self.connections.remove(&number) else {
            return Ok(());
        };
        if self.upgrade_by == Some(number) {
            self.upgrade_by = None;
        }
        let Some(number) = connection.session else {
            return Ok(());
        };
        if let Some(session) = self.sessions.get_mut(&number) {
            session.connection = None;
        }
        self.forget_if_unneeded(number)
    }

    /// Forgets a session that is not connected and has nothing.
    pub(super) fn forget_if_unneeded(&mut self, number: u64) -> Result<(), LinkLost> {
        match self.sessions.get(&number) {
            Some(session) if !session.is_needed() => {
                let stored = session.stored;
                self.sessions.remove(&number);
                self.session_ended = true;
                let mut deletes = self.forget_link(number);
                if stored {
                    deletes.push(Key::Session(number).bytes());
                }
                if deletes.is_empty() {
                    return Ok(());
                }
                self.keeper.apply(deletes, Vec::new())
            }
            _ => Ok(()),
        }
    }
}
