//! Pointers from C, checked as far as they can be.

use std::ffi::{CStr, c_char};

use super::error::Failure;

fn null(name: &str) -> Failure {
    Failure::Argument(format!("`{name}` is null"))
}

/// # Safety
/// `pointer` is null, or points to a `T` that lives and is not written to while the reference is used.
pub(super) unsafe fn shared<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise is that of `as_ref`.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// UTF-8 text.
///
/// # Safety
/// `pointer` is null, or points to a zero-terminated string that lives while the text is used.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: not null; the rest is the caller's promise.
    unsafe { CStr::from_ptr(pointer) }
        .to_str()
        .map_err(|_| Failure::Argument(format!("`{name}` is no UTF-8 text")))
}

/// # Safety
/// `pointer` is null, or points to `length` values that live and are not written to while the slice is used.
pub(super) unsafe fn slice<'a, T>(
    pointer: *const T,
    length: usize,
    name: &str,
) -> Result<&'a [T], Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    if length > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::Argument(format!("`{name}` has no such length")));
    }
    // SAFETY: not null, of a length that fits in memory; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// Where a result goes; found out to be null before the work, not after it.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// `pointer` is null, or may be written to by this thread alone until [`Out::set`] has.
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Failure> {
        if pointer.is_null() {
            return Err(null(name));
        }
        Ok(Self(pointer))
    }

    /// Writes the result over memory that need not be initialised.
    pub(super) fn set(self, value: T) {
        // SAFETY: not null, and writable by the promise made to `new`.
        unsafe { self.0.write(value) }
    }
}

/// Where many values go.
pub(super) struct OutSlice<T>(*mut T, usize);

impl<T: Copy> OutSlice<T> {
    /// # Safety
    /// `pointer` is null, or `length` values after it may be written to by this thread alone until
    /// [`OutSlice::set`] has.
    pub(super) unsafe fn new(pointer: *mut T, length: usize, name: &str) -> Result<Self, Failure> {
        if pointer.is_null() {
            return Err(null(name));
        }
        Ok(Self(pointer, length))
    }

    /// Checks the room for `needed` values.
    pub(super) fn check(&self, needed: usize, name: &str) -> Result<(), Failure> {
        if self.1 == needed {
            Ok(())
        } else {
            Err(Failure::Argument(format!(
                "`{name}` has room for {} values, expected exactly {needed}",
                self.1
            )))
        }
    }

    /// Writes the values at `first`, as far as there is room for them.
    pub(super) fn set(&mut self, first: usize, values: &[T]) {
        let first = first.min(self.1);
        let count = values.len().min(self.1 - first);
        // SAFETY: `first + count` is within the length promised to `new`, and C's memory is none of `values`.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0.add(first), count) }
    }
}
