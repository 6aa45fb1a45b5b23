//! Request and reply over two queues: the requests go to a queue that servers share, each reply to a queue that belongs to the
//! requester alone and vanishes with it. Both planes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::brokered::{
    BrokeredConsumer, BrokeredProducer, ConsumerOptions, Delivery, ProducerOptions,
};
use crate::client::internal::random_number;
use crate::client::{Client, ClientError, Consumer, Guard, Producer, ReceiveError, SendError};
use crate::layout::Geometry;
use crate::layout::metadata::Metadata;
use crate::protocol::{DeliverySpec, Plane, QueueInfo, QueueSpec};
use crate::ring::Closed;

/// Slots of a reply queue, unless the longest message needs more.
const SLOTS: u32 = 256;
/// What a brokered ring needs beside a payload, and metadata of a usual length.
const SLACK_BYTES: u32 = 4096;
/// Replies that nobody fetched; their requester has stopped.
const REPLY_TTL_MS: u64 = 3_600_000;
/// Reply queues that a [`Replier`] stays attached to.
const TARGETS_MAX: usize = 32;
/// How long a requester that is dropped waits for the daemon.
const DELETE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long [`Replier::reply`] waits for room.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// None came in time. The request may be carried out all the same, or still be carried out.
    #[error("no reply came in time")]
    Timeout,
    /// The request was not sent.
    #[error("the request was not sent: {0}")]
    Send(#[source] SendError),
    /// The reply queue cannot be read any more.
    #[error("the reply cannot be received: {0}")]
    Receive(#[source] ReceiveError),
}

/// Why a reply did not arrive. None of this is the server's fault: it goes on with the next request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// The requester is gone, and its queue with it.
    #[error("the requester is gone")]
    Gone,
    /// The requester takes no replies now: its queue is full.
    #[error("the requester takes no replies: its queue is full")]
    Full,
    /// The request names a queue that takes other things than replies.
    #[error("{0} is no reply queue")]
    NoReplyQueue(String),
    /// The queue cannot be attached to.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It was not sent.
    #[error(transparent)]
    Send(SendError),
}

/// Where the reply to a request goes. It may be kept and answered later, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// Name of the queue.
    pub queue: String,
    /// Number that the reply carries.
    pub correlation: u64,
}

impl ReplyTo {
    /// From the metadata of a request.
    pub(crate) fn of(metadata: &Metadata) -> Option<Self> {
        Some(Self {
            queue: metadata.reply_to.clone()?,
            correlation: metadata.correlation.unwrap_or(0),
        })
    }
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    payload: Vec<u8>,
    metadata: Metadata,
}

impl Reply {
    /// `None`: the metadata cannot be read.
    pub(crate) fn of_guard(guard: &Guard<'_>) -> Result<Option<Self>, ReceiveError> {
        let mut payload = Vec::new();
        guard.copy_to(&mut payload)?;
        Ok(guard.metadata().ok().map(|metadata| Self { payload, metadata }))
    }

    /// As [`Self::of_guard`].
    pub(crate) fn of_delivery(delivery: Delivery) -> Option<Self> {
        let metadata = delivery.metadata().ok()?;
        Some(Self { payload: delivery.into_payload(), metadata })
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, without the rest.
    #[must_use]
    pub fn into_payload(self) -> Vec<u8> {
        self.payload
    }

    /// The metadata in front of the payload.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// A sending handle of either plane.
// There are few of them, and each has rings behind it.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(crate) enum Sender {
    Direct(Producer),
    Brokered(BrokeredProducer),
}

impl Sender {
    pub(crate) fn attach(client: &Client, queue: &str, plane: Plane) -> Result<Self, ClientError> {
        Ok(match plane {
            Plane::Direct => Self::Direct(client.producer(queue)?),
            Plane::Brokered => {
                Self::Brokered(client.brokered_producer(queue, ProducerOptions::default())?)
            }
        })
    }

    fn send(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), SendError> {
        match self {
            Self::Direct(producer) => {
                producer.send_message_timeout(metadata, payload, timeout).map(drop)
            }
            Self::Brokered(producer) => {
                producer.send_message_timeout(metadata, payload, timeout).map(drop)
            }
        }
    }
}

/// A receiving handle of either plane.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(crate) enum Receiver {
    Direct(Consumer),
    Brokered(BrokeredConsumer),
}

