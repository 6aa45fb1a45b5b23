//! The sending handle of a brokered queue.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::ends::{Ends, Lacks, NotSent};
use super::error::ConfirmError;
use super::ledger::Ledger;
use super::memory::{Opened, open};
use super::named::OwnSequences;
use super::receipt::{Confirmation, Receipt, Receipts, SettledRun};
use super::waiting::{Deadline, ForNews, ForRoom};
use super::{ProducerOptions, encode_metadata, handle_number};
use crate::client::internal::{Attachment, Inner, Stop, leave, wait_for};
use crate::client::{ClientError, SendError};
use crate::layout::metadata::Metadata;
use crate::protocol::{AttachOptions, Kind, Role};

/// How often a producer that sends without ever waiting looks for completions, in messages. Fewer than the fewest slots of
/// a ring of records, so that the shard always finds room for them.
const MESSAGES_PER_LOOK: u64 = 32;

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
/// never fit, [`SendError::Fenced`] when somebody else has attached under its name, and [`SendError::UsedAfterFork`] in a forked child. What was not sent leaves no trace.
#[derive(Debug)]
pub struct BrokeredProducer {
    pub(crate) ends: Ends,
    // Behind the rings, because it owns their mappings: fields are dropped in this order.
    pub(crate) attachment: Attachment,
    /// Number of its shard.
    pub(super) shard: u32,
    durable: bool,
    max_message: usize,
    metadata: Vec<u8>,
    /// `Send`, not `Sync`.
    not_sync: PhantomData<Cell<()>>,
}

impl BrokeredProducer {
    pub(crate) fn attach(
        client: &Arc<Inner>,
        queue: &str,
        name: &str,
        options: ProducerOptions,
    ) -> Result<Self, ClientError> {
        let asked = AttachOptions { producer: name.to_owned(), ..AttachOptions::default() };
        let opened = open(client, queue, Role::Produce, asked, options.wait)?;
        let Opened { up, down, shard, shard_number, durable, max_message, .. } = opened;
        let (named, mut attachment) = (opened.named, opened.attachment);
        if durable {
            attachment.tuner.set_for_disk();
        }
        if named.is_none() && !name.is_empty() {
            return Err(ClientError::Protocol("a handle without the name".to_owned()));
        }
        let named = named.map(|named| OwnSequences::new(name.to_owned(), named));
        let window = if options.window == 0 { usize::MAX } else { options.window };
        let ledger = Ledger::new(handle_number(), durable);
        let ends = Ends::new(up, down, shard, ledger, window, named);
        Ok(Self {
            ends,
            attachment,
            shard: shard_number,
            durable,
            max_message,
            metadata: Vec::new(),
            not_sync: PhantomData,
        })
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
        self.durable
    }

    /// Longest payload in bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.max_message
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.ends.named.as_ref().map(|named| named.name.as_str())
    }

    /// Last own sequence that was stored under the name when this producer was attached; 0: none. `None` without a name.
    #[must_use]
    pub fn stored_own_sequence(&self) -> Option<u64> {
        self.ends.named.as_ref().map(|named| named.stored)
    }

    /// The own sequence that the next message gets. `None` without a name.
    #[must_use]
    pub fn next_own_sequence(&self) -> Option<u64> {
        self.ends.named.as_ref().map(|named| named.next)
    }

    /// The next message gets this own sequence, and those after it the following ones: for a source that numbers its messages
    /// itself. A number at or below the last one stored is a duplicate ([`Confirmation::duplicate`]), whatever the message
    /// says, so numbers ascend; they may leave gaps. Returns whether that is possible: the producer has a name and the number
    /// is not 0.
    #[must_use]
    pub fn set_next_own_sequence(&mut self, sequence: u64) -> bool {
        match &mut self.ends.named {
            Some(named) if sequence > 0 => {
                named.next = sequence;
                true
            }
            _ => false,
        }
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
        encode_metadata(metadata, &mut self.metadata)?;
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

    /// Sends a transaction and waits for room.
    pub(super) fn send_transaction(
        &mut self,
        body: &[u8],
        timeout: Option<Duration>,
        late: SendError,
    ) -> Result<Receipt, SendError> {
        if self.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        match self.ends.try_send_transaction(&self.attachment, body) {
            Ok(receipt) => {
                let _ = self.ends.collect(&self.attachment);
                Ok(receipt)
            }
            Err(NotSent::Never(error)) => Err(error),
            Err(NotSent::Lacks(_)) => {
                self.send_longer(timeout, late, |ends, at| ends.try_send_transaction(at, body))
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
