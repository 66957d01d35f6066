//! Plans of runs that decide while they go on: every row that a step may take is compiled ahead, so the cache is known to
//! the byte.

use std::ops::Range;

use super::{Op, Plan, Read, Slot, Tokens};
use crate::{
    graph::Graph,
    schedule::{Joint, Probe, Probed},
};

/// Where what is compared is kept, and what the reused branches added.
const PROBE: Slot = 0;
const ADDED: Slot = 1;
/// Where what the front and what all branches added is kept, of the last computed step and of the one before it.
const FRONT_ADDED: [Slot; 2] = [1, 2];
const ALL_ADDED: [Slot; 2] = [3, 4];

/// Compiles a run that decides step by step, whose cache is empty before step `first`.
///
/// Probe and graph must have the same number of branches; the sampler checks that before.
pub fn compile_probed(probed: &Probed, graph: &Graph, first: usize) -> Plan {
    let rows = Rows::of(probed);
    let steps = (0..probed.steps()).map(|s| match probed.decides(s, first) {
        true => rows.decided.clone(),
        false => rows.whole.clone(),
    });
    let macs = probed.steps() as u64 * graph.full_step_macs();
    Plan {
        steps: steps.collect(),
        slots: rows.slots,
        carried: rows.carried,
        graph: graph.clone(),
        macs,
        macs_full: macs,
    }
}

/// What a step may be.
struct Rows {
    /// Everything is computed.
    whole: Vec<Op>,
    /// What has changed decides.
    decided: Vec<Op>,
    slots: usize,
    carried: Vec<Slot>,
}

impl Rows {
    fn of(probed: &Probed) -> Self {
        match probed.probe() {
            Probe::Front => Self::of_front(probed),
            Probe::ModulatedInput => Self::of_modulated_input(probed),
            Probe::FrontStream => Self::of_front_stream(probed),
            // Whether the network runs at all is not decided within it.
            Probe::Output => {
                let whole: Vec<Op> = computed(0..probed.branches()).collect();
                Self {
                    decided: whole.clone(),
                    whole,
                    slots: 0,
                    carried: Vec::new(),
                }
            }
        }
    }

    fn of_front(probed: &Probed) -> Self {
        let reused = probed.reused();
        let rear = || computed(reused.end..probed.branches());
        let front = || std::iter::once(Op::Open).chain(computed(0..reused.start));
        let whole = front()
            .chain([Op::Close { write: PROBE }])
            .chain(segment(reused.clone()))
            .chain(rear());
        let decision = decide(
            probed,
            Tokens::Added,
            segment(reused.clone()).collect(),
            vec![again(reused.clone())],
        );
        Self {
            whole: whole.collect(),
            decided: front().chain([decision]).chain(rear()).collect(),
            slots: 2,
            carried: Vec::new(),
        }
    }

    fn of_modulated_input(probed: &Probed) -> Self {
        let (tokens, all) = (Tokens::Modulated, probed.reused());
        let keep = Op::Keep {
            tokens,
            write: PROBE,
        };
        let decision = decide(
            probed,
            tokens,
            segment(all.clone()).collect(),
            vec![again(all.clone())],
        );
        Self {
            whole: std::iter::once(keep).chain(segment(all)).collect(),
            decided: vec![decision],
            slots: 2,
            carried: Vec::new(),
        }
    }

    fn of_front_stream(probed: &Probed) -> Self {
        let (tokens, reused) = (Tokens::Stream, probed.reused());
        let front = || std::iter::once(Op::Open).chain(computed(0..reused.start));
        let rest = || {
            let shifts = [FRONT_ADDED, ALL_ADDED].map(|[from, to]| Op::Shift { from, to });
            let keep = Op::Keep {
                tokens: Tokens::Added,
                write: FRONT_ADDED[0],
            };
            let close = Op::Close {
                write: ALL_ADDED[0],
            };
            let ops = shifts.into_iter().chain([keep]);
            ops.chain(computed(reused.clone())).chain([close])
        };
        let keep = Op::Keep {
            tokens,
            write: PROBE,
        };
        let decision = decide(
            probed,
            tokens,
            rest().collect(),
            vec![Op::Align {
                branches: reused.clone(),
                probes: FRONT_ADDED,
                slots: ALL_ADDED,
            }],
        );
        Self {
            whole: front().chain([keep]).chain(rest()).collect(),
            decided: front().chain([decision]).collect(),
            slots: 5,
            carried: vec![FRONT_ADDED[0], ALL_ADDED[0]],
        }
    }
}

