//! SmoothCache (arXiv 2411.10510): each kind of branch is reused for as many steps, three at most, as its features changed
//! little over in a calibration; the first and the last step compute everything.

use std::fmt;

use super::{
    Calibration, PolicyError,
    definition::{Definition, Run, Summary, lone_threshold},
};
use crate::{
    graph::Graph,
    schedule::{Reuse, Schedule, ScheduleError},
};

/// Reuse each kind of branch where its features changed little, as calibrated: `smooth:ALPHA`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Smooth {
    pub threshold: f64,
}

impl Smooth {
    fn schedule(
        &self,
        steps: usize,
        graph: &Graph,
        calibration: &Calibration,
    ) -> Result<Schedule, ScheduleError> {
        let kinds = graph.kinds();
        let rows: Vec<Vec<bool>> = kinds
            .iter()
            .map(|kind| computes(calibration.feature_changes(*kind), self.threshold, steps))
            .collect();
        let row_of = |n: usize| {
            let kind = graph.sites()[n].kind;
            kinds.iter().position(|k| *k == kind)
        };
        Schedule::from_rule(steps, graph.branches(), |s, n| {
            row_of(n).is_none_or(|kind| rows[kind][s])
        })
    }
}

impl fmt::Display for Smooth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "smooth:{}", self.threshold)
    }
}

impl Definition for Smooth {
    fn summary() -> Summary {
        let about = "reuse each kind of branch while its features changed little";
        Summary::of_table("smooth", ":ALPHA", about).calibrated()
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let threshold = lone_threshold("smooth", arguments)?;
        Ok(Self { threshold })
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let calibration = run.calibrated(self)?;
        let table = self.schedule(run.steps, run.graph, calibration)?;
        Ok(table.into())
    }
}

/// Which steps compute a kind of branch: from a computed step on, the longest reuse whose change at that distance is no larger
/// than the threshold. `changes`: a row a distance, from 1 on, an entry a pair of steps.
fn computes(changes: &[Vec<f64>], threshold: f64, steps: usize) -> Vec<bool> {
    let mut row = vec![true; steps];
    let mut s = 0;
    while s < steps {
        let small = |k: &usize| changes[k - 1].get(s).is_some_and(|c| *c <= threshold);
        let reused = (1..=changes.len()).rev().find(small).unwrap_or(0);
        let end = steps.min(s + 1 + reused);
        row[s + 1..end].fill(false);
        s = end;
    }
    if let Some(last) = row.last_mut() {
        *last = true;
    }
    row
}

#[cfg(test)]
mod tests {
    use super::super::{
        calibration::example,
        tests::{assert_specs, graph},
    };
    use super::*;

    fn bits(row: &[bool]) -> String {
        row.iter().map(|c| if *c { '1' } else { '0' }).collect()
    }

    #[test]
    fn the_longest_reuse_that_changes_little_is_taken() {
        let changes = vec![
            vec![0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
            vec![0.5, 0.5, 0.2, 0.2, 0.2, 0.2],
            vec![0.5, 0.1, 0.3, 0.3, 0.3],
        ];
        // Three at once from step 1, whatever lies between; two from 5, of which the last step is computed.
        assert_eq!(bits(&computes(&changes, 0.2, 8)), "11000101");
        assert_eq!(bits(&computes(&changes, 0.1, 8)), "11000101");
        assert_eq!(bits(&computes(&changes, 0.3, 8)), "11000101");
        assert_eq!(bits(&computes(&changes, 0.5, 8)), "10001001");
        assert_eq!(bits(&computes(&changes, 0.05, 8)), "11111111");
        assert_eq!(bits(&computes(&changes, 0.5, 1)), "1");
    }

    #[test]
    fn kinds_go_their_own_ways() {
        let graph = graph(1);
        let mut calibration = example(&graph, 6);
        let mlp = calibration.feature_changes.get_mut("MLP").unwrap();
        mlp.iter_mut().flatten().for_each(|change| *change *= 2.0);
        let smooth = Smooth { threshold: 0.25 };
        let table = smooth.schedule(6, &graph, &calibration).unwrap();
        assert_eq!(table.to_rows(), ["##", "..", ".#", "#.", ".#", "##"]);
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["smooth:0.18"], &["smooth", "smooth:0", "smooth:0:1"]);
    }
}
