//! Ending long work in the middle.

use std::{fmt, sync::Arc};

/// Asked before each branch of a pass: whether to stop.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// Somebody wanted to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Who is asked, if anybody.
#[derive(Clone, Default)]
pub struct Asked(Option<Stop>);

impl Asked {
    pub fn of(stop: Stop) -> Self {
        Self(Some(stop))
    }

    pub fn is_somebody(&self) -> bool {
        self.0.is_some()
    }

    /// # Errors
    /// [`Stopped`] where somebody asks for it.
    pub fn go_on(&self) -> Result<(), Stopped> {
        match &self.0 {
            Some(stop) if stop() => Err(Stopped),
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
