//! SmoothCache (arXiv 2411.10510): each kind of branch is reused for as many steps, three at most, as its features changed
//! little over in a calibration; the first and the last step compute everything.

use super::{Calibration, PolicyError};
use crate::{graph::Graph, schedule::Schedule};

pub(super) fn schedule(
    threshold: f64,
    steps: usize,
    graph: &Graph,
    calibration: &Calibration,
) -> Result<Schedule, PolicyError> {
    let kinds = graph.kinds();
    let rows: Vec<Vec<bool>> = kinds
        .iter()
        .map(|kind| computes(calibration.feature_changes(*kind), threshold, steps))
        .collect();
    let row_of = |n: usize| {
        let kind = graph.sites()[n].kind;
        kinds.iter().position(|k| *k == kind)
    };
    Ok(Schedule::from_rule(steps, graph.branches(), |s, n| {
        row_of(n).is_none_or(|kind| rows[kind][s])
    })?)
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
    use super::*;
    use crate::{graph::SiteKind, policy::calibration::example};

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
        let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
        let graph = Graph::uniform(1, &pattern, [4, 8], 2).unwrap();
        let mut calibration = example(&graph, 6);
        let mlp = calibration.feature_changes.get_mut("MLP").unwrap();
        mlp.iter_mut().flatten().for_each(|change| *change *= 2.0);
        let table = schedule(0.25, 6, &graph, &calibration).unwrap();
        assert_eq!(table.to_rows(), ["##", "..", ".#", "#.", ".#", "##"]);
    }
}
