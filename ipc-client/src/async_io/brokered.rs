//! Handles on brokered queues whose waiting forms are futures.

use std::time::Duration;

use super::{Bell, Stop};
use crate::brokered::internal::{
    Ends, ForNews, ForRoom, Found, Lacks, Ledger, NotSent, encode_metadata, milliseconds,
};
use crate::client::internal::{Attachment, Side};
use crate::layout::metadata::Metadata;
use crate::wire::Up;
use crate::{
    AckError, BrokeredConsumer, BrokeredProducer, ClientError, ConfirmError, Confirmation,
    Delivery, Receipt, Receipts, ReceiveError, SendError, SettledRun, Transaction,
    TransactionError,
};

/// A [`BrokeredProducer`] whose waiting forms are futures. Dropped futures have sent nothing, or lost no receipt.
#[derive(Debug)]
pub struct AsyncBrokeredProducer {
    producer: BrokeredProducer,
    bell: Bell,
}

impl AsyncBrokeredProducer {
    /// Takes over a producer. Called inside a tokio runtime with its I/O driver enabled; panics outside of one, as all of
    /// tokio does.
    ///
    /// # Errors
    /// No memory or descriptor is left, or the daemon refuses or does not answer.
    pub fn new(mut producer: BrokeredProducer) -> Result<Self, ClientError> {
        let bell = Bell::new(&producer.attachment, &ForNews(&mut producer.ends))?;
        bell.set_doorbell(&ForRoom(&mut producer.ends));
        Ok(Self { producer, bell })
    }

    /// Sends a message, waiting for room.
    ///
    /// # Errors
    /// As [`BrokeredProducer::send`].
    pub async fn send(&mut self, payload: &[u8]) -> Result<Receipt, SendError> {
        self.send_with(|ends, attachment| ends.try_send_one(attachment, &[], payload)).await
    }

    /// Sends a message with metadata, waiting for room.
    ///
    /// # Errors
    /// As [`BrokeredProducer::send_message`].
    pub async fn send_message(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
    ) -> Result<Receipt, SendError> {
        let mut encoded = Vec::new();
        encode_metadata(metadata, &mut encoded)?;
        self.send_with(|ends, attachment| ends.try_send_one(attachment, &encoded, payload)).await
    }

    /// Sends all of these messages in one step, waiting for room for all.
    ///
    /// # Errors
    /// As [`BrokeredProducer::send_batch`].
    pub async fn send_batch(&mut self, payloads: &[&[u8]]) -> Result<Receipts, SendError> {
        self.send_with(|ends, attachment| ends.try_send_all(attachment, payloads)).await
    }

    /// Sends a transaction through the lane of this producer, waiting for room.
    ///
    /// # Errors
    /// As [`Transaction::commit`].
    pub async fn commit(&mut self, transaction: &Transaction) -> Result<Receipt, TransactionError> {
        let (body, own) = transaction.body(&self.producer)?;
        let sent = self.send_with(|ends, attachment| ends.try_send_transaction(attachment, &body));
        let receipt = sent.await?;
        self.producer.ends.took_own(own);
        Ok(receipt)
    }

    async fn send_with<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Ends, &Attachment) -> Result<T, NotSent>,
    ) -> Result<T, SendError> {
        let Self { producer: BrokeredProducer { ends, attachment, .. }, bell } = self;
        if attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        let mut look = |ends: &mut Ends, attachment: &Attachment| {
            ends.news(attachment)?;
            attempt(ends, attachment)
        };
        let mut result = look(ends, attachment);
        loop {
            let lacks = match result {
                Ok(sent) => return Ok(sent),
                Err(NotSent::Never(error)) => return Err(error),
                Err(NotSent::Lacks(lacks)) => lacks,
            };
            // Each of the two is waited for where it is announced. As soon as it is the other, that wait ends.
            let found = |ends: &mut Ends, attachment: &Attachment| {
                let found = look(ends, attachment);
                (found.as_ref().err() != Some(&NotSent::Lacks(lacks))).then_some(found)
            };
            let waited = match lacks {
                Lacks::Room => {
                    wait(bell, attachment, &mut ForRoom(ends), |side| side.0, found).await
                }
                Lacks::Completion => {
                    wait(bell, attachment, &mut ForNews(ends), |side| side.0, found).await
                }
            };
            result = match waited {
                Ok(found) => found,
                Err(Stop::Lost) => return Err(SendError::Lost),
                Err(Stop::Runtime) => return Err(SendError::RuntimeStopped),
            };
        }
    }

    /// Waits until it is known what became of a message.
    ///
    /// # Errors
    /// As [`BrokeredProducer::wait`].
    pub async fn wait(&mut self, receipt: &Receipt) -> Result<Confirmation, ConfirmError> {
        self.look_until(|ledger| ledger.settled(receipt)).await
    }

    /// Waits until everything that was sent is settled.
    ///
    /// # Errors
    /// As [`BrokeredProducer::wait_all`].
    pub async fn wait_all(&mut self) -> Result<(), ConfirmError> {
        self.look_until(Ledger::all_settled).await
    }

    /// The next messages, in the order in which they were sent, that are settled and were not told here before. `None` if
    /// nothing is unsettled.
    ///
    /// # Errors
    /// As [`BrokeredProducer::next_settled`].
    pub async fn next_settled(&mut self) -> Result<Option<SettledRun>, ConfirmError> {
        self.look_until(Ledger::tell_or_end).await
    }

    async fn look_until<T>(
        &mut self,
        mut found: impl FnMut(&mut Ledger) -> Option<Result<T, ConfirmError>>,
    ) -> Result<T, ConfirmError> {
        let Self { producer: BrokeredProducer { ends, attachment, .. }, bell } = self;
        if attachment.is_forked() {
            return Err(ConfirmError::UsedAfterFork);
        }
        let look = |ends: &mut Ends, attachment: &Attachment| ends.look(attachment, &mut found);
        match wait(bell, attachment, &mut ForNews(ends), |side| side.0, look).await {
            Ok(result) => result,
            Err(Stop::Lost) => Err(ConfirmError::Lost),
            Err(Stop::Runtime) => Err(ConfirmError::RuntimeStopped),
        }
    }

    /// The producer, for the forms that do not wait.
    pub fn get_mut(&mut self) -> &mut BrokeredProducer {
        &mut self.producer
    }

    /// The producer, without the doorbell.
    #[must_use]
    pub fn into_inner(mut self) -> BrokeredProducer {
        if !self.producer.attachment.is_forked() {
            self.bell.take_off(&ForNews(&mut self.producer.ends));
            self.bell.take_off(&ForRoom(&mut self.producer.ends));
        }
        self.producer
    }
}

