//! Transactions: messages to several queues, and acknowledgements, in one step.

use std::sync::Arc;
use std::time::Duration;

use super::consumer::BrokeredConsumer;
use super::delivery::Delivery;
use super::encode_metadata;
use super::ends::{Ends, NotSent};
use super::error::AckError;
use super::producer::BrokeredProducer;
use super::receipt::Receipt;
use crate::client::SendError;
use crate::client::internal::{Attachment, Inner};
use crate::layout::metadata::Metadata;
use crate::protocol::HandleKey;
use crate::wire::transaction::{Ack, FLAG_TRANSACTION, Message, PARTS_MAX, Transaction as Parts};

/// Why something cannot be part of a transaction, or why that was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// A durable queue and one in memory: they are not stored together.
    #[error(
        "a transaction spans queues that are stored together: all durable, or all in memory; make them alike"
    )]
    CrossShard,
    /// The producer or consumer belongs to another client.
    #[error("the handle belongs to another client: a transaction has handles of one client")]
    ForeignHandle,
    /// The delivery cannot be acknowledged.
    #[error("{0}")]
    Ack(#[from] AckError),
    /// Another producer with a name than the one that commits: only that one knows its next own sequence.
    #[error("a producer with a name takes part only in transactions that are committed through it")]
    OtherName,
    /// Too many messages and acknowledgements.
    #[error("more than {PARTS_MAX} messages and acknowledgements: use several transactions")]
    TooMany,
    /// It has neither messages nor acknowledgements.
    #[error("the transaction is empty: there is nothing to commit")]
    Empty,
    /// It could not be sent; nothing of it is done.
    #[error("{0}")]
    Send(#[from] SendError),
}

#[derive(Debug)]
struct Part {
    producer: HandleKey,
    /// The producer has a name.
    named: bool,
    metadata: Vec<u8>,
    payload: Vec<u8>,
}

/// Messages and acknowledgements that are carried out together, or not at all: whatever dies, also across a power cut when the
/// queues are durable.
///
/// It is gathered in this process and sent as one message by [`Self::commit`]; until then nothing happens, and dropping it
/// undoes nothing. All handles are of one client, all queues durable or all in memory. The whole, with some 40 bytes a
/// part, is at most as long as a message of the queue through whose producer it is committed may be.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use ringmain_client::{Client, ConsumerOptions, ProducerOptions};
/// let client = Client::connect_default()?;
/// let mut input = client.brokered_consumer("orders", ConsumerOptions::default())?;
/// let mut output = client.brokered_producer("invoices", ProducerOptions::default())?;
/// let order = input.receive()?;
/// let mut transaction = client.transaction();
/// transaction.publish(&output, order.payload())?;
/// transaction.ack(&input, &order)?;
/// let receipt = transaction.commit(&mut output)?;
/// output.wait(&receipt)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Transaction {
    client: Arc<Inner>,
    shard: Option<u32>,
    messages: Vec<Part>,
    acks: Vec<Ack>,
}

impl Transaction {
    pub(crate) fn new(client: &Arc<Inner>) -> Self {
        Self { client: Arc::clone(client), shard: None, messages: Vec::new(), acks: Vec::new() }
    }

    /// Messages that it has so far.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Acknowledgements that it has so far.
    #[must_use]
    pub fn acks(&self) -> usize {
        self.acks.len()
    }

    /// A message to the queue of this producer.
    ///
    /// # Errors
    /// [`TransactionError::CrossShard`], [`TransactionError::ForeignHandle`], [`TransactionError::TooMany`].
    pub fn publish(
        &mut self,
        producer: &BrokeredProducer,
        payload: &[u8],
    ) -> Result<&mut Self, TransactionError> {
        self.add(producer, Vec::new(), payload)
    }

    /// The same with metadata in front of the payload.
    ///
    /// # Errors
    /// As [`Self::publish`], and [`SendError::InvalidMetadata`].
    pub fn publish_message(
        &mut self,
        producer: &BrokeredProducer,
        metadata: &Metadata,
        payload: &[u8],
    ) -> Result<&mut Self, TransactionError> {
        let mut encoded = Vec::new();
        encode_metadata(metadata, &mut encoded)?;
        self.add(producer, encoded, payload)
    }

    fn add(
        &mut self,
        producer: &BrokeredProducer,
        metadata: Vec<u8>,
        payload: &[u8],
    ) -> Result<&mut Self, TransactionError> {
        if payload.len() > producer.max_message() {
            let (length, max) = (payload.len(), producer.max_message());
            return Err(SendError::TooLarge { length, max }.into());
        }
        self.admit(&producer.attachment, producer.shard)?;
        self.messages.push(Part {
            producer: producer.attachment.key,
            named: producer.ends.named.is_some(),
            metadata,
            payload: payload.to_vec(),
        });
        Ok(self)
    }

