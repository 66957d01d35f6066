//! What a schedule is to reach, in steps of a run.

use crate::{
    graph::Graph,
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
        target => target.check_reachable(steps, graph, graph.branches()),
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
}