/// Looks with `look` until it finds something, and waits in between where `side` says.
async fn wait<S: Side, E, T>(
    bell: &mut Bell,
    attachment: &mut Attachment,
    side: &mut S,
    ends: impl Fn(&mut S) -> &mut E,
    mut look: impl FnMut(&mut E, &Attachment) -> Option<T>,
) -> Result<T, Stop> {
    bell.wait(attachment, side, |side, attachment| look(ends(side), attachment)).await
}

/// A [`BrokeredConsumer`] whose waiting forms are futures. A dropped future has taken nothing.
#[derive(Debug)]
pub struct AsyncBrokeredConsumer {
    consumer: BrokeredConsumer,
    bell: Bell,
}

impl AsyncBrokeredConsumer {
    /// Takes over a consumer. Called inside a tokio runtime with its I/O driver enabled; panics outside of one, as all of
    /// tokio does.
    ///
    /// # Errors
    /// No memory or descriptor is left, or the daemon refuses or does not answer.
    pub fn new(mut consumer: BrokeredConsumer) -> Result<Self, ClientError> {
        let bell = Bell::new(&consumer.attachment, &ForNews(&mut consumer.inbox))?;
        bell.set_doorbell(&ForRoom(&mut consumer.inbox));
        Ok(Self { consumer, bell })
    }

    /// Receives a message.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::receive`].
    pub async fn receive(&mut self) -> Result<Delivery, ReceiveError> {
        let mut delivery = Delivery::default();
        self.receive_into(&mut delivery).await.map(|()| delivery)
    }

    /// Receives a message into the memory of an earlier one.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::receive_into`].
    pub async fn receive_into(&mut self, delivery: &mut Delivery) -> Result<(), ReceiveError> {
        self.receive_within(delivery, false).await.map(|_| ())
    }

    /// Receives a message, or `false` as soon as the daemon says that nothing is left.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::receive_or_drained`].
    pub async fn receive_or_drained(
        &mut self,
        delivery: &mut Delivery,
    ) -> Result<bool, ReceiveError> {
        Ok(self.receive_within(delivery, true).await? == Found::Delivery)
    }

    async fn receive_within(
        &mut self,
        delivery: &mut Delivery,
        until_drained: bool,
    ) -> Result<Found, ReceiveError> {
        let Self { consumer: BrokeredConsumer { inbox, attachment, .. }, bell } = self;
        if attachment.is_forked() {
            return Err(ReceiveError::UsedAfterFork);
        }
        delivery.forget();
        let side = &mut ForNews(inbox);
        let waited = wait(
            bell,
            attachment,
            side,
            |side| side.0,
            |inbox, attachment| {
                let found = inbox.try_receive(attachment, until_drained, delivery);
                (found != Err(ReceiveError::Empty)).then_some(found)
            },
        );
        match waited.await {
            Ok(found) => found,
            Err(Stop::Lost) => Err(ReceiveError::Lost),
            Err(Stop::Runtime) => Err(ReceiveError::RuntimeStopped),
        }
    }

    /// The message is done with.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::ack`].
    pub async fn ack(&mut self, delivery: &Delivery) -> Result<(), AckError> {
        let lease = self.consumer.token(delivery)?;
        self.submit(&Up::Ack { lease, request: 0 }).await
    }

    /// Gives the message back: it is delivered again, not before `delay` is over.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::nack`].
    pub async fn nack(&mut self, delivery: &Delivery, delay: Duration) -> Result<(), AckError> {
        let lease = self.consumer.token(delivery)?;
        self.submit(&Up::Nack { lease, request: 0, delay_ms: milliseconds(delay) }).await
    }

