//! From the routers that other projects released to ours: index conversion, pure.

use std::str::FromStr;

use super::{Router, Schedule, ScheduleError, router::check_tau};

/// Whose router it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleasedKind {
    /// HarmoniCa's: every row acts.
    HarmoniCa,
    /// Learning-to-Cache's (arXiv 2406.01733): only rows at even indices act; at odd indices everything is
    /// computed, so nothing is reused over more than one step.
    LearningToCache,
}

impl FromStr for ReleasedKind {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "harmonica" => Ok(Self::HarmoniCa),
            "learning-to-cache" => Ok(Self::LearningToCache),
            _ => Err("expected harmonica or learning-to-cache".into()),
        }
    }
}

impl ReleasedKind {
    /// HarmoniCa pins the noisiest step (the last row) at 5; Learning-to-Cache leaves it as it was drawn.
    pub fn guess(rows: &[Vec<f32>]) -> Self {
        match rows.last() {
            Some(last) if last.iter().all(|l| *l >= 4.99) => Self::HarmoniCa,
            _ => Self::LearningToCache,
        }
    }

    /// The policy name that a schedule file gets.
    pub fn policy_name(self) -> &'static str {
        match self {
            Self::HarmoniCa => "harmonica",
            Self::LearningToCache => "learning-to-cache",
        }
    }

    /// The schedule at threshold `tau`; `rows[0]` is the least noisy step. Even entries of a row are
    /// attention, odd are MLP, as ours.
    ///
    /// # Errors
    /// [`ScheduleError`] for rows that form no table, or a threshold out of range.
    pub fn schedule(self, rows: &[Vec<f32>], tau: f64) -> Result<Schedule, ScheduleError> {
        check_tau(tau)?;
        let ruled = router_from_release(rows)?.threshold(tau)?;
        let steps = ruled.steps();
        Schedule::from_rule(steps, ruled.branches(), |s, n| {
            let acts = self == Self::HarmoniCa || ends_a_pair(s, steps);
            !acts || ruled.computes(s, n)
        })
    }
}

/// Whether step `s` is the second of a pair, counted from the last step on: where Learning-to-Cache may reuse.
pub fn ends_a_pair(s: usize, steps: usize) -> bool {
    s > 0 && (steps - 1 - s).is_multiple_of(2)
}

/// Logits in execution order from rows in the release's order.
///
/// # Errors
/// [`ScheduleError`] for rows that form no table.
pub fn router_from_release(rows: &[Vec<f32>]) -> Result<Router, ScheduleError> {
    let branches = rows.first().map_or(0, Vec::len);
    let logits = rows.iter().rev().flatten().copied().collect();
    Router::new(rows.len(), branches, logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_turn_round_and_learning_to_cache_acts_every_other_step() {
        // Index 0 is the least noisy step, so it comes last.
        let rows = vec![
            vec![-5.0, 5.0],
            vec![-5.0, -5.0],
            vec![5.0, -5.0],
            vec![5.0, 5.0],
        ];
        let ours = ReleasedKind::HarmoniCa.schedule(&rows, 0.1).unwrap();
        assert_eq!(ours.to_rows(), ["##", "#.", "..", ".#"]);
        let theirs = ReleasedKind::LearningToCache.schedule(&rows, 0.1).unwrap();
        assert_eq!(theirs.to_rows(), ["##", "#.", "##", ".#"]);
        assert_eq!(ReleasedKind::guess(&rows), ReleasedKind::HarmoniCa);
        assert!(ReleasedKind::HarmoniCa.schedule(&[], 0.1).is_err());
    }
}
