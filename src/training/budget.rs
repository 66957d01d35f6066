//! Steering β so that the thresholded schedule lands on a target.
//!
//! β is what a computed branch costs in the loss; its right size depends on the model, the step count and
//! the scale of λ, and the authors tuned it by hand for each. Here it starts at the typical gradient of the
//! error and is then moved up or down, a little after every pass, by how far the share of reuse is
//! from the target.

use serde::{Deserialize, Serialize};

use super::TrainingError;
use crate::schedule::{ModelShape, Router, Schedule, ScheduleError};

/// What β is steered to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// A fixed β.
    Beta(f64),
    /// A cache utilization ratio, 0 to below 1.
    TargetCur(f64),
    /// A MACs ratio, at least 1.
    TargetSpeedup(f64),
}

/// How close to its target a schedule must land, relative.
pub const TOLERANCE: f64 = 0.01;
/// Largest change of log β in one pass.
const MAX_STEP: f64 = 0.35;
const GAIN: f64 = 3.0;

impl Budget {
    /// # Errors
    /// [`TrainingError::Setting`] for a number out of range.
    pub fn check(&self) -> Result<(), TrainingError> {
        let setting = |flag, value: f64, expected| {
            Err(TrainingError::Setting {
                flag,
                value: value.to_string(),
                expected,
            })
        };
        match *self {
            Self::Beta(beta) if !(beta.is_finite() && beta >= 0.0) => {
                setting("beta", beta, "a finite number of at least 0")
            }
            Self::TargetCur(cur) if !(cur > 0.0 && cur < 1.0) => {
                setting("target-cur", cur, "a number between 0 and 1")
            }
            Self::TargetSpeedup(x) if !(x > 1.0 && x.is_finite()) => {
                setting("target-speedup", x, "a number above 1")
            }
            _ => Ok(()),
        }
    }

    /// How a schedule measures in the target's terms: CUR, or the MACs ratio.
    pub fn measure(&self, schedule: &Schedule, shape: &ModelShape) -> f64 {
        match self {
            Self::TargetSpeedup(_) => shape.macs_ratio(schedule),
            _ => schedule.cur(),
        }
    }

    /// The target, if there is one.
    pub fn target(&self) -> Option<f64> {
        match *self {
            Self::Beta(_) => None,
            Self::TargetCur(x) | Self::TargetSpeedup(x) => Some(x),
        }
    }

    /// The share of work saved that the target or a measure of it means, 0 to 1.
    fn saved(&self, measure: f64) -> f64 {
        match self {
            Self::TargetSpeedup(_) => 1.0 - 1.0 / measure,
            _ => measure,
        }
    }

    /// β for the next pass. `progress` (0 to 1) is how much of the training is over.
    ///
    /// Logits start around 0 and need many passes to reach the threshold, so at first the share of logits
    /// on their way down is steered, and only in the second half the share below the threshold itself.
    pub fn next_beta(
        &self,
        beta: f64,
        router: &Router,
        tau: f64,
        shape: &ModelShape,
        progress: f64,
    ) -> Result<f64, ScheduleError> {
        let Some(target) = self.target() else {
            return Ok(beta);
        };
        let way = (2.0 * progress).min(1.0);
        let logit = way * (tau / (1.0 - tau)).ln();
        let schedule = router.threshold(1.0 / (1.0 + (-logit).exp()))?;
        let error = self.saved(target) - self.saved(self.measure(&schedule, shape));
        Ok(beta * (GAIN * error).clamp(-MAX_STEP, MAX_STEP).exp())
    }

