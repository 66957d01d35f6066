//! CEM (arXiv 2512.23258): which steps to run the network at, of a given number, by dynamic programming over what the stream
//! changes between steps in a calibration; the first and the last run it.
//!
//! With `e[C][t]` the change of the stream over `C` steps up to step `t`, summed over steps up to `t` and weighed by `C²`, the
//! cost of a gap of `g` steps that ends at `t` is `e[g−1][t]`. Gaps are those of even steps, or one longer or shorter, 10 at most.

use std::fmt;

use super::{
    Calibration, PolicyError,
    definition::{Definition, Run, Summary, misfit},
};
use crate::schedule::{Reuse, Schedule};

/// Steps from one that runs the network to the next, at most.
const LONGEST: usize = 10;

/// Run the network at so many steps, chosen by what changes between them, as calibrated: `cem:K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cem {
    /// Steps that run the network.
    pub count: usize,
}

impl Cem {
    fn schedule(
        &self,
        steps: usize,
        branches: usize,
        calibration: &Calibration,
    ) -> Result<Schedule, PolicyError> {
        let count = self.count;
        let computed = computed(&calibration.stream_distances, count, steps).ok_or_else(|| {
            misfit(
                self,
                format!(
                    "there is no way through {steps} steps with {count} of them, in gaps of {:?}; try another number",
                    gaps(count, steps)
                ),
            )
        })?;
        let computes = |s, _| computed.contains(&s);
        Ok(Schedule::from_rule(steps, branches, computes)?)
    }
}

impl fmt::Display for Cem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cem:{}", self.count)
    }
}

impl Definition for Cem {
    fn summary() -> Summary {
        let about = "run the network at K steps, chosen by what changes between them";
        Summary::of_table("cem", ":K", about).calibrated()
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        match arguments {
            [count] => match count.parse() {
                Ok(count @ 2..) => Ok(Self { count }),
                _ => Err("expected cem:K with a whole number K of at least 2".into()),
            },
            _ => Err("expected cem:K".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let calibration = run.calibrated(self)?;
        let table = self.schedule(run.steps, run.branches(), calibration)?;
        Ok(table.into())
    }
}

/// The gaps that are tried.
fn gaps(count: usize, steps: usize) -> std::ops::RangeInclusive<usize> {
    let even = (steps as f64 / count.max(1) as f64).round_ties_even() as usize;
    even.saturating_sub(1).max(1)..=LONGEST.min(even + 1)
}

/// The steps that run the network, in order; none where no gaps lead from the first to the last step. `distances`: a row a
/// distance, from 1 on, an entry a pair of steps.
fn computed(distances: &[Vec<f64>], count: usize, steps: usize) -> Option<Vec<usize>> {
    if count == 0 || count > steps {
        return None;
    }
    // The cost of a gap that ends at each step; none where it has no measure, as at distances that reach before the run.
    let cost = |gap: usize| -> Vec<Option<f64>> {
        let distance = gap - 1;
        if distance == 0 {
            return vec![Some(0.0); steps];
        }
        let row = distances.get(distance - 1).map_or(&[][..], Vec::as_slice);
        let weight = (distance * distance) as f64;
        let mut sum = 0.0;
        (0..steps)
            .map(|t| {
                let change = t.checked_sub(distance).and_then(|s| row.get(s));
                sum += change.copied().unwrap_or(0.0);
                (sum != 0.0).then_some(weight * sum)
            })
            .collect()
    };
    let costs: Vec<(usize, Vec<Option<f64>>)> =
        gaps(count, steps).map(|gap| (gap, cost(gap))).collect();
    // The least cost of a way to each step, and the step before it.
    let mut best: Vec<Option<(f64, usize)>> = vec![None; steps];
    best[0] = Some((0.0, 0));
    let mut before = Vec::with_capacity(count);
    for _ in 1..count {
        let next = (0..steps).map(|t| {
            let through = |(gap, cost): &(usize, Vec<Option<f64>>)| {
                let from = t.checked_sub(*gap)?;
                let (so_far, _) = best[from]?;
                Some((so_far + cost[t]?, from))
            };
            costs
                .iter()
                .filter_map(through)
                .reduce(|a, b| if b.0 < a.0 { b } else { a })
        });
        best = next.collect();
        before.push(best.clone());
    }
    best[steps - 1]?;
    let mut computed = vec![steps - 1];
    for row in before.iter().rev() {
        let (_, from) = row[computed[computed.len() - 1]]?;
        computed.push(from);
    }
    computed.reverse();
    Some(computed)
}

#[cfg(test)]
mod tests {
    use super::super::{
        calibration::example,
        tests::{assert_specs, graph},
    };
    use super::*;

    #[test]
    fn the_cheapest_way_of_so_many_steps_is_found() {
        // Late steps change more, so gaps are long at first: of 7 steps with 3, gaps of 1 to 3.
        let row = |k: usize| {
            let change = |s: usize| (s + 1) as f64;
            (0..7 - k).map(change).collect::<Vec<_>>()
        };
        let distances: Vec<_> = (1..=6).map(row).collect();
        assert_eq!(computed(&distances, 3, 7), Some(vec![0, 3, 6]));
        // With 4 of 7 the same gaps. A gap of two that ends at t costs t·(t + 1)/2, one of three 2·t·(t − 1): 12 + 15 + 0.
        assert_eq!(computed(&distances, 4, 7), Some(vec![0, 3, 5, 6]));
        assert_eq!(computed(&distances, 7, 7), Some((0..7).collect()));
        assert_eq!(computed(&distances, 2, 7), None);
        assert_eq!(computed(&distances, 8, 7), None);
        assert_eq!(computed(&distances, 0, 7), None);
        assert_eq!(computed(&[], 1, 1), Some(vec![0]));
    }

    #[test]
    fn whole_steps_are_reused() {
        let table = |count: usize| Cem { count }.schedule(5, 2, &example(&graph(1), 5));
        let rows = table(3).unwrap().to_rows();
        assert_eq!(rows, ["##", "..", "##", "..", "##"]);
        let refused = table(1);
        assert!(matches!(refused, Err(PolicyError::Arguments { .. })));
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["cem:10"], &["cem", "cem:1", "cem:x"]);
    }
}
