//! A mapped region as the rings see it: a base, a length, atomics at offsets, and copies.

#[cfg(not(loom))]
pub use mapped::Region;
#[cfg(loom)]
pub use modelled::Region;

#[cfg(not(loom))]
mod mapped {
    use core::ptr::NonNull;

    use crate::ring::copy::{copy_in, copy_out};
    use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    /// A region of shared memory. It owns nothing: whoever keeps the mapping keeps it mapped longer than this.
    #[derive(Debug, Clone)]
    pub struct Region {
        base: NonNull<u8>,
        length: usize,
    }

    // SAFETY: a region is an address and a length; everything done through it is an atomic access or a copy that
    // tolerates concurrent writers.
    unsafe impl Send for Region {}

    impl Region {
        /// # Safety
        /// - `base` is aligned to 128 bytes, and `length` bytes are mapped there, readable, as long as any clone of the
        ///   region lives; writable if the region is ever written through.
        /// - No Rust reference to these bytes exists, except to atomics.
        /// - The file behind it cannot shrink (sealed).
        pub unsafe fn new(base: *mut u8, length: usize) -> Self {
            assert!(base.addr().is_multiple_of(crate::layout::SPACING_BYTES));
            Self { base: NonNull::new(base).expect("a mapping is never at address zero"), length }
        }

        /// Length in bytes.
        #[allow(clippy::len_without_is_empty)]
        pub fn len(&self) -> usize {
            self.length
        }

        /// A part of it, for a ring that shares its memory file with others. Panics if it lies outside or does not start
        /// at a multiple of 128 bytes: offsets are constants of the layout or come from a checked geometry.
        pub fn part(&self, offset: usize, length: usize) -> Self {
            assert!(offset <= self.length && length <= self.length - offset);
            assert!(offset.is_multiple_of(crate::layout::SPACING_BYTES));
            // SAFETY: in bounds, so mapped and usable as long as this region is.
            let base = unsafe { self.base.add(offset) };
            Self { base, length }
        }

        /// The eight bytes at this offset. Panics if they lie outside or are not aligned: offsets are constants of
        /// the layout or come from a checked geometry.
        #[inline(always)]
        pub fn u64_at(&self, offset: usize) -> &AtomicU64 {
            assert!(offset.is_multiple_of(8) && offset < self.length && self.length - offset >= 8);
            // SAFETY: in bounds and aligned; the memory is only ever accessed through atomics and copies.
            unsafe { self.u64_at_unchecked(offset) }
        }

        /// # Safety
        /// `offset` is a multiple of eight and `offset + 8 <= len()`.
        #[inline(always)]
        pub(crate) unsafe fn u64_at_unchecked(&self, offset: usize) -> &AtomicU64 {
            debug_assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
            // SAFETY: in bounds by the caller's contract, mapped by the contract of `new`.
            let address = unsafe { self.base.as_ptr().add(offset) };
            // SAFETY: aligned; an atomic has the size of its integer, and any bit pattern is valid.
            unsafe { &*address.cast::<AtomicU64>() }
        }

        /// The four bytes at this offset; panics as [`Self::u64_at`] does.
        #[inline(always)]
        pub fn u32_at(&self, offset: usize) -> &AtomicU32 {
            assert!(offset.is_multiple_of(4) && offset < self.length && self.length - offset >= 4);
            // SAFETY: in bounds, mapped by the contract of `new`.
            let address = unsafe { self.base.as_ptr().add(offset) };
            // SAFETY: aligned; an atomic has the size of its integer, and any bit pattern is valid.
            unsafe { &*address.cast::<AtomicU32>() }
        }

        /// Address of an offset, for zero-copy access.
        #[inline(always)]
        pub fn address(&self, offset: usize) -> *mut u8 {
            assert!(offset < self.length);
            // SAFETY: in bounds.
            unsafe { self.base.as_ptr().add(offset) }
        }

        /// Asks for the cache line of an offset ahead of its use, to read it or to write it.
        #[inline(always)]
        pub(crate) fn prefetch(&self, offset: usize, write: bool) {
            debug_assert!(offset < self.length);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a prefetch is a hint that faults at no address; processors that lack `prefetchw` ignore it.
            unsafe {
                let address = self.base.as_ptr().add(offset);
                if write {
                    core::arch::asm!("prefetchw [{a}]", a = in(reg) address,
                        options(nostack, preserves_flags, readonly));
                } else {
                    core::arch::asm!("prefetcht0 [{a}]", a = in(reg) address,
                        options(nostack, preserves_flags, readonly));
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = (offset, write);
        }

        /// Copies private bytes into the region.
        #[inline(always)]
        pub fn copy_in(&self, offset: usize, bytes: &[u8]) {
            assert!(offset <= self.length && bytes.len() <= self.length - offset);
            #[cfg(feature = "steps")]
            crate::sync::step::tick();
            // SAFETY: in bounds on both sides; private and shared memory do not overlap.
            unsafe { copy_in(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len()) };
        }

        /// Copies bytes of the region into private memory.
        #[inline(always)]
        pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
            assert!(offset <= self.length && into.len() <= self.length - offset);
            #[cfg(feature = "steps")]
            crate::sync::step::tick();
            // SAFETY: in bounds on both sides; private and shared memory do not overlap.
            unsafe { copy_out(self.base.as_ptr().add(offset), into.as_mut_ptr(), into.len()) };
        }

        /// Writes eight bytes of a message. Ordered by the slot's word, not by itself.
        ///
        /// # Safety
        /// As [`Self::u64_at_unchecked`].
        #[inline(always)]
        pub(crate) unsafe fn write_cell(&self, offset: usize, value: u64) {
            // SAFETY: the caller's contract. Relaxed: published by the Release store of the slot's word.
            unsafe { self.u64_at_unchecked(offset) }.store(value, Ordering::Relaxed);
        }

        /// Reads eight bytes of a message once. Ordered by the slot's word, not by itself.
        ///
        /// # Safety
        /// As [`Self::u64_at_unchecked`].
        #[inline(always)]
        pub(crate) unsafe fn read_cell(&self, offset: usize) -> u64 {
            // SAFETY: the caller's contract. Relaxed: after the Acquire load of the slot's word.
            unsafe { self.u64_at_unchecked(offset) }.load(Ordering::Relaxed)
        }
    }
}

#[cfg(loom)]
mod modelled {
    //! The same region made of loom's objects: words are loom atomics, message bytes are cells in which loom
    //! detects every unordered access. Only the offsets that a model names exist.

