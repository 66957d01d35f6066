//! What a schedule is to reach, in steps of a run.

use crate::{
    graph::Graph,
    plan::compile,
    schedule::{Forecast, Schedule},
    training::{router::Budget, run::TrainingError},
};

/// A schedule may fall short of its target by this factor.
const SHORT: f64 = 0.97;
/// The speeds that are made where no target is named.
pub const USUAL_SPEEDS: [f64; 7] = [1.25, 1.33, 1.6, 2.0, 2.5, 3.0, 4.0];

/// That a run of so many steps has something for a target.
///
/// # Errors
/// [`TrainingError::Setting`].
pub(super) fn check_target(
    target: Budget,
    steps: usize,
    graph: &Graph,
) -> Result<(), TrainingError> {
    target.check()?;
    match target {
        Budget::TargetSpeedup(ratio) if SHORT * ratio > steps as f64 => {
            Err(TrainingError::Setting {
                setting: "target-speedup",
                value: ratio.to_string(),
                expected: "at most the number of steps, of which the first is computed",
            })
        }
        Budget::TargetSpeedup(_) => Ok(()),
        target => target.check_reachable(steps, graph, graph.branches(), |_| true),
    }
}

/// What a run may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowance {
    target: Budget,
    /// Features that it may keep at a time.
    slots: usize,
}

impl Allowance {
    /// That of a target, with room for so many features.
    pub fn new(target: Budget, slots: usize) -> Self {
        Self { target, slots }
    }

    /// Whether there is room for features at all.
    pub(super) fn parts(&self) -> bool {
        self.slots > 0 && self.target.target().is_some()
    }

    /// Whether it covers a table whose `skipped` steps run no network. Of its target a run may fall short by 3 %, since steps come
    /// whole.
    ///
    /// # Errors
    /// [`TrainingError::Schedule`] for steps that cannot be skipped.
    pub fn allows(
        &self,
        table: &Schedule,
        skipped: &[usize],
        graph: &Graph,
    ) -> Result<bool, TrainingError> {
        let forecast = Forecast {
            skipped: skipped.to_vec(),
            ..Forecast::default()
        };
        let schedule = table.clone().with_forecast(forecast)?;
        let reached = match self.target {
            Budget::TargetSpeedup(ratio) => schedule.macs_ratio(graph) >= SHORT * ratio,
            Budget::TargetCur(cur) => schedule.cur() >= SHORT * cur,
            Budget::Beta(_) => true,
        };
        Ok(reached && compile(&schedule, graph).slots() <= self.slots)
    }
}

/// How many of `steps` steps a target lets a run compute: the most that fall short of it by no more than 3 %.
pub fn steps_of(target: Budget, steps: usize) -> usize {
    let reached = |count: &usize| {
        let (count, steps) = (*count as f64, steps as f64);
        match target {
            Budget::TargetSpeedup(ratio) => steps / count >= SHORT * ratio,
            Budget::TargetCur(cur) => 1.0 - count / steps >= SHORT * cur,
            Budget::Beta(_) => true,
        }
    };
    let most = steps.saturating_sub(1).max(1);
    (1..=most).rev().find(reached).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::of_blocks;

    #[test]
    fn a_target_leaves_some_steps() {
        let of = |target| steps_of(target, 20);
        assert_eq!(of(Budget::TargetSpeedup(2.0)), 10);
        assert_eq!(of(Budget::TargetSpeedup(1.33)), 15);
        assert_eq!(of(Budget::TargetSpeedup(1000.0)), 1);
        assert_eq!(of(Budget::TargetSpeedup(1.001)), 19);
        assert_eq!(of(Budget::TargetCur(0.25)), 15);
        // 13 steps would be 1.54×, 7 would be 2.86×.
        assert_eq!(of(Budget::TargetSpeedup(1.6)), 12);
        assert_eq!(of(Budget::TargetSpeedup(3.0)), 6);
    }

    #[test]
    fn an_allowance_is_of_work_and_of_room() {
        let graph = of_blocks(2);
        let allows = |target, slots, rows: [&str; 4]| {
            let cell = |s: usize, n: usize| rows[s].as_bytes().get(n) == Some(&b'#');
            let table = Schedule::from_rule(4, 4, cell).unwrap();
            let skipped: Vec<usize> = (0..4).filter(|s| rows[*s].is_empty()).collect();
            let allowance = Allowance::new(target, slots);
            allowance.allows(&table, &skipped, &graph).unwrap()
        };
        // A step in part costs what all passes cost beside its branches.
        for target in [Budget::TargetSpeedup(1.9), Budget::TargetCur(0.5)] {
            assert!(allows(target, 0, ["####", "", "####", ""]));
            assert!(!allows(target, 4, ["####", "...#", "####", ""]));
            // Two branches at a time wait for the step that reads them.
            assert!(allows(target, 2, ["####", "", "..##", "##.."]));
            assert!(!allows(target, 1, ["####", "", "..##", "##.."]));
        }
        let of = |target, slots| Allowance::new(target, slots).parts();
        assert!(of(Budget::TargetCur(0.5), 1) && !of(Budget::TargetCur(0.5), 0));
    }
}
