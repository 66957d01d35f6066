//! DDIM, arXiv 2010.02502.

use super::{StepNoise, Weights};
use crate::diffusion::StepCoefficients;

/// Equation 12: `x' = √ᾱ'·X + √(1 − ᾱ' − σ²)·ε + σ·noise` with `ε = (x − √ᾱ·X) / √(1−ᾱ)` and `σ` of equation 16.
pub(super) fn update(point: &StepCoefficients, eta: f64) -> (Weights, StepNoise) {
    let [signal, spread] = point.signal_and_spread();
    let next = point.alpha_bar_prev;
    let sigma = eta * ((1.0 - next) / (1.0 - point.alpha_bar)).sqrt() * point.beta().sqrt();
    let direction = (1.0 - next - sigma * sigma).max(0.0).sqrt();
    let weights = Weights {
        state: direction / spread,
        predictions: [next.sqrt() - direction * signal / spread, 0.0, 0.0],
    };
    let noise = match sigma {
        0.0 => StepNoise::None,
        sigma => StepNoise::Deviation(sigma),
    };
    (weights, noise)
}
