//! The sending handle.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::attachment::Attachment;
use super::body::Body;
use super::connection::Inner;
use super::error::{ClientError, SendError};
use super::overflow::{NotSent, by_rule, look};
use super::reservation::Reservation;
use super::waiting::{Stop, leave, wait_for};
use crate::layout::metadata::{Metadata, MetadataError};
use crate::protocol::{Kind, Role};
use crate::ring::{self, ClaimedBatch, Closed, Fill, TrySendError};
use crate::sys::clock::monotonic_ns;
use crate::sys::fork::ForkMark;
use crate::wait::WaitPolicy;

/// Sends messages to one queue.
///
/// A producer may move to another thread, but two threads cannot share one: each takes its own. Dropping it gives the
/// handle back to the daemon.
///
/// Each form of sending exists three times: `try_` returns [`SendError::Full`] at once, the plain one waits for room as
/// long as it takes, `_timeout` waits for at most that long and then returns [`SendError::Timeout`].
///
/// That is so on a queue whose overflow rule is `block`. With `reject` the forms that wait return [`SendError::QueueFull`]
/// instead of waiting. With `drop-oldest` all three discard the oldest messages, which are counted and told to the consumers
/// ([`Consumer::take_skipped`](super::Consumer::take_skipped)); where the next slot belongs to somebody, a consumer
/// that holds its message or a producer that still writes, it is as with `block`: among several producers
/// [`SendError::Full`] is no rare answer of the `try_` forms.
///
/// # Errors
/// All of them return [`SendError::Closed`] when the queue was deleted or its daemon stopped,
/// [`SendError::TooLarge`] for what can never fit, [`SendError::PeerFault`] when another member damaged the queue, and
/// [`SendError::UsedAfterFork`] in a forked child.
///
/// A daemon that stops, or is killed in one of its two processes, says so itself. If both are killed together, a producer
/// notices when it has to wait, to drop or to be refused. One that always finds room does not: see [`Self::check_connection`].
#[derive(Debug)]
pub struct Producer {
    // Before the attachment, which owns the mappings: fields are dropped in this order.
    pub(crate) ring: ring::Producer,
    pub(crate) attachment: Attachment,
    metadata: Vec<u8>,
    /// `Send`, not `Sync`.
    not_sync: PhantomData<Cell<()>>,
}

impl Producer {
    pub(super) fn attach(
        client: &Arc<Inner>,
        queue: &str,
        policy: WaitPolicy,
    ) -> Result<Self, ClientError> {
        let (attachment, memory) = Attachment::new(client, queue, Role::Produce, policy)?;
        attachment.wait_for_holdout(&memory, Role::Produce)?;
        let mut ring = ring::Producer::new(memory, attachment.geometry, attachment.key.handle)?;
        if attachment.takes_part_in_membarriers() {
            ring = ring.with_bias();
        }
        Ok(Self { ring, attachment, metadata: Vec::new(), not_sync: PhantomData })
    }

    /// Name of the queue.
    #[must_use]
    pub fn queue_name(&self) -> &str {
        &self.attachment.queue_name
    }

