//! Receiving several messages at a time.

use std::time::Duration;

use super::consumer::Consumer;
use super::error::ReceiveError;
use super::guard::Message;
use crate::ring::Taken;

impl Consumer {
    /// Hands up to `max` messages to `each`, in order, as many as there are now. Returns how many. Each message is taken
    /// right before its turn and given back as soon as `each` returns, so a batch keeps nothing from other consumers.
    ///
    /// If `each` panics, its message counts as received.
    ///
    /// # Errors
    /// See [`Consumer`]. `max` = 0 returns 0.
    #[inline]
    pub fn try_receive_batch(
        &mut self,
        max: usize,
        each: impl FnMut(Message<'_>),
    ) -> Result<usize, ReceiveError> {
        self.receive_batch_with(max, each, Self::try_next)
    }

    /// As [`Self::try_receive_batch`]; waits for the first message as long as it takes.
    ///
    /// # Errors
    /// See [`Consumer`].
    #[inline]
    pub fn receive_batch(
        &mut self,
        max: usize,
        each: impl FnMut(Message<'_>),
    ) -> Result<usize, ReceiveError> {
        self.receive_batch_with(max, each, |consumer| consumer.next(None))
    }

    /// As [`Self::try_receive_batch`]; waits for the first message at most this long.
    ///
    /// # Errors
    /// See [`Consumer`].
    #[inline]
    pub fn receive_batch_timeout(
        &mut self,
        max: usize,
        timeout: Duration,
        each: impl FnMut(Message<'_>),
    ) -> Result<usize, ReceiveError> {
        self.receive_batch_with(max, each, |consumer| consumer.next(Some(timeout)))
    }

    #[inline]
    fn receive_batch_with(
        &mut self,
        max: usize,
        mut each: impl FnMut(Message<'_>),
        first: impl FnOnce(&mut Self) -> Result<Taken, ReceiveError>,
    ) -> Result<usize, ReceiveError> {
        if self.attachment.is_forked() {
            return Err(ReceiveError::UsedAfterFork);
        }
        if max == 0 {
            return Ok(0);
        }
        let mut taken = first(self)?;
        let mut count = 0;
        loop {
            let held = Held { consumer: self, taken: Some(taken) };
            each(held.message());
            drop(held);
            count += 1;
            if count == max || self.attachment.is_forked() {
                return Ok(count);
            }
            taken = match self.ring.try_take() {
                Ok(taken) => taken,
                Err(error) => {
                    // Whatever it is, the next call meets it again.
                    let _ = self.explain(error);
                    return Ok(count);
                }
            };
        }
    }
}

/// Releases its message also when the closure panics.
struct Held<'a> {
    consumer: &'a mut Consumer,
    taken: Option<Taken>,
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
