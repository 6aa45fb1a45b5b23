//! The receiving handle of a brokered queue.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

use super::error::AckError;
use crate::client::ReceiveError;
use crate::layout::metadata::{Metadata, MetadataError};
use crate::protocol::Kind;

/// A message that is with this consumer until it is acknowledged, given back, or its lease is over.
#[derive(Debug, Clone, Default)]
pub struct Delivery {
    payload: Vec<u8>,
}

#[allow(clippy::missing_errors_doc)]
impl Delivery {
    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
    /// The metadata in front of it.
    pub fn metadata(&self) -> Result<Metadata, MetadataError> {
        todo!()
    }
    /// Its place in the queue: dense, from 1.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        todo!()
    }
    /// Number of this delivery of the message, from 1; 0 if it is only shown.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        todo!()
    }
    /// Whether it was delivered before.
    #[must_use]
    pub fn redelivered(&self) -> bool {
        todo!()
    }
    /// When the daemon took the message: nanoseconds since 1970.
    #[must_use]
    pub fn published_ns(&self) -> u64 {
        todo!()
    }
    /// Length of the lease; `None`: as long as this process lives.
    #[must_use]
    pub fn lease(&self) -> Option<Duration> {
        todo!()
    }
}

/// Receives messages from one brokered queue and says what became of them.
#[derive(Debug)]
pub struct BrokeredConsumer {
    not_sync: PhantomData<Cell<()>>,
}

#[allow(unused_variables, clippy::missing_errors_doc)]
impl BrokeredConsumer {
    pub(crate) fn attach(
        client: &std::sync::Arc<crate::client::internal::Inner>,
        queue: &str,
        options: &super::ConsumerOptions,
    ) -> Result<Self, crate::client::ClientError> {
        todo!()
    }
    /// Name of the queue.
    #[must_use]
    pub fn queue_name(&self) -> &str {
        todo!()
    }
    /// Kind of the queue.
    #[must_use]
    pub fn kind(&self) -> Kind {
        todo!()
    }
    /// Whether messages survive the machine.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        todo!()
    }
    /// Longest payload in bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        todo!()
    }
    /// A message if there is one now (`Empty`).
    pub fn try_receive(&mut self) -> Result<Delivery, ReceiveError> {
        todo!()
    }
    /// Waits as long as it takes.
    pub fn receive(&mut self) -> Result<Delivery, ReceiveError> {
        todo!()
    }
    /// Waits at most this long (`Timeout`).
    pub fn receive_timeout(&mut self, timeout: Duration) -> Result<Delivery, ReceiveError> {
        todo!()
    }
    /// Reuses the memory of an earlier delivery; `None` waits as long as it takes.
    pub fn receive_into(
        &mut self,
        delivery: &mut Delivery,
        timeout: Option<Duration>,
    ) -> Result<(), ReceiveError> {
        todo!()
    }
    /// As [`Self::receive_into`]; `false` as soon as the daemon says that nothing is left for this consumer's group (or to be shown).
    pub fn receive_or_drained(
        &mut self,
        delivery: &mut Delivery,
        timeout: Option<Duration>,
    ) -> Result<bool, ReceiveError> {
        todo!()
    }
    /// The message is done with. Not waited for.
    pub fn ack(&mut self, delivery: &Delivery) -> Result<(), AckError> {
        todo!()
    }
    /// Give it out again, not before `delay` is over.
    pub fn nack(&mut self, delivery: &Delivery, delay: Duration) -> Result<(), AckError> {
        todo!()
    }
    /// The lease shall end this long from now.
    pub fn extend(&mut self, delivery: &Delivery, lease: Duration) -> Result<(), AckError> {
        todo!()
    }
    /// To the dead-letter queue at once, or discarded if there is none.
    pub fn reject(&mut self, delivery: &Delivery) -> Result<(), AckError> {
        todo!()
    }
    /// As [`Self::ack`]; waits for the answer: the acknowledgement is as safe as a confirmed message.
    pub fn ack_confirmed(
        &mut self,
        delivery: &Delivery,
        timeout: Duration,
    ) -> Result<(), AckError> {
        todo!()
    }
    /// As [`Self::nack`]; waits for the answer.
    pub fn nack_confirmed(
        &mut self,
        delivery: &Delivery,
        delay: Duration,
        timeout: Duration,
    ) -> Result<(), AckError> {
        todo!()
    }
    /// As [`Self::extend`]; waits for the answer.
    pub fn extend_confirmed(
        &mut self,
        delivery: &Delivery,
        lease: Duration,
        timeout: Duration,
    ) -> Result<(), AckError> {
        todo!()
    }
    /// As [`Self::reject`]; waits for the answer.
    pub fn reject_confirmed(
        &mut self,
        delivery: &Delivery,
        timeout: Duration,
    ) -> Result<(), AckError> {
        todo!()
    }
    /// Waits until everything that was acknowledged, given back or rejected so far is carried out and as safe as a confirmed message.
    pub fn flush(&mut self, timeout: Duration) -> Result<(), AckError> {
        todo!()
    }
    /// At most this many messages may be unacknowledged from now on; 0 pauses.
    pub fn set_credit(&mut self, credit: u32) -> Result<(), AckError> {
        todo!()
    }
}