    /// The lease shall end this long from now.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::extend`].
    pub async fn extend(&mut self, delivery: &Delivery, lease: Duration) -> Result<(), AckError> {
        let token = self.consumer.token(delivery)?;
        self.submit(&Up::Extend { lease: token, request: 0, lease_ms: milliseconds(lease) }).await
    }

    /// The message goes to the dead-letter queue at once, or is discarded if there is none.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::reject`].
    pub async fn reject(&mut self, delivery: &Delivery) -> Result<(), AckError> {
        let lease = self.consumer.token(delivery)?;
        self.submit(&Up::Reject { lease, request: 0 }).await
    }

    /// As [`Self::ack`]; waits until it is carried out and as safe as a confirmed message.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::ack_confirmed`].
    pub async fn ack_confirmed(&mut self, delivery: &Delivery) -> Result<(), AckError> {
        let lease = self.consumer.token(delivery)?;
        self.ask(|request| Up::Ack { lease, request }).await
    }

    /// As [`Self::nack`]; waits as [`Self::ack_confirmed`].
    ///
    /// # Errors
    /// As [`BrokeredConsumer::nack_confirmed`].
    pub async fn nack_confirmed(
        &mut self,
        delivery: &Delivery,
        delay: Duration,
    ) -> Result<(), AckError> {
        let lease = self.consumer.token(delivery)?;
        let delay_ms = milliseconds(delay);
        self.ask(|request| Up::Nack { lease, request, delay_ms }).await
    }

    /// As [`Self::extend`]; waits as [`Self::ack_confirmed`].
    ///
    /// # Errors
    /// As [`BrokeredConsumer::extend_confirmed`].
    pub async fn extend_confirmed(
        &mut self,
        delivery: &Delivery,
        lease: Duration,
    ) -> Result<(), AckError> {
        let token = self.consumer.token(delivery)?;
        let lease_ms = milliseconds(lease);
        self.ask(|request| Up::Extend { lease: token, request, lease_ms }).await
    }

    /// As [`Self::reject`]; waits as [`Self::ack_confirmed`].
    ///
    /// # Errors
    /// As [`BrokeredConsumer::reject_confirmed`].
    pub async fn reject_confirmed(&mut self, delivery: &Delivery) -> Result<(), AckError> {
        let lease = self.consumer.token(delivery)?;
        self.ask(|request| Up::Reject { lease, request }).await
    }

    /// Waits until everything that was acknowledged, given back or rejected so far is carried out and as safe as a confirmed
    /// message.
    ///
    /// # Errors
    /// As [`BrokeredConsumer::flush`].
    pub async fn flush(&mut self) -> Result<(), AckError> {
        if self.consumer.attachment.is_forked() {
            return Err(AckError::UsedAfterFork);
        }
        if self.consumer.unflushed {
            self.ask(|request| Up::Flush { request }).await?;
            self.consumer.unflushed = false;
        }
        Ok(())
    }

    async fn submit(&mut self, record: &Up) -> Result<(), AckError> {
        let Self { consumer: BrokeredConsumer { inbox, attachment, unflushed, .. }, bell } = self;
        if attachment.is_forked() {
            return Err(AckError::UsedAfterFork);
        }
        *unflushed = true;
        let side = &mut ForRoom(inbox);
        let waited = wait(
            bell,
            attachment,
            side,
            |side| side.0,
            |inbox, attachment| {
                let submitted = inbox.submit_or_put_by(attachment, record);
                (submitted != Ok(false)).then_some(submitted)
            },
        );
        match waited.await {
            Ok(submitted) => submitted.map(|_| ()),
            Err(Stop::Lost) => Err(AckError::Lost),
            Err(Stop::Runtime) => Err(AckError::RuntimeStopped),
        }
    }

    async fn ask(&mut self, request: impl FnOnce(u64) -> Up) -> Result<(), AckError> {
        if self.consumer.attachment.is_forked() {
            return Err(AckError::UsedAfterFork);
        }
        let record = request(self.consumer.inbox.next_request());
        self.submit(&record).await?;
        let Self { consumer: BrokeredConsumer { inbox, attachment, .. }, bell } = self;
        let side = &mut ForNews(inbox);
        let waited = wait(
            bell,
            attachment,
            side,
            |side| side.0,
            |inbox, attachment| inbox.try_answer(attachment),
        );
        match waited.await {
            Ok(answer) => answer,
            Err(Stop::Lost) => Err(AckError::Lost),
            Err(Stop::Runtime) => Err(AckError::RuntimeStopped),
        }
    }

    /// The consumer, for the forms that do not wait.
    pub fn get_mut(&mut self) -> &mut BrokeredConsumer {
        &mut self.consumer
    }

    /// The consumer, without the doorbell.
    #[must_use]
    pub fn into_inner(mut self) -> BrokeredConsumer {
        if !self.consumer.attachment.is_forked() {
            self.bell.take_off(&ForNews(&mut self.consumer.inbox));
            self.bell.take_off(&ForRoom(&mut self.consumer.inbox));
        }
        self.consumer
    }
}
