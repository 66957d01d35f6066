//! SDE-DPM-Solver++ of second order, multistep, arXiv 2211.01095.

use super::{StepNoise, Weights, dpm};
use crate::diffusion::StepCoefficients;

/// `x' = σ'/σ·e^−h·x + √ᾱ'·(1 − e^−2h)·D + σ'·√(1 − e^−2h)·noise`, with `h` and `D` of [`dpm::update`].
pub(super) fn update(points: &[StepCoefficients], s: usize) -> (Weights, StepNoise) {
    let point = &points[s];
    let decay = point.decay();
    let fresh = 1.0 - decay * decay;
    let [signal, spread] = point.next_signal_and_spread();
    let [state, _] = point.first_order();
    let weights = Weights {
        state: state * decay,
        predictions: dpm::second_order(points, s, signal * fresh),
    };
    (weights, StepNoise::Deviation(spread * fresh.sqrt()))
}
