//! The sending handle of a brokered queue.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::error::ConfirmError;
use super::ledger::Ledger;
use super::memory::{Opened, open};
use super::receipt::{Confirmation, Receipt, Receipts, SettledRun};
use super::shard_link::ShardEnd;
use super::waiting::{Deadline, ForNews, ForRoom, Pair};
use super::{ProducerOptions, completions, handle_number};
use crate::client::internal::{Attachment, Inner, Stop, encode, leave, wait_for};
use crate::client::{ClientError, SendError};
use crate::layout::metadata::Metadata;
use crate::protocol::{AttachOptions, Kind, Role};
use crate::ring::{self, Fault, Kernel, TrySendError};
use crate::sys::clock::monotonic_ns;

/// How often a producer that sends without ever waiting looks for completions, in messages. Fewer than the fewest slots of
/// a ring of records, so that the shard always finds room for them.
const MESSAGES_PER_LOOK: u64 = 32;

/// A shard whose journal failed completes what it has taken with that error. Whoever still waits after this time is told by
/// the handle itself.
const FAILED_GRACE_NS: u64 = 1_000_000_000;

/// Sends messages to one brokered queue and learns what became of them.
///
/// Sending puts the message into shared memory that outlives a killed daemon, and returns a [`Receipt`]. With it the
/// producer can be asked what became of the message; `wait_` forms wait until that is known. Receipts may be asked for in any
/// order, again and again, or never; what became of the latest 65,536 runs of messages is remembered.
///
/// A producer may move to another thread, but two threads cannot share one. Dropping it gives the handle back; what was sent
/// arrives all the same.
///
/// # Errors
/// The sending forms return [`SendError::Full`] (`try_`) or [`SendError::Timeout`] (`_timeout`) when there is no room in the
/// lane or in the window, [`SendError::JournalFailed`] when the disk of a durable queue is gone, [`SendError::Closed`] when the
/// queue was deleted or its daemon stopped, [`SendError::Lost`] when another daemon answers, [`SendError::TooLarge`] for what can
/// never fit, and [`SendError::UsedAfterFork`] in a forked child. What was not sent leaves no trace.
#[derive(Debug)]
pub struct BrokeredProducer {
    pub(crate) ends: Ends,
    // Behind the rings, because it owns their mappings: fields are dropped in this order.
    pub(crate) attachment: Attachment,
    metadata: Vec<u8>,
    /// `Send`, not `Sync`.
    not_sync: PhantomData<Cell<()>>,
}

/// Both rings and what is known of the messages between them.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) up: ring::Producer,
    pub(crate) down: ring::Consumer,
    shard: ShardEnd,
    pub(crate) ledger: Ledger,
    window: usize,
    durable: bool,
    max_message: usize,
    /// The daemon broke the rules: nothing it says is believed any more.
    broken: Option<Fault>,
    /// When it was first seen that the journal failed, in nanoseconds; 0: it has not.
    failed_ns: u64,
}

impl Pair for Ends {
    fn up(&self) -> &ring::Producer {
        &self.up
    }
    fn down(&self) -> &ring::Consumer {
        &self.down
    }
}

/// What a message that found no room waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lacks {
    /// The lane's slots of messages that are settled already: the shard is about to release them.
    Room,
    /// A completion: of the window, or because no slot is released before its message is completed.
    Completion,
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotSent {
    Lacks(Lacks),
    Never(SendError),
}

impl From<ConfirmError> for NotSent {
    fn from(error: ConfirmError) -> Self {
        Self::Never(match error {
            ConfirmError::Closed(closed) => SendError::Closed(closed),
            ConfirmError::JournalFailed { errno } => SendError::JournalFailed { errno },
            ConfirmError::PeerFault(fault) => SendError::PeerFault(fault),
            ConfirmError::UsedAfterFork => SendError::UsedAfterFork,
            _ => SendError::Lost,
        })
    }
}

impl Ends {
    /// Takes all completions that are there; whether there were any.
    pub(crate) fn collect(&mut self, attachment: &Attachment) -> Result<bool, ConfirmError> {
        if let Some(fault) = self.broken {
            return Err(ConfirmError::PeerFault(fault));
        }
        let collected = completions::collect(&mut self.down, &mut self.ledger);
        if collected.taken {
            // A shard that found no room for a completion is told.
            attachment.kernel.light_barrier();
            if self.down.peer_park().any_sleeper() {
                self.shard.notify(&attachment.kernel);
            }
        }
        match collected.end {
            Some(ConfirmError::PeerFault(fault)) => {
                self.broken = Some(fault);
                attachment.report(&fault);
                Err(ConfirmError::PeerFault(fault))
            }
            // What was settled before the end came is told first.
            Some(_) if collected.taken => Ok(true),
            Some(error) => Err(error),
            None => Ok(collected.taken),
        }
    }

