//! The table of steps and branches.

use std::collections::BTreeMap;

use super::{Forecast, Joint, ScheduleError};
use crate::graph::Graph;

/// Features of a branch that a read may weigh at most: as many as the longest history of a published forecast (Spectrum).
pub const MAX_HISTORY: usize = 100;

/// For every step (`s = 0` the noisiest) and branch (in the graph's order): compute, or reuse. Step 0 always computes
/// everything.
///
/// What is reused is a weighted sum of the branch's features, that of the step computed last first: plain reuse is
/// one weight of 1, a forecast has several ([`Schedule::with_reads`]). Neighbouring branches may be reused as one
/// ([`Schedule::with_joint`]). What a step takes for the clean image may be weighed
/// of earlier ones, with the network or without ([`Schedule::with_forecast`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    steps: usize,
    branches: usize,
    compute: Vec<bool>,
    /// Weights of reused cells `s·N + n` that are no plain reuse, newest feature first.
    reads: BTreeMap<usize, Vec<f32>>,
    pub(super) joint: Option<Joint>,
    forecast: Forecast,
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
                reads: BTreeMap::new(),
                joint: None,
                forecast: Forecast::default(),
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

    /// The same table with the weights that `weights` gives each reused cell `(step, branch)`: of the features computed
    /// last, newest first. None or a single 1 is plain reuse.
    ///
    /// # Errors
    /// [`ScheduleError::Reads`] for weights that are not finite, more than [`MAX_HISTORY`] of them, or more than features
    /// have been computed; [`ScheduleError::Joint`] where branches that are reused together are weighed differently.
    pub fn with_reads(
        mut self,
        mut weights: impl FnMut(usize, usize) -> Vec<f32>,
    ) -> Result<Self, ScheduleError> {
        self.reads.clear();
        for n in 0..self.branches {
            let mut computed = 0;
            for s in 0..self.steps {
                if self.computes(s, n) {
                    computed += 1;
                    continue;
                }
                let of_cell = weights(s, n);
                let most = computed.min(MAX_HISTORY);
                if of_cell.len() > most || of_cell.iter().any(|w| !w.is_finite()) {
                    return Err(ScheduleError::Reads {
                        step: s,
                        branch: n,
                        weights: of_cell,
                        most,
                    });
                }
                if !matches!(of_cell[..], [] | [1.0]) {
                    self.reads.insert(s * self.branches + n, of_cell);
                }
            }
        }
        self.check_joint()?;
        Ok(self)
    }

    /// The same table with a forecast of clean images.
    ///
    /// # Errors
    /// [`ScheduleError::Forecast`] for weights that are not finite or of more predictions than there are, and for steps without
    /// the network that compute something.
    pub fn with_forecast(mut self, forecast: Forecast) -> Result<Self, ScheduleError> {
        forecast.check(&self)?;
        self.forecast = forecast;
        Ok(self)
    }

    /// What is forecast.
    pub fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    /// Whether step `s` runs the network. Where it does not, [`Self::computes`] is false of all its branches, and none is read.
    pub fn runs_network(&self, s: usize) -> bool {
        self.forecast.runs_network(s)
    }

    /// Whether every reuse is that of the feature computed last.
    pub fn is_plain(&self) -> bool {
        self.reads.is_empty()
    }

    /// The weights of a reused cell, newest feature first.
    pub fn weights(&self, s: usize, n: usize) -> &[f32] {
        match self.reads.get(&(s * self.branches + n)) {
            Some(weights) => weights,
            None => &[1.0],
        }
    }

    /// The same schedule with all of step `s`, or of the next one that runs the network, computed, for a run that begins there
    /// with an empty cache. Reads that would reach back before it are plain.
    ///
    /// # Errors
    /// [`ScheduleError::Joint`] where branches that are reused together at later steps overlap.
    pub fn resumed_at(&self, s: usize) -> Result<Self, ScheduleError> {
        let s = (s..self.steps)
            .find(|s| self.runs_network(*s))
            .unwrap_or(self.steps);
        let mut table = Self::from_rule(self.steps, self.branches, |step, n| {
            step == s || self.computes(step, n)
        })?;
        // Predictions are part of a run's state, features are not.
        table.forecast = self.forecast.clone();
        table.joint = self.joint;
        // From there on only what was computed since is at hand.
        let since =
            |step: usize, n: usize| (s..step).filter(|k| table.computes(*k, n)).count().max(1);
        let reads = |step: usize, n: usize| {
            let weights = self.weights(step, n);
            match step > s && weights.len() > since(step, n) {
                true => Vec::new(),
                false => weights.to_vec(),
            }
        };
        table.clone().with_reads(reads)
    }

    /// Multiply-accumulates of a whole run for one image and one half of the guidance batch.
    pub fn macs(&self, graph: &Graph) -> u64 {
        let network = (0..self.steps).filter(|s| self.runs_network(*s));
        network.map(|s| graph.step_macs(self.row(s))).sum()
    }

    /// Multiply-accumulates of as many steps that reuse nothing.
    pub fn full_macs(&self, graph: &Graph) -> u64 {
        self.steps as u64 * graph.full_step_macs()
    }

    /// "Theoretical speed-up": MACs of the full run over those of the scheduled one.
    pub fn macs_ratio(&self, graph: &Graph) -> f64 {
        self.full_macs(graph) as f64 / self.macs(graph) as f64
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

    /// The steps that compute branch `n`, in order.
    pub fn computed_steps(&self, n: usize) -> Vec<usize> {
        (0..self.steps).filter(|s| self.computes(*s, n)).collect()
    }

    /// The row of step `s`.
    pub fn row(&self, s: usize) -> &[bool] {
        &self.compute[s * self.branches..][..self.branches]
    }

    /// Whether a feature of branch `n`, present after step `s`, is read before it is overwritten.
    pub fn is_reused_after(&self, s: usize, n: usize) -> bool {
        let mut later = (s + 1..self.steps).filter(|s| self.runs_network(*s));
        later.next().is_some_and(|s| !self.computes(s, n))
    }

    /// The steps before `from` whose features are read at `from` or later, or by such a step, in order.
    pub fn steps_read_from(&self, from: usize) -> Vec<usize> {
        let mut read = vec![false; from.min(self.steps)];
        for s in (0..self.steps).rev() {
            let runs = s >= from || read[s];
            for n in (0..self.branches).filter(|_| runs && self.runs_network(s)) {
                if self.computes(s, n) {
                    continue;
                }
                let written = (0..s).rev().filter(|k| self.computes(*k, n));
                for k in written.take(self.weights(s, n).len()).filter(|k| *k < from) {
                    read[k] = true;
                }
            }
        }
        (0..read.len()).filter(|s| read[*s]).collect()
    }

    /// Cache utilization ratio: branch evaluations that are reused or skipped over all.
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
    fn reads_weigh_what_was_computed() {
        let every_other = || Schedule::from_rule(5, 1, |s, _| s % 2 == 0).unwrap();
        let line = |s: usize, _| match s {
            1 => vec![1.0],
            _ => vec![1.5, -0.5],
        };
        let table = every_other().with_reads(line).unwrap();
        assert_eq!(
            (table.weights(1, 0), table.weights(3, 0)),
            (&[1.0][..], &[1.5, -0.5][..])
        );
        assert!(!table.is_plain() && every_other().is_plain());
        // At step 1 only one feature was computed.
        let early = every_other().with_reads(|_, _| vec![1.5, -0.5]);
        assert!(matches!(
            early,
            Err(ScheduleError::Reads {
                step: 1,
                most: 1,
                ..
            })
        ));
        assert!(every_other().with_reads(|_, _| vec![f32::NAN]).is_err());
        let resumed = table.resumed_at(2).unwrap();
        assert_eq!(resumed.weights(3, 0), [1.0]);
    }

    #[test]
    fn a_later_part_of_a_run_needs_some_of_the_steps_before() {
        let rows = ["##", "..", "##", ".#", "##", ".#", ".."];
        let table = Schedule::from_rule(7, 2, |s, n| rows[s].as_bytes()[n] == b'#').unwrap();
        let line = |s: usize, n: usize| match (s, n) {
            (6, 1) => vec![2.0, -1.0],
            (3 | 5 | 6, 0) => vec![1.5, -0.5],
            _ => Vec::new(),
        };
        let table = table.with_reads(line).unwrap();
        // Step 6 reads branch 0 of steps 4 and 2, and branch 1 of steps 5 and 4; step 5 reads no others.
        assert_eq!(table.steps_read_from(6), [2, 4, 5]);
        assert_eq!(table.steps_read_from(5), [2, 4]);
        assert_eq!(table.steps_read_from(4), [2]);
        assert_eq!(table.steps_read_from(3), [0, 2]);
        assert_eq!(table.steps_read_from(0), [0; 0]);
        let full = Schedule::full(3, 2).unwrap();
        assert!(full.steps_read_from(2).is_empty());
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
