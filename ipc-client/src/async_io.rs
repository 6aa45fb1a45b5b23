//! Sending and receiving in tokio programs (cargo feature `tokio`).
//!
//! The runtime watches the socket of a doorbell, which needs its I/O driver. While messages (or room) are there, nothing
//! but the ring is touched. All futures can be dropped at any time: what was not
//! sent or received by then has not happened. A future that waits looks at its ring every 100 ms whatever became of its
//! ring of the bell, as the blocking forms do.
//!
//! ```no_run
//! # use ringmain_client::{Client, async_io::AsyncConsumer};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect_default()?;
//! let mut orders = AsyncConsumer::new(client.consumer("orders")?)?;
//! let mut buffer = Vec::new();
//! loop {
//!     orders.receive(&mut buffer).await?;
//!     println!("{} bytes", buffer.len());
//! }
//! # }
//! ```

mod brokered;
mod request;

use std::future::poll_fn;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::task::{Poll, ready};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::client::internal::{Attachment, BellPlace, Side, found_nothing, look, pass_on};
use crate::layout::metadata::Metadata;
use crate::ring::{Kernel, TryReceiveError, TrySendError};
use crate::sys::clock::monotonic_ns;
use crate::{ClientError, Closed, Consumer, Guard, Producer, ReceiveError, Received, SendError};

pub use brokered::{AsyncBrokeredConsumer, AsyncBrokeredProducer};
pub use request::{AsyncReplier, AsyncRequester};

/// How often a process that may not issue membarrier looks at its ring.
const POLL: Duration = Duration::from_millis(1);

/// Longest wait at a stretch: after it the handle looks again. A member that stopped or breaks the rules can keep rings
/// of the bell back, and a daemon that is gone rings none.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Why a wait ended without a result of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The daemon does not know this handle any more.
    Lost,
    /// The runtime watches nothing any more.
    Runtime,
}

/// Readable when a wait has lasted [`SLEEP_MAX`]. Of its own kind because the runtime's clock may not be enabled.
#[derive(Debug)]
struct Alarm(TimerFd);

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn new_alarm() -> Result<AsyncFd<Alarm>, ClientError> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(std::io::Error::from)?;
    // SAFETY: an owned descriptor is open until it is dropped, always the same one; the timer owns it, and the `AsyncFd` the timer.
    let alarm = unsafe { AsyncFd::register_with_interest(Alarm(timer), Interest::READABLE) };
    Ok(alarm.map_err(std::io::Error::from)?)
}

/// One handle's doorbell, as the runtime waits for it.
#[derive(Debug)]
struct Bell {
    place: BellPlace,
    /// Its number.
    doorbell: u32,
    readable: AsyncFd<OwnedFd>,
    /// Readable when another handle has taken the rings.
    drained: AsyncFd<OwnedFd>,
    alarm: AsyncFd<Alarm>,
    /// The alarm is set. It is left to run when a wait ends, so that short waits do not set it each time.
    ticking: bool,
    armed: bool,
}

/// Takes the announcement back when the wait ends, also when its future is dropped: publishers pay for each bit.
struct Armed<'a, R: Side> {
    bell: &'a mut Bell,
    ring: &'a mut R,
}

impl<R: Side> Drop for Armed<'_, R> {
    fn drop(&mut self) {
        self.bell.retract(self.ring);
    }
}

impl Bell {
    fn new<R: Side>(attachment: &Attachment, ring: &R) -> Result<Self, ClientError> {
        let (place, doorbell) = BellPlace::new(attachment)?;
        // SAFETY: an owned descriptor is open until it is dropped, always the same one, and the `AsyncFd` owns it.
        let readable =
            unsafe { AsyncFd::register_with_interest(place.descriptor()?, Interest::READABLE) }
                .map_err(std::io::Error::from)?;
        // SAFETY: as above.
        let drained =
            unsafe { AsyncFd::register_with_interest(place.drained()?, Interest::READABLE) }
                .map_err(std::io::Error::from)?;
        let alarm = new_alarm()?;
        let bell = Self { place, doorbell, readable, drained, alarm, ticking: false, armed: false };
        bell.set_doorbell(ring);
        Ok(bell)
    }

    /// Whoever wakes this side of a ring rings here.
    fn set_doorbell<R: Side>(&self, ring: &R) {
        ring.line().set_doorbell(self.doorbell, self.place.bit());
    }

