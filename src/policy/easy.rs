//! EasyCache (arXiv 2507.02860): the whole network's output is reused, as what it was off the state, while the state has moved
//! little in sum since, by the rate at which the output followed it before; the first steps and the last are computed.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, above_zero, argument_or, at_run_time},
};
use crate::schedule::{Probed, Reuse, Sum};

/// Steps that are computed before any reuse, as published for 50.
const WARM_UP: usize = 10;

/// Reuse the whole network while the state moves little in sum: `easy:THRESHOLD[:WARMUP]`. Decided step by step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Easy {
    pub threshold: f64,
    /// Steps at the beginning that are computed.
    pub warm_up: usize,
}

impl fmt::Display for Easy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "easy:{}:{}", self.threshold, self.warm_up)
    }
}

impl Definition for Easy {
    fn summary() -> Summary {
        Summary::at_run_time(
            "easy",
            ":THRESHOLD[:WARMUP]",
            "reuse the whole network while the state moves little in sum",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        match arguments {
            [threshold] | [threshold, _] => {
                match (above_zero(threshold), argument_or(arguments, 1, WARM_UP)) {
                    (Some(threshold), Some(warm_up)) => Ok(Self { threshold, warm_up }),
                    _ => Err("expected easy:THRESHOLD[:WARMUP] with a number above 0 and the steps that are computed first".into()),
                }
            }
            _ => Err("expected easy:THRESHOLD[:WARMUP]".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let probed = Probed::of_output(run.steps, run.graph, Sum::plain(self.threshold));
        at_run_time(
            self,
            probed.map(|probed| probed.with_warm_up(self.warm_up).with_last_computed()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_specs;

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(
            &["easy:0.05:10"],
            &["easy", "easy:-1", "easy:0.05:x", "easy:0.05:1:1"],
        );
    }
}
