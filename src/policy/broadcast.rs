//! Pyramid Attention Broadcast (arXiv 2408.12588): within a range of timesteps each kind of attention is computed at every so many
//! steps of the run, and reused in between; MLPs are always computed.

use crate::{
    diffusion::Trajectory,
    graph::{Graph, SiteKind},
    policy::PolicyError,
    schedule::Schedule,
};

/// Timesteps between which attention is reused, both excluded.
const RANGE: [usize; 2] = [100, 800];

/// Steps between computed ones, of each kind of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    pub own: usize,
    pub cross: usize,
}

pub(super) fn schedule(
    intervals: Intervals,
    steps: usize,
    graph: &Graph,
) -> Result<Schedule, PolicyError> {
    let timesteps = Trajectory::linear(steps)?.timesteps();
    let [low, high] = RANGE;
    let schedule = Schedule::from_rule(steps, graph.branches(), |s, n| {
        let interval = match graph.sites()[n].kind {
            SiteKind::SelfAttention => intervals.own,
            SiteKind::CrossAttention => intervals.cross,
            SiteKind::Mlp => 1,
        };
        let within = low < timesteps[s] && timesteps[s] < high;
        !within || s.is_multiple_of(interval)
    });
    Ok(schedule?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_reused_within_the_range_alone() {
        let pattern = [
            (SiteKind::SelfAttention, 3),
            (SiteKind::CrossAttention, 3),
            (SiteKind::Mlp, 5),
        ];
        let graph = Graph::uniform(1, &pattern, [4, 8], 2).unwrap();
        let intervals = Intervals { own: 2, cross: 3 };
        let table = schedule(intervals, 10, &graph).unwrap();
        // Timesteps 999, 888, 777, …, 111, 0.
        assert_eq!(
            table.to_rows(),
            [
                "###", "###", "#.#", ".##", "#.#", "..#", "###", "..#", "#.#", "###"
            ]
        );
    }
}
