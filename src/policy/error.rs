//! Why there is no policy, or no schedule of one.

use std::path::PathBuf;

use super::CALIBRATIONS;
use crate::{diffusion::DiffusionError, schedule::ScheduleError};

/// A policy that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// An unknown name.
    #[error("unknown policy `{name}`: expected {expected}")]
    Unknown {
        name: String,
        expected: &'static str,
    },
    /// A table is needed, and the policy has none ahead of the run.
    #[error("policy `{policy}` decides while a run goes on and has no table")]
    NoTable { policy: String },
    /// Measurements are needed, and there are none.
    #[error(
        "policy `{policy}` needs a calibration of this model and run, and there is none in {CALIBRATIONS}: `{command}` makes it"
    )]
    NotCalibrated {
        policy: String,
        /// The command that measures.
        command: String,
    },
    /// A file that is no calibration.
    #[error("{} is no calibration: {problem}", path.display())]
    NoCalibration { path: PathBuf, problem: String },
    /// A calibration of something else.
    #[error("the calibration does not fit: {reason}")]
    OtherCalibration { reason: String },
    /// No learned schedule fits.
    #[error("there is no learned schedule{} for this model and run: {available}", .speed.map_or(String::new(), |x| format!(" of {x}×")))]
    NotLearned {
        /// The speed that was asked for.
        speed: Option<f64>,
        /// What there is instead.
        available: String,
    },
    /// Arguments out of range.
    #[error("policy `{spec}`: {problem}")]
    Arguments { spec: String, problem: String },
    /// The run itself.
    #[error(transparent)]
    Run(#[from] DiffusionError),
    /// The table itself.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}