    /// Sends with `send` if `messages` more fit the window and what takes `slots` slots fits the lane.
    #[inline]
    pub(crate) fn try_send<T>(
        &mut self,
        attachment: &Attachment,
        messages: usize,
        slots: impl Fn() -> u64,
        send: impl FnOnce(&mut ring::Producer, &mut Ledger) -> Result<T, TrySendError>,
    ) -> Result<T, NotSent> {
        if let Some(errno) = self.shard.failed() {
            return Err(NotSent::Never(SendError::JournalFailed { errno }));
        }
        if attachment.is_lost() {
            return Err(NotSent::Never(SendError::Lost));
        }
        if !self.fits_window(messages) {
            return Err(NotSent::Lacks(Lacks::Completion));
        }
        match send(&mut self.up, &mut self.ledger) {
            Ok(sent) => {
                self.shard.notify(&attachment.kernel);
                Ok(sent)
            }
            Err(TrySendError::Full) => {
                let lane = attachment.geometry.slots();
                Err(NotSent::Lacks(self.lacks(slots(), lane)))
            }
            Err(TrySendError::Fault(fault)) => {
                self.broken = Some(fault);
                attachment.report(&fault);
                Err(NotSent::Never(SendError::PeerFault(fault)))
            }
            Err(error) => Err(NotSent::Never(error.into())),
        }
    }

    /// A batch larger than the window goes alone.
    #[inline(always)]
    fn fits_window(&self, messages: usize) -> bool {
        let unsettled = self.ledger.unsettled();
        unsettled == 0 || messages <= self.window.saturating_sub(unsettled)
    }

    /// What a full lane of this geometry waits for. A completion comes before the release of its slots: if the slots up to the first unsettled
    /// message suffice, no other completion is needed, and if they do not, no release can come without one.
    fn lacks(&self, slots: u64, lane: u64) -> Lacks {
        let tail = self.up.position();
        let kept_from = self.ledger.unsettled_from().unwrap_or(tail);
        let kept = tail.saturating_sub(kept_from).saturating_add(slots);
        if kept <= lane { Lacks::Room } else { Lacks::Completion }
    }

    /// Sends one message.
    #[inline]
    pub(crate) fn try_send_one(
        &mut self,
        attachment: &Attachment,
        metadata: &[u8],
        payload: &[u8],
    ) -> Result<Receipt, NotSent> {
        let body = || metadata.len().next_multiple_of(8) + payload.len();
        let slots = || attachment.geometry.slots_for(body());
        self.try_send(attachment, 1, slots, |up, ledger| {
            up.try_send(0, metadata, payload).map(|position| ledger.sent(position))
        })
    }

    /// Sends messages in one step.
    pub(crate) fn try_send_all(
        &mut self,
        attachment: &Attachment,
        payloads: &[&[u8]],
    ) -> Result<Receipts, NotSent> {
        let slots_of = |payload: &&[u8]| attachment.geometry.slots_for(payload.len());
        let slots = || payloads.iter().map(slots_of).sum();
        self.try_send(attachment, payloads.len(), slots, |up, ledger| {
            let mut position = up.try_send_batch(payloads)?;
            Ok(ledger.sent_batch(payloads.iter().map(|payload| {
                let own = position;
                position += slots_of(payload);
                own
            })))
        })
    }

