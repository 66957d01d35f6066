//! Pyramid Attention Broadcast (arXiv 2408.12588): within a range of timesteps each kind of attention is computed at every so many
//! steps of the run, and reused in between; MLPs are always computed.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, argument_or},
};
use crate::{
    diffusion::Trajectory,
    graph::{Graph, SiteKind},
    schedule::{Reuse, Schedule},
};

/// Timesteps between which attention is reused, both excluded.
const RANGE: [usize; 2] = [100, 800];
/// Intervals where none are said, as published.
const USUAL: Broadcast = Broadcast { own: 2, cross: 6 };

/// Compute each kind of attention at its own interval: `pab[:SELF[:CROSS]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broadcast {
    /// Steps from computed self-attention to the next.
    pub own: usize,
    /// The same of cross-attention.
    pub cross: usize,
}

impl Broadcast {
    fn schedule(&self, steps: usize, graph: &Graph) -> Result<Schedule, PolicyError> {
        let timesteps = Trajectory::linear(steps)?.timesteps();
        let [low, high] = RANGE;
        let schedule = Schedule::from_rule(steps, graph.branches(), |s, n| {
            let interval = match graph.sites()[n].kind {
                SiteKind::SelfAttention => self.own,
                SiteKind::CrossAttention => self.cross,
                SiteKind::Mlp => 1,
            };
            let within = low < timesteps[s] && timesteps[s] < high;
            !within || s.is_multiple_of(interval)
        });
        Ok(schedule?)
    }
}

impl fmt::Display for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pab:{}:{}", self.own, self.cross)
    }
}

impl Definition for Broadcast {
    fn summary() -> Summary {
        Summary::of_table("pab", "[:SELF[:CROSS]]", "compute attention at intervals")
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        if arguments.len() > 2 {
            return Err("expected pab[:SELF[:CROSS]]".into());
        }
        let own = argument_or(arguments, 0, USUAL.own);
        match (own, argument_or(arguments, 1, USUAL.cross)) {
            (Some(own @ 1..), Some(cross @ 1..)) => Ok(Self { own, cross }),
            _ => Err("expected pab[:SELF[:CROSS]] with whole numbers of at least 1".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        Ok(self.schedule(run.steps, run.graph)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_specs;
    use super::*;

    #[test]
    fn attention_is_reused_within_the_range_alone() {
        let pattern = [
            (SiteKind::SelfAttention, 3),
            (SiteKind::CrossAttention, 3),
            (SiteKind::Mlp, 5),
        ];
        let graph = Graph::uniform(1, &pattern, [4, 8], 2).unwrap();
        let pab = Broadcast { own: 2, cross: 3 };
        let table = pab.schedule(10, &graph).unwrap();
        // Timesteps 999, 888, 777, …, 111, 0.
        assert_eq!(
            table.to_rows(),
            [
                "###", "###", "#.#", ".##", "#.#", "..#", "###", "..#", "#.#", "###"
            ]
        );
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["pab:2:6"], &["pab:0", "pab:2:x", "pab:2:6:3"]);
    }
}