    /// The acknowledgement of a message of this consumer. If the lease is over when the transaction is carried out, nothing of
    /// it is done.
    ///
    /// # Errors
    /// As [`Self::publish`], and [`TransactionError::Ack`] for a delivery of another consumer or one that was only shown.
    pub fn ack(
        &mut self,
        consumer: &BrokeredConsumer,
        delivery: &Delivery,
    ) -> Result<&mut Self, TransactionError> {
        let lease = consumer.token(delivery)?;
        self.admit(&consumer.attachment, consumer.shard)?;
        self.acks.push(Ack { consumer: consumer.attachment.key, lease });
        Ok(self)
    }

    fn admit(&mut self, attachment: &Attachment, shard: u32) -> Result<(), TransactionError> {
        if !attachment.is_of(&self.client) {
            return Err(TransactionError::ForeignHandle);
        }
        if self.messages.len() + self.acks.len() >= PARTS_MAX {
            return Err(TransactionError::TooMany);
        }
        if *self.shard.get_or_insert(shard) != shard {
            return Err(TransactionError::CrossShard);
        }
        Ok(())
    }

    /// Sends it through the lane of this producer, waiting for room as long as it takes. The receipt is that producer's and tells what
    /// became of the whole: confirmed with the sequence of its first message (0 without messages), or why nothing of it was done,
    /// [`super::ConfirmError::LeaseLost`] if a lease was over. After an error it can be committed again.
    ///
    /// A producer with a name numbers its messages now. If they are duplicates, so is the transaction: it was carried out
    /// before, and is not again. If only some are, it is put together in another way and is rejected.
    ///
    /// # Errors
    /// [`TransactionError::Send`] as [`BrokeredProducer::send`], [`TransactionError::Empty`], [`TransactionError::OtherName`],
    /// and as [`Self::publish`] for the producer.
    pub fn commit(&self, producer: &mut BrokeredProducer) -> Result<Receipt, TransactionError> {
        self.commit_within(producer, None, SendError::Timeout)
    }

    /// The same; waits for room at most this long.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_timeout(
        &self,
        producer: &mut BrokeredProducer,
        timeout: Duration,
    ) -> Result<Receipt, TransactionError> {
        self.commit_within(producer, Some(timeout), SendError::Timeout)
    }

    fn commit_within(
        &self,
        producer: &mut BrokeredProducer,
        timeout: Option<Duration>,
        late: SendError,
    ) -> Result<Receipt, TransactionError> {
        let (body, own) = self.body(producer)?;
        let receipt = producer.send_transaction(&body, timeout, late)?;
        producer.ends.took_own(own);
        Ok(receipt)
    }

    /// As it is sent through this producer, and how many own sequences of that it takes.
    pub(crate) fn body(
        &self,
        producer: &BrokeredProducer,
    ) -> Result<(Vec<u8>, usize), TransactionError> {
        if self.messages.is_empty() && self.acks.is_empty() {
            return Err(TransactionError::Empty);
        }
        if !producer.attachment.is_of(&self.client) {
            return Err(TransactionError::ForeignHandle);
        }
        if self.shard != Some(producer.shard) {
            return Err(TransactionError::CrossShard);
        }
        let mut own = 0;
        let mut metadata = Vec::with_capacity(self.messages.len());
        for part in &self.messages {
            let mut bytes = Vec::new();
            if part.named {
                let named = producer.ends.named.as_ref();
                let named = named.filter(|_| part.producer == producer.attachment.key);
                let named = named.ok_or(TransactionError::OtherName)?;
                bytes.extend_from_slice(&named.entry(own));
                own += 1;
            }
            bytes.extend_from_slice(&part.metadata);
            metadata.push(bytes);
        }
        let parts = self.messages.iter().zip(&metadata);
        let messages = parts.map(|(part, metadata)| Message {
            producer: part.producer,
            metadata,
            payload: &part.payload,
        });
        let parts = Parts { messages: messages.collect(), acks: self.acks.clone() };
        let mut body = Vec::new();
        parts.encode(&mut body);
        Ok((body, own))
    }
}

impl Ends {
    /// The next so many own sequences are used.
    pub(crate) fn took_own(&mut self, count: usize) {
        if let Some(named) = &mut self.named {
            named.next = named.next.saturating_add(count as u64);
        }
    }

    /// Sends a transaction.
    pub(crate) fn try_send_transaction(
        &mut self,
        attachment: &Attachment,
        body: &[u8],
    ) -> Result<Receipt, NotSent> {
        let slots = || attachment.geometry.slots_for(body.len());
        self.try_send(attachment, 1, slots, |up, ledger| {
            up.try_send(FLAG_TRANSACTION, &[], body).map(|position| ledger.sent(position))
        })
    }
}
