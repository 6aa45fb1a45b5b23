//! Taking out of the rings what clients have sent, a bounded share of each in a turn.

use ringmain_client::protocol::{HandleKey, Role};
use ringmain_client::wire::transaction::{FLAG_TRANSACTION, Transaction};
use ringmain_client::wire::{Outcome, RECORD_BYTES_MAX, Up, WireError};

use super::handle::Handle;
use super::logic::{Now, Refusal, TransactionAck, TransactionMessage};
use super::memory::{deliverable_bytes, is_deliverable};
use super::thread::Shard;
use crate::disk::Disk;

/// Messages of one handle in a turn.
const TAKEN_AT_ONCE: usize = 256;
/// Bytes of one handle in a turn.
const TAKEN_BYTES_AT_ONCE: usize = 256 << 10;
/// Answers that wait for a consumer to make room: with more of them its submissions wait, too.
const ANSWERS_MAX: usize = 1024;

/// A private copy of what was taken last.
#[derive(Debug, Default)]
pub(super) struct Taken {
    metadata: Vec<u8>,
    payload: Vec<u8>,
}

/// How it goes on with a handle in this turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Bytes that were taken.
    Took(usize),
    /// Nothing more can be taken now, and there may be more.
    Later,
    /// Nothing more is there, or ever will be.
    Nothing,
}

impl<D: Disk> Shard<D> {
    /// Takes what the handles of this role have, a share from each.
    pub(super) fn take_all(&mut self, role: Role, now: Now) {
        for _ in 0..self.handles.listed(role) {
            let Some(place) = self.handles.next_listed(role) else { return };
            let mut taken = std::mem::take(&mut self.taken);
            let more = self.take_from(place, role, &mut taken, now);
            self.taken = taken;
            self.handles.touch(place);
            if more {
                self.handles.list(place);
            }
        }
    }

    /// Whether there may be more.
    fn take_from(&mut self, place: usize, role: Role, taken: &mut Taken, now: Now) -> bool {
        let mut bytes = 0;
        for _ in 0..TAKEN_AT_ONCE {
            if bytes > TAKEN_BYTES_AT_ONCE {
                break;
            }
            let next = match role {
                Role::Produce => self.take_message(place, taken, now),
                Role::Consume => self.take_submission(place, now),
            };
            match next {
                Next::Took(more) => bytes += more,
                Next::Later => return true,
                Next::Nothing => return false,
            }
        }
        true
    }

