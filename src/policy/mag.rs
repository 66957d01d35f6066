//! MagCache (arXiv 2506.09045, as diffusers has it): what all blocks added to the stream is added again while the magnitude
//! that it would have by now, as a calibration tells, is off by little.

use super::Calibration;
use crate::schedule::{Joint, Schedule, ScheduleError};

/// Share of the steps that run the network before any reuse.
const FIRST: f64 = 0.2;
/// Reuses in a row at most.
const MOST: usize = 3;

pub(super) fn schedule(
    threshold: f64,
    steps: usize,
    branches: usize,
    calibration: &Calibration,
) -> Result<Schedule, ScheduleError> {
    let row = computes(&calibration.magnitude_ratios, threshold);
    Schedule::from_rule(steps, branches, |s, _| row[s])?.with_joint(Joint::Added)
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
    use super::*;
    use crate::{
        graph::{Graph, SiteKind},
        policy::calibration::example,
    };

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
        let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
        let graph = Graph::uniform(1, &pattern, [4, 8], 2).unwrap();
        let table = schedule(0.06, 5, 2, &example(&graph, 5)).unwrap();
        assert_eq!(table.to_rows(), ["##", "..", "..", "..", "##"]);
        assert_eq!(table.joint(), Some(Joint::Added));
    }
}
