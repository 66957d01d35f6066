//! Spectrum (arXiv 2603.01623): the first five steps run the network, then every N-th, or ever fewer; the others forecast what
//! its last block would leave, all before the last layer in one.
//!
//! The forecast blends two: a Chebyshev series in `τ = 2·s/T − 1` of degree 4, fitted by ridge least squares to what all steps
//! so far left (at most 100), and the line through the last two of them. Both are weighted sums: of the series the weights are
//! `X·(XᵀX + λ·I)⁻¹·x*`, with `X` the polynomials at the kept steps and `x*` those at the step at hand.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, argument_or},
};
use crate::schedule::{Joint, MAX_HISTORY, Reuse, Schedule, ScheduleError};

/// Steps that run the network before any forecast.
const FIRST: usize = 5;
/// Polynomials of the series: degrees 0 to 4.
const POLYNOMIALS: usize = 5;
/// `λ`
const RIDGE: f64 = 0.1;
/// What the series weighs in the blend where nothing is said.
const BLEND: f64 = 0.5;

/// Run the network at intervals and forecast what it would leave by a Chebyshev series: `spectrum:N[:GROWTH[:BLEND]]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spectrum {
    /// Steps from one that runs the network to the next, at first.
    pub interval: usize,
    /// What every step that runs the network adds to that; the whole part of the sum counts.
    pub growth: f64,
    /// What the series weighs against the line, 0 to 1.
    pub blend: f64,
}

impl Spectrum {
    fn schedule(&self, steps: usize, branches: usize) -> Result<Schedule, ScheduleError> {
        let row = computes(self, steps);
        let table = Schedule::from_rule(steps, branches, |s, _| row[s])?;
        forecast(table, steps, self.blend)
    }

    fn read(arguments: &[&str]) -> Option<Self> {
        let spectrum = Self {
            interval: arguments.first()?.parse().ok()?,
            growth: argument_or(arguments, 1, 0.0)?,
            blend: argument_or(arguments, 2, BLEND)?,
        };
        let fits = spectrum.interval >= 1
            && (0.0..=1000.0).contains(&spectrum.growth)
            && (0.0..=1.0).contains(&spectrum.blend);
        (fits && arguments.len() <= 3).then_some(spectrum)
    }
}

impl fmt::Display for Spectrum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            interval,
            growth,
            blend,
        } = self;
        write!(f, "spectrum:{interval}:{growth}:{blend}")
    }
}

