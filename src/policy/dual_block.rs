//! DBCache (cache-dit): the first `front` blocks are computed at every step, and the last `rear`; those in between where the
//! first changed by more than the threshold, in the first steps, and after so many reuses in a row.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, above_zero, argument_or, at_run_time},
};
use crate::schedule::{Probed, Reuse};

/// Steps that are computed before any reuse, as cache-dit has it.
const WARM_UP: usize = 8;

/// Reuse the blocks in the middle while those in front change little: `db:FRONT:REAR:THRESHOLD[:WARMUP[:MOST]]`. Decided step by
/// step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DualBlock {
    pub front: usize,
    pub rear: usize,
    pub threshold: f64,
    /// Steps at the beginning that are computed.
    pub warm_up: usize,
    /// Reuses in a row at most.
    pub most: Option<usize>,
}

impl DualBlock {
    fn read(arguments: &[&str]) -> Option<Self> {
        let [front, rear, threshold, more @ ..] = arguments else {
            return None;
        };
        Some(Self {
            front: front.parse().ok()?,
            rear: rear.parse().ok()?,
            threshold: above_zero(threshold)?,
            warm_up: argument_or(more, 0, WARM_UP)?,
            most: match more.get(1) {
                Some(most) => Some(most.parse().ok()?),
                None => None,
            },
        })
    }
}

impl fmt::Display for DualBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            front,
            rear,
            threshold,
            warm_up,
            most,
        } = self;
        write!(f, "db:{front}:{rear}:{threshold}:{warm_up}")?;
        most.map_or(Ok(()), |most| write!(f, ":{most}"))
    }
}

impl Definition for DualBlock {
    fn summary() -> Summary {
        Summary::at_run_time(
            "db",
            ":FRONT:REAR:THRESHOLD",
            "reuse the blocks in the middle while those in front change little; [:WARMUP[:MOST]] may follow",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        match arguments.len() {
            3..=5 => Self::read(arguments).ok_or_else(|| "expected db:FRONT:REAR:THRESHOLD[:WARMUP[:MOST]]: blocks computed in front and at the rear, a threshold above 0, steps computed first, and reuses in a row at most".into()),
            _ => Err("expected db:FRONT:REAR:THRESHOLD[:WARMUP[:MOST]]".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let probed = Probed::new(run.steps, run.graph, self.front, self.rear, self.threshold);
        at_run_time(
            self,
            probed.map(|probed| probed.with_warm_up(self.warm_up).with_most(self.most)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_specs;

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(
            &["db:2:1:0.08:8", "db:1:0:0.5:3:2"],
            &[
                "db",
                "db:1:0",
                "db:1:0:0",
                "db:1:0:0.1:x",
                "db:1:0:0.1:3:x",
                "db:1:0:0.1:3:2:1",
            ],
        );
    }
}
