//! The boolean table.

use super::ScheduleError;

/// For every step (`s = 0` the noisiest) and branch (`2·block + {0: attention, 1: MLP}`): compute, or reuse
/// the feature that was computed last. Step 0 always computes everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    steps: usize,
    branches: usize,
    compute: Vec<bool>,
}

impl Schedule {
    /// From a row-major table, `true` for compute.
    ///
    /// # Errors
    /// [`ScheduleError::Size`], [`ScheduleError::FirstStep`].
    pub fn new(steps: usize, branches: usize, compute: Vec<bool>) -> Result<Self, ScheduleError> {
        let expected = steps.saturating_mul(branches);
        if expected == 0 || compute.len() != expected {
            return Err(ScheduleError::Size {
                steps,
                branches,
                expected,
                found: compute.len(),
            });
        }
        match compute[..branches].iter().position(|c| !c) {
            Some(branch) => Err(ScheduleError::FirstStep { branch }),
            None => Ok(Self {
                steps,
                branches,
                compute,
            }),
        }
    }

    /// From a rule; step 0 computes everything whatever the rule says.
    ///
    /// # Errors
    /// [`ScheduleError::Size`] for zero steps or branches.
    pub fn from_rule(
        steps: usize,
        branches: usize,
        mut rule: impl FnMut(usize, usize) -> bool,
    ) -> Result<Self, ScheduleError> {
        let table = (0..steps)
            .flat_map(|s| (0..branches).map(move |n| (s, n)))
            .map(|(s, n)| rule(s, n) || s == 0)
            .collect();
        Self::new(steps, branches, table)
    }

    /// The schedule that reuses nothing.
    ///
    /// # Errors
    /// [`ScheduleError::Size`] for zero steps or branches.
    pub fn full(steps: usize, branches: usize) -> Result<Self, ScheduleError> {
        Self::from_rule(steps, branches, |_, _| true)
    }

    /// `T`.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// `N`.
    pub fn branches(&self) -> usize {
        self.branches
    }

    /// Whether branch `n` is computed at step `s` (both in range).
    pub fn computes(&self, s: usize, n: usize) -> bool {
        self.compute[s * self.branches + n]
    }

    /// The row of step `s`.
    pub fn row(&self, s: usize) -> &[bool] {
        &self.compute[s * self.branches..][..self.branches]
    }

    /// Whether a feature of branch `n`, present after step `s`, is read before it is overwritten.
    pub fn is_reused_after(&self, s: usize, n: usize) -> bool {
        s + 1 < self.steps && !self.computes(s + 1, n)
    }

    /// Cache utilization ratio: reused branch evaluations over all.
    pub fn cur(&self) -> f64 {
        let reused = self.compute.iter().filter(|c| !**c).count();
        reused as f64 / self.compute.len() as f64
    }

    /// The table as text, a row a step: `#` compute, `.` reuse.
    pub fn to_rows(&self) -> Vec<String> {
        (0..self.steps)
            .map(|s| {
                self.row(s)
                    .iter()
                    .map(|c| if *c { '#' } else { '.' })
                    .collect()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_zero_must_compute() {
        assert!(matches!(
            Schedule::new(2, 2, vec![true, false, true, true]),
            Err(ScheduleError::FirstStep { branch: 1 })
        ));
        assert!(matches!(
            Schedule::new(2, 2, vec![true; 3]),
            Err(ScheduleError::Size { .. })
        ));
        assert!(matches!(
            Schedule::full(0, 4),
            Err(ScheduleError::Size { .. })
        ));
    }

    #[test]
    fn cur_and_liveness() {
        let every_other = Schedule::from_rule(4, 2, |s, _| s % 2 == 0).unwrap();
        assert_eq!(every_other.cur(), 0.5);
        assert_eq!(every_other.to_rows(), ["##", "..", "##", ".."]);
        assert!(every_other.is_reused_after(0, 0) && !every_other.is_reused_after(1, 0));
        assert!(!every_other.is_reused_after(3, 0));
    }
}
