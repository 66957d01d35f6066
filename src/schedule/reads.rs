//! Weights of reads as a schedule file writes them: a row a step, short where a step's branches agree.

use serde::{Deserialize, Serialize};

use super::{Schedule, ScheduleError};

/// What the reused branches of a step weigh, newest feature first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StepReads {
    /// All alike; empty for plain reuse.
    All(Vec<f32>),
    /// A list a branch, of computed ones empty.
    Each(Vec<Vec<f32>>),
}

/// The rows of a schedule; nothing where all reuse is plain.
pub(super) fn of(schedule: &Schedule) -> Option<Vec<StepReads>> {
    if schedule.is_plain() {
        return None;
    }
    let row = |s: usize| {
        let reused: Vec<usize> = (0..schedule.branches())
            .filter(|n| !schedule.computes(s, *n))
            .collect();
        let Some(first) = reused.first() else {
            return StepReads::All(Vec::new());
        };
        let shared = schedule.weights(s, *first);
        if reused.iter().all(|n| schedule.weights(s, *n) == shared) {
            return StepReads::All(shared.to_vec());
        }
        let of_branch = |n: usize| match schedule.computes(s, n) {
            true => Vec::new(),
            false => schedule.weights(s, n).to_vec(),
        };
        StepReads::Each((0..schedule.branches()).map(of_branch).collect())
    };
    Some((0..schedule.steps()).map(row).collect())
}

/// `table` with the weights of `rows`.
pub(super) fn apply(table: Schedule, rows: &[StepReads]) -> Result<Schedule, ScheduleError> {
    let (steps, branches) = (table.steps(), table.branches());
    let fits = |row: &StepReads| match row {
        StepReads::All(_) => true,
        StepReads::Each(each) => each.len() == branches,
    };
    if rows.len() != steps || !rows.iter().all(fits) {
        return Err(ScheduleError::ReadRows { steps, branches });
    }
    table.with_reads(|s, n| match &rows[s] {
        StepReads::All(weights) => weights.clone(),
        StepReads::Each(each) => each[n].clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_the_schedule_reads() {
        let table = || Schedule::from_rule(4, 2, |s, n| s < 2 || (s == 2 && n == 0)).unwrap();
        assert_eq!(of(&table()), None);
        let weigh = |s: usize, n: usize| match (s, n) {
            (2, _) => vec![2.0, -1.0],
            (_, 0) => vec![3.0, -3.0, 1.0],
            _ => vec![1.0],
        };
        let schedule = table().with_reads(weigh).unwrap();
        let rows = of(&schedule).unwrap();
        assert_eq!(rows[2], StepReads::All(vec![2.0, -1.0]));
        assert_eq!(
            rows[3],
            StepReads::Each(vec![vec![3.0, -3.0, 1.0], vec![1.0]])
        );
        let text = serde_json::to_string(&rows).unwrap();
        assert_eq!(text, "[[],[],[2.0,-1.0],[[3.0,-3.0,1.0],[1.0]]]");
        let read: Vec<StepReads> = serde_json::from_str(&text).unwrap();
        assert_eq!(apply(table(), &read).unwrap(), schedule);
        assert!(apply(table(), &read[1..]).is_err());
    }
}
