//! What a run knows of the device that it is on.

use std::{
    any::Any,
    cell::Cell,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use super::TrainingError;
use crate::{
    device::{DeviceFault, Engine, Watch},
    sampler::SampleError,
};

/// Does work on a device, some faults of which come out of burn as panics: they are errors here.
pub(in crate::training) fn guarded<T>(
    work: impl FnOnce() -> Result<T, TrainingError>,
) -> Result<T, TrainingError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(failed)
}

/// The same of work that tells `each` how it goes: a panic in there is the caller's, and goes on.
pub(in crate::training) fn guarded_telling<P, T>(
    each: &mut dyn FnMut(P) -> ControlFlow<()>,
    work: impl FnOnce(&mut dyn FnMut(P) -> ControlFlow<()>) -> Result<T, TrainingError>,
) -> Result<T, TrainingError> {
    let telling = Cell::new(false);
    let mut tell = |told| {
        telling.set(true);
        let answer = each(told);
        telling.set(false);
        answer
    };
    match catch_unwind(AssertUnwindSafe(|| work(&mut tell))) {
        Err(panic) if telling.get() => resume_unwind(panic),
        done => done.unwrap_or_else(failed),
    }
}

fn failed<T>(panic: Box<dyn Any + Send>) -> Result<T, TrainingError> {
    Err(DeviceFault::of_panic(&*panic).into())
}

/// Knows what went wrong on the device of a run, where its engine was named.
#[derive(Debug, Default)]
pub(in crate::training) struct DeviceWatch(Option<Watch>);

impl DeviceWatch {
    /// From now on.
    pub fn new(engine: &Engine) -> Self {
        Self(Some(Watch::new(engine)))
    }

    /// Of a run that is under way: what it did before is its own too.
    pub fn of_what_was_done(engine: &Engine) -> Self {
        Self(Some(Watch::of_what_was_done(engine)))
    }

    /// That nothing went wrong: some faults leave wrong values and a read-back that succeeds, and what they spoiled is not written.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn check(&self) -> Result<(), TrainingError> {
        match self.0.as_ref().and_then(Watch::fault) {
            Some(fault) => Err(fault.into()),
            None => Ok(()),
        }
    }

    /// What a run ended with: where burn only says that something failed, the engine may know what.
    pub fn explained(&self, error: TrainingError) -> TrainingError {
        match (error, &self.0) {
            (
                TrainingError::Device(fault) | TrainingError::Sample(SampleError::Device(fault)),
                Some(watch),
            ) => watch.explained(fault).into(),
            (error, _) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics() -> Result<(), TrainingError> {
        panic!("a buffer was lost")
    }

    #[test]
    fn a_panic_of_the_work_is_an_error_of_the_device() {
        let mut each = |()| ControlFlow::Continue(());
        let told = guarded_telling(&mut each, |each| {
            assert!(each(()).is_continue());
            panics()
        });
        for error in [guarded(panics), told] {
            let said = error.unwrap_err().to_string();
            assert!(
                said.ends_with("the device failed: a buffer was lost"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_panic_of_whom_it_tells_is_the_callers() {
        let mut each = |()| -> ControlFlow<()> { panic!("the caller's own") };
        let work = || guarded_telling(&mut each, |each| Ok(each(()).is_break()));
        let panic = catch_unwind(AssertUnwindSafe(work)).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"the caller's own"));
    }
}
