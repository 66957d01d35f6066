//! Every error the command can end with, and its exit code.

use crate::{
    checkpoint::CheckpointError, device::DeviceError, diffusion::DiffusionError,
    policy::PolicyError, report::ReportError, sampler::SampleError, schedule::ScheduleError,
    training::TrainingError,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// Flags that make no sense together or for this model.
    #[error("{0}")]
    Usage(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// 1 failed, 2 bad usage, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::Usage(_)
            | Self::Diffusion(_)
            | Self::Policy(_)
            | Self::Schedule(ScheduleError::Number { .. })
            | Self::Device(DeviceError::Unknown { .. } | DeviceError::NoSuchIndex { .. })
            | Self::Sample(
                SampleError::Diffusion(_)
                | SampleError::Label { .. }
                | SampleError::NoImages
                | SampleError::Batch,
            )
            | Self::Training(
                TrainingError::Setting { .. }
                | TrainingError::DataMismatch { .. }
                | TrainingError::Resume { .. }
                | TrainingError::Exists { .. }
                | TrainingError::OtherRun { .. }
                | TrainingError::NothingToResume { .. },
            )
            | Self::Checkpoint(
                CheckpointError::RandomSpec { .. }
                | CheckpointError::HeadsNeeded { .. }
                | CheckpointError::SizeNeeded { .. }
                | CheckpointError::Settings { .. },
            ) => 2,
            _ => 1,
        }
    }
}
