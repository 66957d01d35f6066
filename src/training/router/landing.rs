//! Making a trained router's schedule land on its target, in a cache of a size.

use super::{Budget, budget::TOLERANCE};
use crate::{
    graph::Graph,
    plan::compile,
    schedule::{Router, Schedule, ScheduleError},
};

impl Budget {
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
        // What must be computed is worth more than anything.
        let mut order: Vec<usize> = (branches..logits.len())
            .filter(|i| values[*i].is_finite())
            .collect();
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
}

/// The evaluations `s·N + n` of `order`, first come first served, that can all be reused with `max_slots` slots.
///
/// What an evaluation reads was written, or read, `N` evaluations before and lies in a slot all the while. So a
/// schedule needs as many slots as the most reused evaluations among any `N` consecutive ones.
pub(super) fn within_slots(order: &[usize], branches: usize, max_slots: usize) -> Vec<usize> {
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
    use crate::training::router::budget::tests::{graph, router};

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
    fn equal_scores_are_told_apart_by_value() {
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
}
