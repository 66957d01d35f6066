//! Handles: numbers in the guise of pointers. Nothing lies where they point, and none is given twice, so that a handle that
//! was freed, or is one of another type, is told from one that is open.

use std::{
    collections::BTreeMap,
    ptr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::error::{Failure, guard};

/// Odd, and so no address of anything that C could hold.
static NEXT: AtomicUsize = AtomicUsize::new(1);

/// The open handles of a type.
pub(super) struct Handles<T>(RwLock<BTreeMap<usize, Arc<T>>>);

/// What C holds a handle of.
pub(super) trait Handle: Sized + Send + Sync + 'static {
    /// As messages and parameters name it.
    const NAME: &'static str;

    fn handles() -> &'static Handles<Self>;

    /// A new handle of it.
    fn open(self) -> *mut Self {
        let number = NEXT.fetch_add(2, Ordering::Relaxed);
        let mut handles = Self::handles()
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        handles.insert(number, Arc::new(self));
        ptr::without_provenance_mut(number)
    }

    /// What a handle stands for, which outlives a call that frees it meanwhile.
    fn of(handle: *const Self) -> Result<Arc<Self>, Failure> {
        if handle.is_null() {
            return Err(Failure::Argument(format!("`{}` is null", Self::NAME)));
        }
        Self::optional(handle)?.ok_or_else(Self::unknown)
    }

    /// The same of a handle that may be null.
    fn optional(handle: *const Self) -> Result<Option<Arc<Self>>, Failure> {
        if handle.is_null() {
            return Ok(None);
        }
        let handles = Self::handles()
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let found = handles.get(&handle.addr()).cloned();
        found.map(Some).ok_or_else(Self::unknown)
    }

    /// Frees a handle; null is nothing, and what is open nowhere leaves the text of an error.
    fn free(handle: *mut Self) {
        if handle.is_null() {
            return;
        }
        guard(|| {
            let mut handles = Self::handles()
                .0
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let freed = handles.remove(&handle.addr());
            // A device can take its time to close; others go on meanwhile.
            drop(handles);
            freed.map(drop).ok_or_else(Self::unknown)
        });
    }

    fn unknown() -> Failure {
        Failure::Argument(format!(
            "`{}` is no open handle: it was freed, or is one of another type",
            Self::NAME
        ))
    }
}

impl<T> Handles<T> {
    pub(super) const fn new() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(u32);

    static THINGS: Handles<Thing> = Handles::new();

    impl Handle for Thing {
        const NAME: &'static str = "thing";

        fn handles() -> &'static Handles<Self> {
            &THINGS
        }
    }

    #[test]
    fn a_freed_handle_is_known_as_such_and_never_given_again() {
        let first = Thing(1).open();
        let held = Thing::of(first).unwrap();
        Thing::free(first);
        // A call that is under way keeps what it uses.
        assert_eq!((held.0, Arc::strong_count(&held)), (1, 1));
        let second = Thing(2).open();
        assert_ne!(first, second);
        for gone in [first, second.wrapping_byte_add(1), ptr::dangling_mut()] {
            let refused = Thing::of(gone).err().unwrap().to_string();
            assert!(refused.contains("`thing` is no open handle"), "{refused}");
        }
        Thing::free(first);
        assert_eq!(Thing::of(second).unwrap().0, 2);
        assert!(Thing::optional(ptr::null()).unwrap().is_none());
        assert!(Thing::of(ptr::null()).is_err());
        Thing::free(second);
        assert!(Thing::optional(second).is_err());
    }
}
