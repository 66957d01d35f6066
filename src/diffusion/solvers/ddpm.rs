//! Ancestral sampling, arXiv 2006.11239 and 2102.09672.

use super::{StepNoise, Weights};
use crate::diffusion::StepCoefficients;

/// The mean of the posterior `q(x' | x, X)` (arXiv 2006.11239, eq. 7), and its variance: learned, or the larger of the fixed
/// ones.
pub(super) fn update(point: &StepCoefficients, learned_sigma: bool) -> (Weights, StepNoise) {
    let (beta, next) = (point.beta(), point.alpha_bar_prev);
    let weights = Weights {
        state: (1.0 - next) * (1.0 - beta).sqrt() / (1.0 - point.alpha_bar),
        predictions: [beta * next.sqrt() / (1.0 - point.alpha_bar), 0.0, 0.0],
    };
    let noise = match learned_sigma {
        true => StepNoise::Learned {
            log_variances: [point.posterior_log_variance, point.log_beta],
        },
        false => StepNoise::Deviation((0.5 * point.fixed_log_variance).exp()),
    };
    (weights, noise)
}