    /// No longer.
    fn take_off<R: Side>(&mut self, ring: &R) {
        self.retract(ring);
        ring.line().set_doorbell(0, 0);
    }

    /// Asks to be rung; the caller looks at its ring once more before it waits.
    fn announce<R: Side>(&mut self, attachment: &Attachment, ring: &R) {
        self.place.take();
        self.armed = true;
        ring.own_park().announce(ring.handle());
        attachment.kernel.heavy_barrier();
    }

    fn retract<R: Side>(&mut self, ring: &R) {
        // A forked child has neither the ring nor a share in the announcement.
        if std::mem::take(&mut self.armed) && !self.place.is_forked() {
            ring.own_park().retract(ring.handle());
        }
    }

    /// Waits until the doorbell rings for this handle, or the alarm goes off.
    async fn rung(&mut self) -> std::io::Result<()> {
        if !self.ticking {
            let once = Expiration::OneShot(TimeSpec::from_duration(SLEEP_MAX));
            self.alarm.get_ref().0.set(once, TimerSetTimeFlags::empty())?;
            self.ticking = true;
        }
        poll_fn(|context| {
            while !self.place.take() {
                // Cleared before the bit is looked at: a ring that comes later makes the descriptor ready anew.
                if let Poll::Ready(mut rung) = self.readable.poll_read_ready(context)? {
                    rung.clear_ready();
                    self.place.drain();
                    continue;
                }
                if let Poll::Ready(mut drained) = self.drained.poll_read_ready(context)? {
                    drained.clear_ready();
                    continue;
                }
                ready!(self.alarm.poll_read_ready(context))?.clear_ready();
                let _ = self.alarm.get_ref().0.wait();
                self.ticking = false;
                break;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Looks with `attempt` until it finds something; an error if it never will.
    async fn wait<R: Side, T>(
        &mut self,
        attachment: &mut Attachment,
        ring: &mut R,
        mut attempt: impl FnMut(&mut R, &mut Attachment) -> Option<T>,
    ) -> Result<T, Stop> {
        if let Some(found) = attempt(ring, attachment) {
            return Ok(found);
        }
        loop {
            if attachment.keep_house(monotonic_ns()) {
                return Err(Stop::Lost);
            }
            if !attachment.kernel.may_park() {
                // A pause of the blocking pool: the runtime's own clock may not be enabled.
                let _ = tokio::task::spawn_blocking(|| std::thread::sleep(POLL)).await;
                if let Some(found) = attempt(ring, attachment) {
                    return Ok(found);
                }
                continue;
            }
            self.announce(attachment, ring);
            if let Some(found) = attempt(ring, attachment) {
                self.retract(ring);
                pass_on(attachment, ring);
                return Ok(found);
            }
            let rung = {
                let armed = Armed { bell: &mut *self, ring: &mut *ring };
                armed.bell.rung().await
            };
            if rung.is_err() {
                return Err(Stop::Runtime);
            }
            if let Some(found) = attempt(ring, attachment) {
                pass_on(attachment, ring);
                return Ok(found);
            }
        }
    }
}

/// A [`Consumer`] whose waiting forms are futures.
#[derive(Debug)]
pub struct AsyncConsumer {
    consumer: Consumer,
    bell: Bell,
}

impl AsyncConsumer {
    /// Takes over a consumer. Called inside a tokio runtime with its I/O driver enabled; panics outside of one, as all of
    /// tokio does.
    ///
    /// # Errors
    /// No memory or descriptor is left, or the daemon refuses or does not answer.
    pub fn new(consumer: Consumer) -> Result<Self, ClientError> {
        let bell = Bell::new(&consumer.attachment, &consumer.ring)?;
        Ok(Self { consumer, bell })
    }

    /// Receives a message; its payload replaces the contents of `buffer`.
    ///
    /// # Errors
    /// As [`Consumer::receive`].
    pub async fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<Received, ReceiveError> {
        let taken = self.next().await?;
        Ok(self.consumer.copy_out(taken, buffer))
    }

    /// Takes a message and leaves it where it is. The guard should not be kept across an `await` that may take long.
    ///
    /// # Errors
    /// As [`Consumer::take`].
    pub async fn take(&mut self) -> Result<Guard<'_>, ReceiveError> {
        let taken = self.next().await?;
        Ok(Guard::new(&mut self.consumer, taken))
    }

    async fn next(&mut self) -> Result<crate::ring::Taken, ReceiveError> {
        let Self { consumer, bell } = self;
        if consumer.attachment.is_forked() {
            return Err(ReceiveError::UsedAfterFork);
        }
        let waited =
            bell.wait(&mut consumer.attachment, &mut consumer.ring, |ring, attachment| match ring
                .try_take()
            {
                Err(TryReceiveError::Empty) => {
                    found_nothing(ring, attachment);
                    None
                }
                found => Some(found),
            });
        match waited.await {
            Ok(Ok(taken)) => Ok(taken),
            Ok(Err(error)) => Err(consumer.explain(error)),
            Err(Stop::Lost) => Err(ReceiveError::Closed(Closed::Deleted)),
            Err(Stop::Runtime) => Err(ReceiveError::RuntimeStopped),
        }
    }

    /// The consumer, for the forms that do not wait.
    pub fn get_mut(&mut self) -> &mut Consumer {
        self.bell.retract(&self.consumer.ring);
        &mut self.consumer
    }

    /// The consumer, without the doorbell.
    #[must_use]
    pub fn into_inner(mut self) -> Consumer {
        if !self.consumer.attachment.is_forked() {
            self.bell.retract(&self.consumer.ring);
            self.consumer.ring.line().set_doorbell(0, 0);
        }
        self.consumer
    }
}

/// A [`Producer`] whose waiting forms are futures.
#[derive(Debug)]
pub struct AsyncProducer {
    producer: Producer,
    bell: Bell,
}

impl AsyncProducer {
    /// Takes over a producer. Called inside a tokio runtime with its I/O driver enabled; panics outside of one, as all of
    /// tokio does.
    ///
    /// # Errors
    /// No memory or descriptor is left, or the daemon refuses or does not answer.
    pub fn new(producer: Producer) -> Result<Self, ClientError> {
        let bell = Bell::new(&producer.attachment, &producer.ring)?;
        Ok(Self { producer, bell })
    }

    /// Sends a message, waiting for room. Returns its sequence.
    ///
    /// # Errors
    /// As [`Producer::send`].
    pub async fn send(&mut self, payload: &[u8]) -> Result<u64, SendError> {
        self.send_with(1, |ring| ring.try_send(0, &[], payload)).await
    }

    /// Sends a message with metadata, waiting for room. Returns its sequence.
    ///
    /// # Errors
    /// As [`Producer::send_message`].
    pub async fn send_message(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
    ) -> Result<u64, SendError> {
        let encoded = self.producer.encoded(metadata)?;
        self.send_with(1, |ring| ring.try_send(0, &encoded, payload)).await
    }

    /// Sends all of these messages in one step, waiting for room for all. Returns the sequence of the first.
    ///
    /// # Errors
    /// As [`Producer::send_batch`].
    pub async fn send_batch(&mut self, payloads: &[&[u8]]) -> Result<u64, SendError> {
        let messages = u32::try_from(payloads.len()).unwrap_or(u32::MAX);
        self.send_with(messages, |ring| ring.try_send_batch(payloads)).await
    }

    async fn send_with(
        &mut self,
        messages: u32,
        mut attempt: impl FnMut(&mut crate::ring::Producer) -> Result<u64, TrySendError>,
    ) -> Result<u64, SendError> {
        let Self { producer, bell } = self;
        if producer.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        let waited = bell.wait(&mut producer.attachment, &mut producer.ring, |ring, attachment| {
            look(ring, attachment, &mut attempt)
        });
        match waited.await {
            Ok(sent) => producer.after_look(sent, messages),
            Err(Stop::Lost) => Err(SendError::Closed(Closed::Deleted)),
            Err(Stop::Runtime) => Err(SendError::RuntimeStopped),
        }
    }

    /// The producer, for the forms that do not wait.
    pub fn get_mut(&mut self) -> &mut Producer {
        self.bell.retract(&self.producer.ring);
        &mut self.producer
    }

    /// The producer, without the doorbell.
    #[must_use]
    pub fn into_inner(mut self) -> Producer {
        if !self.producer.attachment.is_forked() {
            self.bell.retract(&self.producer.ring);
            self.producer.ring.line().set_doorbell(0, 0);
        }
        self.producer
    }
}
