//! TeaCache (arXiv 2411.19108): what all blocks added to the stream is added again while the output, as a polynomial of what the
//! first block's input changes tells, would have changed little in sum; the first and the last step run the network.

use std::fmt;

use super::{
    Calibration, PolicyError,
    definition::{Definition, Run, Summary, lone_threshold, misfit},
};
use crate::{
    graph::Graph,
    schedule::{Probed, Reuse, Sum},
};

/// Coefficients of the polynomial.
const COEFFICIENTS: usize = 5;
/// A column of which less is left beside the others is one of them.
const LEAST_LEFT: f64 = 1e-10;

/// Reuse all blocks while the first one's input changes little in sum, as calibrated: `tea:THRESHOLD`. Decided step by step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tea {
    pub threshold: f64,
}

impl Tea {
    fn probed(
        &self,
        steps: usize,
        graph: &Graph,
        calibration: &Calibration,
    ) -> Result<Probed, PolicyError> {
        let Calibration {
            input_changes: inputs,
            output_changes: outputs,
            ..
        } = calibration;
        let polynomial = fitted(inputs, outputs).ok_or_else(|| {
            misfit(
                self,
                format!(
                    "the {} changes of the calibration are too few or too much alike to fit a polynomial of degree {}: calibrate with more draws or steps",
                    inputs.len(),
                    COEFFICIENTS - 1
                ),
            )
        })?;
        let sum = Sum {
            threshold: self.threshold,
            polynomial: polynomial.to_vec(),
        };
        let probed = Probed::of_modulated_input(steps, graph, sum)?;
        Ok(probed.with_last_computed())
    }
}

impl fmt::Display for Tea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tea:{}", self.threshold)
    }
}

impl Definition for Tea {
    fn summary() -> Summary {
        let about = "reuse all blocks while the first one's input changes little in sum";
        Summary::at_run_time("tea", ":THRESHOLD", about).calibrated()
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let threshold = lone_threshold("tea", arguments)?;
        Ok(Self { threshold })
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let calibration = run.calibrated(self)?;
        let probed = self.probed(run.steps, run.graph, calibration)?;
        Ok(Reuse::AtRunTime(probed))
    }
}

/// The polynomial of degree 4, its highest power first, that is nearest to `y` at `x` by least squares; none where fewer than
/// five places differ.
///
/// By orthogonal columns (modified Gram–Schmidt) of length 1, since powers of small numbers are smaller still.
fn fitted(x: &[f64], y: &[f64]) -> Option<[f64; COEFFICIENTS]> {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let mut rest = y.to_vec();
    let mut columns: Vec<Vec<f64>> = Vec::with_capacity(COEFFICIENTS);
    let mut triangle = [[0.0; COEFFICIENTS]; COEFFICIENTS];
    let (mut scales, mut solution) = (Vec::new(), Vec::new());
    for power in (0..COEFFICIENTS as i32).rev() {
        let j = columns.len();
        let mut column: Vec<f64> = x.iter().map(|x| x.powi(power)).collect();
        let scale = dot(&column, &column).sqrt();
        column.iter_mut().for_each(|v| *v /= scale);
        // Twice is enough.
        for _ in 0..2 {
            for (i, earlier) in columns.iter().enumerate() {
                let share = dot(earlier, &column);
                triangle[i][j] += share;
                let less = column.iter_mut().zip(earlier);
                less.for_each(|(v, earlier)| *v -= share * earlier);
            }
        }
        let left = dot(&column, &column).sqrt();
        if left.is_nan() || left <= LEAST_LEFT {
            return None;
        }
        triangle[j][j] = left;
        column.iter_mut().for_each(|v| *v /= left);
        let share = dot(&column, &rest);
        let less = rest.iter_mut().zip(&column);
        less.for_each(|(v, column)| *v -= share * column);
        scales.push(scale);
        solution.push(share);
        columns.push(column);
    }
    for j in (0..COEFFICIENTS).rev() {
        let after: f64 = (j + 1..COEFFICIENTS)
            .map(|k| triangle[j][k] * solution[k])
            .sum();
        solution[j] = (solution[j] - after) / triangle[j][j];
    }
    let unscaled = solution.iter_mut().zip(scales);
    unscaled.for_each(|(c, scale)| *c /= scale);
    solution.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::super::{
        calibration::example,
        tests::{assert_specs, graph},
    };
    use super::*;

    #[test]
    fn a_polynomial_is_found_again() {
        // Published for FLUX.
        let published = [
            498.651651,
            -283.781631,
            55.8554382,
            -3.82021401,
            0.264230861,
        ];
        let at = |x: f64| published.iter().fold(0.0, |sum, c| sum * x + c);
        let x: Vec<f64> = (0..40).map(|i| 0.01 + 0.006 * f64::from(i)).collect();
        let y: Vec<f64> = x.iter().map(|x| at(*x)).collect();
        let found = fitted(&x, &y).unwrap();
        for (found, expected) in found.iter().zip(published) {
            assert!((found / expected - 1.0).abs() < 1e-8, "{found} {expected}");
        }
        // Four places, however often.
        let few: Vec<f64> = x.iter().cycle().take(4).chain(&x[..4]).copied().collect();
        assert_eq!(fitted(&few, &few), None);
        assert_eq!(fitted(&[], &[]), None);
    }

    /// A residual that is orthogonal to every power is left alone.
    #[test]
    fn what_no_polynomial_explains_is_left_out() {
        // The fifth differences of six even places are orthogonal to all powers up to the fourth.
        let x = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let noise = [1.0, -5.0, 10.0, -10.0, 5.0, -1.0];
        let y: Vec<f64> = x
            .iter()
            .zip(noise)
            .map(|(x, noise)| 2.0 * x + noise)
            .collect();
        let found = fitted(&x, &y).unwrap();
        for (found, expected) in found.iter().zip([0.0, 0.0, 0.0, 2.0, 0.0]) {
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }

    #[test]
    fn a_calibration_that_says_too_little_is_refused() {
        let (graph, tea) = (graph(1), Tea { threshold: 0.1 });
        let probed = |steps| tea.probed(steps, &graph, &example(&graph, steps));
        assert!(probed(6).is_ok());
        assert!(matches!(probed(2), Err(PolicyError::Arguments { .. })));
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["tea:0.25"], &["tea", "tea:0", "tea:inf", "tea:0.1:1"]);
    }
}
