//! A router in training.
//!
//! - [`sdt`]: Step-Wise Denoising Training, the loop over passes and steps
//! - [`iepo`]: the Image Error Proxy-Guided Objective, `λ_s`
//! - [`budget`]: steering β to a target
//! - [`folder`]: a resumable run in a folder

pub mod adamw;
pub mod budget;
pub mod folder;
pub mod iepo;
mod replay;
mod saved;
pub mod sdt;
mod settings;
pub mod student;
mod walk;

pub use adamw::AdamWParts;
pub use budget::{Budget, Steering};
pub use folder::{PassSummary, RouterRun, RouterRunOptions, RunFolder};
pub use iepo::Proxy;
pub use replay::Replay;
pub use saved::TrainingSummary;
pub use sdt::{Iteration, Progress, Sdt, TrainingState};
pub use settings::SdtSettings;
