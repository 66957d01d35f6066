//! Steering β so that the thresholded schedule lands on a target.
//!
//! β is what a computed branch costs in the loss; its right size depends on the model, the step count and
//! the scale of λ, and the authors tuned it by hand for each. A branch ends up below the threshold if
//! computing it is worth less than β there. That worth, the *marginal value* `−λ_s·∂mse/∂r` carried over
//! from the present score to the threshold, is measured at every step anyway; so β is put at the value below
//! which the target's share of the work lies.

use super::Budget;
use crate::{
    graph::Graph,
    schedule::{Router, ScheduleError},
};

/// Weight of a new measurement in the running mean of a marginal value.
const NEWEST: f64 = 0.2;
/// Change of log β a pass for being off the target by all of the work, in the second half of the training.
const CORRECTION: f64 = 0.5;
/// Largest correction of log β.
const MAX_CORRECTION: f64 = 3.0;

/// What steering remembers between passes.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    /// Running mean of every branch's marginal value at the threshold, `[T, N]`.
    pub values: Vec<f32>,
    /// What is added to log β because the schedule at the threshold is off the target.
    pub correction: f64,
}

impl Steering {
    /// Before the first pass.
    pub fn new(steps: usize, branches: usize) -> Self {
        Self {
            values: vec![0.0; steps * branches],
            correction: 0.0,
        }
    }

    /// Takes in step `s` of a pass: `weighted` is `λ_s·∂mse/∂r` at `scores`.
    ///
    /// The error of a mixed branch goes with `(1 − r)²`, so its slope at the threshold is the slope at `r`
    /// times `(1 − τ)/(1 − r)`.
    pub fn observe(&mut self, s: usize, weighted: &[f64], scores: &[f64], tau: f64, first: bool) {
        let row = &mut self.values[s * scores.len()..(s + 1) * scores.len()];
        let share = if first { 1.0 } else { NEWEST };
        for ((value, g), r) in row.iter_mut().zip(weighted).zip(scores) {
            let now = (-g).max(0.0) * (1.0 - tau) / (1.0 - r).max(0.05);
            *value = (f64::from(*value) * (1.0 - share) + now * share) as f32;
        }
    }

    /// A β from one step alone, while the first pass is under way.
    pub fn first_beta(&self, s: usize, branches: usize) -> f64 {
        let mut row = self.values[s * branches..(s + 1) * branches].to_vec();
        row.sort_by(f32::total_cmp);
        row.get(branches / 2).map_or(0.0, |v| f64::from(*v))
    }
}

impl Budget {
    /// β for the next pass; `progress` (0 to 1) is how much of the training is over.
    ///
    /// # Errors
    /// [`ScheduleError`] for a threshold out of range.
    pub fn next_beta(
        &self,
        beta: f64,
        steering: &mut Steering,
        router: &Router,
        tau: f64,
        graph: &Graph,
        progress: f64,
    ) -> Result<f64, ScheduleError> {
        let Some(target) = self.target() else {
            return Ok(beta);
        };
        if progress > 0.5 {
            // The running means describe where scores are going; what is left over is corrected slowly.
            let reached = self.saved(self.measure(&router.threshold(tau)?, graph));
            let next = steering.correction + CORRECTION * (self.saved(target) - reached);
            steering.correction = next.clamp(-MAX_CORRECTION, MAX_CORRECTION);
        }
        Ok(self.quantile(&steering.values, router, graph) * steering.correction.exp())
    }

    /// The marginal value below which the target's share of the work lies.
    fn quantile(&self, values: &[f32], router: &Router, graph: &Graph) -> f64 {
        let (branches, steps) = (router.branches(), router.steps());
        let full = (steps as u64 * graph.full_step_macs()) as f64;
        let weight = |n: usize| match self {
            Self::TargetSpeedup(_) => graph.sites()[n].macs as f64 / full,
            _ => 1.0 / (steps * branches) as f64,
        };
        let mut all: Vec<(f32, usize)> = values
            .iter()
            .enumerate()
            .skip(branches)
            .map(|(i, v)| (*v, i % branches))
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let wanted = self.target().map_or(0.0, |target| self.saved(target));
        let mut saved = 0.0;
        for (value, n) in &all {
            saved += weight(*n);
            // Rounding of the running sum must not ask for one more.
            if saved + 1e-9 >= wanted {
                return f64::from(*value).max(1e-30);
            }
        }
        all.last().map_or(1e-30, |(v, _)| 2.0 * f64::from(*v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::router::budget::tests::{graph, router};

    #[test]
    fn beta_separates_the_targets_share_of_the_work() {
        let router = router();
        let mut steering = Steering::new(11, 4);
        // Values 1, 2, …, 40 beyond step 0.
        for (i, value) in steering.values.iter_mut().enumerate().skip(4) {
            *value = (i - 3) as f32;
        }
        let mut beta = |budget: Budget, progress: f64| {
            budget
                .next_beta(0.5, &mut steering, &router, 0.1, &graph(), progress)
                .unwrap()
        };
        // A CUR of 1/2 of 44 evaluations is 22 of the 40 beyond step 0.
        assert_eq!(beta(Budget::TargetCur(0.5), 0.1), 22.0);
        assert_eq!(beta(Budget::Beta(0.5), 0.3), 0.5);
        assert!(beta(Budget::TargetSpeedup(2.0), 0.1) > beta(Budget::TargetSpeedup(1.2), 0.1));
        // At τ this router reuses less than a CUR of 0.9, so β is pushed up late in the training.
        assert!(beta(Budget::TargetCur(0.9), 0.9) > 40.0 * 0.99);
    }

    #[test]
    fn a_value_is_carried_to_the_threshold() {
        let mut steering = Steering::new(2, 2);
        steering.observe(1, &[-0.5, 0.5], &[0.55, 0.5], 0.1, true);
        assert_eq!(steering.values, [0.0, 0.0, 1.0, 0.0]);
    }
}
