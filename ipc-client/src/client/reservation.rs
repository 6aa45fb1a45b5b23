//! A slot that is being written in place.

use super::error::SendError;
use super::producer::Producer;
use crate::ring::Reserved;

/// A claimed slot: written in place, then committed. Dropping it gives the slot up, and no message is sent.
#[derive(Debug)]
#[must_use = "a reservation that is dropped sends nothing"]
pub struct Reservation<'a> {
    producer: &'a mut Producer,
    /// Taken by `commit` and by `drop`.
    reserved: Option<Reserved>,
    capacity: usize,
}

impl<'a> Reservation<'a> {
    pub(super) fn new(producer: &'a mut Producer, reserved: Reserved) -> Self {
        let capacity = reserved.capacity();
        Self { producer, reserved: Some(reserved), capacity }
    }

    /// Payload bytes that fit: at least what was asked for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Copies bytes to this offset of the payload.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] if they do not fit the capacity, [`SendError::UsedAfterFork`] in a forked child.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), SendError> {
        if self.producer.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        let Some(reserved) = &self.reserved else {
            return Ok(());
        };
        self.producer.ring.write(reserved, offset, bytes).map_err(|_| SendError::TooLarge {
            length: offset.saturating_add(bytes.len()),
            max: self.capacity,
        })
    }

    /// Address of the payload: [`Self::capacity`] bytes, aligned to 16 if the slot size is a multiple of 32, else
    /// to 8. The bytes hold whatever an earlier message left. Null after fork.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match &self.reserved {
            Some(reserved) if !self.producer.attachment.is_forked() => {
                self.producer.ring.body_ptr(reserved)
            }
            _ => std::ptr::null_mut(),
        }
    }

    /// The payload as a slice of [`Self::capacity`] bytes; empty after fork.
    ///
    /// # Safety
    /// No other process may access these bytes while the slice exists. Members of the queue that follow the protocol
    /// do not; on an mpmc queue all members, on an spsc queue nobody else, could break it.
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        let start = self.as_mut_ptr();
        if start.is_null() {
            return &mut [];
        }
        // SAFETY: the slot is mapped, owned by this reservation, and initialised (memfds are zero-filled); that nobody
        // else accesses it is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(start, self.capacity) }
    }

    /// Sends the first `length` bytes of the payload as a message. Returns its sequence.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] if `length` exceeds the capacity, [`SendError::UsedAfterFork`] in a forked child. Nothing is
    /// sent then.
    pub fn commit(mut self, length: usize) -> Result<u64, SendError> {
        if self.producer.attachment.is_forked() {
            return Err(SendError::UsedAfterFork);
        }
        if length > self.capacity {
            return Err(SendError::TooLarge { length, max: self.capacity });
        }
        let Some(reserved) = self.reserved.take() else {
            unreachable!("only commit and drop take the reservation, and both consume it")
        };
        let sequence = self.producer.ring.commit(reserved, length);
        self.producer.wake(1);
        Ok(sequence)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take()
            && !self.producer.attachment.is_forked()
        {
            self.producer.ring.abort(reserved);
            // Messages behind the given up slot can be received now.
            self.producer.wake(1);
        }
    }
}
