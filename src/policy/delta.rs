//! Δ-DiT (arXiv 2406.01125): between steps that compute everything, what a range of blocks added to the stream is added again:
//! before a cutoff step, where outlines are drawn, that of the rear blocks; from it on, where details are, that of the front ones.

use std::fmt;

use super::PolicyError;
use crate::{
    graph::Graph,
    schedule::{Joint, Schedule},
};

/// The arguments of `delta:N[:CUTOFF[:BLOCKS]]`.
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
    pub(super) const EXPECTED: &str = "expected delta:N[:CUTOFF[:BLOCKS]] with whole numbers N and BLOCKS of at least 1: steps from one that computes everything to the next, the step from which front blocks are reused instead of rear ones, and how many";

    /// None: arguments that are none.
    pub(super) fn parse(arguments: &[&str]) -> Option<Self> {
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

pub(super) fn schedule(
    arguments: &Delta,
    steps: usize,
    graph: &Graph,
) -> Result<Schedule, PolicyError> {
    let all = graph.blocks();
    let cutoff = arguments.cutoff.unwrap_or(steps / 2);
    let blocks = arguments.blocks.unwrap_or((3 * all / 4).max(1));
    if blocks == 0 || blocks > all || cutoff > steps {
        return Err(PolicyError::Arguments {
            spec: arguments.to_string(),
            problem: format!(
                "expected a cutoff of 0 to {steps}, the run's steps, and 1 to {all} of the network's blocks"
            ),
        });
    }
    let table = Schedule::from_rule(steps, graph.branches(), |s, n| {
        let block = graph.sites()[n].block;
        match s < cutoff {
            true => s.is_multiple_of(arguments.interval) || block < all - blocks,
            false => (s - cutoff).is_multiple_of(arguments.interval) || block >= blocks,
        }
    })?;
    Ok(table.with_joint(Joint::Added)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::SiteKind;

    #[test]
    fn rear_blocks_are_reused_first_and_front_blocks_later() {
        let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
        let graph = Graph::uniform(4, &pattern, [4, 8], 2).unwrap();
        let delta = |interval, cutoff, blocks| {
            let arguments = Delta {
                interval,
                cutoff,
                blocks,
            };
            schedule(&arguments, 8, &graph)
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
}
