//! The place of one message of a batch, while it is written.

use super::error::SendError;
use crate::ring;
use crate::sys::fork::ForkMark;

/// Where one message of a batch is written, see
/// [`Producer::send_batch_in_place`](super::Producer::send_batch_in_place). At first it holds whatever an earlier message left.
#[derive(Debug)]
pub struct Body<'a> {
    place: ring::Body<'a>,
    mark: ForkMark,
}

impl<'a> Body<'a> {
    #[inline]
    pub(super) fn new(place: ring::Body<'a>, mark: ForkMark) -> Self {
        Self { place, mark }
    }

    /// Payload bytes of the message.
    #[must_use]
    #[inline]
    #[allow(clippy::len_without_is_empty)] // a place, no container
    pub fn len(&self) -> usize {
        self.place.len()
    }

    /// Copies bytes to this offset of the payload.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] if they do not fit the payload, [`SendError::UsedAfterFork`] in a forked child. Nothing is
    /// copied then.
    #[inline]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), SendError> {
        if self.mark.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        self.place.write(offset, bytes).map_err(|_| SendError::TooLarge {
            length: offset.saturating_add(bytes.len()),
            max: self.place.len(),
        })
    }

    /// Address of the payload: [`Self::len`] bytes, aligned to 16. Another member that breaks the rules may change them.
    /// Null after fork.
    #[must_use]
    #[inline]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        if self.mark.is_forked() { std::ptr::null_mut() } else { self.place.as_mut_ptr() }
    }

    /// The payload as a slice; empty after fork.
    ///
    /// # Safety
    /// No other process may access these bytes while the slice exists. Members of the queue that follow the protocol
    /// do not; on an mpmc queue all members, on an spsc queue nobody else, could break it.
    #[inline]
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        let start = self.as_mut_ptr();
        if start.is_null() {
            return &mut [];
        }
        // SAFETY: the payload lies within its slot, which is mapped, claimed for this message, and initialised (memfds are
        // zero-filled); that nobody else accesses it is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(start, self.place.len()) }
    }
}
