//! Atomics, which loom replaces by its own to try all interleavings.

#[cfg(not(pgr_loom))]
pub(crate) use std::cell::UnsafeCell;
#[cfg(not(pgr_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(pgr_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// loom's cell, used like the standard one.
#[cfg(pgr_loom)]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(loom::cell::UnsafeCell<T>);

#[cfg(pgr_loom)]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::cell::UnsafeCell::new(value))
    }
}

/// Reads through a cell.
///
/// # Safety
/// Nobody writes the cell meanwhile.
pub(crate) unsafe fn cell_read<T: Copy>(cell: &UnsafeCell<T>) -> T {
    #[cfg(not(pgr_loom))]
    // SAFETY: by this function's contract.
    return unsafe { *cell.get() };
    #[cfg(pgr_loom)]
    // SAFETY: by this function's contract, which loom checks.
    return cell.0.with(|p| unsafe { *p });
}

/// Writes through a cell.
///
/// # Safety
/// Nobody reads or writes the cell meanwhile.
pub(crate) unsafe fn cell_write<T>(cell: &UnsafeCell<T>, value: T) {
    #[cfg(not(pgr_loom))]
    // SAFETY: by this function's contract.
    unsafe {
        *cell.get() = value;
    }
    #[cfg(pgr_loom)]
    // SAFETY: by this function's contract, which loom checks.
    cell.0.with_mut(|p| unsafe { *p = value });
}
