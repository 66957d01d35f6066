//! FoCa (arXiv 2508.16211, as cache-dit has it): all branches computed in the first two steps and at every N-th after them,
//! forecast in between.
//!
//! The forecast is a step of Heun's rule from the feature `F` computed last, `e` steps before: with `G` the one computed before it
//! and `P`, `Q` the newest and the second newest feature, computed or forecast,
//! `F + e/2·[(F − G) + (P − Q)]`. Beyond three steps it is drawn back to `F`, by `3/e` of the forecast for three. Forecasts read
//! forecasts, but all of them are weighted sums of computed features, so this one is too.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, every_after_two},
};
use crate::schedule::{Reuse, Schedule, ScheduleError};

/// Steps that a forecast goes ahead at most.
const FARTHEST: f64 = 3.0;

/// Compute every N-th step and forecast the others by Heun's rule: `foca:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foca {
    /// Steps from one that is computed to the next.
    pub interval: usize,
}

impl Foca {
    fn schedule(&self, steps: usize, branches: usize) -> Result<Schedule, ScheduleError> {
        let computes = every_after_two(self.interval);
        forecast(Schedule::from_rule(steps, branches, |s, _| computes(s))?)
    }
}

impl fmt::Display for Foca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "foca:{}", self.interval)
    }
}

impl Definition for Foca {
    fn summary() -> Summary {
        Summary::of_table(
            "foca",
            ":N",
            "compute every N-th step, forecast the others by Heun's rule",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        match arguments {
            [interval] => match interval.parse() {
                Ok(interval @ 1..) => Ok(Self { interval }),
                _ => Err("expected foca:N with a whole number N of at least 1".into()),
            },
            _ => Err("expected foca:N".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        Ok(self.schedule(run.steps, run.branches())?.into())
    }
}

/// The same table, its reused branches forecast by Heun's rule; by the feature itself where there is a single one.
///
/// # Errors
/// As [`Schedule::with_reads`].
pub fn forecast(table: Schedule) -> Result<Schedule, ScheduleError> {
    let weights: Vec<Vec<Vec<f32>>> = (0..table.branches())
        .map(|n| {
            let column: Vec<bool> = (0..table.steps()).map(|s| table.computes(s, n)).collect();
            weights(&column)
        })
        .collect();
    table.with_reads(|s, n| weights[n][s].clone())
}

/// What the features of the computed steps weigh in each step's forecast, newest first, without those that vanish in single
/// precision; nothing of computed steps.
fn weights(computes: &[bool]) -> Vec<Vec<f32>> {
    let count = computes.iter().filter(|computes| **computes).count();
    // Features as weights of computed ones, in the order of their steps.
    let (mut newest, mut second): (Option<Vec<f64>>, Option<Vec<f64>>) = (None, None);
    let (mut last, mut before): (Option<Vec<f64>>, Option<Vec<f64>>) = (None, None);
    let (mut made, mut last_step) = (0, 0);
    let mut all = Vec::with_capacity(computes.len());
    for (s, computes) in computes.iter().enumerate() {
        if *computes {
            let mut feature = vec![0.0; count];
            feature[made] = 1.0;
            (made, last_step) = (made + 1, s);
            before = last.replace(feature.clone());
            second = newest.replace(feature);
            all.push(Vec::new());
            continue;
        }
        let forecast = match (&last, &before, &newest, &second) {
            (Some(f), Some(g), Some(p), Some(q)) => {
                let elapsed = (s - last_step) as f64;
                let ahead = elapsed.min(FARTHEST);
                let share = ahead / elapsed;
                let of = |i: usize| f[i] + share * ahead / 2.0 * (f[i] - g[i] + p[i] - q[i]);
                (0..count).map(of).collect()
            }
            (Some(f), ..) => {
                all.push(in_single_precision(&f[..made]));
                continue;
            }
            _ => Vec::new(),
        };
        all.push(in_single_precision(&forecast[..made]));
        second = newest.replace(forecast);
    }
    all
}

/// The weights newest first, the oldest left out as far as they vanish beside 1.
fn in_single_precision(oldest_first: &[f64]) -> Vec<f32> {
    let vanishes = |w: &&f64| w.abs() < f64::from(f32::EPSILON) / 4.0;
    let vanishing = oldest_first.iter().take_while(vanishes).count();
    let kept = oldest_first[vanishing..].iter().rev();
    kept.map(|w| *w as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_specs;
    use super::*;

    #[test]
    fn forecasts_are_sums_of_what_was_computed() {
        let row = [true, true, false, false, true, false, false];
        let weights = weights(&row);
        let none: &[f32] = &[];
        assert_eq!((&weights[1][..], &weights[4][..]), (none, none));
        // B + 1/2·[(B − A) + (B − A)]
        assert_eq!(weights[2], [2.0, -1.0]);
        // B + [(B − A) + (P − B)] with P the forecast before: 3·B − 2·A.
        assert_eq!(weights[3], [3.0, -2.0]);
        // C + 1/2·[(C − B) + (C − P)] with P = 3·B − 2·A.
        assert_eq!(weights[5], [2.0, -2.0, 1.0]);
        // C + [(C − B) + (P − C)] with P = 2·C − 2·B + A.
        assert_eq!(weights[6], [3.0, -3.0, 1.0]);
    }

    #[test]
    fn far_forecasts_are_drawn_back_and_one_feature_is_reused() {
        let weights = weights(&[true, false, true, false, false, false, false]);
        assert_eq!(weights[1], [1.0]);
        // With D = B − A over two steps: 1, then B + D, B + 3/2·D, and 3/4 of that line at four.
        assert_eq!(weights[3], [2.0, -1.0]);
        assert_eq!(weights[4], [3.0, -2.0]);
        assert_eq!(weights[5], [4.0, -3.0]);
        assert_eq!(weights[6], [3.25, -2.25]);
    }

    #[test]
    fn what_is_constant_stays_so_and_old_features_fade() {
        let row: Vec<bool> = (0..200).map(|s| s < 2 || s % 2 == 1).collect();
        for weights in weights(&row).iter().filter(|weights| !weights.is_empty()) {
            let sum: f32 = weights.iter().sum();
            assert!((sum - 1.0).abs() < 1e-6, "{weights:?}");
            assert!(weights.len() <= 28, "{}", weights.len());
        }
        let table = Foca { interval: 3 }.schedule(8, 2).unwrap();
        assert_eq!(
            table.to_rows(),
            ["##", "##", "..", "..", "##", "..", "..", "##"]
        );
        assert_eq!(table.weights(5, 1), [2.0, -2.0, 1.0]);
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["foca:3"], &["foca", "foca:0", "foca:2:1"]);
    }
}
