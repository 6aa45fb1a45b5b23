//! A message that is looked at where it lies.

use super::consumer::Consumer;
use super::error::ReceiveError;
use crate::layout::metadata::{Metadata, MetadataError};
use crate::request::ReplyTo;
use crate::ring::{Taken, View};
use crate::sys::fork::ForkMark;

/// A message in shared memory, held for as long as this view of it lives.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub(super) view: View<'a>,
    pub(super) mark: ForkMark,
}

/// Why the metadata of a message could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadMetadataError {
    /// The producer wrote something else than metadata.
    #[error(transparent)]
    Malformed(#[from] MetadataError),
    /// The message was taken before fork.
    #[error("this message was taken before fork")]
    UsedAfterFork,
}

impl<'a> Message<'a> {
    #[inline]
    fn check(&self) -> Result<(), ReceiveError> {
        if self.mark.is_forked() { Err(ReceiveError::UsedAfterFork) } else { Ok(()) }
    }

    /// Payload bytes.
    #[must_use]
    #[inline]
    #[allow(clippy::len_without_is_empty)] // a message without payload is no empty container
    pub fn len(&self) -> usize {
        self.view.taken().length()
    }

    /// Position of the message in its queue: grows from message to message, not always by one.
    #[must_use]
    #[inline]
    pub fn sequence(&self) -> u64 {
        self.view.taken().sequence()
    }

    /// Whether a consumer that died may have seen this message before.
    #[must_use]
    #[inline]
    pub fn redelivered(&self) -> bool {
        self.view.taken().redelivered()
    }

    /// Replaces the contents of `buffer` with the payload; returns its length in bytes.
    ///
    /// # Errors
    /// [`ReceiveError::UsedAfterFork`] in a forked child.
    #[inline]
    pub fn copy_to(&self, buffer: &mut Vec<u8>) -> Result<usize, ReceiveError> {
        self.check()?;
        let length = self.view.taken().length();
        // Only what the buffer grows by is filled with zeros first.
        buffer.resize(length, 0);
        Ok(self.view.read(0, buffer))
    }

    /// Copies payload bytes from `offset` on; returns how many, fewer than asked for at the end of the payload.
    ///
    /// # Errors
    /// [`ReceiveError::UsedAfterFork`] in a forked child.
    #[inline]
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> Result<usize, ReceiveError> {
        self.check()?;
        Ok(self.view.read(offset, into))
    }

    /// Address of the payload if the message lies in one slot; `None` if it does not, or after fork.
    #[must_use]
    #[inline]
    pub fn as_ptr(&self) -> Option<*const u8> {
        if self.mark.is_forked() {
            return None;
        }
        self.view.payload_ptr()
    }

    /// The payload in place if the message lies in one slot; `None` if it does not, or after fork.
    ///
    /// # Safety
    /// No other process may write to these bytes while the slice exists. Members of the queue that follow the protocol
    /// do not; on an mpmc queue any member, on an spsc queue the producer, could break it.
    #[must_use]
    #[inline]
    pub unsafe fn as_slice(&self) -> Option<&'a [u8]> {
        let start = self.as_ptr()?;
        // SAFETY: the payload lies in one mapped slot that is held while `'a` lasts; that nobody writes to it is the
        // caller's promise.
        Some(unsafe { std::slice::from_raw_parts(start, self.view.taken().length()) })
    }

    /// Where the reply goes, if this is a request.
    #[must_use]
    pub fn reply_to(&self) -> Option<ReplyTo> {
        ReplyTo::of(&self.metadata().ok()?)
    }

    /// The metadata in front of the payload.
    ///
    /// # Errors
    /// See [`ReadMetadataError`].
    pub fn metadata(&self) -> Result<Metadata, ReadMetadataError> {
        if self.mark.is_forked() {
            return Err(ReadMetadataError::UsedAfterFork);
        }
        let length = self.view.taken().metadata_length();
        if length == 0 {
            return Ok(Metadata::default());
        }
        // Copied before it is looked at: the producer could change it meanwhile.
        let mut bytes = vec![0; length];
        let copied = self.view.read_metadata(&mut bytes);
        Ok(Metadata::decode(&bytes[..copied])?)
    }
}

/// A message that this process holds. Its slot stays occupied until the guard is released or dropped, and producers
/// that come round to it wait: hold it for moments, not for work that takes long.
#[derive(Debug)]
#[must_use = "a guard that is dropped gives its message back unread"]
pub struct Guard<'a> {
    consumer: &'a mut Consumer,
    /// Taken by `drop` alone.
    taken: Option<Taken>,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(consumer: &'a mut Consumer, taken: Taken) -> Self {
        Self { consumer, taken: Some(taken) }
    }

    fn message(&self) -> Message<'_> {
        let Some(taken) = &self.taken else {
            unreachable!("a guard holds its message until it is dropped")
        };
        self.consumer.message(taken)
    }

    /// Payload bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // a message without payload is no empty container
    pub fn len(&self) -> usize {
        self.message().len()
    }

    /// Position of the message in its queue: grows from message to message, not always by one.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.message().sequence()
    }

    /// Whether a consumer that died may have seen this message before.
    #[must_use]
    pub fn redelivered(&self) -> bool {
        self.message().redelivered()
    }

    /// Replaces the contents of `buffer` with the payload; returns its length in bytes.
    ///
    /// # Errors
    /// [`ReceiveError::UsedAfterFork`] in a forked child.
    pub fn copy_to(&self, buffer: &mut Vec<u8>) -> Result<usize, ReceiveError> {
        self.message().copy_to(buffer)
    }

    /// Copies payload bytes from `offset` on; returns how many, fewer than asked for at the end of the payload.
    ///
    /// # Errors
    /// [`ReceiveError::UsedAfterFork`] in a forked child.
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> Result<usize, ReceiveError> {
        self.message().read_at(offset, into)
    }

    /// Address of the payload if the message lies in one slot; `None` if it does not, or after fork.
    #[must_use]
    pub fn as_ptr(&self) -> Option<*const u8> {
        self.message().as_ptr()
    }

    /// The payload in place if the message lies in one slot; `None` if it does not, or after fork.
    ///
    /// # Safety
    /// As [`Message::as_slice`].
    #[must_use]
    pub unsafe fn as_slice(&self) -> Option<&[u8]> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.message().as_slice() }
    }

    /// The metadata in front of the payload.
    ///
    /// # Errors
    /// See [`ReadMetadataError`].
    pub fn metadata(&self) -> Result<Metadata, ReadMetadataError> {
        self.message().metadata()
    }

    /// Where the reply goes, if this is a request.
    #[must_use]
    pub fn reply_to(&self) -> Option<ReplyTo> {
        self.message().reply_to()
    }

    /// Gives the slot back. Dropping the guard does the same.
    pub fn release(self) {}
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.consumer.release(taken);
        }
    }
}
