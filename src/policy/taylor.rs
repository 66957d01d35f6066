//! TaylorSeer (arXiv 2503.06923): all branches computed in the first two steps and at every N-th after them, forecast in
//! between.
//!
//! The forecast is a Taylor series in the step: `Σ D_i·k^i / i!`, k steps after the last computed one, with differences in place
//! of derivatives, `D_0 = f` and `D_{i+1} = (D_i − D_i before) / Δ`, Δ the distance of the last two computed steps. Each `D_i`
//! is a weighted sum of stored features, so the forecast is one too, and runs as plain reuse does.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, argument_or, every_after_two},
};
use crate::schedule::{Reuse, Schedule, ScheduleError};

/// Compute every N-th step and forecast the others by a Taylor series: `taylor:N[:ORDER]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taylor {
    /// Steps from one that is computed to the next.
    pub interval: usize,
    /// Of the series, 0 to 4.
    pub order: usize,
}

impl Taylor {
    fn schedule(&self, steps: usize, branches: usize) -> Result<Schedule, ScheduleError> {
        let computes = every_after_two(self.interval);
        let table = Schedule::from_rule(steps, branches, |s, _| computes(s))?;
        forecast(table, self.order)
    }
}

impl fmt::Display for Taylor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "taylor:{}:{}", self.interval, self.order)
    }
}

impl Definition for Taylor {
    fn summary() -> Summary {
        Summary::of_table(
            "taylor",
            ":N[:ORDER]",
            "compute every N-th step, forecast the others by a Taylor series",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        match arguments {
            [interval] | [interval, _] => match (interval.parse(), argument_or(arguments, 1, 1)) {
                (Ok(interval @ 1..), Some(order @ 0..=4)) => Ok(Self { interval, order }),
                _ => Err(
                    "expected taylor:N[:ORDER] with a whole number N of at least 1 and an ORDER of 0 to 4"
                        .into(),
                ),
            },
            _ => Err("expected taylor:N[:ORDER]".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        Ok(self.schedule(run.steps, run.branches())?.into())
    }

    fn case(&self) -> Option<String> {
        Some(format!("taylor, order {}", self.order))
    }
}

/// The same table, its reused branches forecast by a Taylor series of this order, or as far as features go.
///
/// # Errors
/// As [`Schedule::with_reads`].
pub fn forecast(table: Schedule, order: usize) -> Result<Schedule, ScheduleError> {
    let computed: Vec<Vec<usize>> = (0..table.branches())
        .map(|n| table.computed_steps(n))
        .collect();
    table.with_reads(|s, n| {
        let seen = computed[n].partition_point(|c| *c < s);
        weights(&computed[n][..seen], s, order)
    })
}

/// What the features of the `computed` steps weigh in the forecast of step `s`, newest first.
fn weights(computed: &[usize], s: usize, order: usize) -> Vec<f32> {
    let Some(last) = computed.last() else {
        return Vec::new();
    };
    let count = computed.len().min(order + 1);
    let recent = &computed[computed.len() - count..];
    // D_i at each recent step, oldest first, each as weights of the recent features.
    let mut differences: Vec<Vec<f64>> = (0..count)
        .map(|j| (0..count).map(|k| f64::from(u8::from(j == k))).collect())
        .collect();
    let mut sum = vec![0.0; count];
    let (mut factor, k) = (1.0, (s - last) as f64);
    for i in 0..count {
        let newest = differences.last().cloned().unwrap_or_default();
        sum.iter_mut()
            .zip(&newest)
            .for_each(|(sum, w)| *sum += factor * w);
        factor *= k / (i + 1) as f64;
        // The steps that these differences stand at are the last ones.
        let at = &recent[count - differences.len()..];
        differences = differences
            .windows(2)
            .zip(at.windows(2))
            .map(|(pair, steps)| {
                let distance = (steps[1] - steps[0]) as f64;
                pair[1]
                    .iter()
                    .zip(&pair[0])
                    .map(|(new, old)| (new - old) / distance)
                    .collect()
            })
            .collect();
    }
    sum.into_iter().rev().map(|w| w as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Policy, tests::assert_specs};
    use super::*;

    #[test]
    fn a_forecast_follows_polynomials_of_its_order() {
        // Evenly spaced, differences are exact for a line, and for a parabola off by the second difference at hand.
        let of = |order: usize, f: &dyn Fn(f64) -> f64| {
            let computed = [1, 3, 5];
            let weights = weights(&computed, 6, order);
            let features = computed.iter().rev().map(|s| f(*s as f64));
            weights
                .iter()
                .zip(features)
                .map(|(w, f)| f64::from(*w) * f)
                .sum::<f64>()
        };
        assert_eq!(of(0, &|s| s), 5.0);
        assert_eq!(of(1, &|s| 2.0 * s + 1.0), 13.0);
        // D_1 = (25 − 9)/2 = 8, D_2 = (8 − 4)/2 = 2: 25 + 8 + 2/2.
        assert_eq!(of(2, &|s| s * s), 34.0);
    }

    #[test]
    fn every_second_step_is_forecast_from_what_was_computed() {
        let taylor = Taylor {
            interval: 2,
            order: 1,
        };
        let table = taylor.schedule(6, 2).unwrap();
        assert_eq!(table.to_rows(), ["##", "##", "..", "##", "..", "##"]);
        assert_eq!(table.weights(2, 0), [2.0, -1.0]);
        assert_eq!(table.weights(4, 1), [1.5, -0.5]);
    }

    #[test]
    fn series_of_another_order_are_another_case() {
        let [first, second] =
            ["taylor:2", "taylor:3:2"].map(|spec| spec.parse::<Policy>().unwrap());
        assert_eq!(first.case(), "taylor, order 1");
        assert_eq!(second.case(), "taylor, order 2");
    }

    #[test]
    fn branches_are_forecast_from_their_own_steps() {
        let rows = ["##", "#.", ".#", "#."];
        let table = Schedule::from_rule(4, 2, |s, n| rows[s].as_bytes()[n] == b'#').unwrap();
        let table = forecast(table, 1).unwrap();
        assert_eq!(table.weights(1, 1), [1.0]);
        assert_eq!(table.weights(2, 0), [2.0, -1.0]);
        assert_eq!(table.weights(3, 1), [1.5, -0.5]);
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(
            &["taylor:4:2", "taylor:2:0"],
            &["taylor", "taylor:0", "taylor:2:9", "taylor:2:1:1"],
        );
    }
}
