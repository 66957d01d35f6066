//! Why a training ends early.

#[cfg(not(target_family = "wasm"))]
use crate::training::data::DataError;
use crate::{
    checkpoint::CheckpointError, device::DeviceFault, diffusion::DiffusionError, ranks::RanksError,
    report::ReportError, sampler::SampleError, schedule::ScheduleError, stop::Stopped,
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
    Sample(SampleError),
    #[cfg(not(target_family = "wasm"))]
    #[error(transparent)]
    Data(#[from] DataError),
    /// Pictures that the network does not take.
    #[error("the network takes {network}, the data has {data}: {advice}")]
    DataMismatch {
        network: String,
        data: String,
        advice: &'static str,
    },
    /// A setting out of range.
    #[error("setting `{setting}` is {value}, expected {expected}")]
    Setting {
        setting: &'static str,
        value: String,
        expected: &'static str,
    },
    /// Settings that contradict a run's own.
    #[error("{} was trained with {setting} {found}, not {asked}: a run goes on with the settings it began with", path.display())]
    Resume {
        path: std::path::PathBuf,
        setting: String,
        found: String,
        asked: String,
    },
    /// A fresh start where a run lies already.
    #[error("{} holds a run already", path.display())]
    Exists { path: std::path::PathBuf },
    /// A folder that a training of the other kind keeps its files in.
    #[error("{} holds another training ({file}), and both would write train.jsonl", path.display())]
    OtherRun {
        path: std::path::PathBuf,
        file: &'static str,
    },
    /// Another process that writes the same files.
    #[error("{} is being trained in by another process", path.display())]
    Busy { path: std::path::PathBuf },
    /// Nothing to resume.
    #[error("{} holds no run to resume: there is no {file}", path.display())]
    NothingToResume {
        path: std::path::PathBuf,
        file: &'static str,
    },
    /// Measurements that are no numbers.
    #[error(
        "what was measured of {what} is not finite: the weights are damaged or the settings are too extreme"
    )]
    NotMeasured { what: &'static str },
    /// Somebody asked it to stop.
    #[error("stopped")]
    Stopped,
    /// A state that is none.
    #[error("{} is damaged: {problem}", path.display())]
    State {
        path: std::path::PathBuf,
        problem: String,
    },
    /// The loss is not finite.
    #[error(
        "the loss of pass {pass}, step {step} is {loss}: the weights are damaged, or the settings are too extreme"
    )]
    NotFinite { pass: usize, step: usize, loss: f64 },
    /// Training a network went astray.
    #[error(
        "step {step} has loss {loss} and gradient norm {norm}: the learning rate is too high, or the weights it began with are damaged; start again with a lower one"
    )]
    Diverged { step: u64, loss: f64, norm: f64 },
    /// Other ranks of the job failed, or were not asked for the same.
    #[error(transparent)]
    Ranks(RanksError),
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

impl From<Stopped> for TrainingError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<RanksError> for TrainingError {
    fn from(error: RanksError) -> Self {
        match error {
            RanksError::Stopped => Self::Stopped,
            error => Self::Ranks(error),
        }
    }
}

impl From<SampleError> for TrainingError {
    fn from(error: SampleError) -> Self {
        match error {
            SampleError::Stopped => Self::Stopped,
            error => Self::Sample(error),
        }
    }
}
