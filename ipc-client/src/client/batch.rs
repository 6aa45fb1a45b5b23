//! Receiving several messages at a time.

use std::time::Duration;

use super::attachment::Attachment;
use super::consumer::Consumer;
use super::error::ReceiveError;
use super::guard::Message;
use super::waiting::found_nothing;
use crate::ring::{self, Park, Taken, TryReceiveError, View, Visit};
use crate::sys::fork::ForkMark;

impl Consumer {
    /// Hands up to `max` messages to `each`, in order, as many as there are now. Returns how many. Each message is taken
    /// right before its turn and done with as soon as `each` returns, so a batch keeps nothing from other consumers. On an spsc
    /// queue the producer learns of it after sixteen messages, or when the batch is over.
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
        self.receive_batch_with(max, each, |consumer, error| Err(consumer.explain(error)))
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
        self.receive_batch_with(max, each, |consumer, error| {
            consumer.wait_longer(None, error, ring::Consumer::try_take)
        })
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
        self.receive_batch_with(max, each, |consumer, error| {
            consumer.wait_longer(Some(timeout), error, ring::Consumer::try_take)
        })
    }

    #[inline]
    fn receive_batch_with(
        &mut self,
        max: usize,
        mut each: impl FnMut(Message<'_>),
        wait: impl FnOnce(&mut Self, TryReceiveError) -> Result<Taken, ReceiveError>,
    ) -> Result<usize, ReceiveError> {
        if self.attachment.is_forked() {
            return Err(ReceiveError::UsedAfterFork);
        }
        match self.visit(max, &mut each) {
            Ok(count) => Ok(count),
            Err(error) => {
                let taken = wait(self, error)?;
                let held = Held { consumer: self, taken: Some(taken) };
                each(held.message());
                drop(held);
                if self.attachment.is_forked() {
                    return Ok(1);
                }
                match self.visit(max - 1, &mut each) {
                    Ok(count) => Ok(1 + count),
                    Err(error) => {
                        // Whatever it is, the next call meets it again.
                        let _ = self.explain(error);
                        Ok(1)
                    }
                }
            }
        }
    }

    #[inline]
    fn visit(
        &mut self,
        max: usize,
        each: &mut impl FnMut(Message<'_>),
    ) -> Result<usize, TryReceiveError> {
        let mark = self.attachment.mark();
        let mut visitor = Visitor { attachment: &mut self.attachment, mark, each };
        let visited = self.ring.try_visit(max, &mut visitor);
        if matches!(visited, Ok(count) if count < max) && !mark.is_forked() {
            found_nothing(&self.ring, &mut self.attachment);
        }
        visited
    }
}

/// Shows messages to a closure and wakes the producers that wait for their slots.
struct Visitor<'a, F> {
    attachment: &'a mut Attachment,
    mark: ForkMark,
    each: &'a mut F,
}

impl<F: FnMut(Message<'_>)> Visit for Visitor<'_, F> {
    #[inline]
    fn message(&mut self, view: View<'_>) {
        (self.each)(Message { view, mark: self.mark });
    }

    #[inline]
    fn may_go_on(&self) -> bool {
        !self.mark.is_forked()
    }

    #[inline]
    fn given_back(&mut self, producers: &Park) {
        self.attachment.wake_peers(producers, u32::MAX);
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
