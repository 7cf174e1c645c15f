//! The atomics and the cell that `ring` is built from. `tests/loom.rs` puts loom's in their place and compiles the same file
//! again, so that every interleaving of the code itself is tried.

pub use crate::clock::prefetch;
pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicUsize, Ordering};

/// [`std::cell::UnsafeCell`] with loom's way of access.
#[derive(Debug)]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// Around this value.
    pub const fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// For reading.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// For writing.
    #[inline]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
