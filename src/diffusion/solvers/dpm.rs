//! DPM-Solver++, arXiv 2211.01095.

use super::Weights;
use crate::diffusion::StepCoefficients;

/// Algorithm 2: with `λ = ln(√ᾱ / √(1−ᾱ))`, `h = λ' − λ` and `r = (λ − λ_before) / h`,
/// `x' = σ'/σ·x − √ᾱ'·(e^−h − 1)·D`, where `D = (1 + 1/2r)·X − 1/2r·X_before`.
///
/// First order at the first step, which has nothing before it, and at the last, where `h` is infinite.
pub(super) fn update(points: &[StepCoefficients], s: usize) -> Weights {
    let point = &points[s];
    let [signal, spread] = point.signal_and_spread();
    let half_log_snr = |[signal, spread]: [f64; 2]| (signal / spread).ln();
    let next = point.next_signal_and_spread();
    let [next_signal, next_spread] = next;
    // √ᾱ'·e^−h = σ'·√ᾱ/σ, which is finite where h is not.
    let gain = next_signal - next_spread * signal / spread;
    let state = next_spread / spread;
    if s == 0 || point.last {
        return Weights {
            state,
            predictions: [gain, 0.0, 0.0],
        };
    }
    let now = half_log_snr([signal, spread]);
    let ratio =
        (now - half_log_snr(points[s - 1].signal_and_spread())) / (half_log_snr(next) - now);
    let slope = 0.5 / ratio;
    Weights {
        state,
        predictions: [gain * (1.0 + slope), -gain * slope, 0.0],
    }
}