impl Definition for Spectrum {
    fn summary() -> Summary {
        Summary::of_table(
            "spectrum",
            ":N[:GROWTH[:BLEND]]",
            "run the network at intervals, forecast what it would leave by a Chebyshev series",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        Self::read(arguments).ok_or_else(|| "expected spectrum:N[:GROWTH[:BLEND]] with a whole number N of at least 1, steps from one that runs the network to the next, what each adds to that, 0 to 1000, and what a Chebyshev series weighs against a line, 0 to 1".into())
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        Ok(self.schedule(run.steps, run.branches())?.into())
    }
}

/// The same table, its reused branches the stream that they would leave, forecast by a Chebyshev series in `τ = 2·s/span − 1` and
/// a line, `blend` of the one and `1 − blend` of the other.
///
/// # Errors
/// As [`Schedule::with_joint`] and [`Schedule::with_reads`].
pub fn forecast(table: Schedule, span: usize, blend: f64) -> Result<Schedule, ScheduleError> {
    let table = table.with_joint(Joint::Stream)?;
    let computed: Vec<Vec<usize>> = (0..table.branches())
        .map(|n| table.computed_steps(n))
        .collect();
    table.with_reads(|s, n| {
        let seen = computed[n].partition_point(|c| *c < s);
        let kept = &computed[n][seen.saturating_sub(MAX_HISTORY)..seen];
        weights(kept, s, span, blend)
    })
}

/// Which steps run the network.
fn computes(spectrum: &Spectrum, steps: usize) -> Vec<bool> {
    let mut window = spectrum.interval as f64;
    let mut in_a_row = 0;
    let mut row = Vec::with_capacity(steps);
    for s in 0..steps {
        let is_warm = s >= FIRST;
        let computes = !is_warm || (in_a_row + 1) % (window as usize).max(1) == 0;
        if is_warm && computes {
            // In thousandths, so that sums of growth come to the whole number that they mean.
            window = ((window + spectrum.growth) * 1e3).round() / 1e3;
        }
        in_a_row = if computes { 0 } else { in_a_row + 1 };
        row.push(computes);
    }
    row
}

/// What the features of the `kept` steps, in order, weigh in the forecast of step `s`, newest first.
fn weights(kept: &[usize], s: usize, span: usize, blend: f64) -> Vec<f32> {
    let series = series(kept, s, span);
    let line = line(kept, s);
    let blended = series.iter().zip(line).rev();
    blended
        .map(|(series, line)| (blend * series + (1.0 - blend) * line) as f32)
        .collect()
}

/// Those of the series.
fn series(kept: &[usize], s: usize, span: usize) -> Vec<f64> {
    let at = |s: usize| polynomials(2.0 * s as f64 / span as f64 - 1.0);
    let rows: Vec<_> = kept.iter().map(|s| at(*s)).collect();
    let mut normal = [[0.0; POLYNOMIALS]; POLYNOMIALS];
    for (i, of_row) in normal.iter_mut().enumerate() {
        for (j, entry) in of_row.iter_mut().enumerate() {
            let products = rows.iter().map(|x| x[i] * x[j]);
            *entry = products.sum::<f64>() + if i == j { RIDGE } else { 0.0 };
        }
    }
    let solution = solved(normal, at(s));
    rows.iter()
        .map(|x| x.iter().zip(&solution).map(|(x, c)| x * c).sum())
        .collect()
}

/// Those of the line through the last two; of a single one, itself.
fn line(kept: &[usize], s: usize) -> Vec<f64> {
    let mut weights = vec![0.0; kept.len()];
    match *kept {
        [.., before, last] => {
            let k = (s - last) as f64 / (last - before) as f64;
            weights[kept.len() - 1] = 1.0 + k;
            weights[kept.len() - 2] = -k;
        }
        [_] => weights[0] = 1.0,
        [] => {}
    }
    weights
}

/// `T_0(τ), T_1(τ), …`: `T_m = 2·τ·T_{m−1} − T_{m−2}`.
fn polynomials(tau: f64) -> [f64; POLYNOMIALS] {
    let mut values = [1.0; POLYNOMIALS];
    values[1] = tau;
    for m in 2..POLYNOMIALS {
        values[m] = 2.0 * tau * values[m - 1] - values[m - 2];
    }
    values
}

/// The solution of a symmetric positive definite system, by Cholesky's factors `L·Lᵀ`.
fn solved(
    matrix: [[f64; POLYNOMIALS]; POLYNOMIALS],
    right: [f64; POLYNOMIALS],
) -> [f64; POLYNOMIALS] {
    let mut factor = [[0.0; POLYNOMIALS]; POLYNOMIALS];
    for (i, row) in matrix.iter().enumerate() {
        for (j, entry) in row.iter().enumerate().take(i + 1) {
            let before: f64 = (0..j).map(|k| factor[i][k] * factor[j][k]).sum();
            let rest = entry - before;
            factor[i][j] = if i == j {
                rest.sqrt()
            } else {
                rest / factor[j][j]
            };
        }
    }
    let mut x = right;
    for i in 0..POLYNOMIALS {
        let before: f64 = (0..i).map(|k| factor[i][k] * x[k]).sum();
        x[i] = (x[i] - before) / factor[i][i];
    }
    for i in (0..POLYNOMIALS).rev() {
        let after: f64 = (i + 1..POLYNOMIALS).map(|k| factor[k][i] * x[k]).sum();
        x[i] = (x[i] - after) / factor[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_specs;
    use super::*;

    fn steps_of(interval: usize, growth: f64, steps: usize) -> Vec<usize> {
        let spectrum = Spectrum {
            interval,
            growth,
            blend: BLEND,
        };
        let row = computes(&spectrum, steps);
        (0..steps).filter(|s| row[*s]).collect()
    }

    #[test]
    fn the_network_runs_first_and_then_at_intervals_that_may_grow() {
        assert_eq!(
            steps_of(2, 0.0, 12),
            [0, 1, 2, 3, 4, 6, 8, 10],
            "every second step after five"
        );
        // Published: 14 passes in 50 steps from windows of 2 that grow by 3/4, 10 where they grow by 3.
        let published = steps_of(2, 0.75, 50);
        assert_eq!(published[5..], [6, 8, 11, 15, 20, 25, 31, 38, 46]);
        assert_eq!(published.len(), 14);
        assert_eq!(steps_of(2, 3.0, 50).len(), 10);
        assert_eq!(steps_of(1, 0.0, 9).len(), 9);
    }

    #[test]
    fn weights_are_those_of_the_normal_equations() {
        let kept = [0, 1, 2, 3, 4, 6];
        let weights = series(&kept, 7, 10);
        // X·c = w solves (XXᵀ + λ·I)·w = X·x*, the same in the space of steps.
        let at = |s: usize| polynomials(0.2 * s as f64 - 1.0);
        let dot = |a: [f64; POLYNOMIALS], b: [f64; POLYNOMIALS]| -> f64 {
            a.iter().zip(b).map(|(a, b)| a * b).sum()
        };
        for (i, s) in kept.iter().enumerate() {
            let left: f64 = kept
                .iter()
                .zip(&weights)
                .map(|(k, w)| dot(at(*s), at(*k)) * w)
                .sum();
            let right = dot(at(*s), at(7));
            assert!((left + RIDGE * weights[i] - right).abs() < 1e-10);
        }
        assert_eq!(line(&kept, 7), [0.0, 0.0, 0.0, 0.0, -0.5, 1.5]);
        assert_eq!(line(&[3], 5), [1.0]);
        let blended = super::weights(&kept, 7, 10, 0.25);
        let expected = 0.25 * weights[5] + 0.75 * 1.5;
        assert!((f64::from(blended[0]) - expected).abs() < 1e-6);
    }

    #[test]
    fn polynomials_are_chebyshevs() {
        assert_eq!(polynomials(0.5), [1.0, 0.5, -0.5, -1.0, -0.5]);
    }

    #[test]
    fn the_stream_is_forecast_as_one() {
        let spectrum = Spectrum {
            interval: 2,
            growth: 0.0,
            blend: 0.0,
        };
        let table = spectrum.schedule(8, 4).unwrap();
        assert_eq!(table.joint(), Some(Joint::Stream));
        assert_eq!(table.to_rows()[5..], ["....", "####", "...."]);
        assert_eq!(table.weights(5, 3)[..2], [2.0, -1.0]);
        assert_eq!(table.weights(7, 0)[..2], [1.5, -0.5]);
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(
            &["spectrum:2:0.75:1"],
            &[
                "spectrum",
                "spectrum:0",
                "spectrum:2:-1",
                "spectrum:2:0:1.5",
                "spectrum:2:0:nan",
                "spectrum:2:0:1:1",
            ],
        );
    }
}
