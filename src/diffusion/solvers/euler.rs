//! Euler's method on the probability flow ODE: arXiv 2206.00364, algorithm 1 without its correction.

use super::Weights;
use crate::diffusion::StepCoefficients;

/// `x'/√ᾱ' = x/√ᾱ + (σ' − σ)·ε` with `σ = √(1−ᾱ)/√ᾱ`, which is DDIM's step without noise; for a flow (arXiv 2209.03003) it comes to
/// `x' = x + (σ' − σ)·output` with that path's `σ`.
pub(super) fn update(point: &StepCoefficients) -> Weights {
    let [state, clean] = point.first_order();
    Weights {
        state,
        predictions: [clean, 0.0, 0.0],
    }
}
