//! Training a router: HarmoniCa (arXiv 2410.01723), image-free, step by step along the real denoising path. And before
//! that, training the network itself.
//!
//! - [`pretrain`]: a DiT from pictures, with the public release's objective
//! - [`sdt`]: Step-Wise Denoising Training, the loop over passes and steps
//! - [`iepo`]: the Image Error Proxy-Guided Objective, `λ_s`
//! - [`budget`]: steering β to a target
//! - [`run`]: a resumable run in a folder

pub mod adamw;
pub mod budget;
pub mod iepo;
mod log;
mod metadata;
pub mod pretrain;
mod replay;
pub mod run;
mod saved;
pub mod sdt;
mod settings;
pub mod student;
mod walk;

pub use adamw::AdamWParts;
pub use budget::{Budget, Steering};
pub use iepo::Proxy;
pub use replay::Replay;
pub use run::{PassSummary, RouterRun, RouterRunOptions, RunFolder};
pub use saved::TrainingSummary;
pub use sdt::{Iteration, Progress, Sdt, TrainingState};
pub use settings::SdtSettings;

use crate::{
    checkpoint::CheckpointError,
    device::{DeviceFault, Watch},
    diffusion::DiffusionError,
    report::ReportError,
    sampler::SampleError,
    schedule::ScheduleError,
};

/// Why training could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Data(#[from] pretrain::DataError),
    /// Pictures that the network does not take.
    #[error("the network takes {network}, the data has {data}: {advice}")]
    DataMismatch {
        network: String,
        data: String,
        advice: &'static str,
    },
    /// A setting out of range.
    #[error("--{flag} is {value}, expected {expected}")]
    Setting {
        flag: &'static str,
        value: String,
        expected: &'static str,
    },
    /// Settings that contradict a run's own.
    #[error("{} was trained with {flag} {found}, this command says {asked}; resume with the same settings, or choose another --out", path.display())]
    Resume {
        path: std::path::PathBuf,
        flag: String,
        found: String,
        asked: String,
    },
    /// A fresh start where a run lies already.
    #[error("{} holds a run already; pass --resume to go on with it, or choose another --out", path.display())]
    Exists { path: std::path::PathBuf },
    /// A folder that a training of the other kind keeps its files in.
    #[error("{} holds another training ({file}), and both would write train.jsonl; choose another --out", path.display())]
    OtherRun {
        path: std::path::PathBuf,
        file: &'static str,
    },
    /// Nothing to resume.
    #[error("{} holds no run to resume: there is no {file}; leave --resume away to start one", path.display())]
    NothingToResume {
        path: std::path::PathBuf,
        file: &'static str,
    },
    /// The loss is not finite.
    #[error(
        "the loss of pass {pass}, step {step} is {loss}: the weights are damaged, or the settings are too extreme"
    )]
    NotFinite { pass: usize, step: usize, loss: f64 },
    /// Training a network went astray.
    #[error(
        "step {step} has loss {loss} and gradient norm {norm}: the learning rate is too high, or the weights it began with are damaged; start again with a lower --lr"
    )]
    Diverged { step: u64, loss: f64, norm: f64 },
    /// The device failed.
    #[error("training stopped: {0}")]
    Device(#[from] DeviceFault),
    /// A file of the run could not be written or read.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: std::path::PathBuf,
        source: std::io::Error,
    },
}

impl TrainingError {
    /// What a run on this engine ended with: where burn only says that something failed, the engine may know what.
    fn explained(self, watch: Option<&Watch>) -> Self {
        match (self, watch) {
            (Self::Device(fault), Some(watch)) => Self::Device(watch.explained(fault)),
            (other, _) => other,
        }
    }
}