    /// What `found` finds in the ledger, or behind the completions that are there now; an error if it never will.
    pub(crate) fn look<T>(
        &mut self,
        attachment: &Attachment,
        mut found: impl FnMut(&mut Ledger) -> Option<Result<T, ConfirmError>>,
    ) -> Option<Result<T, ConfirmError>> {
        if let Some(found) = found(&mut self.ledger) {
            return Some(found);
        }
        match self.news(attachment) {
            Ok(true) => found(&mut self.ledger),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// A look of somebody who waits for completions: whether there is anything new. An error if nothing will come.
    pub(crate) fn news(&mut self, attachment: &Attachment) -> Result<bool, ConfirmError> {
        if self.collect(attachment)? {
            self.failed_ns = 0;
            return Ok(true);
        }
        let Some(errno) = self.shard.failed() else {
            return Ok(false);
        };
        let now_ns = monotonic_ns();
        if self.failed_ns == 0 {
            self.failed_ns = now_ns;
        }
        if now_ns.saturating_sub(self.failed_ns) < FAILED_GRACE_NS {
            return Ok(false);
        }
        Err(ConfirmError::JournalFailed { errno })
    }
}

impl BrokeredProducer {
    pub(crate) fn attach(
        client: &Arc<Inner>,
        queue: &str,
        options: ProducerOptions,
    ) -> Result<Self, ClientError> {
        let Opened { up, down, shard, durable, max_message, attachment, .. } =
            open(client, queue, Role::Produce, AttachOptions::default(), options.wait)?;
        let window = if options.window == 0 { usize::MAX } else { options.window };
        let ledger = Ledger::new(handle_number(), durable);
        let ends = Ends {
            up,
            down,
            shard,
            ledger,
            window,
            durable,
            max_message,
            broken: None,
            failed_ns: 0,
        };
        Ok(Self { ends, attachment, metadata: Vec::new(), not_sync: PhantomData })
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

    /// Whether a confirmed message is on stable storage.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.ends.durable
    }

    /// Longest payload in bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.ends.max_message
    }

    /// Messages that were sent and are not settled, as far as this handle has looked.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.ends.ledger.unsettled()
    }

    /// Sends a message if there is room now.
    ///
    /// # Errors
    /// See [`BrokeredProducer`].
    #[inline]
    pub fn try_send(&mut self, payload: &[u8]) -> Result<Receipt, SendError> {
        self.send_one(&[], payload, Some(Duration::ZERO), SendError::Full)
    }

    /// Sends a message and waits for room as long as it takes.
    ///
    /// # Errors
    /// See [`BrokeredProducer`].
    #[inline]
    pub fn send(&mut self, payload: &[u8]) -> Result<Receipt, SendError> {
        self.send_one(&[], payload, None, SendError::Timeout)
    }

