//! Named producers: whose own sequences are remembered, so that a message that is sent again is stored once.

use std::collections::BTreeMap;

use ringmain_client::layout::metadata::OwnSequence;
use ringmain_client::protocol::{ErrorCode, Overflow};
use ringmain_client::wire::Outcome;

use super::effects::Effect;
use super::handles::HandleRef;
use super::publish::message_bytes_max;
use super::queue::Queue;
use super::record::{
    self, MessageBody, NamedState, ProducerAttached, ProducerState, ProducersForgotten, kind,
};
use super::types::{ControlResult, HandleId, Lsn, Now, RecordRef, Refusal};
use super::{AppendError, Log, Logic, canary};

/// A name that nobody was attached under and that stored nothing for so long is forgotten.
pub const FORGOTTEN_AFTER_NS: u64 = 7 * 24 * 3600 * 1_000_000_000;
/// Names that a queue remembers.
pub const NAMES_MAX: usize = 4096;
/// Why a queue that rejects has no names: a message that was rejected and is sent again would be taken for a duplicate of a later one.
pub(super) const REJECTS: &str = "a queue with overflow=reject has no producers with names: use overflow=block, or a producer without a name";
/// Producers in one record of a checkpoint.
const STATES_AT_ONCE: usize = 32;

/// What is remembered of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    name: String,
    /// Of the last attachment.
    epoch: u32,
    /// Last own sequence that was appended; 0: none.
    last: u64,
    /// When it was attached or stored something, since 1970.
    used_ns: u64,
}

/// The named producers of a queue by id.
#[derive(Debug, Default)]
pub(super) struct NamedProducers {
    by_id: BTreeMap<u64, Named>,
    /// Ids up to this one were used.
    last_id: u64,
}

