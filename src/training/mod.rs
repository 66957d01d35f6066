//! Learning what a run may skip, image-free and along the real denoising path: HarmoniCa's router of branches (arXiv
//! 2410.01723), or forecasts of whole steps. And before that, training the network itself.
//!
//! - [`router`]: SDT and IEPO, budgets, resumable runs in a folder
//! - [`forecast`]: clean images made of earlier ones, fitted so that a run that skips lands where the uncached one does
//! - [`calibration`]: what published policies want measured before they can choose
//! - [`network`]: a DiT from pictures, with the public release's objective
//! - [`run`]: what they share: errors, logs, metadata of checkpoints

#[cfg(not(target_family = "wasm"))]
pub mod calibration;
#[cfg(not(target_family = "wasm"))]
pub mod data;
#[cfg(not(target_family = "wasm"))]
pub mod forecast;
#[cfg(not(target_family = "wasm"))]
pub mod network;
pub mod router;
pub mod run;
#[cfg(test)]
mod small;

#[cfg(not(target_family = "wasm"))]
pub use data::DataError;
pub use router::{
    Budget, Iteration, Progress, Proxy, Replay, Sdt, SdtSettings, Steering, TrainingState,
};
#[cfg(not(target_family = "wasm"))]
pub use router::{PassSummary, RouterRun, RouterRunOptions, RunFolder, TrainingSummary};
pub use run::TrainingError;
