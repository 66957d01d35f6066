//! DDIM and ancestral DDPM steps.

use std::{fmt, str::FromStr};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{DiffusionError, StepCoefficients};

/// How `x_t` becomes `x_{t−1}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Solver {
    /// DDIM (arXiv 2010.02502); `eta` 0 is deterministic, 1 as noisy as DDPM.
    Ddim { eta: f64 },
    /// Ancestral DDPM sampling, with the learned-range variance where the network has one.
    Ddpm,
}

impl Solver {
    /// # Errors
    /// [`DiffusionError::Eta`] unless `0 ≤ eta ≤ 1`.
    pub fn ddim(eta: f64) -> Result<Self, DiffusionError> {
        if (0.0..=1.0).contains(&eta) {
            Ok(Self::Ddim { eta })
        } else {
            Err(DiffusionError::Eta { eta })
        }
    }

    /// Whether every step but the last needs fresh noise.
    pub fn is_stochastic(&self) -> bool {
        !matches!(self, Self::Ddim { eta } if *eta == 0.0)
    }

    /// One step.
    ///
    /// - `x`: the current state `[B, C, H, W]`
    /// - `output`: the (guided) network output `[B, C or 2C, H, W]`: epsilon, then sigma channels
    /// - `clip_x0`: clip the predicted `x_0` to [-1, 1] and recompute epsilon from it
    /// - `noise`: N(0, 1) of `x`'s shape, needed where [`Solver::is_stochastic`] and not `step.last`
    pub fn step(
        &self,
        step: &StepCoefficients,
        x: Tensor<4>,
        output: Tensor<4>,
        clip_x0: bool,
        noise: Option<Tensor<4>>,
    ) -> SolverStep {
        let channels = x.dims()[1];
        let learned_sigma = output.dims()[1] == 2 * channels;
        let epsilon = output.clone().narrow(1, 0, channels);
        let (signal, spread) = (step.alpha_bar.sqrt(), (1.0 - step.alpha_bar).sqrt());
        let mut x0 = (x.clone() - epsilon.clone() * spread) * (1.0 / signal);
        if clip_x0 {
            x0 = x0.clamp(-1.0, 1.0);
        }
        let next = match *self {
            Self::Ddim { eta } => {
                let epsilon = if clip_x0 {
                    (x - x0.clone() * signal) * (1.0 / spread)
                } else {
                    epsilon
                };
                let sigma = eta
                    * ((1.0 - step.alpha_bar_prev) / (1.0 - step.alpha_bar)).sqrt()
                    * step.beta().sqrt();
                let direction = (1.0 - step.alpha_bar_prev - sigma * sigma).max(0.0).sqrt();
                let mean = x0.clone() * step.alpha_bar_prev.sqrt() + epsilon * direction;
                match noise {
                    Some(noise) if !step.last => mean + noise * sigma,
                    _ => return SolverStep { next: mean, x0 },
                }
            }
            Self::Ddpm => {
                let to_x0 = step.beta() * step.alpha_bar_prev.sqrt() / (1.0 - step.alpha_bar);
                let to_x = (1.0 - step.alpha_bar_prev) * (1.0 - step.beta()).sqrt()
                    / (1.0 - step.alpha_bar);
                let mean = x0.clone() * to_x0 + x * to_x;
                let Some(noise) = noise.filter(|_| !step.last) else {
                    return SolverStep { next: mean, x0 };
                };
                let deviation = if learned_sigma {
                    // v in [-1, 1] interpolates between log β̃ and log β (arXiv 2102.09672, eq. 15).
                    let v = output.narrow(1, channels, channels);
                    let (low, high) = (step.posterior_log_variance, step.log_beta);
                    ((v + 1.0) * (0.25 * (high - low)) + 0.5 * low).exp()
                } else {
                    noise.ones_like() * (0.5 * step.fixed_log_variance).exp()
                };
                mean + noise * deviation
            }
        };
        SolverStep { next, x0 }
    }
}

/// What a step yields.
#[derive(Debug, Clone)]
pub struct SolverStep {
    /// `x_{t−1}`, `[B, C, H, W]`.
    pub next: Tensor<4>,
    /// The prediction of the clean image at this step, `[B, C, H, W]`.
    pub x0: Tensor<4>,
}

impl FromStr for Solver {
    type Err = DiffusionError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || DiffusionError::UnknownSolver { name: name.into() };
        match name.split_once(':') {
            None if name == "ddim" => Ok(Self::Ddim { eta: 0.0 }),
            None if name == "ddpm" => Ok(Self::Ddpm),
            Some(("ddim", eta)) => Self::ddim(eta.parse().map_err(|_| unknown())?),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for Solver {
    type Error = DiffusionError;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Solver> for String {
    fn from(solver: Solver) -> Self {
        solver.to_string()
    }
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ddim { eta } if *eta == 0.0 => f.write_str("ddim"),
            Self::Ddim { eta } => write!(f, "ddim:{eta}"),
            Self::Ddpm => f.write_str("ddpm"),
        }
    }
}
