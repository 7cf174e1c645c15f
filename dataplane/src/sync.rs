//! The atomics and the cell that `ring`, `bell` and `placement` are built from. Under the loom model checker they are loom's, so that every
//! interleaving of the code itself is tried: by `mesh/loom_tests.rs`, and by `tests/loom.rs`, which compiles `ring` again with
//! its own module in the place of this one.

pub use crate::clock::prefetch;

#[cfg(all(loom, test))]
pub use loom::{
    cell::UnsafeCell,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering, fence},
};
#[cfg(not(all(loom, test)))]
pub use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering, fence},
};

/// [`std::cell::UnsafeCell`] with loom's way of access.
#[cfg(not(all(loom, test)))]
#[derive(Debug)]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(all(loom, test)))]
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
