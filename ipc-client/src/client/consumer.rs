//! The receiving handle.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::attachment::Attachment;
use super::connection::Inner;
use super::error::{ClientError, ReceiveError};
use super::guard::{Guard, Message};
use super::waiting::{Stop, found_nothing, leave, wait_for};
use crate::protocol::{Kind, Role};
use crate::ring::{self, Closed, Taken, TryReceiveError};
use crate::wait::WaitPolicy;

/// Receives messages from one queue.
///
/// A consumer may move to another thread, but two threads cannot share one: each takes its own. Dropping it gives the
/// handle back to the daemon.
///
/// Each form of receiving exists three times: `try_` returns [`ReceiveError::Empty`] at once, the plain one waits for a
/// message as long as it takes, `_timeout` waits for at most that long and then returns [`ReceiveError::Timeout`].
///
/// # Errors
/// All of them return [`ReceiveError::Closed`] when the queue was deleted, or when its daemon stopped and everything
/// that was sent before is received; [`ReceiveError::PeerFault`] when another member damaged the queue;
/// [`ReceiveError::UsedAfterFork`] in a forked child.
#[derive(Debug)]
pub struct Consumer {
    // Before the attachment, which owns the mappings: fields are dropped in this order.
    pub(crate) ring: ring::Consumer,
    pub(crate) attachment: Attachment,
    /// Dropped messages of the queue that are told already.
    dropped_told: u64,
    /// `Send`, not `Sync`.
    not_sync: PhantomData<Cell<()>>,
}

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Position of the message in its queue: grows from message to message, not always by one.
    pub sequence: u64,
    /// Payload bytes.
    pub length: usize,
    /// Whether a consumer that died may have seen this message before.
    pub redelivered: bool,
}

impl Consumer {
    pub(super) fn attach(
        client: &Arc<Inner>,
        queue: &str,
        policy: WaitPolicy,
    ) -> Result<Self, ClientError> {
        let (attachment, memory) = Attachment::new(client, queue, Role::Consume, policy)?;
        attachment.wait_for_holdout(&memory, Role::Consume)?;
        let mut ring = ring::Consumer::new(memory, attachment.geometry, attachment.key.handle)?;
        if attachment.takes_part_in_membarriers() {
            ring = ring.with_bias();
        }
        let dropped_told = ring.dropped();
        Ok(Self { ring, attachment, dropped_told, not_sync: PhantomData })
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

    /// How many messages producers have discarded for room (`overflow=drop-oldest`) since the last call, at first since this
    /// consumer attached. They were older than what is still to come. 0 as long as the queue is never full, and always on a queue
    /// that drops nothing. Every consumer of the queue is told the same. A drop of this very moment may be told the next time.
    pub fn take_skipped(&mut self) -> u64 {
        if self.attachment.is_forked() {
            return 0;
        }
        let dropped = self.ring.dropped();
        let told = std::mem::replace(&mut self.dropped_told, dropped);
        // Members that break the rules may set it back.
        dropped.saturating_sub(told)
    }

    /// Receives a message if there is one now; its payload replaces the contents of `buffer`.
    ///
    /// # Errors
    /// See [`Consumer`]; `buffer` is unchanged then.
    #[inline]
    pub fn try_receive(&mut self, buffer: &mut Vec<u8>) -> Result<Received, ReceiveError> {
        let taken = self.try_next()?;
        Ok(self.copy_out(taken, buffer))
    }

    /// As [`Self::try_receive`]; waits for a message as long as it takes.
    ///
    /// # Errors
    /// See [`Consumer`]; `buffer` is unchanged then.
    #[inline]
    pub fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<Received, ReceiveError> {
        let taken = self.next(None)?;
        Ok(self.copy_out(taken, buffer))
    }

    /// As [`Self::try_receive`]; waits for a message at most this long.
    ///
    /// # Errors
    /// See [`Consumer`]; `buffer` is unchanged then.
    #[inline]
    pub fn receive_timeout(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<Received, ReceiveError> {
        let taken = self.next(Some(timeout))?;
        Ok(self.copy_out(taken, buffer))
    }

    /// Takes a message, if there is one now, and leaves it where it is.
    ///
    /// # Errors
    /// See [`Consumer`].
    #[inline]
    pub fn try_take(&mut self) -> Result<Guard<'_>, ReceiveError> {
        let taken = self.try_next()?;
        Ok(Guard::new(self, taken))
    }

    /// As [`Self::try_take`]; waits for a message as long as it takes.
    ///
    /// # Errors
    /// See [`Consumer`].
    #[inline]
    pub fn take(&mut self) -> Result<Guard<'_>, ReceiveError> {
        let taken = self.next(None)?;
        Ok(Guard::new(self, taken))
    }

