//! Sampling: a model, a solver and a schedule make images.
//!
//! A [`Run`] is an iterator of [`Event`]s that does one denoising step a poll: not polling pauses it,
//! dropping it cancels.

mod batch;
mod forward;
mod parts;
mod run;
mod setup;
mod state;

pub use parts::{Part, PartTimes, PartTotal};
pub use run::{Event, Request, Run, Totals};
pub use setup::Sampler;
pub use state::RunState;

use crate::{
    checkpoint::ModelInfo,
    device::DeviceFault,
    diffusion::{DiffusionError, Guidance, Solver, Trajectory},
    dit::DitConfig,
    schedule::{GuidanceRecord, ModelIdentity, ModelShape, RunSettings, ScheduleError},
};

/// How to sample, apart from what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// `T`
    pub steps: usize,
    pub solver: Solver,
    pub guidance: Guidance,
    /// Clip the predicted `x_0` to [-1, 1] at every step.
    pub clip_x0: bool,
}

/// Why a run could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A label beyond the classes.
    #[error("there is no class {label}: the model has {classes} (0 to {})", classes - 1)]
    Label { label: usize, classes: usize },
    /// Starting noise of another shape.
    #[error(
        "the starting noise holds {found} numbers, expected {expected} for {images} images of {shape:?}"
    )]
    Noise {
        found: usize,
        expected: usize,
        images: usize,
        shape: [usize; 3],
    },
    /// Nothing to do.
    #[error("asked for no images: pass a count of at least 1")]
    NoImages,
    /// Zero images at a time.
    #[error(
        "cannot run batches of 0 images: pass a batch of at least 1, or none to have it chosen"
    )]
    Batch,
    /// The network returned something that is no picture.
    #[error(
        "image {image} is not finite since step {step}: the weights are damaged or the settings are too extreme"
    )]
    NotFinite { image: usize, step: usize },
    /// The state of a run with other settings.
    #[error(
        "the state is that of another run: resume it with the model and the settings it was started with"
    )]
    State,
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceFault),
}

/// The costs of a network's parts depend on these numbers alone.
pub fn model_shape(config: &DitConfig) -> ModelShape {
    ModelShape {
        blocks: config.blocks,
        hidden: config.hidden,
        tokens: config.tokens(),
        mlp_ratio: crate::dit::MLP_RATIO,
        patch_inputs: config.patch_inputs(),
        patch_outputs: config.patch * config.patch * config.out_channels(),
        timestep_channels: crate::dit::TIMESTEP_CHANNELS,
    }
}

/// What a schedule file says about a model.
pub fn model_identity(info: &ModelInfo) -> ModelIdentity {
    let config = &info.config;
    ModelIdentity {
        family: "DiT".into(),
        blocks: config.blocks,
        branches: 2 * config.blocks,
        hidden: config.hidden,
        tokens: config.tokens(),
        patch: [
            config.patch_inputs(),
            config.patch * config.patch * config.out_channels(),
        ],
        // Random weights stand for their size.
        fingerprint: (!info.is_random()).then(|| info.fingerprint.to_string()),
    }
}

/// What a schedule file says about a run.
///
/// # Errors
/// [`DiffusionError::Steps`].
pub fn run_settings(info: &ModelInfo, settings: &Settings) -> Result<RunSettings, DiffusionError> {
    let guidance = settings.guidance;
    Ok(RunSettings {
        solver: settings.solver.to_string(),
        steps: settings.steps,
        timesteps: settings.trajectory()?.timesteps(),
        guidance: guidance.is_active().then(|| GuidanceRecord {
            scale: guidance.scale(),
            channels: guidance.channels().to_string(),
        }),
        resolution: info.config.input_size,
    })
}

/// Memory for activations and cache when the batch is chosen by itself.
pub const BATCH_BYTES: u64 = 1 << 30;

/// Images a batch within a memory budget, at most 16: beyond that nothing is gained.
pub fn batch_for(config: &DitConfig, guided: bool, budget_bytes: u64) -> usize {
    let (n, d) = (config.tokens() as u64, config.hidden as u64);
    // Tokens, modulated tokens, qkv, the MLP's inner layer twice, and the scores of one branch.
    let floats = n * d * 16 + 2 * config.heads as u64 * n * n;
    // The cache holds at most one feature a branch.
    let cache = 2 * config.blocks as u64 * n * d;
    let image = 4 * (floats + cache) * if guided { 2 } else { 1 };
    (budget_bytes / image.max(1)).clamp(1, 16) as usize
}

impl Settings {
    /// The respaced run.
    ///
    /// # Errors
    /// [`DiffusionError::Steps`].
    pub fn trajectory(&self) -> Result<Trajectory, DiffusionError> {
        Trajectory::linear(self.steps)
    }
}
