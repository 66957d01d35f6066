//! SA-Solver, arXiv 2309.05019: predictor and corrector of second order over predictions of the clean image, with noise between
//! timesteps 800 and 200.

use super::{StepNoise, Weights};
use crate::diffusion::StepCoefficients;

/// Timesteps at which `τ` is 1, both included; it is 0 at others.
const NOISY: [f64; 2] = [200.0, 800.0];

fn is_noisy(point: &StepCoefficients) -> bool {
    let [low, high] = NOISY;
    (low..=high).contains(&point.timestep)
}

/// `1 + τ²`
fn rate(point: &StepCoefficients) -> f64 {
    if is_noisy(point) { 2.0 } else { 1.0 }
}

/// The corrector of the step before and the predictor of this one, in one.
///
/// With `k = 1 + τ²`, `h = λ' − λ`, and `h_1`, `h_2`, `k_1` those of the steps before, the predictor is
/// `x' = e^−τ²h·σ'/σ·x^c + √ᾱ'·((1 − e^−kh)·X + k·h²/2h_1·(X − X_1)) + σ'·√(1 − e^−2τ²h)·noise`: the second order of the authors' code, which
/// differs from the exact integral of a line through both predictions by `O(h³)`. First order at the first step and at the last.
///
/// The corrector takes the step before again, from the same state and with the same noise, but with `k_1·h_1/2·(X − X_1)` for the second
/// term. All else cancels, so neither state nor noise of before is kept:
/// `x^c = x + √ᾱ·k_1·h_1/2·((X − X_1) − h_1/h_2·(X_1 − X_2))`, without the last term where the predictor had been of first order.
pub(super) fn update(points: &[StepCoefficients], s: usize) -> (Weights, StepNoise) {
    let point = &points[s];
    let (decay, k) = (point.decay(), rate(point));
    let [signal, spread] = point.next_signal_and_spread();
    let [state, _] = point.first_order();
    let (state, noise) = match is_noisy(point) {
        true => {
            let fresh = 1.0 - decay * decay;
            let deviation = StepNoise::Deviation(spread * fresh.sqrt());
            (state * decay, deviation)
        }
        false => (state, StepNoise::None),
    };
    let mut predictions = [signal * (1.0 - decay.powf(k)), 0.0, 0.0];
    let mut add = |[first, second]: [f64; 2]| {
        predictions[0] += first;
        predictions[1] += second - first;
        predictions[2] -= second;
    };
    // A step from nothing but noise has no finite length: it tells no slope.
    let length = |back: usize| {
        let before = points.get(s.checked_sub(back)?)?;
        Some(before.log_snr_step()).filter(|h| h.is_finite())
    };
    if let Some(h1) = length(1) {
        if !point.last {
            let h = point.log_snr_step();
            add([signal * k * h * h / (2.0 * h1), 0.0]);
        }
        let [signal, _] = point.signal_and_spread();
        let slope = state * signal * rate(&points[s - 1]) * h1 / 2.0;
        add([slope, length(2).map_or(0.0, |h2| -slope * h1 / h2)]);
    }
    (Weights { state, predictions }, noise)
}
