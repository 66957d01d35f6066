//! Pointers from C, checked as far as they can be.

use std::ffi::{CStr, c_char};

use super::error::Failure;

/// Refuses what no `T` can lie at.
fn check<T>(pointer: *const T, name: &str) -> Result<(), Failure> {
    let problem = match pointer {
        _ if pointer.is_null() => "is null",
        _ if !pointer.is_aligned() => "is not aligned for what it points to",
        _ => return Ok(()),
    };
    Err(Failure::Argument(format!("`{name}` {problem}")))
}

/// A copy of what lies there, so that C may change it afterwards.
///
/// # Safety
/// `pointer` is null, or points to a `T`.
pub(super) unsafe fn copied<T: Copy>(pointer: *const T, name: &str) -> Result<T, Failure> {
    check(pointer, name)?;
    // SAFETY: neither null nor misaligned; the rest is the caller's promise.
    Ok(unsafe { pointer.read() })
}

/// UTF-8 text.
///
/// # Safety
/// `pointer` is null, or points to a zero-terminated string that lives while the text is used.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    check(pointer, name)?;
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
    check(pointer, name)?;
    if length > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::Argument(format!("`{name}` has no such length")));
    }
    // SAFETY: neither null nor misaligned, of a length that fits in memory; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// Where a result goes; found out to be null before the work, not after it.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// `pointer` is null, or may be written to by this thread alone until [`Out::set`] has.
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Failure> {
        check(pointer, name)?;
        Ok(Self(pointer))
    }

    /// Writes the result over memory that need not be initialised.
    pub(super) fn set(self, value: T) {
        // SAFETY: neither null nor misaligned, and writable by the promise made to `new`.
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
        check(pointer, name)?;
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

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    fn said<T>(result: Result<T, Failure>) -> String {
        result.err().map_or_else(String::new, |e| e.to_string())
    }

    #[test]
    fn what_no_value_can_lie_at_is_refused() {
        let numbers = [1u64, 2];
        let odd = ptr::from_ref(&numbers).cast::<u64>().wrapping_byte_add(1);
        let (none, aligned) = (ptr::null_mut::<u64>(), "`x` is not aligned");
        // SAFETY: all is refused before it is looked at.
        unsafe {
            assert_eq!(said(copied(none, "x")), "`x` is null");
            assert_eq!(said(slice(none, 0, "x")), "`x` is null");
            assert_eq!(said(text(ptr::null(), "x")), "`x` is null");
            assert_eq!(said(Out::new(none, "x")), "`x` is null");
            assert_eq!(said(OutSlice::new(none, 0, "x")), "`x` is null");
            assert!(said(copied(odd, "x")).contains(aligned));
            assert!(said(slice(odd, 1, "x")).contains(aligned));
            assert!(said(Out::new(odd.cast_mut(), "x")).contains(aligned));
            assert!(said(OutSlice::new(odd.cast_mut(), 1, "x")).contains(aligned));
            for length in [usize::MAX, isize::MAX as usize, isize::MAX as usize / 8 + 1] {
                let refused = said(slice(numbers.as_ptr(), length, "x"));
                assert_eq!(refused, "`x` has no such length");
            }
        }
    }

    #[test]
    fn many_values_end_where_the_room_ends() {
        // Unaligned starts within an allocation, every length, and what lies on both sides of it.
        for start in 0..4 {
            for room in 0..6 {
                for (first, count) in (0..9).flat_map(|f| (0..9).map(move |c| (f, c))) {
                    let mut memory = [9u8; 12];
                    // SAFETY: `room` bytes after `start` lie within the array, and nothing else touches them.
                    let mut out =
                        unsafe { OutSlice::new(memory.as_mut_ptr().add(start), room, "x") }
                            .unwrap();
                    out.set(first, &[1; 9][..count]);
                    let expected: Vec<u8> = (0..12)
                        .map(|at| {
                            let within = (start..start + room).contains(&at);
                            let written = (start + first..start + first + count).contains(&at);
                            if within && written { 1 } else { 9 }
                        })
                        .collect();
                    assert_eq!(memory[..], expected, "{start} {room} {first} {count}");
                }
            }
        }
    }
}
