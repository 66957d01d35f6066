//! Every error the command can end with, and its exit code.

use super::{misplaced, pull::PullError};
use crate::{
    checkpoint::{CheckpointError, ResidenceError},
    device::{DeviceError, DeviceFault},
    diffusion::DiffusionError,
    models::{text::TextError, vae::VaeError},
    pipeline::OpenError,
    policy::PolicyError,
    ranks::RanksError,
    report::ReportError,
    sampler::SampleError,
    schedule::ScheduleError,
    training::{DataError, TrainingError},
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
    Sample(SampleError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Training(TrainingError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Vae(VaeError),
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Flags that make no sense together or for this model.
    #[error("{0}")]
    Usage(String),
    /// A picture that does not say how it was drawn.
    #[error("{0}")]
    Picture(String),
    /// What `doctor` found: how many problems.
    #[error("{0}: see above, or `problems` of the JSON, for what to do")]
    Unwell(String),
    /// Other ranks of the job failed, or were not asked for the same.
    #[error(transparent)]
    Ranks(RanksError),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl From<RanksError> for CliError {
    fn from(error: RanksError) -> Self {
        match error {
            RanksError::Stopped => Self::Interrupted,
            error => Self::Ranks(error),
        }
    }
}

impl From<SampleError> for CliError {
    fn from(error: SampleError) -> Self {
        match error {
            SampleError::Stopped => Self::Interrupted,
            error => Self::Sample(error),
        }
    }
}

impl From<TrainingError> for CliError {
    fn from(error: TrainingError) -> Self {
        match error {
            TrainingError::Stopped => Self::Interrupted,
            TrainingError::Ranks(error) => Self::Ranks(error),
            error => Self::Training(error),
        }
    }
}

impl From<VaeError> for CliError {
    fn from(error: VaeError) -> Self {
        match error {
            VaeError::Interrupted => Self::Interrupted,
            error => Self::Vae(error),
        }
    }
}

impl CliError {
    /// What went wrong in this command's own words: settings by their flags, and what to do where a flag or another command
    /// helps.
    pub fn explain(&self) -> String {
        match self {
            Self::Training(TrainingError::Setting {
                setting,
                value,
                expected,
            }) => format!("--{setting} is {value}, expected {expected}"),
            Self::Training(TrainingError::Resume {
                path,
                setting,
                found,
                asked,
            }) => format!(
                "{} was trained with {} {found}, this command says {asked}; resume with the same settings, or choose another --out",
                path.display(),
                flag_of(setting)
            ),
            _ => format!("{self}{}", self.hint().unwrap_or_default()),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Checkpoint(error)
            | Self::Open(OpenError::Checkpoint(error))
            | Self::Training(TrainingError::Checkpoint(error)) => {
                return of_checkpoint(error)
                    .map(Into::into)
                    .or_else(|| misplaced::as_model(error));
            }
            Self::Device(error) => of_device(error),
            Self::Diffusion(error)
            | Self::Policy(PolicyError::Run(error))
            | Self::Training(TrainingError::Diffusion(error)) => of_diffusion(error),
            Self::Policy(PolicyError::Schedule(error)) | Self::Schedule(error) => {
                return of_schedule(error)
                    .map(Into::into)
                    .or_else(|| misplaced::as_schedule(error));
            }
            Self::Policy(PolicyError::Unknown { name, .. }) if name == "bundled" => {
                Some("; `bundled` is a model (--model): what was learned for it is learned[:SPEED]")
            }
            Self::Sample(error)
            | Self::Open(OpenError::Sample(error))
            | Self::Training(TrainingError::Sample(error)) => of_sample(error),
            Self::Text(TextError::Checkpoint(error)) => of_checkpoint(error),
            Self::Text(
                TextError::NotThere { .. } | TextError::Width { .. } | TextError::Token { .. },
            ) => {
                Some("; --text-encoder DIR names another folder, with text_encoder/ and tokenizer/")
            }
            Self::Training(error) => of_training(error),
            Self::Policy(PolicyError::NotLearned { .. }) => Some(
                "; `harmonica train router` with the same --model, --steps, --solver and --guidance makes some (--schedule DIR --speed X takes them)",
            ),
            _ => None,
        };
        hint.map(Into::into)
    }

    /// 1 failed, 2 bad usage, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::Policy(PolicyError::Schedule(ScheduleError::Number { .. })) => 2,
            // A file that is at fault.
            Self::Policy(
                PolicyError::Schedule(_)
                | PolicyError::NoCalibration { .. }
                | PolicyError::OtherCalibration { .. },
            ) => 1,
            Self::Usage(_)
            | Self::Text(
                TextError::Classes | TextError::NotThere { .. } | TextError::Width { .. },
            )
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
                | TrainingError::Busy { .. }
                | TrainingError::NothingToResume { .. },
            )
            | Self::Open(OpenError::Checkpoint(
                CheckpointError::RandomSpec { .. }
                | CheckpointError::HubName { .. }
                | CheckpointError::HeadsNeeded { .. }
                | CheckpointError::SizeNeeded { .. }
                | CheckpointError::Settings { .. },
            ))
            | Self::Checkpoint(
                CheckpointError::RandomSpec { .. }
                | CheckpointError::HubName { .. }
                | CheckpointError::HeadsNeeded { .. }
                | CheckpointError::SizeNeeded { .. }
                | CheckpointError::Settings { .. },
            ) => 2,
            _ => 1,
        }
    }
}

