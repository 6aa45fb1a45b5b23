//! Memory that a device can read from and write to.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::BLOCK_BYTES;

/// Private memory of whole blocks, aligned to a block.
pub struct Buffer {
    base: NonNull<u8>,
    capacity: usize,
    length: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Buffer {}
// SAFETY: shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Zeros, of a length rounded up to whole blocks, at least one.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let length = length.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = Self::layout(length);
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
        Self { base, capacity: length, length }
    }

    /// Bytes that it can have.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes the buffer as short or as long as this, rounded up to whole blocks, at least one, at most its capacity. What
    /// was there is there again when it grows.
    pub fn set_length(&mut self, length: usize) {
        self.length = length.max(1).next_multiple_of(BLOCK_BYTES).min(self.capacity);
    }

    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length, BLOCK_BYTES)
            .expect("buffers are far shorter than isize::MAX")
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated with at least this length, initialised, and borrowed as the value is.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the value is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity)) };
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}
