//! DPM-Solver++, arXiv 2211.01095.

use super::Weights;
use crate::diffusion::StepCoefficients;

/// Algorithm 2: with `λ = ln(√ᾱ / √(1−ᾱ))`, `h = λ' − λ` and `r = (λ − λ_before) / h`,
/// `x' = σ'/σ·x − √ᾱ'·(e^−h − 1)·D`, where `D = (1 + 1/2r)·X − 1/2r·X_before`.
pub(super) fn update(points: &[StepCoefficients], s: usize) -> Weights {
    let [state, clean] = points[s].first_order();
    Weights {
        state,
        predictions: second_order(points, s, clean),
    }
}

/// `weight·D`.
///
/// First order at the first step, which has nothing before it, and at the last, where `h` is infinite.
pub(super) fn second_order(points: &[StepCoefficients], s: usize, weight: f64) -> [f64; 3] {
    if s == 0 || points[s].last {
        return [weight, 0.0, 0.0];
    }
    let ratio = points[s - 1].log_snr_step() / points[s].log_snr_step();
    let slope = 0.5 / ratio;
    [weight * (1.0 + slope), -weight * slope, 0.0]
}
