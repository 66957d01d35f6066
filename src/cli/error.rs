//! Every error the command can end with, and its exit code.

use crate::{
    checkpoint::CheckpointError, device::DeviceError, diffusion::DiffusionError,
    pipeline::OpenError, policy::PolicyError, report::ReportError, sampler::SampleError,
    schedule::ScheduleError, training::TrainingError,
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
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Flags that make no sense together or for this model.
    #[error("{0}")]
    Usage(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// What to do about it, where a flag or another command helps.
    pub fn hint(&self) -> Option<&'static str> {
        let of_schedule = |error: &ScheduleError| match error {
            ScheduleError::Mismatch { .. } => Some(
                "; make one for this run (`harmonica schedule make`, `harmonica train router`), or pass --force to use it all the same",
            ),
            ScheduleError::Shape { .. } => Some(
                "; make one for this run (`harmonica schedule make`, `harmonica train router`)",
            ),
            _ => None,
        };
        match self {
            Self::Policy(PolicyError::Schedule(error))
            | Self::Schedule(error)
            | Self::Sample(SampleError::Schedule(error)) => of_schedule(error),
            Self::Sample(SampleError::NoImages) => Some(": pass --count of at least 1"),
            Self::Sample(SampleError::Batch) => {
                Some(": pass --batch of at least 1, or none to have it chosen")
            }
            _ => None,
        }
    }

    /// 1 failed, 2 bad usage, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::Policy(PolicyError::Schedule(ScheduleError::Number { .. })) => 2,
            Self::Policy(PolicyError::Schedule(_)) => 1,
            Self::Usage(_)
            | Self::Diffusion(_)
            | Self::Policy(_)
            | Self::Schedule(ScheduleError::Number { .. })
            | Self::Device(DeviceError::Unknown { .. } | DeviceError::NoSuchIndex { .. })
            | Self::Sample(
                SampleError::Diffusion(_)
                | SampleError::Condition(_)
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
            | Self::Open(OpenError::Checkpoint(
                CheckpointError::RandomSpec { .. }
                | CheckpointError::HeadsNeeded { .. }
                | CheckpointError::SizeNeeded { .. }
                | CheckpointError::Settings { .. },
            ))
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
