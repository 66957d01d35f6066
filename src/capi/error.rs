//! Errors as a status and a text.

use std::{
    any::Any,
    cell::RefCell,
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use crate::{
    checkpoint::CheckpointError, device::DeviceError, diffusion::DiffusionError,
    pipeline::OpenError, policy::PolicyError, report::ReportError, sampler::SampleError,
    schedule::ScheduleError,
};

/// How a call ended.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum hm_status {
    /// Done.
    HM_OK = 0,
    /// The callback asked for it.
    HM_CANCELLED = 1,
    /// A null pointer, a number out of range, text that is not UTF-8.
    HM_INVALID_ARGUMENT = 2,
    /// No such device, or it failed.
    HM_DEVICE = 3,
    /// The model could not be loaded.
    HM_MODEL = 4,
    /// The schedule could not be read, or does not fit.
    HM_SCHEDULE = 5,
    /// Sampling failed.
    HM_SAMPLING = 6,
    /// A file could not be written.
    HM_IO = 7,
    /// A fault of the library.
    HM_INTERNAL = 8,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cancelled")]
    Cancelled,
    #[error("{0}")]
    Argument(String),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Model(#[from] CheckpointError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    #[error(transparent)]
    Sampling(#[from] SampleError),
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl Failure {
    fn status(&self) -> hm_status {
        match self {
            Self::Cancelled => hm_status::HM_CANCELLED,
            Self::Argument(_)
            | Self::Diffusion(_)
            | Self::Sampling(
                SampleError::Diffusion(_)
                | SampleError::Condition(_)
                | SampleError::NoImages
                | SampleError::Batch,
            ) => hm_status::HM_INVALID_ARGUMENT,
            Self::Open(OpenError::Sample(_))
            | Self::Device(_)
            | Self::Sampling(SampleError::Device(_)) => hm_status::HM_DEVICE,
            Self::Model(_) | Self::Open(OpenError::Checkpoint(_)) => hm_status::HM_MODEL,
            Self::Schedule(_) | Self::Policy(_) | Self::Sampling(SampleError::Schedule(_)) => {
                hm_status::HM_SCHEDULE
            }
            Self::Sampling(_) => hm_status::HM_SAMPLING,
            Self::Report(_) => hm_status::HM_IO,
        }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

fn remember(text: &str) {
    // A C string ends at the first zero byte; file names on some systems may hold one.
    let text = CString::new(text.replace('\0', "?")).unwrap_or_default();
    // A thread that is being torn down has nobody left to ask.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = text;
        }
    });
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Runs a call that can fail; neither error nor panic passes.
pub(super) fn guard(call: impl FnOnce() -> Result<(), Failure>) -> hm_status {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => hm_status::HM_OK,
        Ok(Err(failure)) => {
            remember(&failure.to_string());
            failure.status()
        }
        Err(payload) => {
            remember(&format!("internal fault: {}", panic_text(&*payload)));
            hm_status::HM_INTERNAL
        }
    }
}

/// Runs a call that tells a text that may be missing; null if there is none, or the call fails.
pub(super) fn guard_text(
    call: impl FnOnce() -> Result<Option<*const c_char>, Failure>,
) -> *const c_char {
    let mut told = None;
    guard(|| {
        told = call()?;
        Ok(())
    });
    told.unwrap_or(ptr::null())
}

/// The text of the last failure on this thread, empty if there was none. Valid until the next failure on this thread, and no
/// longer than the thread.
#[unsafe(no_mangle)]
pub extern "C" fn hm_last_error() -> *const c_char {
    let text = LAST.try_with(|last| last.try_borrow().ok().map(|text| text.as_ptr()));
    text.ok().flatten().unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last() -> String {
        let text = hm_last_error();
        // SAFETY: the text of this thread's last error, which nothing replaces meanwhile.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    }

    #[test]
    fn an_error_leaves_its_text_and_a_panic_ends_at_the_boundary() {
        assert_eq!(guard(|| Ok(())), hm_status::HM_OK);
        let failed = guard(|| Err(Failure::Argument("no\0such thing".into())));
        assert_eq!(failed, hm_status::HM_INVALID_ARGUMENT);
        assert_eq!(last(), "no?such thing");
        assert_eq!(guard(|| panic!("lost {}", 7)), hm_status::HM_INTERNAL);
        assert_eq!(last(), "internal fault: lost 7");
        // Another thread has its own.
        std::thread::spawn(|| assert_eq!(last(), ""))
            .join()
            .unwrap();
    }
}