    use std::collections::BTreeMap;
    use std::fmt;
    use std::sync::Arc;

    use loom::cell::UnsafeCell;

    use crate::sync::atomic::{AtomicU32, AtomicU64};

    struct Memory {
        words: BTreeMap<usize, AtomicU64>,
        halves: BTreeMap<usize, AtomicU32>,
        cells: BTreeMap<usize, UnsafeCell<u64>>,
    }

    /// A region of modelled memory.
    #[derive(Clone)]
    pub struct Region {
        memory: Arc<Memory>,
        length: usize,
    }

    impl fmt::Debug for Region {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Region({} bytes)", self.length)
        }
    }

    // SAFETY: loom itself checks every access to the cells.
    unsafe impl Send for Region {}
    // SAFETY: as above.
    unsafe impl Sync for Region {}

    impl Region {
        /// Zeroed memory with 64-bit atomics, 32-bit atomics and message cells (8 bytes each) at these offsets.
        pub fn modelled(
            length: usize,
            words: impl IntoIterator<Item = usize>,
            halves: impl IntoIterator<Item = usize>,
            cells: impl IntoIterator<Item = usize>,
        ) -> Self {
            let memory = Memory {
                words: words.into_iter().map(|at| (at, AtomicU64::new(0))).collect(),
                halves: halves.into_iter().map(|at| (at, AtomicU32::new(0))).collect(),
                cells: cells.into_iter().map(|at| (at, UnsafeCell::new(0))).collect(),
            };
            Self { memory: Arc::new(memory), length }
        }

        /// Length in bytes.
        pub fn len(&self) -> usize {
            self.length
        }

        /// The atomic at this offset.
        pub fn u64_at(&self, offset: usize) -> &AtomicU64 {
            self.memory.words.get(&offset).unwrap_or_else(|| panic!("no word at {offset:#x}"))
        }

        /// # Safety
        /// None here: an unknown offset panics.
        pub(crate) unsafe fn u64_at_unchecked(&self, offset: usize) -> &AtomicU64 {
            self.u64_at(offset)
        }

        /// The atomic at this offset.
        pub fn u32_at(&self, offset: usize) -> &AtomicU32 {
            self.memory.halves.get(&offset).unwrap_or_else(|| panic!("no half word at {offset:#x}"))
        }

        /// There is no address in a model.
        pub fn address(&self, _offset: usize) -> *mut u8 {
            std::ptr::null_mut()
        }

        /// There is no cache in a model.
        pub(crate) fn prefetch(&self, _offset: usize, _write: bool) {}

        fn cell(&self, offset: usize) -> &UnsafeCell<u64> {
            self.memory.cells.get(&offset).unwrap_or_else(|| panic!("no cell at {offset:#x}"))
        }

        /// Copies private bytes, a multiple of eight, into the cells.
        pub fn copy_in(&self, offset: usize, bytes: &[u8]) {
            for (index, chunk) in bytes.chunks_exact(8).enumerate() {
                let value = u64::from_ne_bytes(chunk.try_into().expect("eight bytes"));
                // SAFETY: loom fails the model if this access is not ordered after all others.
                unsafe { self.write_cell(offset + index * 8, value) };
            }
        }

        /// Copies cells into private bytes, a multiple of eight.
        pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
            for (index, chunk) in into.chunks_exact_mut(8).enumerate() {
                // SAFETY: loom fails the model if this access is not ordered after all writes.
                let value = unsafe { self.read_cell(offset + index * 8) };
                chunk.copy_from_slice(&value.to_ne_bytes());
            }
        }

        /// # Safety
        /// Checked by loom.
        pub(crate) unsafe fn write_cell(&self, offset: usize, value: u64) {
            // SAFETY: loom fails the model if this access is not ordered after all others.
            self.cell(offset).with_mut(|cell| unsafe { *cell = value });
        }

        /// # Safety
        /// Checked by loom.
        pub(crate) unsafe fn read_cell(&self, offset: usize) -> u64 {
            // SAFETY: loom fails the model if this access is not ordered after all writes.
            self.cell(offset).with(|cell| unsafe { *cell })
        }
    }
}