impl NamedProducers {
    /// Whether no name is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn find(&self, name: &str) -> Option<(u64, &Named)> {
        self.by_id.iter().find(|(_, named)| named.name == name).map(|(id, named)| (*id, named))
    }

    /// What a message of the producer with this id is, or why it is not stored.
    pub(super) fn judge(
        &self,
        id: Option<u64>,
        metadata: &[u8],
    ) -> Result<Option<OwnSequence>, Outcome> {
        let own = match (id, OwnSequence::first_of(metadata)) {
            (None, Ok(None)) => return Ok(None),
            (Some(id), Ok(Some(own))) if own.producer == id && own.sequence > 0 => own,
            _ => return Err(Outcome::Invalid),
        };
        // A name is not forgotten while somebody is attached under it.
        let named = self.by_id.get(&own.producer).ok_or(Outcome::Fenced)?;
        if own.epoch < named.epoch && !canary::planted(canary::Canary::ForgetFence) {
            Err(Outcome::Fenced)
        } else if own.epoch > named.epoch {
            Err(Outcome::Invalid)
        } else if own.sequence <= named.last {
            Err(Outcome::Duplicate)
        } else {
            Ok(Some(own))
        }
    }

    /// A message of a named producer was appended.
    pub(super) fn appended(&mut self, own: OwnSequence, published_ns: u64) {
        if let Some(named) = self.by_id.get_mut(&own.producer) {
            named.last = own.sequence;
            named.used_ns = published_ns;
        }
    }

    /// The same from the journal.
    pub(super) fn replay_message(&mut self, message: &MessageBody<'_>) -> Result<(), String> {
        let own = OwnSequence::first_of(message.metadata).map_err(|error| error.to_string())?;
        let Some(own) = own else { return Ok(()) };
        let fits = self
            .by_id
            .get(&own.producer)
            .is_some_and(|named| named.epoch == own.epoch && named.last < own.sequence);
        if !fits && !canary::planted(canary::Canary::ForgetFence) {
            return Err(format!(
                "own sequence {} of producer {} in epoch {} cannot be",
                own.sequence, own.producer, own.epoch
            ));
        }
        self.appended(own, message.published_ns);
        Ok(())
    }

    pub(super) fn attached(&mut self, attached: ProducerAttached) -> Result<(), String> {
        let ProducerAttached { id, epoch, at_ns, name } = attached;
        if let Some(named) = self.by_id.get_mut(&id) {
            if epoch > named.epoch {
                (named.epoch, named.used_ns) = (epoch, at_ns);
            }
        } else if id > self.last_id {
            if self.find(&name).is_some() || self.by_id.len() >= NAMES_MAX {
                return Err("impossible producer".to_owned());
            }
            self.last_id = id;
            self.by_id.insert(id, Named { name, epoch, last: 0, used_ns: at_ns });
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, forgotten: &ProducersForgotten) {
        for id in &forgotten.ids {
            self.by_id.remove(id);
        }
    }

    pub(super) fn restore(&mut self, state: NamedState) -> Result<(), String> {
        self.last_id = self.last_id.max(state.next.saturating_sub(1));
        for ProducerState { id, epoch, last, used_ns, name } in state.producers {
            let named = Named { name, epoch, last, used_ns };
            if id > self.last_id || self.by_id.insert(id, named).is_some() {
                return Err("impossible producer".to_owned());
            }
        }
        Ok(())
    }

    /// As the records of a checkpoint. Whoever is attached uses the name now.
    pub(super) fn write(
        &self,
        queue: u64,
        attached: impl Fn(u64) -> bool,
        now_ns: u64,
        emit: &mut dyn FnMut(RecordRef<'_>),
    ) {
        let states: Vec<_> = self
            .by_id
            .iter()
            .map(|(id, named)| {
                let now_ns = if attached(*id) { now_ns } else { 0 };
                let lost = canary::planted(canary::Canary::LoseOwnSequence);
                ProducerState {
                    id: *id,
                    epoch: named.epoch,
                    last: if lost { named.last.saturating_sub(1) } else { named.last },
                    used_ns: named.used_ns.max(now_ns),
                    name: named.name.clone(),
                }
            })
            .collect();
        let next = self.last_id + 1;
        let mut write = |producers: Vec<ProducerState>| {
            let body = record::encode(&NamedState { next, producers });
            let parts: &[&[u8]] = &[&body];
            emit(RecordRef { kind: kind::NAMED_STATE, flags: 0, queue, sequence: 0, parts });
        };
        if states.is_empty() && self.last_id > 0 {
            write(Vec::new());
        }
        states.chunks(STATES_AT_ONCE).for_each(|states| write(states.to_vec()));
    }
}

impl Logic {
    /// Why no producer may attach under this name, if that is so.
    pub fn why_not_named(&self, queue: u64, name: &str, now: Now) -> Option<(ErrorCode, String)> {
        let index = *self.by_id.get(&queue)?;
        let queue = self.queues.get(index)?;
        if queue.definition.limits.overflow == Overflow::Reject {
            return Some((ErrorCode::Invalid, REJECTS.to_owned()));
        }
        let remembered = queue.named.by_id.len() - self.unused(index, queue, now).len();
        if queue.named.find(name).is_some() || remembered < NAMES_MAX {
            return None;
        }
        let text = format!(
            "the queue remembers {NAMES_MAX} names of producers, the most possible: use one of them; those that nobody \
             uses for 7 days are forgotten"
        );
        Some((ErrorCode::Limit, text))
    }

    /// A producer under a name; whoever was attached under it is fenced. As [`Self::open_producer`] otherwise. The answer, as
    /// [`ControlResult::Named`], comes when that is durable.
    ///
    /// # Errors
    /// As [`Self::open_producer`]; [`Refusal::Full`]: try again later; [`Refusal::JournalFailed`].
    #[allow(clippy::too_many_arguments)]
    pub fn open_named_producer(
        &mut self,
        log: &mut dyn Log,
        handle: HandleId,
        lane: u64,
        name: &str,
        request: u64,
        now: Now,
    ) -> Result<(), Refusal> {
        if let Some(errno) = self.failed {
            return Err(Refusal::JournalFailed(errno));
        }
        let index = self.open_queue(handle)?;
        self.forget_unused(log, index, now)?;
        let queue = self.queues.get(index).ok_or(Refusal::Unknown)?;
        let (id, epoch, last) = match queue.named.find(name) {
            Some((id, named)) => (id, named.epoch.saturating_add(1), named.last),
            None => (queue.named.last_id + 1, 1, 0),
        };
        let at_ns = now.realtime_ns;
        let attached = ProducerAttached { id, epoch, at_ns, name: name.to_owned() };
        let lsn = append(log, queue, kind::PRODUCER_ATTACHED, &record::encode(&attached))?;
        if let Some(queue) = self.queues.get_mut(index) {
            // It fits: the id and the name were looked up just now.
            let _ = queue.named.attached(attached);
        }
        let result = ControlResult::Named { id, epoch, last };
        self.effects.push(lsn, Effect::Control { request, result });
        self.open_producer_as(handle, lane, Some(id))
    }

    /// A named producer of a broker that is gone: name and epoch stay as they are.
    ///
    /// # Errors
    /// As [`Self::open_producer`].
    pub fn adopt_named_producer(
        &mut self,
        handle: HandleId,
        lane: u64,
        name: &str,
    ) -> Result<(), Refusal> {
        let index = self.open_queue(handle)?;
        let known = self.queues.get(index).and_then(|queue| queue.named.find(name));
        // Its attachment was not durable: nobody was told the id, and zero is nobody's.
        let id = known.map_or(0, |(id, _)| id);
        self.open_producer_as(handle, lane, Some(id))
    }

    /// What a broker that is gone said, or would have said, of a message of an adopted lane that is not in the journal although
    /// later ones are.
    pub fn refused_before(
        &self,
        log: &dyn Log,
        handle: HandleId,
        metadata: &[u8],
        payload: usize,
    ) -> (Outcome, u64) {
        let limit = message_bytes_max(log.group_bytes_max());
        let named = match self.handles.get(&handle) {
            Some(HandleRef::Producer(index)) => {
                self.producers.get(*index).is_some_and(|producer| producer.named.is_some())
            }
            _ => false,
        };
        if named && metadata.len() + payload <= limit {
            return (Outcome::Duplicate, 0);
        }
        (Outcome::TooLarge, limit as u64)
    }

    /// Names that are to be forgotten.
    fn unused(&self, index: u32, queue: &Queue, now: Now) -> Vec<u64> {
        let over =
            |named: &Named| now.realtime_ns.saturating_sub(named.used_ns) >= FORGOTTEN_AFTER_NS;
        let unused = queue.named.by_id.iter().filter(|(_, named)| over(named));
        let ids = unused.map(|(id, _)| *id);
        ids.filter(|id| !self.is_attached(index, *id)).collect()
    }

    /// Whether a handle has this name.
    pub(super) fn is_attached(&self, index: u32, id: u64) -> bool {
        self.producers.iter().any(|(_, one)| one.queue == index && one.named == Some(id))
    }

    fn forget_unused(&mut self, log: &mut dyn Log, index: u32, now: Now) -> Result<(), Refusal> {
        let Some(queue) = self.queues.get(index) else { return Ok(()) };
        let ids = self.unused(index, queue, now);
        if ids.is_empty() {
            return Ok(());
        }
        let forgotten = ProducersForgotten { ids };
        self.effects.appended =
            append(log, queue, kind::PRODUCERS_FORGOTTEN, &record::encode(&forgotten))?;
        if let Some(queue) = self.queues.get_mut(index) {
            queue.named.forget(&forgotten);
        }
        Ok(())
    }
}

fn append(log: &mut dyn Log, queue: &Queue, kind: u8, body: &[u8]) -> Result<Lsn, Refusal> {
    let queue = queue.definition.id;
    match log.append(RecordRef { kind, flags: 0, queue, sequence: 0, parts: &[body] }) {
        Ok((lsn, _)) => Ok(lsn),
        Err(AppendError::Full) => Err(Refusal::Full),
        Err(AppendError::TooLarge { .. }) => Err(Refusal::Unknown),
        Err(AppendError::Failed { errno }) => Err(Refusal::JournalFailed(errno)),
    }
}
