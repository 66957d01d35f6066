//! A router in training.
//!
//! - [`sdt`]: Step-Wise Denoising Training, the loop over passes and steps
//! - [`iepo`]: the Image Error Proxy-Guided Objective, `λ_s`
//! - [`budget`]: what a router is trained for
//! - [`steering`]: steering β to a target
//! - [`folder`]: a resumable run in a folder

pub mod adamw;
pub mod budget;
#[cfg(not(target_family = "wasm"))]
pub mod folder;
pub mod iepo;
mod landing;
mod replay;
#[cfg(not(target_family = "wasm"))]
mod saved;
pub mod sdt;
mod settings;
mod setup;
mod state;
pub mod steering;
pub mod student;
mod walk;

pub use adamw::AdamWParts;
pub use budget::Budget;
#[cfg(not(target_family = "wasm"))]
pub use folder::{PassSummary, RouterRun, RouterRunOptions, RunFolder};
pub use iepo::Proxy;
pub use replay::Replay;
#[cfg(not(target_family = "wasm"))]
pub use saved::TrainingSummary;
pub use sdt::Sdt;
pub use settings::SdtSettings;
pub use state::{Iteration, Progress, TrainingState};
pub use steering::Steering;
