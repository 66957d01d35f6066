//! Plans of runs that decide while they go on: every row that a step may take is compiled ahead, so the cache is known to
//! the byte.

use super::{Op, Plan, Read, Slot};
use crate::{
    graph::Graph,
    schedule::{Joint, Probed},
};

/// Where what the front added is kept, and what the middle added.
const FRONT: Slot = 0;
const MIDDLE: Slot = 1;

/// Compiles a run that decides step by step, whose cache is empty before step `first`.
///
/// Probe and graph must have the same number of branches; the sampler checks that before.
pub fn compile_probed(probed: &Probed, graph: &Graph, first: usize) -> Plan {
    let middle = probed.middle();
    let computed = |sites: std::ops::Range<usize>| {
        sites.map(|branch| Op::Compute {
            branch,
            write: None,
        })
    };
    let segment = |sites, write| {
        let ops = std::iter::once(Op::Open).chain(computed(sites));
        ops.chain([Op::Close { write }])
    };
    let rear = || computed(middle.end..probed.branches());
    let whole: Vec<Op> = segment(0..middle.start, FRONT)
        .chain(segment(middle.clone(), MIDDLE))
        .chain(rear())
        .collect();
    let decided: Vec<Op> = std::iter::once(Op::Open)
        .chain(computed(0..middle.start))
        .chain([Op::Decide {
            probe: FRONT,
            threshold: probed.threshold(),
            most: probed.most(),
            compute: segment(middle.clone(), MIDDLE).collect(),
            reuse: vec![Op::Again {
                branches: middle.clone(),
                reads: vec![Read {
                    branch: middle.start,
                    weight: 1.0,
                    slot: MIDDLE,
                    last: false,
                }],
                joint: Joint::Added,
            }],
        }])
        .chain(rear())
        .collect();
    let steps = (0..probed.steps())
        .map(|s| {
            if s > first && s >= probed.warm_up() {
                &decided
            } else {
                &whole
            }
            .clone()
        })
        .collect();
    let macs = probed.steps() as u64 * graph.full_step_macs();
    Plan {
        steps,
        slots: 2,
        graph: graph.clone(),
        macs,
        macs_full: macs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::SiteKind;

    #[test]
    fn both_rows_of_a_decision_are_compiled_ahead() {
        let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
        let graph = Graph::uniform(3, &pattern, [4, 8], 2).unwrap();
        let probed = Probed::new(3, &graph, 1, 1, 0.1).unwrap();
        let plan = compile_probed(&probed, &graph, 1);
        let text = plan.to_string();
        let steps: Vec<&str> = text.lines().collect();
        assert_eq!(
            steps[1],
            "step  1  { attn 0 · mlp 0 } → s0 · { attn 1 · mlp 1 } → s1 · attn 2 · mlp 2"
        );
        assert_eq!(
            steps[2],
            "step  2  { attn 0 · mlp 0 } ? s0: { attn 1 · mlp 1 } → s1 | [← s1] · attn 2 · mlp 2"
        );
        let figures = plan.accounting();
        assert_eq!((figures.slots, figures.computed), (2, 18));
        assert_eq!(figures.macs, figures.macs_full);
    }
}