    /// Kind of the queue.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.attachment.kind
    }

    /// Longest payload in bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.attachment.geometry.max_message()
    }

    /// Looks, at most every 100 ms, whether the daemon that answers now still knows this handle; a lost connection is
    /// taken up again in the background. Costs a reading of the clock, and never waits.
    ///
    /// # Errors
    /// [`SendError::Closed`] when it does not: what is sent from now on reaches nobody who attaches.
    /// [`SendError::UsedAfterFork`] in a forked child.
    pub fn check_connection(&mut self) -> Result<(), SendError> {
        if self.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        match self.attachment.keep_house(monotonic_ns()) {
            true => Err(SendError::Closed(Closed::Deleted)),
            false => Ok(()),
        }
    }

    /// Whether the daemon that answers now knows this handle. Costs a poll while the connection stands; waits for a new
    /// one when it is lost.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] when nobody answers.
    #[doc(hidden)]
    pub fn confirm_connection(&self) -> Result<bool, ClientError> {
        self.attachment.client.ensure_connected()?;
        Ok(!self.attachment.is_lost())
    }

    /// Sends a message if there is room now. Returns its sequence, which grows from message to message, not always by
    /// one.
    ///
    /// # Errors
    /// See [`Producer`].
    #[inline]
    pub fn try_send(&mut self, payload: &[u8]) -> Result<u64, SendError> {
        self.try_once(1, |ring| ring.try_send(0, &[], payload))
    }

    /// Sends a message and waits for room as long as it takes. Returns its sequence.
    ///
    /// # Errors
    /// See [`Producer`].
    #[inline]
    pub fn send(&mut self, payload: &[u8]) -> Result<u64, SendError> {
        self.send_within(payload, None)
    }

    /// Sends a message and waits for room at most this long. Returns its sequence.
    ///
    /// # Errors
    /// See [`Producer`].
    #[inline]
    pub fn send_timeout(&mut self, payload: &[u8], timeout: Duration) -> Result<u64, SendError> {
        self.send_within(payload, Some(timeout))
    }

    #[inline]
    fn send_within(&mut self, payload: &[u8], timeout: Option<Duration>) -> Result<u64, SendError> {
        self.wait(timeout, 1, |ring| ring.try_send(0, &[], payload))
    }

    /// As [`Self::try_send`], with metadata in front of the payload.
    ///
    /// # Errors
    /// See [`Producer`]; [`SendError::InvalidMetadata`].
    pub fn try_send_message(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
    ) -> Result<u64, SendError> {
        if self.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        self.encode(metadata)?;
        let encoded = std::mem::take(&mut self.metadata);
        let sent = self.try_once(1, |ring| ring.try_send(0, &encoded, payload));
        self.metadata = encoded;
        sent
    }

    /// As [`Self::send`], with metadata in front of the payload.
    ///
    /// # Errors
    /// See [`Producer`]; [`SendError::InvalidMetadata`].
    pub fn send_message(&mut self, metadata: &Metadata, payload: &[u8]) -> Result<u64, SendError> {
        self.send_message_within(metadata, payload, None)
    }

    /// As [`Self::send_timeout`], with metadata in front of the payload.
    ///
    /// # Errors
    /// See [`Producer`]; [`SendError::InvalidMetadata`].
    pub fn send_message_timeout(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<u64, SendError> {
        self.send_message_within(metadata, payload, Some(timeout))
    }

    fn send_message_within(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
        timeout: Option<Duration>,
    ) -> Result<u64, SendError> {
        self.encode(metadata)?;
        let encoded = std::mem::take(&mut self.metadata);
        let sent = self.wait(timeout, 1, |ring| ring.try_send(0, &encoded, payload));
        self.metadata = encoded;
        sent
    }

    /// Sends all of these messages in one step, or none. Returns the sequence of the first.
    ///
    /// Together they take at most a quarter of the ring; beyond that the error is [`SendError::TooLarge`].
    ///
    /// # Errors
    /// See [`Producer`].
    pub fn try_send_batch(&mut self, payloads: &[&[u8]]) -> Result<u64, SendError> {
        self.try_once(messages(payloads), |ring| ring.try_send_batch(payloads))
    }

    /// As [`Self::try_send_batch`]; waits for room for all of them as long as it takes.
    ///
    /// # Errors
    /// See [`Producer`].
    pub fn send_batch(&mut self, payloads: &[&[u8]]) -> Result<u64, SendError> {
        self.wait(None, messages(payloads), |ring| ring.try_send_batch(payloads))
    }

    /// As [`Self::try_send_batch`]; waits for room for all of them at most this long.
    ///
    /// # Errors
    /// See [`Producer`].
    pub fn send_batch_timeout(
        &mut self,
        payloads: &[&[u8]],
        timeout: Duration,
    ) -> Result<u64, SendError> {
        self.wait(Some(timeout), messages(payloads), |ring| ring.try_send_batch(payloads))
    }

    /// Sends `count` messages of `length` bytes each in one step, or none, and has each written in place: `fill` is called once
    /// for each number below `count`, the first message last. Returns the sequence of the first.
    ///
    /// Each message must fit one slot ([`Self::slot_capacity`]), and there may be as many as a quarter of the ring has slots;
    /// beyond that the error is [`SendError::TooLarge`]. `fill` is not called while there is no room, and when it panics
    /// nothing is sent. It must write all bytes: what it leaves out is whatever an earlier message left there. Until it is done the
    /// messages stop those of other producers, so what takes long is done before.
    ///
    /// # Errors
    /// See [`Producer`].
    #[inline]
    pub fn try_send_batch_in_place(
        &mut self,
        count: usize,
        length: usize,
        fill: impl FnMut(usize, &mut Body<'_>),
    ) -> Result<u64, SendError> {
        let batch = self.try_once(0, |ring| ring.try_claim_batch(count, length))?;
        self.fill(batch, fill)
    }

    /// As [`Self::try_send_batch_in_place`]; waits for room for all of them as long as it takes.
    ///
    /// # Errors
    /// See [`Producer`].
    #[inline]
    pub fn send_batch_in_place(
        &mut self,
        count: usize,
        length: usize,
        fill: impl FnMut(usize, &mut Body<'_>),
    ) -> Result<u64, SendError> {
        let batch = self.wait(None, 0, |ring| ring.try_claim_batch(count, length))?;
        self.fill(batch, fill)
    }

    /// As [`Self::try_send_batch_in_place`]; waits for room for all of them at most this long.
    ///
    /// # Errors
    /// See [`Producer`].
    #[inline]
    pub fn send_batch_in_place_timeout(
        &mut self,
        count: usize,
        length: usize,
        timeout: Duration,
        fill: impl FnMut(usize, &mut Body<'_>),
    ) -> Result<u64, SendError> {
        let batch = self.wait(Some(timeout), 0, |ring| ring.try_claim_batch(count, length))?;
        self.fill(batch, fill)
    }

    #[inline]
    fn fill(
        &mut self,
        batch: ClaimedBatch,
        fill: impl FnMut(usize, &mut Body<'_>),
    ) -> Result<u64, SendError> {
        let messages = batch.messages();
        let mark = self.attachment.mark();
        // Also when `fill` panics: messages behind slots that were given up can be received now.
        let waking = Waking { producer: self, messages, mark };
        let sequence = waking.producer.ring.fill_batch(batch, &mut Filler { mark, fill });
        drop(waking);
        if mark.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        Ok(sequence)
    }

    /// Payload bytes that fit one slot, and so can be written in place.
    #[must_use]
    pub fn slot_capacity(&self) -> usize {
        self.ring.slot_capacity()
    }

    /// Claims a slot for a message of at most `length` bytes, to be written in place. The message must fit one slot.
    ///
    /// A reservation that is not committed stops those who come after it, so what takes long is done before.
    ///
    /// # Errors
    /// See [`Producer`].
    pub fn try_reserve(&mut self, length: usize) -> Result<Reservation<'_>, SendError> {
        let reserved = self.try_once(0, |ring| ring.try_reserve(length))?;
        Ok(Reservation::new(self, reserved))
    }

    /// As [`Self::try_reserve`]; waits for room as long as it takes.
    ///
    /// # Errors
    /// See [`Producer`].
    pub fn reserve(&mut self, length: usize) -> Result<Reservation<'_>, SendError> {
        let reserved = self.wait(None, 0, |ring| ring.try_reserve(length))?;
        Ok(Reservation::new(self, reserved))
    }

    /// As [`Self::try_reserve`]; waits for room at most this long.
    ///
    /// # Errors
    /// See [`Producer`].
    pub fn reserve_timeout(
        &mut self,
        length: usize,
        timeout: Duration,
    ) -> Result<Reservation<'_>, SendError> {
        let reserved = self.wait(Some(timeout), 0, |ring| ring.try_reserve(length))?;
        Ok(Reservation::new(self, reserved))
    }

    /// Runs `attempt` without waiting, then wakes as many consumers as there are new messages.
    #[inline]
    fn try_once<T>(
        &mut self,
        messages: u32,
        mut attempt: impl FnMut(&mut ring::Producer) -> Result<T, TrySendError>,
    ) -> Result<T, SendError> {
        if self.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        let sent = match attempt(&mut self.ring) {
            Ok(sent) => sent,
            Err(TrySendError::Full) => self.try_by_rule(attempt)?,
            Err(error) => return Err(self.explain(error)),
        };
        self.wake(messages);
        Ok(sent)
    }

    #[cold]
    fn try_by_rule<T>(
        &mut self,
        attempt: impl FnMut(&mut ring::Producer) -> Result<T, TrySendError>,
    ) -> Result<T, SendError> {
        match by_rule(&mut self.ring, &mut self.attachment, attempt) {
            Some(Ok(sent)) => Ok(sent),
            None | Some(Err(NotSent::Rejected)) => Err(self.explain(TrySendError::Full)),
            Some(Err(error)) => Err(self.explain_not_sent(error)),
        }
    }

    /// Runs `attempt` until it is not full, then wakes as many consumers as there are new messages.
    #[inline]
    fn wait<T>(
        &mut self,
        timeout: Option<Duration>,
        messages: u32,
        mut attempt: impl FnMut(&mut ring::Producer) -> Result<T, TrySendError>,
    ) -> Result<T, SendError> {
        if self.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        let sent = match attempt(&mut self.ring) {
            Ok(sent) => sent,
            Err(TrySendError::Full) => self.wait_longer(timeout, attempt)?,
            Err(error) => return Err(self.explain(error)),
        };
        self.wake(messages);
        Ok(sent)
    }

    #[cold]
    fn wait_longer<T>(
        &mut self,
        timeout: Option<Duration>,
        mut attempt: impl FnMut(&mut ring::Producer) -> Result<T, TrySendError>,
    ) -> Result<T, SendError> {
        let mut result = by_rule(&mut self.ring, &mut self.attachment, &mut attempt);
        let waited = match result {
            Some(_) => Ok(()),
            None => wait_for(&mut self.attachment, &mut self.ring, timeout, |ring, attachment| {
                // The rule may be changed meanwhile.
                result = look(ring, attachment, &mut attempt);
                result.is_some()
            }),
        };
        match (waited, result) {
            (_, Some(Ok(sent))) => Ok(sent),
            (_, Some(Err(error))) => Err(self.explain_not_sent(error)),
            (Ok(()) | Err(Stop::Timeout), None) => Err(SendError::Timeout),
            (Err(Stop::Lost), None) => Err(SendError::Closed(Closed::Deleted)),
        }
    }

    /// After a look of a future.
    #[cfg(feature = "tokio")]
    pub(crate) fn after_look(
        &mut self,
        sent: Result<u64, NotSent>,
        messages: u32,
    ) -> Result<u64, SendError> {
        let sequence = sent.map_err(|error| self.explain_not_sent(error))?;
        self.wake(messages);
        Ok(sequence)
    }

    /// Wakes consumers after this many messages (or after a tombstone, which may uncover messages behind it).
    #[inline]
    pub(super) fn wake(&mut self, messages: u32) {
        if messages != 0 {
            self.attachment.wake_peers(self.ring.peer_park(), messages);
        }
    }

    #[cold]
    fn explain_not_sent(&mut self, error: NotSent) -> SendError {
        match error {
            NotSent::Rejected if self.attachment.keep_house_rarely() => {
                SendError::Closed(Closed::Deleted)
            }
            NotSent::Rejected => SendError::QueueFull,
            NotSent::Lost => SendError::Closed(Closed::Deleted),
            NotSent::Ring(error) => self.explain(error),
        }
    }

    #[cold]
    fn explain(&mut self, error: TrySendError) -> SendError {
        match error {
            TrySendError::Full if self.attachment.keep_house_rarely() => {
                SendError::Closed(Closed::Deleted)
            }
            TrySendError::Fault(fault) => {
                self.attachment.report(&fault);
                SendError::PeerFault(fault)
            }
            error => error.into(),
        }
    }

    fn encode(&mut self, metadata: &Metadata) -> Result<(), SendError> {
        self.metadata.clear();
        without_times(metadata)?;
        encode(metadata, &mut self.metadata)
    }

    /// Metadata in a buffer of its own, for a future that may be dropped.
    #[cfg(feature = "tokio")]
    pub(crate) fn encoded(&self, metadata: &Metadata) -> Result<Vec<u8>, SendError> {
        without_times(metadata)?;
        let mut encoded = Vec::new();
        encode(metadata, &mut encoded).map(|()| encoded)
    }
}

/// Wakes consumers when a batch is over, one way or the other.
struct Waking<'a> {
    producer: &'a mut Producer,
    messages: u32,
    mark: ForkMark,
}

