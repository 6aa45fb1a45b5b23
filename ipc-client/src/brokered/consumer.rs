//! The receiving handle of a brokered queue.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::delivery::Delivery;
use super::error::AckError;
use super::inbox::{Found, Inbox};
use super::memory::{Opened, open};
use super::waiting::{Deadline, ForNews, ForRoom};
use super::{ConsumerOptions, handle_number};
use crate::client::internal::{Attachment, Inner, Stop, leave, wait_for};
use crate::client::{ClientError, ReceiveError};
use crate::protocol::{AttachOptions, Kind, Role};
use crate::wire::{LeaseToken, Up};

/// Longest wait for room at a stretch. A shard makes room for requests before anything else; should it not, what it has sent is
/// put by again after this time.
const ROOM_AT_A_STRETCH: Duration = Duration::from_millis(10);

/// Receives messages from one brokered queue and says what became of them.
///
/// A message stays with its consumer until it is acknowledged ([`ack`](Self::ack)), given back ([`nack`](Self::nack)), rejected,
/// or its lease is over. What a consumer has when it is dropped, or when its process dies, goes to another consumer at once. A
/// daemon that is killed and started anew takes nothing away.
///
/// What is given out by the receiving forms was its own a moment before: a delivery whose lease ended while it lay unseen, because this
/// process was stopped or busy, is left out.
///
/// `ack`, `nack`, `extend` and `reject` are sent off and not waited for: should one come too late, the message was given to
/// somebody else, as with any broker that delivers at least once. Their `_confirmed` forms wait until it is carried out, and
/// [`flush`](Self::flush) does so for all at once.
///
/// A consumer may move to another thread, but two threads cannot share one.
///
/// # Errors
/// The receiving forms return [`ReceiveError::Empty`] (`try_`) or [`ReceiveError::Timeout`] when nothing came,
/// [`ReceiveError::Closed`] when the queue was deleted, or when its daemon stopped and everything that was delivered before
/// is received, [`ReceiveError::Unreadable`] when the journal is damaged where the next message lies, [`ReceiveError::Lost`] when
/// another daemon answers, and [`ReceiveError::UsedAfterFork`] in a forked child.
#[derive(Debug)]
pub struct BrokeredConsumer {
    pub(crate) inbox: Inbox,
    // Behind the rings, because it owns their mappings: fields are dropped in this order.
    pub(crate) attachment: Attachment,
    /// Number of its shard.
    pub(super) shard: u32,
    durable: bool,
    leases: u32,
    max_message: usize,
    group_created: bool,
    /// Something was submitted since the last [`Self::flush`].
    pub(crate) unflushed: bool,
    /// `Send`, not `Sync`.
    not_sync: PhantomData<Cell<()>>,
}