impl Receiver {
    /// The next message, done with. `None`: its metadata cannot be read, so it is nothing that was waited for.
    fn receive(&mut self, timeout: Duration) -> Result<Option<Reply>, ReceiveError> {
        match self {
            Self::Direct(consumer) => Reply::of_guard(&consumer.take_timeout(timeout)?),
            Self::Brokered(consumer) => {
                let delivery = consumer.receive_timeout(timeout)?;
                // If it cannot be acknowledged it comes again, and nobody waits for it then.
                let _ = consumer.ack(&delivery);
                Ok(Reply::of_delivery(delivery))
            }
        }
    }
}

/// Sends requests to one queue and waits for the replies, one after the other. Its reply queue is a session queue of the same plane: it
/// vanishes with the requester, also when the process is killed.
///
/// A reply queue is open to those who may use the request queue: private if that is (mode 700), else every user may write to it.
/// Replies are told apart by a number that starts at random.
#[derive(Debug)]
pub struct Requester {
    // Deleted before its consumer goes.
    pub(crate) exchange: Exchange,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

/// The reply queue, and the numbers of the requests whose replies it takes.
#[derive(Debug)]
pub(crate) struct Exchange {
    client: Client,
    reply_queue: String,
    plane: Plane,
    next: u64,
}

impl Exchange {
    /// Number and metadata of the next request.
    pub(crate) fn begin(&mut self, timeout: Duration) -> (u64, Metadata) {
        let number = self.next;
        self.next = number.wrapping_add(1);
        let metadata = Metadata {
            reply_to: Some(self.reply_queue.clone()),
            correlation: Some(number),
            ttl: (self.plane == Plane::Brokered).then_some(timeout),
            ..Metadata::default()
        };
        (number, metadata)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Otherwise the queue would stay until the process ends. A forked child has no say in it.
        self.client.inner().delete_within(&self.reply_queue, DELETE_TIMEOUT);
    }
}

/// Why a request was not sent.
pub(crate) fn not_sent(error: SendError) -> RequestError {
    match error {
        SendError::Full | SendError::Timeout => RequestError::Timeout,
        error => RequestError::Send(error),
    }
}

impl Requester {
    pub(crate) fn attach(client: &Client, queue: &str) -> Result<Self, ClientError> {
        let info = client.queue_info(queue)?;
        let plane = info.plane;
        let sender = Sender::attach(client, queue, plane)?;
        let reply_queue = format!("reply.{:016x}{:016x}", random_number()?, random_number()?);
        client.create_queue(&reply_queue, reply_spec(&info))?;
        let receiver = match plane {
            Plane::Direct => client.consumer(&reply_queue).map(Receiver::Direct),
            Plane::Brokered => client
                .brokered_consumer(&reply_queue, ConsumerOptions::default())
                .map(Receiver::Brokered),
        };
        match receiver {
            Ok(receiver) => {
                let (client, next) = (client.clone(), random_number()?);
                let exchange = Exchange { client, reply_queue, plane, next };
                Ok(Self { exchange, sender, receiver })
            }
            Err(error) => {
                let _ = client.delete_queue(&reply_queue);
                Err(error)
            }
        }
    }

    /// Name of the queue that takes the replies.
    #[must_use]
    pub fn reply_queue(&self) -> &str {
        &self.exchange.reply_queue
    }

    /// Sends a request and waits for its reply, at most this long for both. On a brokered queue a request that no server has taken
    /// by then expires; one that a server has is carried out. A reply that comes too late is dropped by the next request.
    ///
    /// # Errors
    /// See [`RequestError`]. After [`RequestError::Timeout`] nobody knows whether the request was carried out.
    pub fn request(&mut self, payload: &[u8], timeout: Duration) -> Result<Reply, RequestError> {
        let start = Instant::now();
        let (number, metadata) = self.exchange.begin(timeout);
        self.sender.send(&metadata, payload, timeout).map_err(not_sent)?;
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match self.receiver.receive(left) {
                Ok(Some(reply)) if reply.metadata.correlation == Some(number) => return Ok(reply),
                // Of an earlier request, or somebody else's idea of a reply.
                Ok(_) if !left.is_zero() => {}
                Ok(_) | Err(ReceiveError::Empty | ReceiveError::Timeout) => {
                    return Err(RequestError::Timeout);
                }
                Err(error) => return Err(RequestError::Receive(error)),
            }
        }
    }
}

