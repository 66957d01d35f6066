//! From a schedule to straight-line work, as a compiler would: liveness, slots, spans, accounting.
//!
//! Pure: no device, no tensors. A feature is stored only if a later step reads it before it is computed
//! again; live features are packed into the fewest slots; neighbouring reused branches become one span.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

mod joint;
mod liveness;
mod probed;
mod text;

use crate::{
    graph::Graph,
    schedule::{Joint, MAX_HISTORY, Reuse, Rule, Schedule},
};

pub use liveness::{LiveRange, live_ranges};
pub use probed::compile_probed;

/// A place in the cache, numbered from 0.
pub type Slot = usize;

/// One piece of a step's work, in execution order.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Compute a branch, add it to the residual stream, and keep its feature if `write` says where.
    Compute {
        /// The branch, in the graph's order.
        branch: usize,
        /// Where to keep the feature; `None` if nothing will read it.
        write: Option<Slot>,
    },
    /// `x ← x + Σ gate_i ⊙ w_i·f_i` over neighbouring reused branches; a branch may read several features.
    Reuse(Vec<Read>),
    /// A segment of the stream begins here.
    Open,
    /// The segment opened last ends: keep what it added to the stream.
    Close {
        /// Where to keep it.
        write: Slot,
    },
    /// Compare tokens with those that are kept, and go on with one of two rows.
    Decide {
        tokens: Tokens,
        /// Where they are kept. What a segment added is kept anew where the first row is taken, other tokens at every step.
        probe: Slot,
        rule: Rule,
        /// After so many reuses in a row the first row is taken.
        most: Option<usize>,
        /// Taken where the change is large.
        compute: Vec<Op>,
        /// Taken where it is small.
        reuse: Vec<Op>,
    },
    /// Keep tokens.
    Keep {
        tokens: Tokens,
        /// Where to keep them.
        write: Slot,
    },
    /// What was kept at the last computed step becomes that of the one before it; at the first one there is nothing.
    Shift { from: Slot, to: Slot },
    /// The segment opened last ends: in its place goes what it and all that followed it added at the last two computed steps, as far
    /// from the older towards the newer as what it added now.
    Align {
        branches: Range<usize>,
        /// What the segment added at the last computed step, and at the one before it.
        probes: [Slot; 2],
        /// What was added in all.
        slots: [Slot; 2],
    },
    /// Stand in for branches by what they left before, as one.
    Again {
        branches: Range<usize>,
        /// What is kept of them, and what it weighs.
        reads: Vec<Read>,
        /// Whether that joins the stream or is the stream.
        joint: Joint,
    },
}

/// Tokens that are looked at on their way through the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// The stream.
    Stream,
    /// What the segment opened last added to it.
    Added,
    /// The stream as the first branch takes it: normed, scaled and shifted.
    Modulated,
}

impl Op {
    /// The op, or those of the row that computes, where it decides.
    fn computing(&self) -> Box<dyn Iterator<Item = &Op> + '_> {
        match self {
            Self::Decide { compute, .. } => {
                Box::new(std::iter::once(self).chain(compute.iter().flat_map(Self::computing)))
            }
            op => Box::new(std::iter::once(op)),
        }
    }
}

/// A stored feature that is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Read {
    /// The branch it stands for.
    pub branch: usize,
    /// What the feature is multiplied by; 1 for plain reuse.
    pub weight: f32,
    /// Where it lies.
    pub slot: Slot,
    /// Whether nothing reads it after this.
    pub last: bool,
}

/// The work of a whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    steps: Vec<Vec<Op>>,
    slots: usize,
    /// Slots that a run resumed at a computed step needs.
    carried: Vec<Slot>,
    graph: Graph,
    macs: u64,
    macs_full: u64,
}

