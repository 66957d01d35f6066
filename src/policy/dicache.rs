//! DiCache (arXiv 2508.17356): the first block is computed at every step, all others where the stream after it has changed
//! enough in sum; elsewhere what all blocks added at the last two computed steps is moved on. The first steps and the last are
//! computed.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, at_run_time, lone_threshold},
};
use crate::schedule::{Probed, Reuse, Sum};

/// Share of the steps after the first that are computed before any reuse.
const FIRST: f64 = 0.2;

/// Reuse blocks but the first, moved on, while the stream after that one changes little in sum: `di:THRESHOLD`. Decided step by
/// step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dicache {
    pub threshold: f64,
}

impl fmt::Display for Dicache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "di:{}", self.threshold)
    }
}

impl Definition for Dicache {
    fn summary() -> Summary {
        Summary::at_run_time(
            "di",
            ":THRESHOLD",
            "reuse all blocks but the first, moved on, while the stream after it changes little in sum",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let threshold = lone_threshold("di", arguments)?;
        Ok(Self { threshold })
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let warm_up = 1 + (FIRST * run.steps as f64) as usize;
        let probed = Probed::of_front_stream(run.steps, run.graph, Sum::plain(self.threshold));
        at_run_time(
            self,
            probed.map(|probed| probed.with_warm_up(warm_up).with_last_computed()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Policy,
        tests::{assert_specs, graph},
    };
    use super::*;

    #[test]
    fn a_fifth_of_the_steps_and_the_last_are_computed() {
        let policy = Policy::from(Dicache { threshold: 0.4 });
        for (steps, expected) in [(10, 3..9), (14, 3..13), (15, 4..14), (4, 1..3)] {
            let Reuse::AtRunTime(probed) = policy.reuse(steps, &graph(2)).unwrap() else {
                panic!("it decides at run time");
            };
            let decided = (0..steps).filter(|s| probed.decides(*s, 0));
            assert!(decided.eq(expected), "{steps}");
        }
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["di:0.4"], &["di", "di:0", "di:0.1:1"]);
    }
}
