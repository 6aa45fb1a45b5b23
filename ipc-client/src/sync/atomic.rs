//! The only file that names the atomics of the standard library, so that loom can take their place, and so that a
//! test build can make any shared-memory step the last one of its process.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, Ordering, compiler_fence, fence};

#[cfg(all(not(loom), not(feature = "steps")))]
pub use core::sync::atomic::{AtomicU32, AtomicU64};

#[cfg(all(not(loom), feature = "steps"))]
pub use stepped::{AtomicU32, AtomicU64};

/// Forbids the compiler, not the processor, to move memory operations across this point.
#[cfg(loom)]
pub fn compiler_fence(order: Ordering) {
    // loom models no asymmetric fence: the strong one takes its place.
    fence(order);
}

/// Stores a value that others may replace by compare and exchange. The modification order has the store behind every exchange of a
/// value that the storing thread had seen or written before, because nothing comes between what an exchange reads and what it
/// writes. loom does not know that and lets the thread read such an exchange after its own store, so the store is a swap there.
#[inline(always)]
pub(crate) fn store_beside_exchanges(atomic: &AtomicU64, value: u64, order: Ordering) {
    #[cfg(loom)]
    atomic.swap(value, order);
    #[cfg(not(loom))]
    atomic.store(value, order);
}

#[cfg(all(not(loom), feature = "steps"))]
mod stepped {
    //! Atomics of the same size and meaning that count every access first.

    use super::Ordering;
    use crate::sync::step;

    macro_rules! stepped {
        ($name:ident, $inner:ty, $value:ty) => {
            #[doc = "An atomic integer whose every access is a step that the process may die at."]
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub struct $name($inner);

            impl $name {
                /// A new atomic with this value.
                pub const fn new(value: $value) -> Self {
                    Self(<$inner>::new(value))
                }
                /// See the standard library.
                pub fn load(&self, order: Ordering) -> $value {
                    step::tick();
                    self.0.load(order)
                }
                /// See the standard library.
                pub fn store(&self, value: $value, order: Ordering) {
                    step::tick();
                    self.0.store(value, order);
                }
                /// See the standard library.
                pub fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    step::tick();
                    self.0.compare_exchange(current, new, success, failure)
                }
                /// See the standard library.
                pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    step::tick();
                    self.0.fetch_add(value, order)
                }
                /// See the standard library.
                pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                    step::tick();
                    self.0.fetch_or(value, order)
                }
                /// See the standard library.
                pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                    step::tick();
                    self.0.fetch_and(value, order)
                }
                /// See the standard library.
                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    step::tick();
                    self.0.swap(value, order)
                }
                /// See the standard library.
                pub fn as_ptr(&self) -> *mut $value {
                    self.0.as_ptr()
                }
            }
        };
    }

    stepped!(AtomicU32, core::sync::atomic::AtomicU32, u32);
    stepped!(AtomicU64, core::sync::atomic::AtomicU64, u64);
}
