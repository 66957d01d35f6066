//! Plans of tables whose neighbouring branches are reused as one.

use std::collections::HashMap;

use super::{LiveRange, Op, Plan, Read, Slot, Tokens, liveness::assign_slots};
use crate::{
    graph::Graph,
    schedule::{Joint, JointFeature, Schedule},
};

/// Compiles such a table.
pub(super) fn compile_joint(schedule: &Schedule, joint: Joint, graph: &Graph) -> Plan {
    let features = schedule.joint_features();
    // Features of a step do not overlap, so their first branches tell them apart. A slot is taken where they begin.
    let ranges: Vec<LiveRange> = features
        .iter()
        .map(|feature| LiveRange {
            branch: feature.branches.start,
            written: feature.written,
            last_read: feature.last_read,
        })
        .collect();
    let (slot_of, slots) = assign_slots(&ranges, schedule.branches());
    let last_read: HashMap<_, _> = ranges
        .iter()
        .map(|range| ((range.written, range.branch), range.last_read))
        .collect();
    let reads_of = |s: usize, branches: &std::ops::Range<usize>| -> Vec<Read> {
        let written = schedule.computed_together(s, branches.clone());
        let weights = schedule.weights(s, branches.start);
        let read = |(written, weight): (usize, &f32)| {
            let feature = (written, branches.start);
            Some(Read {
                branch: branches.start,
                weight: *weight,
                slot: *slot_of.get(&feature)?,
                last: last_read.get(&feature) == Some(&s),
            })
        };
        written.zip(weights).filter_map(read).collect()
    };
    let steps = (0..schedule.steps())
        .map(|s| {
            let mut ops = Vec::new();
            if !schedule.runs_network(s) {
                return ops;
            }
            let kept: Vec<(&JointFeature, Slot)> = features
                .iter()
                .filter(|feature| feature.written == s)
                .filter_map(|feature| Some((feature, *slot_of.get(&(s, feature.branches.start))?)))
                .collect();
            let reused = schedule.reused_together(s);
            for n in 0..schedule.branches() {
                if let Some(branches) = reused.iter().find(|branches| branches.start == n) {
                    ops.push(Op::Again {
                        branches: branches.clone(),
                        reads: reads_of(s, branches),
                        joint,
                    });
                }
                if !schedule.computes(s, n) {
                    continue;
                }
                let begins = kept.iter().any(|(feature, _)| feature.branches.start == n);
                if joint == Joint::Added && begins {
                    ops.push(Op::Open);
                }
                ops.push(Op::Compute {
                    branch: n,
                    write: None,
                });
                let ends = kept
                    .iter()
                    .find(|(feature, _)| feature.branches.end == n + 1);
                if let Some((_, write)) = ends {
                    let write = *write;
                    ops.push(match joint {
                        Joint::Added => Op::Close { write },
                        Joint::Stream => Op::Keep {
                            tokens: Tokens::Stream,
                            write,
                        },
                    });
                }
            }
            ops
        })
        .collect();
    Plan::of_table(steps, slots, schedule, graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{graph::of_blocks, plan::compile};

    fn graph() -> Graph {
        of_blocks(2)
    }

    fn lines(schedule: Schedule) -> Vec<String> {
        let text = compile(&schedule, &graph()).to_string();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_branches_added_is_kept_as_one() {
        let rows = ["####", "##..", "####", "..##"];
        let table = Schedule::from_rule(4, 4, |s, n| rows[s].as_bytes()[n] == b'#').unwrap();
        let joint = table.with_joint(Joint::Added).unwrap();
        let figures = compile(&joint, &graph()).accounting();
        // Two halves of a network, one after the other: one feature at a time.
        assert_eq!((figures.slots, figures.writes, figures.reads), (1, 2, 2));
        assert_eq!(
            (figures.computed, figures.reused, figures.spans),
            (12, 4, 2)
        );
        assert_eq!(figures.macs, joint.macs(&graph()));
        assert_eq!(
            lines(joint),
            [
                "step  0  attn 0 · mlp 0 · { attn 1 · mlp 1 } → s0",
                "step  1  attn 0 · mlp 0 · [← s0]",
                "step  2  { attn 0 · mlp 0 } → s0 · attn 1 · mlp 1",
                "step  3  [← s0] · attn 1 · mlp 1",
            ]
        );
    }

    #[test]
    fn a_stream_is_read_as_it_was_left() {
        let table = Schedule::from_rule(4, 4, |s, _| s != 1 && s != 3)
            .and_then(|table| table.with_joint(Joint::Stream))
            .and_then(|table| {
                table.with_reads(|s, _| if s == 3 { vec![1.5, -0.5] } else { vec![1.0] })
            })
            .unwrap();
        let figures = compile(&table, &graph()).accounting();
        assert_eq!((figures.slots, figures.reads, figures.reused), (2, 3, 8));
        assert_eq!(
            lines(table),
            [
                "step  0  attn 0 · mlp 0 · attn 1 · mlp 1 → s0",
                "step  1  [= s0]",
                "step  2  attn 0 · mlp 0 · attn 1 · mlp 1 → s1",
                "step  3  [= 1.5·s1 - 0.5·s0]",
            ]
        );
    }
}
