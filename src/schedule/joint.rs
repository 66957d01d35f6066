//! Neighbouring branches that are reused as one: by what they added together, or by the stream that they left.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use super::{Schedule, ScheduleError};

/// What stands for branches that are reused together: a feature a run of neighbours instead of one a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Joint {
    /// What they added to the stream, gates and all: `x + Σ w·(x_out − x_in)`.
    Added,
    /// The stream that they left: `Σ w·x_out`.
    Stream,
}

/// A joint feature's life: written at the end of its branches at one step, read at later ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JointFeature {
    pub branches: Range<usize>,
    /// The step that computes all of them.
    pub written: usize,
    /// The last step that reads it.
    pub last_read: usize,
}

impl Schedule {
    /// The same table, its neighbouring reused branches reused together.
    ///
    /// # Errors
    /// [`ScheduleError::Joint`] where such branches were not computed together before, or where features of the same step
    /// would overlap.
    pub fn with_joint(mut self, joint: Joint) -> Result<Self, ScheduleError> {
        self.joint = Some(joint);
        self.check_joint()?;
        Ok(self)
    }

    /// How neighbouring branches are reused together; none: each by itself.
    pub fn joint(&self) -> Option<Joint> {
        self.joint
    }

    /// The longest runs of branches that step `s` reuses; none where it runs no network.
    pub fn reused_together(&self, s: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let reused = (0..self.branches()).filter(|n| self.runs_network(s) && !self.computes(s, *n));
        for n in reused {
            match runs.last_mut() {
                Some(last) if last.end == n => last.end = n + 1,
                _ => runs.push(n..n + 1),
            }
        }
        runs
    }

    /// The steps before `s` that computed all of `branches`, newest first.
    pub fn computed_together(
        &self,
        s: usize,
        branches: Range<usize>,
    ) -> impl Iterator<Item = usize> + '_ {
        let all = move |k: &usize| {
            let row = &self.row(*k)[branches.clone()];
            row.iter().all(|computes| *computes)
        };
        (0..s).rev().filter(all)
    }

    /// The joint features that are read at all, by step and first branch.
    pub fn joint_features(&self) -> Vec<JointFeature> {
        let mut features = BTreeMap::new();
        for s in 0..self.steps() {
            for branches in self.reused_together(s) {
                let read = self.weights(s, branches.start).len();
                for written in self.computed_together(s, branches.clone()).take(read) {
                    features.insert((written, branches.start, branches.end), s);
                }
            }
        }
        let feature = |((written, start, end), last_read)| JointFeature {
            branches: start..end,
            written,
            last_read,
        };
        features.into_iter().map(feature).collect()
    }

    pub(super) fn check_joint(&self) -> Result<(), ScheduleError> {
        if self.joint.is_none() {
            return Ok(());
        }
        let refused = |step: usize, problem: String| Err(ScheduleError::Joint { step, problem });
        for s in 0..self.steps() {
            for branches in self.reused_together(s) {
                let weights = self.weights(s, branches.start);
                if branches.clone().any(|n| self.weights(s, n) != weights) {
                    return refused(s, format!("weighs branches {branches:?} differently"));
                }
                let made = self.computed_together(s, branches.clone()).count();
                if made < weights.len() {
                    return refused(
                        s,
                        format!(
                            "reads {} features of branches {branches:?}, which were computed together {made} times before",
                            weights.len()
                        ),
                    );
                }
            }
        }
        let features = self.joint_features();
        let overlap = features.windows(2).find(|pair| {
            pair[0].written == pair[1].written && pair[1].branches.start < pair[0].branches.end
        });
        match overlap {
            None => Ok(()),
            Some(pair) => refused(
                pair[0].written,
                format!(
                    "would keep branches {:?} and {:?}, which overlap",
                    pair[0].branches, pair[1].branches
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_reused_by_what_was_computed_together() {
        let rows = ["####", "##..", "####", "...#"];
        let table = || Schedule::from_rule(4, 4, |s, n| rows[s].as_bytes()[n] == b'#').unwrap();
        assert_eq!(table().joint(), None);
        let joint = table().with_joint(Joint::Added).unwrap();
        assert_eq!(joint.reused_together(1).first(), Some(&(2..4)));
        assert_eq!(joint.computed_together(3, 0..3).collect::<Vec<_>>(), [2, 0]);
        let feature = |branches, written, last_read| JointFeature {
            branches,
            written,
            last_read,
        };
        assert_eq!(
            joint.joint_features(),
            [feature(2..4, 0, 1), feature(0..3, 2, 3)]
        );
        // Looking back further, the last step would read what overlaps the feature that step 1 reads.
        let further = joint.clone().with_reads(|s, _| match s {
            3 => vec![2.0, -1.0],
            _ => vec![1.0],
        });
        assert!(matches!(further, Err(ScheduleError::Joint { step: 0, .. })));
        let mixed = joint
            .clone()
            .with_reads(|_, n| if n == 0 { vec![2.0] } else { vec![1.0] });
        assert!(matches!(mixed, Err(ScheduleError::Joint { step: 3, .. })));
    }

    #[test]
    fn features_of_one_step_must_not_overlap() {
        let rows = ["####", "##..", "...#"];
        let table = Schedule::from_rule(3, 4, |s, n| rows[s].as_bytes()[n] == b'#').unwrap();
        assert!(matches!(
            table.with_joint(Joint::Added),
            Err(ScheduleError::Joint { step: 0, .. })
        ));
    }

    #[test]
    fn a_resumed_run_reuses_together_too() {
        let table = Schedule::from_rule(5, 2, |s, _| s % 2 == 0)
            .and_then(|table| table.with_joint(Joint::Stream))
            .and_then(|table| {
                table.with_reads(|s, _| if s == 3 { vec![1.5, -0.5] } else { vec![1.0] })
            })
            .unwrap();
        let resumed = table.resumed_at(1).unwrap();
        assert_eq!(resumed.joint(), Some(Joint::Stream));
        assert_eq!(resumed.weights(3, 0), [1.5, -0.5]);
        assert_eq!(table.resumed_at(2).unwrap().weights(3, 0), [1.0]);
    }
}
