//! Sampling: a model, a solver and a schedule make images.
//!
//! A [`Run`] tells [`Event`]s, most of them one denoising step each: asking for none pauses it, dropping it cancels. It is asked
//! by [`Run::next_event`], which can be awaited, or as an iterator, which waits. [`Sampler::with_stop`] ends it within a step.

mod batch;
mod execute;
#[cfg(not(target_family = "wasm"))]
mod observe;
mod output;
mod parts;
mod run;
mod setup;
mod state;
#[cfg(not(target_family = "wasm"))]
mod stepper;

#[cfg(not(target_family = "wasm"))]
pub(crate) use observe::{Observer, Seen};
pub use parts::{Part, PartTimes, PartTotal};
pub use run::{Event, Request, Run, Totals};
pub use setup::{Sampler, cache_bytes};
pub use state::RunState;
#[cfg(not(target_family = "wasm"))]
pub(crate) use stepper::{Stand, Stepper, Uncorrected};

pub use crate::stop::Stop;

use crate::{
    cache::CacheError,
    checkpoint::ModelInfo,
    device::DeviceFault,
    diffusion::{DiffusionError, Guidance, Predicts, Solver, Spacing, Step, Trajectory},
    models::{ConditionError, Latents, Outline},
    schedule::{GuidanceRecord, ModelIdentity, RunSettings, ScheduleError},
    stop::Stopped,
};

/// How to sample, apart from what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// `T`
    pub steps: usize,
    /// Where they lie among the times that the network was trained at.
    pub spacing: Spacing,
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
    /// A condition that the model does not take.
    #[error(transparent)]
    Condition(#[from] ConditionError),
    #[error(transparent)]
    Cache(#[from] CacheError),
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
    #[error("asked for no images, expected at least one")]
    NoImages,
    /// Zero images at a time.
    #[error("cannot run batches of 0 images")]
    Batch,
    /// The network returned something that is no picture.
    #[error(
        "image {image} is not finite since step {step}: the weights are damaged or the settings are too extreme"
    )]
    NotFinite { image: usize, step: usize },
    /// The state of a run with other settings.
    #[error(
        "the state is that of another run: resume it with the model, the settings and the schedule it was started with"
    )]
    State,
    /// Whoever was asked by [`Sampler::with_stop`] wanted it.
    #[error("stopped in the middle of a step")]
    Stopped,
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceFault),
}

impl From<Stopped> for SampleError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// What a schedule file says about a model.
pub fn model_identity(info: &ModelInfo) -> ModelIdentity {
    ModelIdentity {
        family: info.outline.family.into(),
        graph: info.outline.graph.clone(),
        // Random weights stand for their size.
        fingerprint: (!info.is_random()).then(|| info.fingerprint.to_string()),
    }
}

/// What a schedule file says about a run.
///
/// # Errors
/// As [`Settings::trajectory`].
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
        resolution: info.outline.latents.size,
        clip_x0: None,
    })
}

/// Memory for activations and cache when the batch is chosen by itself.
pub const BATCH_BYTES: u64 = 1 << 30;

/// Images a batch within a memory budget, at most 16: beyond that nothing is gained.
pub fn batch_for(outline: &Outline, guided: bool, budget_bytes: u64) -> usize {
    let graph = &outline.graph;
    // The cache holds at most one feature a branch.
    let cache = (graph.branches() * graph.feature_numbers()) as u64;
    let image = 4 * (outline.activations + cache) * if guided { 2 } else { 1 };
    (budget_bytes / image.max(1)).clamp(1, 16) as usize
}

impl Settings {
    /// The respaced run through the usual noise: its timesteps are those of any.
    ///
    /// # Errors
    /// [`DiffusionError::Steps`], [`DiffusionError::Spacing`].
    pub fn trajectory(&self) -> Result<Trajectory, DiffusionError> {
        Trajectory::spaced(self.spacing, self.steps)
    }

    /// The numbers of every step, for a network that draws these latents.
    ///
    /// # Errors
    /// As [`Self::trajectory`], and [`DiffusionError::Path`].
    pub fn numbers(&self, latents: &Latents) -> Result<Vec<Step>, DiffusionError> {
        self.spacing.check(latents.process.prediction)?;
        let predicts = Predicts {
            prediction: latents.process.prediction,
            learned_sigma: latents.out_channels == 2 * latents.channels,
            clip: self.clip_x0,
        };
        let trajectory = Trajectory::through(&latents.process.noise, self.spacing, self.steps)?;
        Ok(self.solver.steps(&trajectory, predicts))
    }
}