    /// As [`Self::try_take`]; waits for a message at most this long.
    ///
    /// # Errors
    /// See [`Consumer`].
    #[inline]
    pub fn take_timeout(&mut self, timeout: Duration) -> Result<Guard<'_>, ReceiveError> {
        let taken = self.next(Some(timeout))?;
        Ok(Guard::new(self, taken))
    }

    #[inline]
    pub(super) fn try_next(&mut self) -> Result<Taken, ReceiveError> {
        if self.attachment.is_forked() {
            return Err(ReceiveError::UsedAfterFork);
        }
        match self.ring.try_take() {
            Ok(taken) => Ok(taken),
            Err(error) => Err(self.explain(error)),
        }
    }

    #[inline]
    pub(super) fn next(&mut self, timeout: Option<Duration>) -> Result<Taken, ReceiveError> {
        if self.attachment.is_forked() {
            return Err(ReceiveError::UsedAfterFork);
        }
        match self.ring.try_take() {
            Ok(taken) => Ok(taken),
            Err(error) => self.wait_longer(timeout, error, ring::Consumer::try_take),
        }
    }

    /// After an `attempt` that failed: the same again until it is not empty.
    #[cold]
    pub(super) fn wait_longer<T>(
        &mut self,
        timeout: Option<Duration>,
        error: TryReceiveError,
        mut attempt: impl FnMut(&mut ring::Consumer) -> Result<T, TryReceiveError>,
    ) -> Result<T, ReceiveError> {
        if error != TryReceiveError::Empty {
            return Err(self.explain(error));
        }
        found_nothing(&self.ring, &mut self.attachment);
        let mut result = Err(error);
        let waited = wait_for(&mut self.attachment, &mut self.ring, timeout, |ring, attachment| {
            result = attempt(ring);
            let nothing = matches!(result, Err(TryReceiveError::Empty));
            if nothing {
                found_nothing(ring, attachment);
            }
            !nothing
        });
        match (waited, result) {
            (Ok(()), Ok(taken)) => Ok(taken),
            (Ok(()), Err(error)) => Err(self.explain(error)),
            (Err(Stop::Timeout), _) => Err(ReceiveError::Timeout),
            (Err(Stop::Lost), _) => Err(ReceiveError::Closed(Closed::Deleted)),
        }
    }

    #[inline]
    pub(crate) fn copy_out(&mut self, taken: Taken, buffer: &mut Vec<u8>) -> Received {
        let length = taken.length();
        // Only what the buffer grows by is filled with zeros first.
        buffer.resize(length, 0);
        self.ring.read(&taken, 0, buffer);
        let received =
            Received { sequence: taken.sequence(), length, redelivered: taken.redelivered() };
        self.release(taken);
        received
    }

    pub(super) fn message<'a>(&'a self, taken: &'a Taken) -> Message<'a> {
        Message { view: self.ring.view(taken), mark: self.attachment.mark() }
    }

    /// Gives a message's slots back and wakes the producers that wait for them. Nothing in a forked child.
    #[inline]
    pub(super) fn release(&mut self, taken: Taken) {
        if self.attachment.is_forked() {
            return;
        }
        self.ring.release(taken);
        self.attachment.wake_peers(self.ring.peer_park(), u32::MAX);
    }

    /// What a failed look means.
    #[cold]
    pub(crate) fn explain(&mut self, error: TryReceiveError) -> ReceiveError {
        match error {
            TryReceiveError::Empty => {
                found_nothing(&self.ring, &mut self.attachment);
                if self.attachment.keep_house_rarely() {
                    return ReceiveError::Closed(Closed::Deleted);
                }
                ReceiveError::Empty
            }
            TryReceiveError::Fault(fault) => {
                self.attachment.report(&fault);
                ReceiveError::PeerFault(fault)
            }
            error => error.into(),
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if self.attachment.is_forked() {
            return;
        }
        leave(&self.ring);
    }
}
