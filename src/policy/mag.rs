//! MagCache (arXiv 2506.09045, as diffusers has it): what all blocks added to the stream is added again while the magnitude
//! that it would have by now, as a calibration tells, is off by little.

use std::fmt;

use super::{
    Calibration, PolicyError,
    definition::{Definition, Run, Summary, lone_threshold},
};
use crate::schedule::{Joint, Reuse, Schedule, ScheduleError};

/// Share of the steps that run the network before any reuse.
const FIRST: f64 = 0.2;
/// Reuses in a row at most.
const MOST: usize = 3;

/// Reuse all blocks while magnitudes are off by little, as calibrated: `mag:THRESHOLD`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mag {
    pub threshold: f64,
}

impl Mag {
    fn schedule(
        &self,
        steps: usize,
        branches: usize,
        calibration: &Calibration,
    ) -> Result<Schedule, ScheduleError> {
        let row = computes(&calibration.magnitude_ratios, self.threshold);
        Schedule::from_rule(steps, branches, |s, _| row[s])?.with_joint(Joint::Added)
    }
}

impl fmt::Display for Mag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mag:{}", self.threshold)
    }
}

impl Definition for Mag {
    fn summary() -> Summary {
        let about = "reuse all blocks while magnitudes are off by little";
        Summary::of_table("mag", ":THRESHOLD", about).calibrated()
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let threshold = lone_threshold("mag", arguments)?;
        Ok(Self { threshold })
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let calibration = run.calibrated(self)?;
        let table = self.schedule(run.steps, run.branches(), calibration)?;
        Ok(table.into())
    }
}

/// Which steps run the network. `ratios`: an entry a step, the magnitude of what all blocks add over that of the step before.
fn computes(ratios: &[f64], threshold: f64) -> Vec<bool> {
    let first = (FIRST * ratios.len() as f64 + 0.5) as usize;
    let (mut ratio, mut error, mut in_a_row) = (1.0, 0.0, 0);
    let rule = |(s, change): (usize, &f64)| {
        if s < first {
            return true;
        }
        ratio *= change;
        error += (1.0f64 - ratio).abs();
        in_a_row += 1;
        let reuses = s > 0 && error <= threshold && in_a_row <= MOST;
        if !reuses {
            (ratio, error, in_a_row) = (1.0, 0.0, 0);
        }
        !reuses
    };
    ratios.iter().enumerate().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{
        calibration::example,
        tests::{assert_specs, graph},
    };
    use super::*;

    fn bits(ratios: &[f64], threshold: f64) -> String {
        let row = computes(ratios, threshold);
        row.iter().map(|c| if *c { '1' } else { '0' }).collect()
    }

    #[test]
    fn errors_of_magnitude_add_up() {
        // The first two of ten run the network; then 0.25, 0.25 + 0.4375 and so on until they pass the threshold.
        let falling = [0.75; 10];
        assert_eq!(bits(&falling, 0.25), "1101010101");
        assert_eq!(bits(&falling, 0.7), "1100100100");
        assert_eq!(bits(&falling, 0.2), "1111111111");
        // Nothing changes: three in a row at most.
        assert_eq!(bits(&[1.0; 10], 0.06), "1100010001");
        // What rises and falls again is off only in between, until three in a row.
        assert_eq!(bits(&[1.0, 1.0, 1.25, 0.8, 1.25, 0.8], 0.3), "100010");
        assert_eq!(bits(&[1.0, 1.0], 0.06), "10");
    }

    #[test]
    fn all_blocks_are_reused_as_one() {
        let mag = Mag { threshold: 0.06 };
        let table = mag.schedule(5, 2, &example(&graph(1), 5)).unwrap();
        assert_eq!(table.to_rows(), ["##", "..", "..", "..", "##"]);
        assert_eq!(table.joint(), Some(Joint::Added));
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["mag:0.06"], &["mag", "mag:nan", "mag:0", "mag:0.1:1"]);
    }
}
