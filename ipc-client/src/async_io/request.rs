//! Requests and replies whose waiting forms are futures.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

use super::{
    Alarm, AsyncBrokeredConsumer, AsyncBrokeredProducer, AsyncConsumer, AsyncProducer, new_alarm,
};
use crate::layout::metadata::Metadata;
use crate::request::{
    Exchange, Receiver, Sender, Targets, attach_target, not_sent, reply_metadata,
};
use crate::{
    Client, ClientError, ReceiveError, Replier, Reply, ReplyError, ReplyTo, RequestError,
    Requester, SendError,
};

/// A sending handle of either plane.
#[allow(clippy::large_enum_variant)] // few, with rings behind them
#[derive(Debug)]
enum AsyncSender {
    Direct(AsyncProducer),
    Brokered(AsyncBrokeredProducer),
}

impl AsyncSender {
    fn new(sender: Sender) -> Result<Self, ClientError> {
        Ok(match sender {
            Sender::Direct(producer) => Self::Direct(AsyncProducer::new(producer)?),
            Sender::Brokered(producer) => Self::Brokered(AsyncBrokeredProducer::new(producer)?),
        })
    }

    async fn send(&mut self, metadata: &Metadata, payload: &[u8]) -> Result<(), SendError> {
        match self {
            Self::Direct(producer) => producer.send_message(metadata, payload).await.map(drop),
            Self::Brokered(producer) => producer.send_message(metadata, payload).await.map(drop),
        }
    }
}

/// A receiving handle of either plane.
#[allow(clippy::large_enum_variant)] // as above
#[derive(Debug)]
enum AsyncReceiver {
    Direct(AsyncConsumer),
    Brokered(AsyncBrokeredConsumer),
}

impl AsyncReceiver {
    /// The next message, done with. `None`: its metadata cannot be read, so it is nothing that was waited for.
    async fn receive(&mut self) -> Result<Option<Reply>, ReceiveError> {
        match self {
            Self::Direct(consumer) => Reply::of_guard(&consumer.take().await?),
            Self::Brokered(consumer) => {
                let delivery = consumer.receive().await?;
                // If it cannot be acknowledged it comes again, and nobody waits for it then.
                let _ = consumer.ack(&delivery).await;
                Ok(Reply::of_delivery(delivery))
            }
        }
    }
}

/// A [`Requester`] whose waiting form is a future. One that is dropped leaves a request that was sent or was not; a reply to it is
/// dropped by the next request.
#[derive(Debug)]
pub struct AsyncRequester {
    // Before the handles: see `Requester`.
    exchange: Exchange,
    sender: AsyncSender,
    receiver: AsyncReceiver,
    alarm: AsyncFd<Alarm>,
}

impl AsyncRequester {
    /// Takes over a requester. Called inside a tokio runtime with its I/O driver enabled; panics outside of one, as all of
    /// tokio does.
    ///
    /// # Errors
    /// No memory or descriptor is left, or the daemon refuses or does not answer.
    pub fn new(requester: Requester) -> Result<Self, ClientError> {
        let Requester { exchange, sender, receiver } = requester;
        let receiver = match receiver {
            Receiver::Direct(consumer) => AsyncReceiver::Direct(AsyncConsumer::new(consumer)?),
            Receiver::Brokered(consumer) => {
                AsyncReceiver::Brokered(AsyncBrokeredConsumer::new(consumer)?)
            }
        };
        Ok(Self { exchange, sender: AsyncSender::new(sender)?, receiver, alarm: new_alarm()? })
    }

    /// Sends a request and waits for its reply, at most this long for both.
    ///
    /// # Errors
    /// As [`Requester::request`].
    pub async fn request(
        &mut self,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Reply, RequestError> {
        let Self { exchange, sender, receiver, alarm } = self;
        let (number, metadata) = exchange.begin(timeout);
        let replied = async {
            sender.send(&metadata, payload).await.map_err(not_sent)?;
            loop {
                match receiver.receive().await {
                    Ok(Some(reply)) if reply.metadata().correlation == Some(number) => {
                        return Ok(reply);
                    }
                    // Of an earlier request, or somebody else's idea of a reply.
                    Ok(_) => {}
                    Err(error) => return Err(RequestError::Receive(error)),
                }
            }
        };
        within(alarm, timeout, replied).await.unwrap_or(Err(RequestError::Timeout))
    }
}

/// A [`Replier`] whose waiting form is a future.
#[derive(Debug)]
pub struct AsyncReplier {
    client: Client,
    targets: Targets<AsyncSender>,
    alarm: AsyncFd<Alarm>,
}

impl AsyncReplier {
    /// Takes over a replier. Called inside a tokio runtime with its I/O driver enabled; panics outside of one, as all of
    /// tokio does.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(replier: Replier) -> Result<Self, ClientError> {
        Ok(Self { client: replier.client, targets: Targets::new(), alarm: new_alarm()? })
    }

    /// Sends the reply to a request, waiting at most this long for room. A reply queue that it has not used lately is attached to in
    /// the runtime's blocking pool.
    ///
    /// # Errors
    /// See [`ReplyError`].
    pub async fn reply(
        &mut self,
        to: &ReplyTo,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), ReplyError> {
        if self.targets.get(&to.queue).is_none() {
            let (client, queue) = (self.client.clone(), to.queue.clone());
            let attached = tokio::task::spawn_blocking(move || attach_target(&client, &queue));
            let sender =
                attached.await.map_err(|_| ReplyError::Send(SendError::RuntimeStopped))??;
            self.targets.keep(&to.queue, AsyncSender::new(sender)?);
        }
        let Some(sender) = self.targets.get(&to.queue) else { return Err(ReplyError::Gone) };
        let metadata = reply_metadata(to);
        let sent = within(&mut self.alarm, timeout, sender.send(&metadata, payload)).await;
        let sent = sent.unwrap_or(Err(SendError::Timeout));
        sent.map_err(|error| self.targets.judge(&to.queue, error))
    }
}

/// `None`: the time was over first, or cannot be measured. A timer of its own, because the runtime's clock may not be enabled.
async fn within<T>(
    alarm: &mut AsyncFd<Alarm>,
    timeout: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let once = TimeSpec::from_duration(timeout.max(Duration::from_nanos(1)));
    // What an earlier wait has left to go off.
    let _ = alarm.get_ref().0.unset();
    alarm.get_ref().0.set(Expiration::OneShot(once), TimerSetTimeFlags::empty()).ok()?;
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(found) = future.as_mut().poll(context) {
            return Poll::Ready(Some(found));
        }
        loop {
            match alarm.poll_read_ready(context) {
                Poll::Pending => return Poll::Pending,
                // The runtime ends: the future is told as well.
                Poll::Ready(Err(_)) => return Poll::Pending,
                Poll::Ready(Ok(mut rung)) => {
                    rung.clear_ready();
                    // Non-blocking: it fails when the readiness was left by an earlier wait.
                    if alarm.get_ref().0.wait().is_ok() {
                        return Poll::Ready(None);
                    }
                }
            }
        }
    })
    .await
}