/// A plan's figures for one image and one half of the guidance batch. Where a run decides while it goes on, those of
/// computing at every step; the cache is the same whatever it decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accounting {
    /// Multiply-accumulates of the run.
    pub macs: u64,
    /// Multiply-accumulates without reuse.
    pub macs_full: u64,
    /// Branch evaluations that are computed.
    pub computed: usize,
    /// Branch evaluations that are reused, or skipped with all of their step.
    pub reused: usize,
    /// Features read for them: as many where reuse is plain, more where features are forecast.
    pub reads: usize,
    /// Spans of neighbouring reused branches, each a dispatch or few.
    pub spans: usize,
    /// Slots of the cache.
    pub slots: usize,
    /// Features written to the cache.
    pub writes: usize,
    /// Bytes of one feature in f32.
    pub feature_bytes: u64,
}

impl Accounting {
    /// Bytes of the cache in f32.
    pub fn cache_bytes(&self) -> u64 {
        self.slots as u64 * self.feature_bytes
    }

    /// Bytes written to the cache over the run.
    pub fn bytes_written(&self) -> u64 {
        self.writes as u64 * self.feature_bytes
    }

    /// Bytes read from the cache over the run.
    pub fn bytes_read(&self) -> u64 {
        self.reads as u64 * self.feature_bytes
    }
}

/// Compiles a schedule for a network.
///
/// Schedule and graph must have the same number of branches; the sampler checks that before.
pub fn compile(schedule: &Schedule, graph: &Graph) -> Plan {
    if let Some(joint) = schedule.joint() {
        return joint::compile_joint(schedule, joint, graph);
    }
    let ranges = live_ranges(schedule);
    let (slot_of, slots) = liveness::assign_slots(&ranges, schedule.branches());
    let last_read: HashMap<_, _> = ranges
        .iter()
        .map(|r| ((r.written, r.branch), r.last_read))
        .collect();
    // The steps that computed each branch, newest first.
    let mut computed: Vec<VecDeque<usize>> = vec![VecDeque::new(); schedule.branches()];
    let steps = (0..schedule.steps())
        .map(|s| {
            let mut ops: Vec<Op> = Vec::new();
            if !schedule.runs_network(s) {
                return ops;
            }
            for (n, computed) in computed.iter_mut().enumerate() {
                if schedule.computes(s, n) {
                    let write = slot_of.get(&(s, n)).copied();
                    computed.push_front(s);
                    computed.truncate(MAX_HISTORY);
                    ops.push(Op::Compute { branch: n, write });
                    continue;
                }
                let features = computed.iter().zip(schedule.weights(s, n));
                let reads = features.filter_map(|(written, weight)| {
                    let feature = (*written, n);
                    Some(Read {
                        branch: n,
                        weight: *weight,
                        slot: *slot_of.get(&feature)?,
                        last: last_read.get(&feature) == Some(&s),
                    })
                });
                match ops.last_mut() {
                    Some(Op::Reuse(span)) => span.extend(reads),
                    _ => ops.push(Op::Reuse(reads.collect())),
                }
            }
            ops
        })
        .collect();
    Plan::of_table(steps, slots, schedule, graph)
}

impl Plan {
    /// What a table was compiled to.
    fn of_table(steps: Vec<Vec<Op>>, slots: usize, schedule: &Schedule, graph: &Graph) -> Self {
        Self {
            steps,
            slots,
            carried: Vec::new(),
            graph: graph.clone(),
            macs: schedule.macs(graph),
            macs_full: schedule.full_macs(graph),
        }
    }

    /// The plan of a run from its first step on.
    ///
    /// Reuse and graph must have the same number of branches; the sampler checks that before.
    pub fn of(reuse: &Reuse, graph: &Graph) -> Self {
        match reuse {
            Reuse::Ahead(schedule) => compile(schedule, graph),
            Reuse::AtRunTime(probed) => compile_probed(probed, graph, 0),
        }
    }

    /// The ops of every step; none of a step that runs no network.
    pub fn steps(&self) -> &[Vec<Op>] {
        &self.steps
    }

    /// Whether a step runs the network.
    pub fn runs_network(&self, s: usize) -> bool {
        !self.steps[s].is_empty()
    }

