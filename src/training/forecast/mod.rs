//! Forecasts of clean images: fitted image-free, from noise and conditions alone, so that a run that skips lands where the
//! uncached one does.
//!
//! - [`fit`]: what each step of a table weighs
//! - [`computed`]: steps that are whole, in part, or nothing
//! - [`correct`]: forecasts for tables that others made
//! - [`search`]: what to compute
//! - [`folder`]: a schedule for every speed, in a folder that a run can be resumed from

pub mod computed;
pub mod correct;
pub mod fit;
pub mod folder;
mod saved;
pub mod search;
mod settings;
mod target;

pub use computed::Computed;
pub use correct::{Corrected, Corrector, images_for};
pub use fit::{Draws, Fit, Purpose, Source};
pub use folder::{LadderOptions, LadderRun, Progress};
pub use saved::{Judged, RungSummary};
pub use search::{Place, Search, Tried};
pub use settings::LadderSettings;
pub use target::{Allowance, USUAL_SPEEDS, steps_of};
