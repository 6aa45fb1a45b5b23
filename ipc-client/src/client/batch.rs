//! Receiving several messages at a time.

use std::time::Duration;

use super::consumer::Consumer;
use super::error::ReceiveError;
use super::guard::Message;

/// Most messages of one batch, whatever the caller allows: they are all held until their turn comes.
const BATCH_MAX: usize = 4096;

impl Consumer {
    /// Hands up to `max` messages to `each`, in order, as many as there are now. Returns how many. Each message is given
    /// back as soon as `each` returns.
    ///
    /// If `each` panics, its message counts as received, and the next call of any form starts with the one behind it.
    ///
    /// # Errors
    /// See [`Consumer`]. `max` = 0 returns 0.
    pub fn try_receive_batch(
        &mut self,
        max: usize,
        each: impl FnMut(Message<'_>),
    ) -> Result<usize, ReceiveError> {
        self.receive_batch_with(max, each, |consumer, max| {
            let found = consumer.ring.try_take_batch(&mut consumer.pending, max);
            found.map_err(|error| consumer.explain(error))
        })
    }

    /// As [`Self::try_receive_batch`]; waits for the first message as long as it takes.
    ///
    /// # Errors
    /// See [`Consumer`].
    pub fn receive_batch(
        &mut self,
        max: usize,
        each: impl FnMut(Message<'_>),
    ) -> Result<usize, ReceiveError> {
        self.receive_batch_with(max, each, |consumer, max| consumer.wait_batch(max, None))
    }

    /// As [`Self::try_receive_batch`]; waits for the first message at most this long.
    ///
    /// # Errors
    /// See [`Consumer`].
    pub fn receive_batch_timeout(
        &mut self,
        max: usize,
        timeout: Duration,
        each: impl FnMut(Message<'_>),
    ) -> Result<usize, ReceiveError> {
        self.receive_batch_with(max, each, |consumer, max| consumer.wait_batch(max, Some(timeout)))
    }

    fn wait_batch(&mut self, max: usize, timeout: Option<Duration>) -> Result<(), ReceiveError> {
        let Err(error) = self.ring.try_take_batch(&mut self.pending, max) else { return Ok(()) };
        let mut pending = std::mem::take(&mut self.pending);
        let result =
            self.wait_longer(timeout, error, |ring| ring.try_take_batch(&mut pending, max));
        self.pending = pending;
        result
    }

    fn receive_batch_with(
        &mut self,
        max: usize,
        mut each: impl FnMut(Message<'_>),
        take: impl FnOnce(&mut Self, usize) -> Result<(), ReceiveError>,
    ) -> Result<usize, ReceiveError> {
        if self.attachment.is_forked() {
            return Err(ReceiveError::UsedAfterFork);
        }
        let max = max.min(BATCH_MAX);
        if max == 0 {
            return Ok(0);
        }
        if self.pending.is_empty() {
            self.pending.reserve(max);
            take(self, max)?;
            self.pending.reverse();
        }
        let mut count = 0;
        while count < max
            && let Some(taken) = self.pending.pop()
        {
            let held = Held { consumer: self, taken: Some(taken) };
            each(held.message());
            drop(held);
            count += 1;
            if self.attachment.is_forked() {
                break;
            }
        }
        Ok(count)
    }
}

/// Releases its message also when the closure panics.
struct Held<'a> {
    consumer: &'a mut Consumer,
    taken: Option<crate::ring::Taken>,
}

impl Held<'_> {
    fn message(&self) -> Message<'_> {
        let Some(taken) = &self.taken else { unreachable!("released only once, at the end") };
        self.consumer.message(taken)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.consumer.release(taken);
        }
    }
}