    /// Copies the next message or record of a handle: its position and the one behind it, and its flags.
    fn copy(&mut self, place: usize, taken: &mut Taken) -> Result<(u64, u64, u16), Next> {
        let handle = self.handles.get_mut(place).ok_or(Next::Nothing)?;
        if handle.fault.is_some() {
            return Err(Next::Nothing);
        }
        match handle.take(&mut taken.metadata, &mut taken.payload) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => {
                handle.is_drained = true;
                Err(Next::Nothing)
            }
            Err(fault) => {
                handle.fault = Some(fault.to_string());
                Err(Next::Nothing)
            }
        }
    }

    /// Takes a message out of a lane.
    fn take_message(&mut self, place: usize, taken: &mut Taken, now: Now) -> Next {
        if self.is_journal_full {
            return Next::Later;
        }
        let Some(handle) = self.handles.get_mut(place) else { return Next::Nothing };
        // A client that does not take its completions waits by itself, and when it goes on it comes last in the line for room.
        if handle.is_blocked() && handle.closing.is_none() {
            let key = handle.key;
            handle.is_limited = false;
            self.logic.pass_over(key);
            return Next::Nothing;
        }
        // At the limit of its queue: the logic says when it goes on.
        if handle.is_limited {
            return Next::Nothing;
        }
        let (key, geometry) = (handle.key, *handle.memory.pair.geometry());
        let (position, next, flags) = match self.copy(place, taken) {
            Ok(found) => found,
            Err(next) => return next,
        };
        let Taken { metadata, payload } = taken;
        let published = if flags & FLAG_TRANSACTION != 0 {
            self.take_transaction(place, (key, position, next), payload, now)
        } else if is_deliverable(&geometry, metadata.len(), payload.len()) {
            let log = &mut self.journal;
            self.logic.publish(log, key, position, next, flags, metadata, payload, now)
        } else {
            let limit = deliverable_bytes(&geometry);
            self.logic.refuse(key, position, Outcome::TooLarge, limit);
            Ok(())
        };
        let Some(handle) = self.handles.get_mut(place) else { return Next::Nothing };
        match published {
            Ok(()) => {
                handle.messages += 1;
                handle.bytes += payload.len() as u64;
                self.has_published = true;
                Next::Took(payload.len() + metadata.len())
            }
            Err(Refusal::Full | Refusal::JournalFailed(_)) => {
                handle.refused = true;
                self.is_journal_full = true;
                Next::Later
            }
            Err(Refusal::Limit) => {
                handle.refused = true;
                handle.is_limited = true;
                Next::Nothing
            }
            Err(_) => self.is_unknown(place),
        }
    }

    /// Takes a transaction: all handles in it are to be of its session, and its messages such as their lanes would take.
    fn take_transaction(
        &mut self,
        place: usize,
        (key, position, next): (HandleKey, u64, u64),
        body: &[u8],
        now: Now,
    ) -> Result<(), Refusal> {
        let transaction = match Transaction::decode(body) {
            Ok(transaction) => transaction,
            Err(error) => {
                if let Some(handle) = self.handles.get_mut(place) {
                    handle.fault = Some(format!("{error} as a transaction"));
                }
                return Ok(());
            }
        };
        let (outcome, detail) = match self.check_transaction(place, &transaction) {
            None => {
                let messages = transaction.messages.iter().map(|message| TransactionMessage {
                    handle: message.producer,
                    metadata: message.metadata,
                    payload: message.payload,
                });
                let acks = transaction
                    .acks
                    .iter()
                    .map(|ack| TransactionAck { handle: ack.consumer, lease: ack.lease });
                let (messages, acks): (Vec<_>, Vec<_>) = (messages.collect(), acks.collect());
                let log = &mut self.journal;
                return self.logic.transact(log, key, position, next, &messages, &acks, now);
            }
            Some(refused) => refused,
        };
        self.logic.refuse(key, position, outcome, detail);
        Ok(())
    }

    /// What is wrong with a transaction, as far as the rings say.
    fn check_transaction(&self, place: usize, whole: &Transaction<'_>) -> Option<(Outcome, u64)> {
        let session = self.handles.get(place)?.session;
        let of = |key: HandleKey, role: Role| {
            let handle = self.handles.place(key).and_then(|place| self.handles.get(place));
            handle.filter(|handle| handle.session == session && handle.role == role)
        };
        for message in &whole.messages {
            let Some(handle) = of(message.producer, Role::Produce) else {
                return Some((Outcome::CrossShard, 0));
            };
            let geometry = handle.memory.pair.geometry();
            let (metadata, payload) = (message.metadata.len(), message.payload.len());
            let max = geometry.up().max_message();
            if payload > max || !is_deliverable(geometry, metadata, payload) {
                return Some((Outcome::TooLarge, deliverable_bytes(geometry).min(max as u64)));
            }
        }
        let foreign = whole.acks.iter().any(|ack| of(ack.consumer, Role::Consume).is_none());
        foreign.then_some((Outcome::CrossShard, 0))
    }

    /// Takes a record of a consumer.
    #[inline(always)]
    fn take_submission(&mut self, place: usize, now: Now) -> Next {
        let overdue = |handle: &Handle| handle.waiting() > ANSWERS_MAX && handle.closing.is_none();
        if self.handles.get(place).is_some_and(overdue) {
            return Next::Nothing;
        }
        let Some(handle) = self.handles.get_mut(place) else { return Next::Nothing };
        if handle.fault.is_some() {
            return Next::Nothing;
        }
        let mut record = [0; RECORD_BYTES_MAX];
        let (position, length) = match handle.take_record(&mut record) {
            Ok(Some(found)) => found,
            Ok(None) => {
                handle.is_drained = true;
                return Next::Nothing;
            }
            Err(fault) => {
                handle.fault = Some(fault.to_string());
                return Next::Nothing;
            }
        };
        let (key, again) = (handle.key, handle.is_again(position));
        let longer = WireError { kind: record[0], length };
        let up = match record.get(..length).ok_or(longer).and_then(Up::decode) {
            Ok(up) => up,
            Err(error) => {
                handle.fault = Some(error.to_string());
                return Next::Nothing;
            }
        };
        if let Up::Credit { credit } = up {
            let credit = credit.min(handle.memory.pair.geometry().leases());
            handle.memory.pair.status().set_credit(u64::from(credit));
        }
        let submitted = self.logic.submission(&mut self.handles, key, up, again, now);
        let Some(handle) = self.handles.get_mut(place) else { return Next::Nothing };
        match submitted {
            Ok(()) => {
                if let Up::Flush { request } = up {
                    handle.answer_when_stored(request);
                    self.is_flush_wanted = true;
                }
                if self.handles.submitting.last() != Some(&place) {
                    self.handles.submitting.push(place);
                }
                Next::Took(length)
            }
            Err(Refusal::Full | Refusal::Limit | Refusal::JournalFailed(_)) => {
                handle.refused = true;
                Next::Later
            }
            Err(_) => self.is_unknown(place),
        }
    }

    fn is_unknown(&mut self, place: usize) -> Next {
        if let Some(handle) = self.handles.get_mut(place) {
            handle.fault = Some("the shard does not know this handle".to_owned());
        }
        Next::Nothing
    }

    /// What follows from all submissions is appended: their slots are released when that is durable.
    pub(super) fn submissions_appended(&mut self) {
        let lsn = self.journal.last_lsn();
        let mut submitting = std::mem::take(&mut self.handles.submitting);
        for place in submitting.drain(..) {
            if let Some(handle) = self.handles.get_mut(place) {
                handle.appended(lsn);
                self.handles.touch(place);
            }
        }
        self.handles.submitting = submitting;
    }
}
