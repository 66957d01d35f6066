//! Steering β so that the thresholded schedule lands on a target.
//!
//! β is what a computed branch costs in the loss; its right size depends on the model, the step count and
//! the scale of λ, and the authors tuned it by hand for each. A branch ends up below the threshold if
//! computing it is worth less than β there. That worth, the *marginal value* `−λ_s·∂mse/∂r` carried over
//! from the present score to the threshold, is measured at every step anyway; so β is put at the value below
//! which the target's share of the work lies.

use serde::{Deserialize, Serialize};

use crate::{
    graph::Graph,
    plan::compile,
    schedule::{Router, Schedule, ScheduleError},
    training::run::TrainingError,
};

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
    /// # Errors
    /// [`TrainingError::Setting`] for a number out of range.
    pub fn check(&self) -> Result<(), TrainingError> {
        let refused = |setting, value: f64, expected| {
            Err(TrainingError::Setting {
                setting,
                value: value.to_string(),
                expected,
            })
        };
        match *self {
            Self::Beta(beta) if !(beta.is_finite() && beta >= 0.0) => {
                refused("beta", beta, "a finite number of at least 0")
            }
            Self::TargetCur(cur) if !(cur > 0.0 && cur < 1.0) => {
                refused("target-cur", cur, "a number between 0 and 1")
            }
            Self::TargetSpeedup(x) if !(x > 1.0 && x.is_finite()) => {
                refused("target-speedup", x, "a number above 1")
            }
            _ => Ok(()),
        }
    }

    /// How a schedule measures in the target's terms: CUR, or the MACs ratio.
    pub fn measure(&self, schedule: &Schedule, graph: &Graph) -> f64 {
        match self {
            Self::TargetSpeedup(_) => schedule.macs_ratio(graph),
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

    /// The threshold nearest to `tau` whose schedule lands on the target within [`TOLERANCE`], or as near as
    /// the scores allow; `tau` itself for a fixed β.
    pub fn final_threshold(
        &self,
        router: &Router,
        tau: f64,
        graph: &Graph,
    ) -> Result<f64, ScheduleError> {
        let Some(target) = self.target() else {
            return Ok(tau);
        };
        let off = |threshold: f64| -> Result<f64, ScheduleError> {
            Ok((self.measure(&router.threshold(threshold)?, graph) / target - 1.0).abs())
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

    /// The schedule that a trained router makes for this target with at most `max_slots` features in the cache, and
    /// its threshold.
    ///
    /// Where no threshold does that – many scores are equal (clamped logits are), or too many features would be kept
    /// at a time – the table is made by rank: by score, among equals by marginal value, skipping what finds no slot.
    /// It then has no threshold.
    ///
    /// # Errors
    /// [`ScheduleError`] for a threshold out of range.
    pub fn final_schedule(
        &self,
        router: &Router,
        tau: f64,
        graph: &Graph,
        values: &[f32],
        max_slots: usize,
    ) -> Result<(Schedule, Option<f64>), ScheduleError> {
        let threshold = self.final_threshold(router, tau, graph)?;
        let schedule = router.threshold(threshold)?;
        let fits = compile(&schedule, graph).slots() <= max_slots;
        let miss = |schedule: &Schedule| {
            let reached = self.measure(schedule, graph);
            self.target()
                .map_or(0.0, |target| (reached / target - 1.0).abs())
        };
        if fits && miss(&schedule) <= TOLERANCE {
            return Ok((schedule, Some(threshold)));
        }
        let branches = router.branches();
        let logits = router.logits();
        let mut order: Vec<usize> = (branches..logits.len()).collect();
        order.sort_by(|a, b| {
            logits[*a]
                .total_cmp(&logits[*b])
                .then(values[*a].total_cmp(&values[*b]))
        });
        if self.target().is_none() {
            order.retain(|i| !schedule.computes(i / branches, i % branches));
        }
        let order = within_slots(&order, branches, max_slots);
        let table = |reused: usize| {
            let mut compute = vec![true; logits.len()];
            order[..reused].iter().for_each(|i| compute[*i] = false);
            Schedule::new(router.steps(), branches, compute)
        };
        // The measure grows with every reused branch, so the target lies between two neighbours.
        let target = self.target().unwrap_or(f64::INFINITY);
        let (mut low, mut high) = (0, order.len());
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if self.measure(&table(middle)?, graph) <= target {
                low = middle
            } else {
                high = middle
            }
        }
        let (below, above) = (table(low)?, table(high)?);
        let ranked = if self.target().is_some() && miss(&below) <= miss(&above) {
            below
        } else {
            above
        };
        if !fits || miss(&ranked) < miss(&schedule) {
            Ok((ranked, None))
        } else {
            Ok((schedule, Some(threshold)))
        }
    }

    /// Whether any schedule of this many steps with so many slots can reach the target.
    ///
    /// # Errors
    /// [`TrainingError::Setting`].
    pub fn check_reachable(
        &self,
        steps: usize,
        graph: &Graph,
        max_slots: usize,
    ) -> Result<(), TrainingError> {
        let Some(target) = self.target() else {
            return Ok(());
        };
        let branches = graph.branches();
        // In execution order, so that no window of evaluations is left with a slot to spare.
        let all: Vec<usize> = (branches..steps * branches).collect();
        let mut compute = vec![true; steps * branches];
        for i in within_slots(&all, branches, max_slots) {
            compute[i] = false;
        }
        let most = self.measure(&Schedule::new(steps, branches, compute)?, graph);
        if target <= most {
            return Ok(());
        }
        let setting = if matches!(self, Self::TargetSpeedup(_)) {
            "target-speedup"
        } else {
            "target-cur"
        };
        let value = if max_slots < branches {
            format!("{target} (reusing all that {max_slots} slots allow gives {most:.3})")
        } else {
            format!("{target} (reusing everything after step 0 gives {most:.3})")
        };
        Err(TrainingError::Setting {
            setting,
            value,
            expected: "a target that some schedule reaches",
        })
    }
}

/// The evaluations `s·N + n` of `order`, first come first served, that can all be reused with `max_slots` slots.
///
/// What an evaluation reads was written, or read, `N` evaluations before and lies in a slot all the while. So a
/// schedule needs as many slots as the most reused evaluations among any `N` consecutive ones.
fn within_slots(order: &[usize], branches: usize, max_slots: usize) -> Vec<usize> {
    let end = order.iter().max().map_or(0, |last| last + 1);
    // Reused evaluations in the window that starts here.
    let mut reused = vec![0; end];
    let mut taken = Vec::with_capacity(order.len());
    for &i in order {
        let windows = &mut reused[(i + 1).saturating_sub(branches)..=i];
        if windows.iter().all(|count| *count < max_slots) {
            windows.iter_mut().for_each(|count| *count += 1);
            taken.push(i);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn graph() -> Graph {
        use crate::graph::{SiteKind, mlp_macs, self_attention_macs};
        let pattern = [
            (SiteKind::SelfAttention, self_attention_macs(64, 64)),
            (SiteKind::Mlp, mlp_macs(64, 64, 4)),
        ];
        Graph::uniform(2, &pattern, [64, 64], 270_336).unwrap()
    }

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
            let threshold = budget.final_threshold(&router, 0.1, &graph()).unwrap();
            let cur = router.threshold(threshold).unwrap().cur();
            assert!((cur - target).abs() <= 0.5 / 44.0 + 1e-9, "{target}: {cur}");
        }
        let at_tau = router.threshold(0.1).unwrap().cur();
        assert_eq!(
            Budget::TargetCur(at_tau)
                .final_threshold(&router, 0.1, &graph())
                .unwrap(),
            0.1
        );
        let speedup = Budget::TargetSpeedup(1.5);
        let threshold = speedup.final_threshold(&router, 0.1, &graph()).unwrap();
        assert!(
            (speedup.measure(&router.threshold(threshold).unwrap(), &graph()) - 1.5).abs() < 0.05
        );
    }

    #[test]
    fn equal_scores_are_told_apart_by_value_and_impossible_targets_are_refused() {
        // All of the second step is clamped: no threshold makes half of it.
        let router = Router::new(2, 4, vec![5.0, 5.0, 5.0, 5.0, -5.0, -5.0, -5.0, -5.0]).unwrap();
        let values = [0.0, 0.0, 0.0, 0.0, 4.0, 1.0, 3.0, 2.0];
        let budget = Budget::TargetCur(0.25);
        let (schedule, threshold) = budget
            .final_schedule(&router, 0.1, &graph(), &values, 4)
            .unwrap();
        assert_eq!(
            (schedule.to_rows(), threshold),
            (vec!["####".to_owned(), "#.#.".to_owned()], None)
        );
        assert!(
            Budget::TargetCur(0.6)
                .check_reachable(2, &graph(), 4)
                .is_err()
        );
        assert!(
            Budget::TargetCur(0.5)
                .check_reachable(2, &graph(), 4)
                .is_ok()
        );
        assert!(
            Budget::TargetSpeedup(50.0)
                .check_reachable(20, &graph(), 4)
                .is_err()
        );
    }

    #[test]
    fn slots_bound_what_the_compiled_schedule_keeps() {
        let router = router();
        let values = vec![0.0; 44];
        for max_slots in 1..=4 {
            for budget in [Budget::TargetCur(0.2), Budget::Beta(0.0)] {
                let (schedule, threshold) = budget
                    .final_schedule(&router, 0.9, &graph(), &values, max_slots)
                    .unwrap();
                assert!(compile(&schedule, &graph()).slots() <= max_slots);
                assert!(threshold.is_some() || max_slots < 4);
            }
        }
        // With 2 of 4 slots 20 of the 40 evaluations after step 0, which are 0.4545 of all 44.
        assert!(
            Budget::TargetCur(0.46)
                .check_reachable(11, &graph(), 2)
                .is_err()
        );
        assert!(
            Budget::TargetCur(0.45)
                .check_reachable(11, &graph(), 2)
                .is_ok()
        );
    }

    proptest! {
        /// The windows say what the plan compiler finds.
        #[test]
        fn slots_are_the_fullest_window(cells in prop::collection::vec(prop::bool::ANY, 40), max_slots in 0usize..5) {
            let wanted: Vec<usize> = (4..44).filter(|i| cells[i - 4]).collect();
            let taken = within_slots(&wanted, 4, max_slots);
            let table = |reused: &[usize]| {
                let compute = (0..44).map(|i| !reused.contains(&i)).collect();
                Schedule::new(11, 4, compute).unwrap()
            };
            let slots = compile(&table(&taken), &graph()).slots();
            prop_assert!(slots <= max_slots);
            // What was left out would have needed one more.
            for left in wanted.iter().filter(|i| !taken.contains(i)) {
                let mut more = taken.clone();
                more.push(*left);
                prop_assert_eq!(compile(&table(&more), &graph()).slots(), max_slots + 1);
            }
        }
    }

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
        for bad in [
            Budget::Beta(f64::NAN),
            Budget::TargetCur(1.0),
            Budget::TargetSpeedup(1.0),
        ] {
            assert!(bad.check().is_err());
        }
    }

    #[test]
    fn a_value_is_carried_to_the_threshold() {
        let mut steering = Steering::new(2, 2);
        steering.observe(1, &[-0.5, 0.5], &[0.55, 0.5], 0.1, true);
        assert_eq!(steering.values, [0.0, 0.0, 1.0, 0.0]);
    }
}
