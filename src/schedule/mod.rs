//! Which branch is computed at which step, and what that costs.
//!
//! Pure data: nothing here touches a device or knows how a schedule came about.

mod bundled;
mod file;
mod forecast;
mod identity;
mod import;
mod joint;
mod probed;
mod reads;
mod router;
mod table;

pub use bundled::{
    SPEED_RANGE, USUAL_SPEED, best_at, bundled_schedule, bundled_schedules, bundled_schedules_of,
    learned_at, nearest, speed_of,
};
pub use file::{FORMAT, GuidanceRecord, Measured, PolicyRecord, RunSettings, ScheduleFile};
pub use forecast::{FORECAST_DEPTH, Forecast, ForecastRecord};
pub use identity::ModelIdentity;
pub use import::{ReleasedKind, ends_a_pair, router_from_release};
pub use joint::{Joint, JointFeature};
pub use probed::{Decisions, Probe, Probed, Reuse, Rule, Sum, Threshold};
pub use reads::StepReads;
pub use router::{LOGIT_LIMIT, Router};
pub use table::{MAX_HISTORY, Schedule};

use std::path::PathBuf;

/// What can be wrong with a schedule or its file.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// A table without steps or branches, or of another size than it says.
    #[error(
        "a schedule of {steps} steps and {branches} branches needs {expected} entries, got {found}"
    )]
    Size {
        steps: usize,
        branches: usize,
        expected: usize,
        found: usize,
    },
    /// Reuse at step 0, when nothing has been computed yet.
    #[error(
        "branch {branch} is reused at step 0, but nothing is in the cache then; step 0 must compute every branch"
    )]
    FirstStep { branch: usize },
    /// Weights of a reused cell that cannot be used.
    #[error(
        "step {step} reads branch {branch} with weights {weights:?}, expected at most {most} finite numbers: one for each feature that was computed, newest first"
    )]
    Reads {
        step: usize,
        branch: usize,
        weights: Vec<f32>,
        most: usize,
    },
    /// Branches that cannot be reused together.
    #[error("step {step} {problem}")]
    Joint { step: usize, problem: String },
    /// A step whose forecast cannot be made.
    #[error("step {step} of the forecast {problem}")]
    Forecast { step: usize, problem: String },
    /// Rows of weights that do not fit the table.
    #[error(
        "its `reads` are not a row for each of {steps} steps, each a list of weights or {branches} such lists"
    )]
    ReadRows { steps: usize, branches: usize },
    /// A threshold or logit that is no usable number.
    #[error("{what} is {value}, expected {expected}")]
    Number {
        what: &'static str,
        value: f64,
        expected: &'static str,
    },
    /// The file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The file is no schedule.
    #[error("{} is no schedule: {problem}", path.display())]
    Format { path: PathBuf, problem: String },
    /// The table has another size than the run: nothing makes it fit.
    #[error("the schedule does not fit: {reason}")]
    Shape { reason: String },
    /// The schedule was made for something else.
    #[error("the schedule does not fit: {reason}")]
    Mismatch { reason: String },
}