    /// The threshold nearest to `tau` whose schedule lands on the target within [`TOLERANCE`], or as near as
    /// the scores allow; `tau` itself for a fixed β.
    pub fn final_threshold(
        &self,
        router: &Router,
        tau: f64,
        shape: &ModelShape,
    ) -> Result<f64, ScheduleError> {
        let Some(target) = self.target() else {
            return Ok(tau);
        };
        let off = |threshold: f64| -> Result<f64, ScheduleError> {
            Ok((self.measure(&router.threshold(threshold)?, shape) / target - 1.0).abs())
        };
        if off(tau)? <= TOLERANCE {
            return Ok(tau);
        }
        // Between two neighbouring scores every threshold makes the same schedule.
        let mut scores: Vec<f64> = (1..router.steps()).flat_map(|s| router.scores(s)).collect();
        scores.sort_by(f64::total_cmp);
        scores.dedup();
        let between = scores.windows(2).map(|w| 0.5 * (w[0] + w[1]));
        let ends = [
            scores.first().map(|s| 0.5 * s),
            scores.last().map(|s| 0.5 * (s + 1.0)),
        ];
        let mut best = (f64::INFINITY, f64::INFINITY, tau);
        for threshold in between.chain(ends.into_iter().flatten()) {
            // Inside the tolerance all are equally good and the nearest to τ wins.
            let miss = off(threshold)?;
            let key = (
                if miss <= TOLERANCE { 0.0 } else { miss },
                (threshold - tau).abs(),
            );
            if key < (best.0, best.1) {
                best = (key.0, key.1, threshold);
            }
        }
        Ok(best.2)
    }
}

/// A β to begin with: the typical size of the error's weighted gradient over a pass.
pub fn first_beta(weighted_gradients: &mut [f64]) -> f64 {
    if weighted_gradients.is_empty() {
        return 1e-6;
    }
    let middle = weighted_gradients.len() / 2;
    let (_, median, _) = weighted_gradients.select_nth_unstable_by(middle, f64::total_cmp);
    median.max(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ModelShape = ModelShape {
        blocks: 2,
        hidden: 64,
        tokens: 64,
        mlp_ratio: 4,
        patch_inputs: 16,
        patch_outputs: 32,
        timestep_channels: 256,
    };

    fn router() -> Router {
        // Step 0, then 40 distinct logits from -4 to 4.
        let logits = (0..44)
            .map(|i| {
                if i < 4 {
                    5.0
                } else {
                    (i - 4) as f32 * 0.2 - 4.0
                }
            })
            .collect();
        Router::new(11, 4, logits).unwrap()
    }

    #[test]
    fn the_final_threshold_lands_on_the_target_and_stays_near_tau() {
        let router = router();
        for target in [0.2, 0.5, 0.8] {
            let budget = Budget::TargetCur(target);
            let threshold = budget.final_threshold(&router, 0.1, &SHAPE).unwrap();
            let cur = router.threshold(threshold).unwrap().cur();
            assert!((cur - target).abs() <= 0.5 / 44.0 + 1e-9, "{target}: {cur}");
        }
        let at_tau = router.threshold(0.1).unwrap().cur();
        assert_eq!(
            Budget::TargetCur(at_tau)
                .final_threshold(&router, 0.1, &SHAPE)
                .unwrap(),
            0.1
        );
        let speedup = Budget::TargetSpeedup(1.5);
        let threshold = speedup.final_threshold(&router, 0.1, &SHAPE).unwrap();
        assert!(
            (speedup.measure(&router.threshold(threshold).unwrap(), &SHAPE) - 1.5).abs() < 0.05
        );
    }

    #[test]
    fn beta_rises_when_too_little_is_reused_and_falls_when_too_much() {
        let router = router();
        let next = |target: f64| {
            Budget::TargetCur(target)
                .next_beta(1.0, &router, 0.1, &SHAPE, 1.0)
                .unwrap()
        };
        assert!(next(0.9) > 1.0 && next(0.01) < 1.0);
        assert_eq!(
            Budget::Beta(0.5)
                .next_beta(0.5, &router, 0.1, &SHAPE, 0.3)
                .unwrap(),
            0.5
        );
        for bad in [
            Budget::Beta(f64::NAN),
            Budget::TargetCur(1.0),
            Budget::TargetSpeedup(1.0),
        ] {
            assert!(bad.check().is_err());
        }
    }
}
