//! The router: one logit a step and branch.

use super::{Schedule, ScheduleError};

/// Logits stay within ±5 (and step 0 is pinned at +5), as in the authors' release.
pub const LOGIT_LIMIT: f32 = 5.0;

/// Router logits `[T, N]`, step 0 first. Score `r = sigmoid(logit)`; a branch is computed where `r > τ`.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    steps: usize,
    branches: usize,
    logits: Vec<f32>,
}

impl Router {
    /// From row-major logits.
    ///
    /// # Errors
    /// [`ScheduleError::Size`]; [`ScheduleError::Number`] for a logit that is not finite.
    pub fn new(steps: usize, branches: usize, logits: Vec<f32>) -> Result<Self, ScheduleError> {
        let expected = steps.saturating_mul(branches);
        if expected == 0 || logits.len() != expected {
            return Err(ScheduleError::Size {
                steps,
                branches,
                expected,
                found: logits.len(),
            });
        }
        if let Some(bad) = logits.iter().find(|l| !l.is_finite()) {
            let value = f64::from(*bad);
            return Err(ScheduleError::Number {
                what: "a router logit",
                value,
                expected: "a finite number",
            });
        }
        Ok(Self {
            steps,
            branches,
            logits,
        })
    }

    /// `T`.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// `N`.
    pub fn branches(&self) -> usize {
        self.branches
    }

    /// The logits of step `s`.
    pub fn row(&self, s: usize) -> &[f32] {
        &self.logits[s * self.branches..][..self.branches]
    }

    /// All logits, row-major.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The scores of step `s`, each in (0, 1).
    pub fn scores(&self, s: usize) -> Vec<f64> {
        self.row(s).iter().map(|l| sigmoid(f64::from(*l))).collect()
    }

    /// The schedule of threshold `tau`: compute iff `r > τ`, and everything at step 0.
    ///
    /// # Errors
    /// [`ScheduleError::Number`] unless `0 ≤ τ < 1`.
    pub fn threshold(&self, tau: f64) -> Result<Schedule, ScheduleError> {
        check_tau(tau)?;
        Schedule::from_rule(self.steps, self.branches, |s, n| {
            sigmoid(f64::from(self.row(s)[n])) > tau
        })
    }
}

/// Whether `tau` can be a threshold.
pub(super) fn check_tau(tau: f64) -> Result<(), ScheduleError> {
    if (0.0..1.0).contains(&tau) {
        Ok(())
    } else {
        Err(ScheduleError::Number {
            what: "the threshold",
            value: tau,
            expected: "a number of at least 0 and below 1",
        })
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threshold_computes_above_tau_and_all_of_step_zero() {
        // sigmoid(-2.2) = 0.0998, sigmoid(-2.19) = 0.1007
        let router = Router::new(2, 2, vec![-5.0, 5.0, -2.2, -2.19]).unwrap();
        assert_eq!(router.threshold(0.1).unwrap().to_rows(), ["##", ".#"]);
        assert!(router.threshold(1.0).is_err() && router.threshold(f64::NAN).is_err());
        assert!(Router::new(1, 1, vec![f32::NAN]).is_err());
    }
}
