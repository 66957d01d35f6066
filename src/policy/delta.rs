//! Δ-DiT (arXiv 2406.01125): between steps that compute everything, what a range of blocks added to the stream is added again:
//! before a cutoff step, where outlines are drawn, that of the rear blocks; from it on, where details are, that of the front ones.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, misfit},
};
use crate::{
    graph::Graph,
    schedule::{Joint, Reuse, Schedule},
};

/// Reuse what rear blocks added in early steps, and what front blocks added in late ones: `delta:N[:CUTOFF[:BLOCKS]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    /// Steps from one that computes everything to the next.
    pub interval: usize,
    /// The first step that reuses front blocks [default: half of the steps].
    pub cutoff: Option<usize>,
    /// Blocks that are reused [default: three quarters, which come to the published 1.6× with every second step].
    pub blocks: Option<usize>,
}

impl Delta {
    fn schedule(&self, steps: usize, graph: &Graph) -> Result<Schedule, PolicyError> {
        let all = graph.blocks();
        let cutoff = self.cutoff.unwrap_or(steps / 2);
        let blocks = self.blocks.unwrap_or((3 * all / 4).max(1));
        if blocks == 0 || blocks > all || cutoff > steps {
            return Err(misfit(
                self,
                format!(
                    "expected a cutoff of 0 to {steps}, the run's steps, and 1 to {all} of the network's blocks"
                ),
            ));
        }
        let table = Schedule::from_rule(steps, graph.branches(), |s, n| {
            let block = graph.sites()[n].block;
            match s < cutoff {
                true => s.is_multiple_of(self.interval) || block < all - blocks,
                false => (s - cutoff).is_multiple_of(self.interval) || block >= blocks,
            }
        })?;
        Ok(table.with_joint(Joint::Added)?)
    }

    fn read(arguments: &[&str]) -> Option<Self> {
        let number = |place: usize| match arguments.get(place) {
            None => Some(None),
            Some(text) => text.parse().ok().map(Some),
        };
        let delta = Self {
            interval: number(0)??,
            cutoff: number(1)?,
            blocks: number(2)?,
        };
        let counts = delta.interval >= 1 && delta.blocks != Some(0);
        (counts && arguments.len() <= 3).then_some(delta)
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delta:{}", self.interval)?;
        let more = [self.cutoff, self.blocks];
        more.iter().flatten().try_for_each(|n| write!(f, ":{n}"))
    }
}

impl Definition for Delta {
    fn summary() -> Summary {
        Summary::of_table(
            "delta",
            ":N[:CUTOFF[:BLOCKS]]",
            "reuse rear blocks first, then front ones",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        Self::read(arguments).ok_or_else(|| "expected delta:N[:CUTOFF[:BLOCKS]] with whole numbers N and BLOCKS of at least 1: steps from one that computes everything to the next, the step from which front blocks are reused instead of rear ones, and how many".into())
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        Ok(self.schedule(run.steps, run.graph)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_specs, graph};
    use super::*;

    #[test]
    fn rear_blocks_are_reused_first_and_front_blocks_later() {
        let graph = graph(4);
        let delta = |interval, cutoff, blocks| {
            let delta = Delta {
                interval,
                cutoff,
                blocks,
            };
            delta.schedule(8, &graph)
        };
        let table = delta(3, Some(4), Some(3)).unwrap();
        assert_eq!(
            table.to_rows(),
            [
                "########", "##......", "##......", "########", "########", "......##", "......##",
                "########"
            ]
        );
        assert_eq!(table.joint(), Some(Joint::Added));
        assert_eq!(delta(3, None, None).unwrap(), table);
        for (cutoff, blocks) in [(9, 3), (4, 0), (4, 5)] {
            let refused = delta(2, Some(cutoff), Some(blocks));
            assert!(matches!(refused, Err(PolicyError::Arguments { .. })));
        }
        let whole = delta(2, Some(0), Some(4)).unwrap();
        assert_eq!(whole.to_rows()[1], "........");
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(
            &["delta:2", "delta:2:8", "delta:2:8:3"],
            &[
                "delta",
                "delta:0",
                "delta:2:x",
                "delta:2:8:0",
                "delta:2:8:3:1",
            ],
        );
    }
}