    /// The network it was compiled for.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Number of cache slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Slots whose features are part of where a run stands: those of computed steps before the last one. Where there are none, a
    /// run that is resumed needs nothing of what was computed before.
    pub fn carried(&self) -> &[Slot] {
        &self.carried
    }

    /// Exact figures.
    pub fn accounting(&self) -> Accounting {
        let ops = || self.steps.iter().flatten().flat_map(Op::computing);
        let spans = || {
            ops().filter_map(|op| match op {
                Op::Reuse(reads) => {
                    let branches = reads.chunk_by(|a, b| a.branch == b.branch).count();
                    Some((branches, reads.len()))
                }
                Op::Again {
                    branches, reads, ..
                } => Some((branches.len(), reads.len())),
                _ => None,
            })
        };
        let empty = self.steps.iter().filter(|ops| ops.is_empty()).count();
        let skipped = empty * self.graph.branches();
        let computed = ops().filter(|op| matches!(op, Op::Compute { .. })).count();
        let writes = ops()
            .filter(|op| {
                matches!(
                    op,
                    Op::Compute { write: Some(_), .. }
                        | Op::Close { .. }
                        | Op::Keep { .. }
                        | Op::Shift { .. }
                        | Op::Decide { .. }
                )
            })
            .count();
        Accounting {
            macs: self.macs,
            macs_full: self.macs_full,
            computed,
            reused: spans().map(|(branches, _)| branches).sum::<usize>() + skipped,
            reads: spans().map(|(_, reads)| reads).sum(),
            spans: spans().count(),
            slots: self.slots,
            writes,
            feature_bytes: 4 * self.graph.feature_numbers() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{graph::of_blocks, schedule::Forecast};

    fn graph(branches: usize) -> Graph {
        of_blocks(branches / 2)
    }

    /// Tables whose reuses weigh up to three features, some of whose idle steps run no network.
    fn forecasts() -> impl Strategy<Value = Schedule> {
        (schedules(), prop::collection::vec(1usize..4, 64)).prop_map(|(schedule, depths)| {
            let table = schedule.clone();
            let depth = |s: usize, n: usize| {
                let computed = (0..s).filter(|k| table.computes(*k, n)).count();
                depths[(7 * s + n) % 64].min(computed)
            };
            let idle = |s: &usize| !table.row(*s).contains(&true) && depths[*s] > 1;
            let forecast = Forecast {
                skipped: (0..table.steps()).filter(idle).collect(),
                ..Forecast::default()
            };
            schedule
                .with_reads(|s, n| (0..depth(s, n)).map(|k| 1.5 - k as f32).collect())
                .unwrap()
                .with_forecast(forecast)
                .unwrap()
        })
    }

    fn schedules() -> impl Strategy<Value = Schedule> {
        (1usize..12, 1usize..6, 0.0f64..1.0).prop_flat_map(|(steps, blocks, reuse)| {
            prop::collection::vec(prop::bool::weighted(1.0 - reuse), steps * 2 * blocks).prop_map(
                move |table| {
                    let branches = 2 * blocks;
                    Schedule::from_rule(steps, branches, |s, n| table[s * branches + n]).unwrap()
                },
            )
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Runs the plan on a toy cache that remembers who wrote what, against the schedule's meaning.
        #[test]
        fn every_read_finds_the_feature_it_means_and_no_live_slot_is_clobbered(schedule in forecasts()) {
            let plan = compile(&schedule, &graph(schedule.branches()));
            let mut slots: Vec<Option<(usize, usize)>> = vec![None; plan.slots()];
            let mut newest: Vec<Vec<usize>> = vec![Vec::new(); schedule.branches()];
            for (s, ops) in plan.steps().iter().enumerate() {
                let mut order = Vec::new();
                for op in ops {
                    match op {
                        Op::Compute { branch, write } => {
                            prop_assert!(schedule.computes(s, *branch));
                            newest[*branch].insert(0, s);
                            order.push(*branch);
                            prop_assert!(write.is_some() || !schedule.is_reused_after(s, *branch));
                            if let Some(slot) = write {
                                prop_assert_eq!(slots[*slot], None, "slot {} clobbered", slot);
                                slots[*slot] = Some((s, *branch));
                            }
                        }
                        Op::Open
                        | Op::Close { .. }
                        | Op::Keep { .. }
                        | Op::Decide { .. }
                        | Op::Shift { .. }
                        | Op::Align { .. }
                        | Op::Again { .. } => {
                            prop_assert!(false, "nothing is decided, and nothing reused together")
                        }
                        Op::Reuse(span) => for of_branch in span.chunk_by(|a, b| a.branch == b.branch) {
                            let n = of_branch[0].branch;
                            prop_assert!(!schedule.computes(s, n));
                            order.push(n);
                            let weights: Vec<f32> = of_branch.iter().map(|read| read.weight).collect();
                            prop_assert_eq!(&weights[..], schedule.weights(s, n));
                            for (read, written) in of_branch.iter().zip(&newest[n]) {
                                prop_assert_eq!(slots[read.slot], Some((*written, n)));
                                if read.last {
                                    slots[read.slot] = None;
                                }
                            }
                        }
                    }
                }
                let all = if schedule.runs_network(s) { schedule.branches() } else { 0 };
                prop_assert_eq!(order, (0..all).collect::<Vec<_>>());
                // No two spans touch: they would have been one.
                prop_assert!(!ops.windows(2).any(|w| matches!(w, [Op::Reuse(_), Op::Reuse(_)])));
            }
            prop_assert!(slots.iter().all(Option::is_none), "a slot outlives its last read");
        }

        /// No colouring of intervals needs fewer colours than the deepest overlap.
        #[test]
        fn slot_count_is_the_deepest_overlap(schedule in forecasts()) {
            let ranges = live_ranges(&schedule);
            let branches = schedule.branches();
            let deepest = (0..schedule.steps() * branches)
                .map(|at| ranges.iter().filter(|r| r.start(branches) <= at && at < r.end(branches)).count())
                .max()
                .unwrap_or(0);
            prop_assert_eq!(compile(&schedule, &graph(branches)).slots(), deepest);
        }

        #[test]
        fn accounting_adds_up(schedule in schedules()) {
            let graph = graph(schedule.branches());
            let figures = compile(&schedule, &graph).accounting();
            prop_assert_eq!(figures.computed + figures.reused, schedule.steps() * schedule.branches());
            let cur = figures.reused as f64 / (figures.computed + figures.reused) as f64;
            prop_assert!((cur - schedule.cur()).abs() < 1e-12);
            prop_assert_eq!(figures.macs, schedule.macs(&graph));
            prop_assert!(figures.slots <= schedule.branches() && figures.writes <= figures.computed);
            prop_assert!(figures.spans <= figures.reused);
            prop_assert_eq!(figures.reads, figures.reused);
        }
    }

    #[test]
    fn a_full_schedule_touches_no_cache() {
        let plan = compile(&Schedule::full(5, 4).unwrap(), &graph(4));
        let figures = plan.accounting();
        assert_eq!((figures.slots, figures.writes, figures.spans), (0, 0, 0));
        assert_eq!(figures.macs, figures.macs_full);
    }

    #[test]
    fn a_person_can_read_a_plan() {
        let schedule = Schedule::from_rule(2, 4, |s, n| s == 0 || n == 1).unwrap();
        let text = compile(&schedule, &graph(4)).to_string();
        assert_eq!(
            text,
            "step  0  attn 0 → s0 · mlp 0 · attn 1 → s1 · mlp 1 → s2\n\
             step  1  [attn 0 ← s0] · mlp 0 · [attn 1 ← s1, mlp 1 ← s2]\n"
        );
        let line = Schedule::from_rule(4, 2, |s, _| s < 2)
            .unwrap()
            .with_reads(|_, _| vec![1.5, -0.5])
            .unwrap();
        let text = compile(&line, &graph(2)).to_string();
        assert!(
            text.ends_with("[attn 0 ← 1.5·s2 - 0.5·s0, mlp 0 ← 1.5·s3 - 0.5·s1]\n"),
            "{text}"
        );
    }
}