impl BrokeredConsumer {
    pub(crate) fn attach(
        client: &Arc<Inner>,
        queue: &str,
        options: &ConsumerOptions,
    ) -> Result<Self, ClientError> {
        let asked = AttachOptions {
            group: options.group.clone(),
            from: options.from,
            credit: options.credit,
            browse: options.browse,
            ..AttachOptions::default()
        };
        let opened = open(client, queue, Role::Consume, asked, options.wait)?;
        let Opened { up, down, shard, shard_number, durable, leases, max_message, .. } = opened;
        let (group_created, attachment) = (opened.group_created, opened.attachment);
        let inbox = Inbox::new(up, down, shard, opened.table, handle_number());
        Ok(Self {
            inbox,
            attachment,
            shard: shard_number,
            durable,
            leases,
            max_message,
            group_created,
            unflushed: false,
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

    /// Whether messages survive the machine.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// Whether its group did not exist and was created for it: a mistyped name, perhaps.
    #[must_use]
    pub fn created_group(&self) -> bool {
        self.group_created
    }

    /// Longest payload in bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.max_message
    }

    /// The most credit that can be asked for, in messages.
    #[must_use]
    pub fn max_credit(&self) -> u32 {
        self.leases
    }

    /// Receives a message if there is one now.
    ///
    /// # Errors
    /// See [`BrokeredConsumer`].
    pub fn try_receive(&mut self) -> Result<Delivery, ReceiveError> {
        let mut delivery = Delivery::default();
        match self.receive_into(&mut delivery, Some(Duration::ZERO)) {
            Ok(()) => Ok(delivery),
            Err(ReceiveError::Timeout) => Err(ReceiveError::Empty),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::try_receive`]; waits for a message as long as it takes.
    ///
    /// # Errors
    /// See [`BrokeredConsumer`].
    pub fn receive(&mut self) -> Result<Delivery, ReceiveError> {
        let mut delivery = Delivery::default();
        self.receive_into(&mut delivery, None).map(|()| delivery)
    }

    /// As [`Self::try_receive`]; waits for a message at most this long.
    ///
    /// # Errors
    /// See [`BrokeredConsumer`].
    pub fn receive_timeout(&mut self, timeout: Duration) -> Result<Delivery, ReceiveError> {
        let mut delivery = Delivery::default();
        self.receive_into(&mut delivery, Some(timeout)).map(|()| delivery)
    }

    /// Receives a message into the memory of an earlier one; waits at most this long, or without bound. After an error
    /// `delivery` is no delivery of a message any more.
    ///
    /// # Errors
    /// See [`BrokeredConsumer`].
    #[inline]
    pub fn receive_into(
        &mut self,
        delivery: &mut Delivery,
        timeout: Option<Duration>,
    ) -> Result<(), ReceiveError> {
        self.receive_within(delivery, timeout, false).map(|_| ())
    }

    /// As [`Self::receive_into`]; `false` as soon as the daemon says that nothing is left that could be delivered to this
    /// consumer, or shown to it if it looks on. More may come all the same.
    ///
    /// # Errors
    /// See [`BrokeredConsumer`].
    pub fn receive_or_drained(
        &mut self,
        delivery: &mut Delivery,
        timeout: Option<Duration>,
    ) -> Result<bool, ReceiveError> {
        let found = self.receive_within(delivery, timeout, true)?;
        Ok(found == Found::Delivery)
    }

    #[inline]
    fn receive_within(
        &mut self,
        delivery: &mut Delivery,
        timeout: Option<Duration>,
        until_drained: bool,
    ) -> Result<Found, ReceiveError> {
        if self.attachment.is_forked() {
            return Err(ReceiveError::UsedAfterFork);
        }
        delivery.forget();
        match self.inbox.try_receive(&self.attachment, until_drained, delivery) {
            Err(ReceiveError::Empty) => self.receive_later(delivery, timeout, until_drained),
            found => found,
        }
    }

    #[cold]
    #[inline(never)]
    fn receive_later(
        &mut self,
        delivery: &mut Delivery,
        timeout: Option<Duration>,
        until_drained: bool,
    ) -> Result<Found, ReceiveError> {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            let lost = self.attachment.keep_house_rarely();
            return Err(if lost { ReceiveError::Lost } else { ReceiveError::Timeout });
        }
        let mut result = Err(ReceiveError::Empty);
        let mut side = ForNews(&mut self.inbox);
        let waited = wait_for(&mut self.attachment, &mut side, timeout, |side, attachment| {
            result = side.0.try_receive(attachment, until_drained, delivery);
            result != Err(ReceiveError::Empty)
        });
        match waited {
            Ok(()) => result,
            Err(Stop::Timeout) => Err(ReceiveError::Timeout),
            Err(Stop::Lost) => Err(ReceiveError::Lost),
        }
    }

    /// The message is done with: it will not be delivered again.
    ///
    /// # Errors
    /// [`AckError`], except for what only an answer could tell.
    #[inline]
    pub fn ack(&mut self, delivery: &Delivery) -> Result<(), AckError> {
        let lease = self.token(delivery)?;
        self.submit(&Up::Ack { lease, request: 0 })
    }

    /// Gives the message back: it is delivered again, not before `delay` is over.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn nack(&mut self, delivery: &Delivery, delay: Duration) -> Result<(), AckError> {
        let lease = self.token(delivery)?;
        self.submit(&Up::Nack { lease, request: 0, delay_ms: milliseconds(delay) })
    }

    /// The lease shall end this long from now.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn extend(&mut self, delivery: &Delivery, lease: Duration) -> Result<(), AckError> {
        let token = self.token(delivery)?;
        self.submit(&Up::Extend { lease: token, request: 0, lease_ms: milliseconds(lease) })
    }

    /// The message goes to the dead-letter queue at once, or is discarded if there is none.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn reject(&mut self, delivery: &Delivery) -> Result<(), AckError> {
        let lease = self.token(delivery)?;
        self.submit(&Up::Reject { lease, request: 0 })
    }

    /// As [`Self::ack`]; waits at most this long until it is carried out and as safe as a confirmed message.
    ///
    /// # Errors
    /// [`AckError`].
    pub fn ack_confirmed(
        &mut self,
        delivery: &Delivery,
        timeout: Duration,
    ) -> Result<(), AckError> {
        let lease = self.token(delivery)?;
        self.ask(timeout, |request| Up::Ack { lease, request })
    }

    /// As [`Self::nack`]; waits as [`Self::ack_confirmed`].
    ///
    /// # Errors
    /// [`AckError`].
    pub fn nack_confirmed(
        &mut self,
        delivery: &Delivery,
        delay: Duration,
        timeout: Duration,
    ) -> Result<(), AckError> {
        let lease = self.token(delivery)?;
        let delay_ms = milliseconds(delay);
        self.ask(timeout, |request| Up::Nack { lease, request, delay_ms })
    }

    /// As [`Self::extend`]; waits as [`Self::ack_confirmed`].
    ///
    /// # Errors
    /// [`AckError`].
    pub fn extend_confirmed(
        &mut self,
        delivery: &Delivery,
        lease: Duration,
        timeout: Duration,
    ) -> Result<(), AckError> {
        let token = self.token(delivery)?;
        let lease_ms = milliseconds(lease);
        self.ask(timeout, |request| Up::Extend { lease: token, request, lease_ms })
    }

    /// As [`Self::reject`]; waits as [`Self::ack_confirmed`].
    ///
    /// # Errors
    /// [`AckError`].
    pub fn reject_confirmed(
        &mut self,
        delivery: &Delivery,
        timeout: Duration,
    ) -> Result<(), AckError> {
        let lease = self.token(delivery)?;
        self.ask(timeout, |request| Up::Reject { lease, request })
    }

    /// Waits at most this long until everything that was acknowledged, given back or rejected so far is carried out and as safe
    /// as a confirmed message.
    ///
    /// # Errors
    /// [`AckError`]; what came too late is not told.
    pub fn flush(&mut self, timeout: Duration) -> Result<(), AckError> {
        if self.attachment.is_forked() {
            return Err(AckError::UsedAfterFork);
        }
        if self.unflushed {
            self.ask(timeout, |request| Up::Flush { request })?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// How many messages a limit of the queue has discarded since the last call before anybody in this consumer's group had them:
    /// there is a gap of so many in front of what was received last. 0 as long as the group keeps up, and always on a queue that
    /// loses nothing. Every consumer of the group is told the same.
    pub fn take_skipped(&mut self) -> u64 {
        self.inbox.take_skipped()
    }

    /// From now on at most this many messages may be unacknowledged; 0 pauses. At most [`Self::max_credit`] count.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn set_credit(&mut self, credit: u32) -> Result<(), AckError> {
        self.submit(&Up::Credit { credit })?;
        self.inbox.set_credit(credit);
        Ok(())
    }

    pub(crate) fn token(&self, delivery: &Delivery) -> Result<LeaseToken, AckError> {
        if delivery.consumer != self.inbox.number {
            return Err(AckError::ForeignDelivery);
        }
        let token = delivery.token();
        if token.attempt == 0 { Err(AckError::NotLeased) } else { Ok(token) }
    }

    /// Sends one record and waits for room as long as it takes.
    #[inline]
    fn submit(&mut self, record: &Up) -> Result<(), AckError> {
        if self.attachment.is_forked() {
            return Err(AckError::UsedAfterFork);
        }
        if !self.inbox.try_submit(&self.attachment, record)? {
            self.submit_later(record, Deadline::after(None))?;
        }
        self.unflushed = true;
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn submit_later(&mut self, record: &Up, deadline: Deadline) -> Result<(), AckError> {
        loop {
            let mut result = self.inbox.submit_or_put_by(&self.attachment, record);
            if result != Ok(false) {
                return result.map(|_| ());
            }
            if deadline.is_over() {
                return Err(AckError::Timeout);
            }
            let bound = deadline.left_at_most(ROOM_AT_A_STRETCH);
            let mut side = ForRoom(&mut self.inbox);
            let waited =
                wait_for(&mut self.attachment, &mut side, Some(bound), |side, attachment| {
                    result = side.0.submit_or_put_by(attachment, record);
                    result != Ok(false)
                });
            match waited {
                Ok(()) => return result.map(|_| ()),
                Err(Stop::Timeout) => {}
                Err(Stop::Lost) => return Err(AckError::Lost),
            }
        }
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, timeout: Duration, request: impl FnOnce(u64) -> Up) -> Result<(), AckError> {
        if self.attachment.is_forked() {
            return Err(AckError::UsedAfterFork);
        }
        let deadline = Deadline::after(Some(timeout));
        let record = request(self.inbox.next_request());
        if !self.inbox.try_submit(&self.attachment, &record)? {
            self.submit_later(&record, deadline)?;
        }
        self.unflushed = true;
        if let Some(answer) = self.inbox.try_answer(&self.attachment) {
            return answer;
        }
        let mut answer = None;
        let mut side = ForNews(&mut self.inbox);
        let left = deadline.left();
        let waited = wait_for(&mut self.attachment, &mut side, left, |side, attachment| {
            answer = side.0.try_answer(attachment);
            answer.is_some()
        });
        match (waited, answer) {
            (Ok(()), Some(answer)) => answer,
            (Err(Stop::Lost), _) => Err(AckError::Lost),
            _ => Err(AckError::Timeout),
        }
    }
}

impl Drop for BrokeredConsumer {
    fn drop(&mut self) {
        if !self.attachment.is_forked() {
            leave(&ForRoom(&mut self.inbox));
            leave(&ForNews(&mut self.inbox));
        }
    }
}

/// Rounded up: what is asked for is the least.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
