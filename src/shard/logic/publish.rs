//! The way of a message into the log.

use ringmain_client::layout::metadata::{DEAD_LETTER_BYTES, Times, times};
use ringmain_client::protocol::Overflow;
use ringmain_client::wire::Outcome;

use super::effects::Effect;
use super::handles::{HandleRef, NO_QUEUE, push_lane};
use super::limits::WaitingLane;
use super::record::{MESSAGE_HEADER_BYTES, MessageBody, kind};
use super::types::{FLAG_MESSAGE, HandleId, Now, RecordRef, Refusal};
use super::{AppendError, Log, Logic};
use crate::journal::format::RECORD_HEADER_BYTES;
use crate::shard::memory::METADATA_BYTES_MAX;

/// Metadata and payload bytes of the longest message that a journal takes whose groups have at most so many bytes. It must fit
/// beside the record that takes it out of its queue, too, with what is added to it as a dead letter.
pub fn message_bytes_max(group_bytes_max: usize) -> usize {
    let headers = MESSAGE_HEADER_BYTES + 2 * RECORD_HEADER_BYTES + DEAD_LETTER_BYTES;
    group_bytes_max.saturating_sub(headers)
}

impl Logic {
    /// A message from a lane that the caller will not have stored, with the reason. As [`Self::publish`] otherwise.
    pub fn refuse(&mut self, handle: HandleId, position: u64, outcome: Outcome, detail: u64) {
        self.effects.push_behind(Effect::Refused { handle, position, outcome, detail });
        self.pass_over(handle);
    }

    /// A message from a lane, from `position` to `next_position`. Whatever becomes of it, its completion comes through
    /// [`super::Port::completed`], in the order of the lane, from [`Self::on_durable`] or [`Self::on_failed`].
    ///
    /// # Errors
    /// [`Refusal::Full`], [`Refusal::Limit`]: it was not taken and stays in the lane. [`Refusal::Unknown`]: no such producer.
    #[allow(clippy::too_many_arguments)]
    pub fn publish(
        &mut self,
        log: &mut dyn Log,
        handle: HandleId,
        position: u64,
        next_position: u64,
        flags: u16,
        metadata: &[u8],
        payload: &[u8],
        now: Now,
    ) -> Result<(), Refusal> {
        let Some(&HandleRef::Producer(index)) = self.handles.get(&handle) else {
            return Err(Refusal::Unknown);
        };
        let producer = self.producers.get_mut(index).ok_or(Refusal::Unknown)?;
        let queue = match self.queues.get_mut(producer.queue) {
            Some(queue) if producer.queue != NO_QUEUE && !queue.deleted => queue,
            _ => {
                self.refuse(handle, position, Outcome::QueueDeleted, 0);
                return Ok(());
            }
        };
        if let Some(errno) = self.failed {
            let detail = u64::from(errno.unsigned_abs());
            self.refuse(handle, position, Outcome::JournalFailed, detail);
            return Ok(());
        }
        let times = match metadata {
            [] => Some(Times::default()),
            metadata => times(metadata).filter(|_| metadata.len() <= METADATA_BYTES_MAX),
        };
        let Some(times) = times else {
            self.refuse(handle, position, Outcome::Invalid, 0);
            return Ok(());
        };
        let limit = message_bytes_max(log.group_bytes_max());
        if metadata.len() + payload.len() > limit {
            self.refuse(handle, position, Outcome::TooLarge, limit as u64);
            return Ok(());
        }
        let own = match queue.named.judge(producer.named, metadata) {
            Ok(own) => own,
            Err(outcome) => {
                self.refuse(handle, position, outcome, 0);
                return Ok(());
            }
        };
        let length = (metadata.len() + payload.len()) as u64;
        if !queue.admits(handle, length) {
            match queue.definition.limits.overflow {
                Overflow::Block => {
                    if !std::mem::replace(&mut producer.waits, true) {
                        let (bytes, granted) = (length, false);
                        queue.waiting.push_back(WaitingLane { handle, bytes, granted });
                    }
                    return Err(Refusal::Limit);
                }
                Overflow::Reject => {
                    queue.rejected += 1;
                    self.refuse(handle, position, Outcome::QueueFull, 0);
                    return Ok(());
                }
                Overflow::DropOldest => {}
            }
        }
        let span = next_position.wrapping_sub(position);
        let body = MessageBody {
            published_ns: now.realtime_ns.max(queue.published_ns),
            lane: producer.lane,
            position,
            span: u32::try_from(span).unwrap_or(u32::MAX),
            flags,
            metadata,
            payload,
        };
        let sequence = queue.next_sequence;
        let record = RecordRef {
            kind: kind::MESSAGE,
            flags: FLAG_MESSAGE,
            queue: queue.definition.id,
            sequence,
            parts: &[&body.header(), metadata, payload],
        };
        match log.append(record) {
            Ok((lsn, _)) => {
                if std::mem::take(&mut producer.waits) {
                    queue.leave_line(handle);
                }
                queue.appended(body.published_ns, metadata.len() + payload.len());
                if let Some(own) = own {
                    queue.named.appended(own, body.published_ns);
                }
                queue.expires(sequence, body.published_ns, times.ttl_ms);
                push_lane(&mut producer.runs, position, span, sequence);
                let queue = producer.queue;
                self.effects.push_stored(lsn, queue, sequence, Some(handle), position, span);
                self.may_be_overfull(queue);
            }
            Err(AppendError::Full) => return Err(Refusal::Full),
            Err(AppendError::TooLarge { .. }) => {
                self.refuse(handle, position, Outcome::TooLarge, limit as u64);
            }
            Err(AppendError::Failed { errno }) => {
                let detail = u64::from(errno.unsigned_abs());
                self.refuse(handle, position, Outcome::JournalFailed, detail);
            }
        }
        Ok(())
    }
}
