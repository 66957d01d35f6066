//! Ending a run in the middle of a step.

use std::{fmt, sync::Arc};

use super::SampleError;

/// Asked before each branch of a pass: whether to stop.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// Who is asked, if anybody.
#[derive(Clone, Default)]
pub(super) struct Asked(Option<Stop>);

impl Asked {
    pub fn of(stop: Stop) -> Self {
        Self(Some(stop))
    }

    /// # Errors
    /// [`SampleError::Stopped`] where somebody asks for it.
    pub fn go_on(&self) -> Result<(), SampleError> {
        match &self.0 {
            Some(stop) if stop() => Err(SampleError::Stopped),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "Asked(somebody)",
            None => "Asked(nobody)",
        })
    }
}
