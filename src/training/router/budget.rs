//! What a router is trained for: a price of computing, or how much work its schedule is to save.

use serde::{Deserialize, Serialize};

use super::landing::within_slots;
use crate::{graph::Graph, schedule::Schedule, training::run::TrainingError};

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
    pub(super) fn saved(&self, measure: f64) -> f64 {
        match self {
            Self::TargetSpeedup(_) => 1.0 - 1.0 / measure,
            _ => measure,
        }
    }

    /// Whether any schedule of this many steps with so many slots, which reuses at steps where `acts` says so, can reach the target.
    ///
    /// # Errors
    /// [`TrainingError::Setting`].
    pub fn check_reachable(
        &self,
        steps: usize,
        graph: &Graph,
        max_slots: usize,
        acts: impl Fn(usize) -> bool,
    ) -> Result<(), TrainingError> {
        let Some(target) = self.target() else {
            return Ok(());
        };
        let branches = graph.branches();
        // In execution order, so that no window of evaluations is left with a slot to spare.
        let all: Vec<usize> = (branches..steps * branches)
            .filter(|i| acts(i / branches))
            .collect();
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
        } else if (1..steps).all(acts) {
            format!("{target} (reusing everything after step 0 gives {most:.3})")
        } else {
            format!("{target} (reusing everything at every other step gives {most:.3})")
        };
        Err(TrainingError::Setting {
            setting,
            value,
            expected: "a target that some schedule reaches",
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::schedule::Router;

    /// Two blocks of attention and MLP.
    pub fn graph() -> Graph {
        use crate::graph::{SiteKind, mlp_macs, self_attention_macs};
        let pattern = [
            (SiteKind::SelfAttention, self_attention_macs(64, 64)),
            (SiteKind::Mlp, mlp_macs(64, 64, 4)),
        ];
        Graph::uniform(2, &pattern, [64, 64], 270_336).unwrap()
    }

    pub fn router() -> Router {
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
    fn numbers_that_are_no_target_are_refused() {
        for bad in [
            Budget::Beta(f64::NAN),
            Budget::TargetCur(1.0),
            Budget::TargetSpeedup(1.0),
        ] {
            assert!(bad.check().is_err());
        }
    }

    #[test]
    fn targets_that_no_schedule_reaches_are_refused() {
        let reachable = |budget: Budget, steps, slots| {
            budget
                .check_reachable(steps, &graph(), slots, |_| true)
                .is_ok()
        };
        assert!(reachable(Budget::TargetCur(0.5), 2, 4));
        assert!(!reachable(Budget::TargetCur(0.6), 2, 4));
        assert!(!reachable(Budget::TargetSpeedup(50.0), 20, 4));
        // With 2 of 4 slots 20 of the 40 evaluations after step 0, which are 0.4545 of all 44.
        assert!(reachable(Budget::TargetCur(0.45), 11, 2));
        assert!(!reachable(Budget::TargetCur(0.46), 11, 2));
    }
}
