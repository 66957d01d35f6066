//! DPM-Solver++ of third order, multistep: arXiv 2211.01095, with the expansion of arXiv 2206.00927 about earlier steps.

use super::{Weights, dpm};
use crate::diffusion::StepCoefficients;

/// Shorter runs take their last but one step by second order.
const SHORT: usize = 15;

/// With `D0 = X`, `d0 = (X − X_1)·h/h0` and `d1 = (X_1 − X_2)·h/h1` of the steps `h0`, `h1` before, `D2 = (d0 − d1)·h/(h0 + h1)` and
/// `D1 = d0 + (d0 − d1)·h0/(h0 + h1)`,
/// `x' = σ'/σ·x − √ᾱ'·(e^−h − 1)·D0 + √ᾱ'·((e^−h − 1)/h + 1)·D1 − √ᾱ'·((e^−h − 1 + h)/h² − 1/2)·D2`.
///
/// Lower orders at the first two steps and at the last.
pub(super) fn update(points: &[StepCoefficients], s: usize) -> Weights {
    let (point, steps) = (&points[s], points.len());
    if s < 2 || point.last || (s + 2 == steps && steps < SHORT) {
        return dpm::update(points, s);
    }
    let [state, clean] = point.first_order();
    let [signal, _] = point.next_signal_and_spread();
    let [h1, h0, h] = [s - 2, s - 1, s].map(|s| points[s].log_snr_step());
    let shrunk = (-h).exp_m1();
    let of_d1 = signal * (shrunk / h + 1.0);
    let of_d2 = signal * (0.5 - (shrunk + h) / (h * h));
    // What D1 and D2 have of d0 − d1.
    let bend = (of_d1 * h0 + of_d2 * h) / (h0 + h1);
    let (of_first, of_second) = ((of_d1 + bend) * h / h0, bend * h / h1);
    Weights {
        state,
        predictions: [clean + of_first, -of_first - of_second, of_second],
    }
}