/// A queue for replies to requests that go to that one.
fn reply_spec(requests: &QueueInfo) -> QueueSpec {
    let (slot_size, max_message) = (requests.slot_size, requests.max_message);
    let fits = |slots| {
        let longest = max_message.saturating_add(SLACK_BYTES);
        Geometry::new(Some(slots), Some(slot_size), Some(longest)).is_ok()
    };
    let mut slots = SLOTS.min(requests.slots);
    while slots < requests.slots && !fits(slots) {
        slots *= 2;
    }
    let is_private = requests.mode & 0o077 == 0;
    let is_direct = requests.plane == Plane::Direct;
    let mode = match (is_private, is_direct) {
        (true, _) => 0o700,
        (false, true) => 0o766,
        (false, false) => 0o722,
    };
    let ttl_ms = (!is_direct).then_some(REPLY_TTL_MS);
    QueueSpec {
        slots: Some(slots),
        slot_size: Some(slot_size),
        max_message: Some(max_message),
        mode: Some(mode),
        plane: Some(requests.plane),
        delivery: DeliverySpec { ttl_ms, ..DeliverySpec::default() },
        session: true,
        ..QueueSpec::default()
    }
}

/// Sends replies to whoever asked. It stays attached to the reply queues that it used last.
#[derive(Debug)]
pub struct Replier {
    pub(crate) client: Client,
    targets: Targets<Sender>,
}

/// The reply queues that were used last.
#[derive(Debug)]
pub(crate) struct Targets<S> {
    /// With the turn in which each was used last.
    senders: BTreeMap<String, (u64, S)>,
    turn: u64,
}

impl<S> Targets<S> {
    pub(crate) const fn new() -> Self {
        Self { senders: BTreeMap::new(), turn: 0 }
    }

    pub(crate) fn get(&mut self, queue: &str) -> Option<&mut S> {
        self.turn += 1;
        let (turn, sender) = self.senders.get_mut(queue)?;
        *turn = self.turn;
        Some(sender)
    }

    /// In place of the one that was not used for longest, if there are too many.
    pub(crate) fn keep(&mut self, queue: &str, sender: S) {
        if self.senders.len() >= TARGETS_MAX {
            let oldest = self.senders.iter().min_by_key(|(_, (turn, _))| *turn);
            if let Some(oldest) = oldest.map(|(queue, _)| queue.clone()) {
                self.senders.remove(&oldest);
            }
        }
        self.senders.insert(queue.to_owned(), (self.turn, sender));
    }

    /// What became of a reply. Names of reply queues do not come again, so one that cannot be reached is forgotten.
    pub(crate) fn judge(&mut self, queue: &str, error: SendError) -> ReplyError {
        match error {
            SendError::Full | SendError::Timeout | SendError::QueueFull => return ReplyError::Full,
            SendError::TooLarge { .. } | SendError::UsedAfterFork => {
                return ReplyError::Send(error);
            }
            _ => {}
        }
        self.senders.remove(queue);
        match error {
            SendError::Closed(Closed::Deleted) | SendError::Lost => ReplyError::Gone,
            error => ReplyError::Send(error),
        }
    }
}

/// The metadata of a reply.
pub(crate) fn reply_metadata(to: &ReplyTo) -> Metadata {
    Metadata { correlation: Some(to.correlation), ..Metadata::default() }
}

impl Replier {
    pub(crate) fn new(client: &Client) -> Self {
        Self { client: client.clone(), targets: Targets::new() }
    }

    /// Sends the reply to a request; waits up to a second if the requester's queue is full.
    ///
    /// # Errors
    /// See [`ReplyError`].
    pub fn reply(&mut self, to: &ReplyTo, payload: &[u8]) -> Result<(), ReplyError> {
        self.reply_timeout(to, payload, PATIENCE)
    }

    /// As [`Self::reply`], waiting at most this long for room.
    ///
    /// # Errors
    /// See [`ReplyError`].
    pub fn reply_timeout(
        &mut self,
        to: &ReplyTo,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), ReplyError> {
        if self.targets.get(&to.queue).is_none() {
            self.targets.keep(&to.queue, attach_target(&self.client, &to.queue)?);
        }
        let Some(sender) = self.targets.get(&to.queue) else { return Err(ReplyError::Gone) };
        let sent = sender.send(&reply_metadata(to), payload, timeout);
        sent.map_err(|error| self.targets.judge(&to.queue, error))
    }
}

/// A sending handle on a reply queue.
pub(crate) fn attach_target(client: &Client, queue: &str) -> Result<Sender, ReplyError> {
    let gone = |error: ClientError| {
        if error.is_not_found() || error.code() == Some(crate::protocol::ErrorCode::Closed) {
            ReplyError::Gone
        } else {
            ReplyError::Client(error)
        }
    };
    let info = client.queue_info(queue).map_err(gone)?;
    // A request must not make the server write to any queue that only the server may write to.
    if !info.session {
        return Err(ReplyError::NoReplyQueue(queue.to_owned()));
    }
    Sender::attach(client, queue, info.plane).map_err(gone)
}