    /// Sends a message and waits for room at most this long.
    ///
    /// # Errors
    /// See [`BrokeredProducer`].
    #[inline]
    pub fn send_timeout(
        &mut self,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Receipt, SendError> {
        self.send_one(&[], payload, Some(timeout), SendError::Timeout)
    }

    /// As [`Self::try_send`], with metadata in front of the payload.
    ///
    /// # Errors
    /// See [`BrokeredProducer`]; [`SendError::InvalidMetadata`].
    pub fn try_send_message(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
    ) -> Result<Receipt, SendError> {
        self.send_encoded(metadata, payload, Some(Duration::ZERO), SendError::Full)
    }

    /// As [`Self::send`], with metadata in front of the payload.
    ///
    /// # Errors
    /// See [`BrokeredProducer`]; [`SendError::InvalidMetadata`].
    pub fn send_message(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
    ) -> Result<Receipt, SendError> {
        self.send_encoded(metadata, payload, None, SendError::Timeout)
    }

    /// As [`Self::send_timeout`], with metadata in front of the payload.
    ///
    /// # Errors
    /// See [`BrokeredProducer`]; [`SendError::InvalidMetadata`].
    pub fn send_message_timeout(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Receipt, SendError> {
        self.send_encoded(metadata, payload, Some(timeout), SendError::Timeout)
    }

    /// Sends all of these messages in one step, or none, if there is room now.
    ///
    /// Together they take at most a quarter of the lane; beyond that the error is [`SendError::TooLarge`]. A batch of more
    /// messages than the window is sent when nothing else is unsettled.
    ///
    /// # Errors
    /// See [`BrokeredProducer`].
    pub fn try_send_batch(&mut self, payloads: &[&[u8]]) -> Result<Receipts, SendError> {
        self.send_all(payloads, Some(Duration::ZERO), SendError::Full)
    }

    /// As [`Self::try_send_batch`]; waits for room for all of them as long as it takes.
    ///
    /// # Errors
    /// See [`BrokeredProducer`].
    pub fn send_batch(&mut self, payloads: &[&[u8]]) -> Result<Receipts, SendError> {
        self.send_all(payloads, None, SendError::Timeout)
    }

    /// As [`Self::try_send_batch`]; waits for room for all of them at most this long.
    ///
    /// # Errors
    /// See [`BrokeredProducer`].
    pub fn send_batch_timeout(
        &mut self,
        payloads: &[&[u8]],
        timeout: Duration,
    ) -> Result<Receipts, SendError> {
        self.send_all(payloads, Some(timeout), SendError::Timeout)
    }

    fn send_encoded(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
        timeout: Option<Duration>,
        late: SendError,
    ) -> Result<Receipt, SendError> {
        self.metadata.clear();
        encode(metadata, &mut self.metadata)?;
        let encoded = std::mem::take(&mut self.metadata);
        let sent = self.send_one(&encoded, payload, timeout, late);
        self.metadata = encoded;
        sent
    }

    #[inline]
    fn send_one(
        &mut self,
        metadata: &[u8],
        payload: &[u8],
        timeout: Option<Duration>,
        late: SendError,
    ) -> Result<Receipt, SendError> {
        if self.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        match self.ends.try_send_one(&self.attachment, metadata, payload) {
            Ok(receipt) => {
                if receipt.number().is_multiple_of(MESSAGES_PER_LOOK) {
                    // What is wrong will be said to those who ask.
                    let _ = self.ends.collect(&self.attachment);
                    self.attachment.keep_house_rarely();
                }
                Ok(receipt)
            }
            Err(NotSent::Never(error)) => Err(error),
            Err(NotSent::Lacks(_)) => {
                self.send_longer(timeout, late, |ends, at| ends.try_send_one(at, metadata, payload))
            }
        }
    }

    fn send_all(
        &mut self,
        payloads: &[&[u8]],
        timeout: Option<Duration>,
        late: SendError,
    ) -> Result<Receipts, SendError> {
        if self.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        match self.ends.try_send_all(&self.attachment, payloads) {
            Ok(receipts) => {
                let _ = self.ends.collect(&self.attachment);
                Ok(receipts)
            }
            Err(NotSent::Never(error)) => Err(error),
            Err(NotSent::Lacks(_)) => {
                self.send_longer(timeout, late, |ends, at| ends.try_send_all(at, payloads))
            }
        }
    }

    /// After an `attempt` that found no room: the same again, behind a look at the completions, until it finds some.
    #[cold]
    #[inline(never)]
    fn send_longer<T>(
        &mut self,
        timeout: Option<Duration>,
        late: SendError,
        mut attempt: impl FnMut(&mut Ends, &Attachment) -> Result<T, NotSent>,
    ) -> Result<T, SendError> {
        let deadline = Deadline::after(timeout);
        let mut look = |ends: &mut Ends, attachment: &Attachment| {
            ends.news(attachment)?;
            attempt(ends, attachment)
        };
        let mut result = look(&mut self.ends, &self.attachment);
        loop {
            // Each of the two is waited for where it is announced. As soon as it is the other, that wait ends.
            let lacks = match result {
                Ok(sent) => return Ok(sent),
                Err(NotSent::Never(error)) => return Err(error),
                Err(NotSent::Lacks(lacks)) => lacks,
            };
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                let lost = self.attachment.keep_house_rarely();
                return Err(if lost { SendError::Lost } else { late });
            }
            let mut found = |ends: &mut Ends, attachment: &mut Attachment| {
                result = look(ends, attachment);
                result.as_ref().err() != Some(&NotSent::Lacks(lacks))
            };
            let (attachment, left) = (&mut self.attachment, deadline.left());
            let waited = match lacks {
                Lacks::Room => {
                    let mut side = ForRoom(&mut self.ends);
                    wait_for(attachment, &mut side, left, |side, at| found(side.0, at))
                }
                Lacks::Completion => {
                    let mut side = ForNews(&mut self.ends);
                    wait_for(attachment, &mut side, left, |side, at| found(side.0, at))
                }
            };
            match waited {
                Ok(()) => {}
                Err(Stop::Timeout) => return Err(late),
                Err(Stop::Lost) => return Err(SendError::Lost),
            }
        }
    }

    /// What became of a message, if that is known now.
    ///
    /// # Errors
    /// [`ConfirmError`]: what went wrong with the message, or why it will never be known.
    pub fn try_receipt(&mut self, receipt: &Receipt) -> Result<Option<Confirmation>, ConfirmError> {
        match self.wait_timeout(receipt, Duration::ZERO) {
            Ok(confirmation) => Ok(Some(confirmation)),
            Err(ConfirmError::Timeout) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until it is known what became of a message.
    ///
    /// # Errors
    /// As [`Self::try_receipt`].
    pub fn wait(&mut self, receipt: &Receipt) -> Result<Confirmation, ConfirmError> {
        self.wait_within(receipt, None)
    }

    /// Waits at most this long until it is known what became of a message.
    ///
    /// # Errors
    /// As [`Self::try_receipt`], and [`ConfirmError::Timeout`].
    pub fn wait_timeout(
        &mut self,
        receipt: &Receipt,
        timeout: Duration,
    ) -> Result<Confirmation, ConfirmError> {
        self.wait_within(receipt, Some(timeout))
    }

    fn wait_within(
        &mut self,
        receipt: &Receipt,
        timeout: Option<Duration>,
    ) -> Result<Confirmation, ConfirmError> {
        self.look_until(timeout, |ledger| ledger.settled(receipt))
    }

    /// Waits for all of these messages, at most this long if a time is given; their confirmations in the same order.
    ///
    /// # Errors
    /// The first one in the order of the receipts, as [`Self::wait_timeout`].
    pub fn wait_each(
        &mut self,
        receipts: impl IntoIterator<Item = Receipt>,
        timeout: Option<Duration>,
    ) -> Result<Vec<Confirmation>, ConfirmError> {
        let deadline = Deadline::after(timeout);
        let wait = |receipt| self.wait_within(&receipt, deadline.left());
        receipts.into_iter().map(wait).collect()
    }

    /// Waits until everything that was sent is settled.
    ///
    /// # Errors
    /// The first failure of any message since the last call, or why it will never be known.
    pub fn wait_all(&mut self) -> Result<(), ConfirmError> {
        self.wait_all_within(None)
    }

    /// The same, at most this long.
    ///
    /// # Errors
    /// As [`Self::wait_all`], and [`ConfirmError::Timeout`].
    pub fn wait_all_timeout(&mut self, timeout: Duration) -> Result<(), ConfirmError> {
        self.wait_all_within(Some(timeout))
    }

    fn wait_all_within(&mut self, timeout: Option<Duration>) -> Result<(), ConfirmError> {
        self.look_until(timeout, Ledger::all_settled)
    }

    /// The next messages, in the order in which they were sent, that are settled and were not told here before; `None` if there
    /// are none now.
    ///
    /// # Errors
    /// Why nothing will be settled any more; [`ConfirmError::Forgotten`] after so long a pause that some are forgotten.
    pub fn try_next_settled(&mut self) -> Result<Option<SettledRun>, ConfirmError> {
        match self.next_settled(Duration::ZERO) {
            Err(ConfirmError::Timeout) => Ok(None),
            result => result,
        }
    }

    /// The same; waits for them at most this long. `None` at once if nothing is unsettled.
    ///
    /// # Errors
    /// As [`Self::try_next_settled`], and [`ConfirmError::Timeout`].
    pub fn next_settled(&mut self, timeout: Duration) -> Result<Option<SettledRun>, ConfirmError> {
        self.look_until(Some(timeout), Ledger::tell_or_end)
    }

    /// Takes completions until `found` finds something in the ledger.
    fn look_until<T>(
        &mut self,
        timeout: Option<Duration>,
        mut found: impl FnMut(&mut Ledger) -> Option<Result<T, ConfirmError>>,
    ) -> Result<T, ConfirmError> {
        if self.attachment.is_forked() {
            return Err(ConfirmError::UsedAfterFork);
        }
        let mut look = |ends: &mut Ends, attachment: &Attachment| ends.look(attachment, &mut found);
        if let Some(result) = look(&mut self.ends, &self.attachment) {
            return result;
        }
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            let lost = self.attachment.keep_house_rarely();
            return Err(if lost { ConfirmError::Lost } else { ConfirmError::Timeout });
        }
        let mut result = None;
        let mut side = ForNews(&mut self.ends);
        let waited = wait_for(&mut self.attachment, &mut side, timeout, |side, attachment| {
            result = look(side.0, attachment);
            result.is_some()
        });
        match (waited, result) {
            (Ok(()), Some(result)) => result,
            (Err(Stop::Lost), _) => Err(ConfirmError::Lost),
            _ => Err(ConfirmError::Timeout),
        }
    }
}

impl Drop for BrokeredProducer {
    fn drop(&mut self) {
        if !self.attachment.is_forked() {
            leave(&ForRoom(&mut self.ends));
            leave(&ForNews(&mut self.ends));
        }
    }
}