impl Drop for Waking<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.mark.is_forked() {
            self.producer.wake(self.messages);
        }
    }
}

/// Has a closure write messages, for as long as this is the process that began.
struct Filler<F> {
    mark: ForkMark,
    fill: F,
}

impl<F: FnMut(usize, &mut Body<'_>)> Fill for Filler<F> {
    #[inline]
    fn fill(&mut self, index: usize, body: &mut ring::Body<'_>) {
        (self.fill)(index, &mut Body::new(*body, self.mark));
    }

    #[inline]
    fn may_go_on(&self) -> bool {
        !self.mark.is_forked()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if !self.attachment.is_forked() {
            leave(&self.ring);
        }
    }
}

/// Appends the encoded form.
pub(crate) fn encode(metadata: &Metadata, into: &mut Vec<u8>) -> Result<(), SendError> {
    metadata.encode(into).map_err(|error| match error {
        MetadataError::TooLong(length) => {
            SendError::TooLarge { length, max: usize::from(u16::MAX) }
        }
        _ => SendError::InvalidMetadata,
    })
}

/// A direct queue gives out what is there.
fn without_times(metadata: &Metadata) -> Result<(), SendError> {
    match (metadata.ttl, metadata.delay) {
        (None, None) => Ok(()),
        _ => Err(SendError::TimesOnDirect),
    }
}

fn messages(payloads: &[&[u8]]) -> u32 {
    u32::try_from(payloads.len()).unwrap_or(u32::MAX)
}
