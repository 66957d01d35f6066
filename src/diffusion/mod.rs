//! The diffusion process: noise schedule and respacing, guidance, solvers, seeded noise.
//!
//! Nothing here knows the network. The formulas are those of the public DiT release (betas over 1000 training steps), of
//! rectified flows, and of the solvers' papers.

mod betas;
mod guidance;
mod noise;
mod respace;
pub mod solvers;

pub use betas::{BetaCurve, NoiseSchedule, Process};
pub use guidance::{Guidance, GuidedChannels};
pub use noise::ImageNoise;
pub use respace::{MAX_STEPS, Spacing, StepCoefficients, Trajectory};
pub use solvers::{Prediction, Predicts, Solver, Step, StepNoise, Weights};

/// A setting of the diffusion process that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DiffusionError {
    /// `steps` outside `1..=1000`.
    #[error("cannot sample in {steps} steps: expected 1 to {max}, the number of training timesteps", max = MAX_STEPS)]
    Steps { steps: usize },
    /// A noise schedule that ends in no variances.
    #[error("cannot make noise of β from {first} to {last}: expected 0 < first ≤ last < 1")]
    Betas { first: f64, last: f64 },
    /// A number of steps that cannot be spaced so.
    #[error("cannot space {steps} steps as `{spacing}`: expected {expected}")]
    Spacing {
        spacing: Spacing,
        steps: usize,
        expected: String,
    },
    /// A run along another path than the network was trained on.
    #[error(
        "cannot space steps as `{spacing}` for a network that predicts {prediction}: expected `flow` for one that predicts a flow, another spacing for others"
    )]
    Path {
        spacing: Spacing,
        prediction: Prediction,
    },
    /// A shift of a flow's noise that is not a finite number > 0.
    #[error(
        "cannot shift a flow by {shift}: expected a finite number above 0; 1 means no shift, 3 is usual"
    )]
    Shift { shift: f64 },
    /// An unknown name of a spacing.
    #[error("unknown spacing `{name}`: expected {expected}")]
    UnknownSpacing {
        name: String,
        expected: &'static str,
    },
    /// `eta` outside `[0, 1]` or not a number.
    #[error(
        "cannot run DDIM with eta {eta}: expected a number from 0 (deterministic) to 1 (as noisy as DDPM)"
    )]
    Eta { eta: f64 },
    /// A guidance scale that is not a finite number ≥ 0.
    #[error(
        "cannot guide with scale {scale}: expected a finite number of at least 0; 1 means no guidance, 1.5 to 4 is usual"
    )]
    GuidanceScale { scale: f64 },
    /// An unknown solver name.
    #[error("unknown solver `{name}`: expected {expected}")]
    UnknownSolver {
        name: String,
        expected: &'static str,
    },
    /// An unknown guidance-channel mode.
    #[error(
        "unknown guidance channels `{name}`: expected `3` (the public DiT release) or `all` (textbook)"
    )]
    UnknownGuidedChannels { name: String },
}
