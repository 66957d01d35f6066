//! First Block Cache (ParaAttention, and diffusers' `FirstBlockCache`): the first block is computed at every step, all others
//! where it changed by more than the threshold.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, at_run_time, lone_threshold},
};
use crate::schedule::{Probed, Reuse};

/// Reuse all blocks but the first while that one changes little: `fb:THRESHOLD`. Decided step by step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FirstBlock {
    pub threshold: f64,
}

impl fmt::Display for FirstBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fb:{}", self.threshold)
    }
}

impl Definition for FirstBlock {
    fn summary() -> Summary {
        Summary::at_run_time(
            "fb",
            ":THRESHOLD",
            "reuse all blocks but the first while that one changes little",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let threshold = lone_threshold("fb", arguments)?;
        Ok(Self { threshold })
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let probed = Probed::new(run.steps, run.graph, 1, 0, self.threshold);
        at_run_time(self, probed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_specs;

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["fb:0.05"], &["fb", "fb:0", "fb:nan", "fb:0.1:1"]);
    }
}