fn of_checkpoint(error: &CheckpointError) -> Option<&'static str> {
    match error {
        CheckpointError::HeadsNeeded { .. } => Some("; pass --heads N"),
        CheckpointError::SizeNeeded { .. } => Some("; pass --input-size HEIGHTxWIDTH"),
        CheckpointError::Residence { source, .. } => match source {
            ResidenceError::Buffer { .. } => Some(" (--device cpu)"),
            ResidenceError::Decoding { .. } => Some(" (--vae-tile N, or --device cpu)"),
            ResidenceError::NoF16 | ResidenceError::Overflow { .. } => Some(" (--dtype f32)"),
            ResidenceError::NoBf16 => Some(" (--dtype f16, or --device cpu)"),
            _ => None,
        },
        _ => None,
    }
}

fn of_device(error: &DeviceError) -> Option<&'static str> {
    match error {
        DeviceError::NoAdapter { .. }
        | DeviceError::Unusable { .. }
        | DeviceError::Driver { .. } => Some("; pass another --device, or auto or cpu"),
        _ => None,
    }
}

fn of_diffusion(error: &DiffusionError) -> Option<&'static str> {
    match error {
        DiffusionError::Steps { .. } => Some("; pass --steps between them"),
        _ => None,
    }
}

fn of_schedule(error: &ScheduleError) -> Option<&'static str> {
    match error {
        ScheduleError::Mismatch { .. } => Some(
            "; make one for this run (`harmonica schedule make`, `harmonica train router`), or pass --force to use it all the same",
        ),
        ScheduleError::Shape { .. } => {
            Some("; make one for this run (`harmonica schedule make`, `harmonica train router`)")
        }
        _ => None,
    }
}

fn of_sample(error: &SampleError) -> Option<&'static str> {
    match error {
        SampleError::Diffusion(error) => of_diffusion(error),
        SampleError::Schedule(error) => of_schedule(error),
        SampleError::NoImages => Some(": pass --count of at least 1"),
        SampleError::Device(DeviceFault::OutOfMemory { .. } | DeviceFault::TooLarge { .. }) => {
            Some(" (--batch)")
        }
        SampleError::Batch => Some(": pass --batch of at least 1, or none to have it chosen"),
        _ => None,
    }
}

fn of_training(error: &TrainingError) -> Option<&'static str> {
    match error {
        TrainingError::Exists { .. } => {
            Some("; pass --resume to go on with it, or choose another --out")
        }
        TrainingError::OtherRun { .. } => Some("; choose another --out"),
        TrainingError::Busy { .. } => Some("; wait until it ends, or choose another --out"),
        TrainingError::NothingToResume { .. } => Some("; leave --resume away to start one"),
        TrainingError::Diverged { .. } => Some(" (--lr)"),
        TrainingError::Data(DataError::Temporary { .. }) => Some(" (--data-memory)"),
        _ => None,
    }
}

/// The flag of a setting that a run remembers by its field's name; other settings have none.
fn flag_of(setting: &str) -> String {
    match setting {
        "learning_rate" => "--lr".into(),
        "budget" | "timesteps" | "resolution" => setting.into(),
        words if words.contains(' ') => words.into(),
        field => format!("--{}", field.replace('_', "-")),
    }
}