fn computed(branches: Range<usize>) -> impl Iterator<Item = Op> {
    branches.map(|branch| Op::Compute {
        branch,
        write: None,
    })
}

/// Branches that are computed, and what they added kept.
fn segment(branches: Range<usize>) -> impl Iterator<Item = Op> {
    let ops = std::iter::once(Op::Open).chain(computed(branches));
    ops.chain([Op::Close { write: ADDED }])
}

/// Branches that are not.
fn again(branches: Range<usize>) -> Op {
    let read = Read {
        branch: branches.start,
        weight: 1.0,
        slot: ADDED,
        last: false,
    };
    Op::Again {
        branches,
        reads: vec![read],
        joint: Joint::Added,
    }
}

/// The decision of a step, by tokens held against those that are kept as [`PROBE`].
fn decide(probed: &Probed, tokens: Tokens, compute: Vec<Op>, reuse: Vec<Op>) -> Op {
    Op::Decide {
        tokens,
        probe: PROBE,
        rule: probed.rule().clone(),
        most: probed.most(),
        compute,
        reuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::of_blocks,
        schedule::{ScheduleError, Sum},
    };

    fn graph() -> Graph {
        of_blocks(3)
    }

    /// The plan of the last two of three steps, and its slots.
    fn lines(probed: Result<Probed, ScheduleError>) -> (Vec<String>, usize) {
        let plan = compile_probed(&probed.unwrap(), &graph(), 1);
        let figures = plan.accounting();
        assert_eq!((figures.computed, figures.macs), (18, figures.macs_full));
        let text = plan.to_string();
        let lines = text.lines().skip(1).map(str::to_owned);
        (lines.collect(), figures.slots)
    }

    #[test]
    fn both_rows_of_a_decision_are_compiled_ahead() {
        assert_eq!(
            lines(Probed::new(3, &graph(), 1, 1, 0.1)),
            (
                vec![
                    "step  1  { attn 0 · mlp 0 } → s0 · { attn 1 · mlp 1 } → s1 · attn 2 · mlp 2".into(),
                    "step  2  { attn 0 · mlp 0 } ? s0: { attn 1 · mlp 1 } → s1 | [← s1] · attn 2 · mlp 2".into(),
                ],
                2
            )
        );
    }

    #[test]
    fn an_input_may_decide_over_all_blocks() {
        let all = "{ attn 0 · mlp 0 · attn 1 · mlp 1 · attn 2 · mlp 2 } → s1";
        assert_eq!(
            lines(Probed::of_modulated_input(3, &graph(), Sum::plain(0.1))),
            (
                vec![
                    format!("step  1  in → s0 · {all}"),
                    format!("step  2  in ? s0: {all} | [← s1]"),
                ],
                2
            )
        );
    }

    #[test]
    fn what_is_reused_may_be_moved_on() {
        let rest = "s1 → s2 · s3 → s4 +→ s1 · attn 1 · mlp 1 · attn 2 · mlp 2 } → s3";
        assert_eq!(
            lines(Probed::of_front_stream(3, &graph(), Sum::plain(0.1))),
            (
                vec![
                    format!("step  1  {{ attn 0 · mlp 0 → s0 · {rest}"),
                    format!(
                        "step  2  {{ attn 0 · mlp 0 ? s0: {rest} | }} [← s4 to s3 as s2 to s1]"
                    ),
                ],
                5
            )
        );
    }
}
