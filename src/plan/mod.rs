//! From a schedule to straight-line work, as a compiler would: liveness, slots, spans, accounting.
//!
//! Pure: no device, no tensors. A feature is stored only if a later step reads it before it is computed
//! again; live features are packed into the fewest slots; neighbouring reused branches become one span.

mod liveness;
mod text;

use crate::schedule::{ModelShape, Schedule};

pub use liveness::{LiveRange, live_ranges};

/// A place in the cache, numbered from 0.
pub type Slot = usize;

/// One piece of a step's work, in execution order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Compute a branch, add it to the residual stream, and keep its feature if `write` says where.
    Compute {
        /// Branch `2·block + {0: attention, 1: MLP}`.
        branch: usize,
        /// Where to keep the feature; `None` if nothing will read it.
        write: Option<Slot>,
    },
    /// `x ← x + Σ gate_i ⊙ f_i` over neighbouring reused branches.
    Reuse(Vec<Read>),
}

/// A stored feature that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The branch it stands for.
    pub branch: usize,
    /// Where it lies.
    pub slot: Slot,
    /// Whether nothing reads it after this.
    pub last: bool,
}

/// The work of a whole run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Vec<Op>>,
    slots: usize,
    shape: ModelShape,
    macs: u64,
    macs_full: u64,
}

/// A plan's figures for one image and one half of the guidance batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accounting {
    /// Multiply-accumulates of the run.
    pub macs: u64,
    /// Multiply-accumulates without reuse.
    pub macs_full: u64,
    /// Branch evaluations that are computed.
    pub computed: usize,
    /// Branch evaluations that are reused.
    pub reused: usize,
    /// Spans of neighbouring reused branches.
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
        self.reused as u64 * self.feature_bytes
    }
}

/// Compiles a schedule for a network.
///
/// Schedule and shape must have the same number of branches; the sampler checks that before.
pub fn compile(schedule: &Schedule, shape: &ModelShape) -> Plan {
    let ranges = live_ranges(schedule);
    let (slot_of, slots) = liveness::assign_slots(&ranges, schedule);
    // Where the feature of each branch that was computed last lies.
    let mut newest: Vec<Slot> = vec![0; schedule.branches()];
    let steps = (0..schedule.steps())
        .map(|s| {
            let mut ops: Vec<Op> = Vec::new();
            for (n, newest) in newest.iter_mut().enumerate() {
                if schedule.computes(s, n) {
                    let write = slot_of.get(&(s, n)).copied();
                    *newest = write.unwrap_or(*newest);
                    ops.push(Op::Compute { branch: n, write });
                    continue;
                }
                let read = Read {
                    branch: n,
                    slot: *newest,
                    last: !schedule.is_reused_after(s, n),
                };
                match ops.last_mut() {
                    Some(Op::Reuse(span)) => span.push(read),
                    _ => ops.push(Op::Reuse(vec![read])),
                }
            }
            ops
        })
        .collect();
    Plan {
        steps,
        slots,
        shape: *shape,
        macs: shape.run_macs(schedule),
        macs_full: shape.full_macs(schedule.steps()),
    }
}

impl Plan {
    /// The ops of every step.
    pub fn steps(&self) -> &[Vec<Op>] {
        &self.steps
    }

    /// Number of cache slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Exact figures.
    pub fn accounting(&self) -> Accounting {
        let ops = || self.steps.iter().flatten();
        let spans = || {
            ops().filter_map(|op| match op {
                Op::Reuse(span) => Some(span.len()),
                Op::Compute { .. } => None,
            })
        };
        let computed = ops().filter(|op| matches!(op, Op::Compute { .. })).count();
        let writes = ops()
            .filter(|op| matches!(op, Op::Compute { write: Some(_), .. }))
            .count();
        Accounting {
            macs: self.macs,
            macs_full: self.macs_full,
            computed,
            reused: spans().sum(),
            spans: spans().count(),
            slots: self.slots,
            writes,
            feature_bytes: 4 * (self.shape.tokens * self.shape.hidden) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(branches: usize) -> ModelShape {
        ModelShape {
            blocks: branches / 2,
            hidden: 8,
            tokens: 4,
            mlp_ratio: 4,
            patch_inputs: 16,
            patch_outputs: 32,
            timestep_channels: 256,
        }
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
        fn every_reuse_reads_the_feature_written_last_and_no_live_slot_is_clobbered(schedule in schedules()) {
            let plan = compile(&schedule, &shape(schedule.branches()));
            let mut slots: Vec<Option<(usize, usize)>> = vec![None; plan.slots()];
            let mut newest = vec![0; schedule.branches()];
            for (s, ops) in plan.steps().iter().enumerate() {
                let mut order = Vec::new();
                for op in ops {
                    match op {
                        Op::Compute { branch, write } => {
                            prop_assert!(schedule.computes(s, *branch));
                            newest[*branch] = s;
                            order.push(*branch);
                            prop_assert_eq!(write.is_some(), schedule.is_reused_after(s, *branch));
                            if let Some(slot) = write {
                                prop_assert_eq!(slots[*slot], None, "slot {} clobbered", slot);
                                slots[*slot] = Some((s, *branch));
                            }
                        }
                        Op::Reuse(span) => for read in span {
                            prop_assert!(!schedule.computes(s, read.branch));
                            order.push(read.branch);
                            prop_assert_eq!(slots[read.slot], Some((newest[read.branch], read.branch)));
                            if read.last {
                                slots[read.slot] = None;
                            }
                        }
                    }
                }
                prop_assert_eq!(order, (0..schedule.branches()).collect::<Vec<_>>());
                // No two spans touch: they would have been one.
                prop_assert!(!ops.windows(2).any(|w| matches!(w, [Op::Reuse(_), Op::Reuse(_)])));
            }
            prop_assert!(slots.iter().all(Option::is_none), "a slot outlives its last read");
        }

        /// No colouring of intervals needs fewer colours than the deepest overlap.
        #[test]
        fn slot_count_is_the_deepest_overlap(schedule in schedules()) {
            let ranges = live_ranges(&schedule);
            let branches = schedule.branches();
            let deepest = (0..schedule.steps() * branches)
                .map(|at| ranges.iter().filter(|r| r.start(branches) <= at && at < r.end(branches)).count())
                .max()
                .unwrap_or(0);
            prop_assert_eq!(compile(&schedule, &shape(branches)).slots(), deepest);
        }

        #[test]
        fn accounting_adds_up(schedule in schedules()) {
            let shape = shape(schedule.branches());
            let figures = compile(&schedule, &shape).accounting();
            prop_assert_eq!(figures.computed + figures.reused, schedule.steps() * schedule.branches());
            let cur = figures.reused as f64 / (figures.computed + figures.reused) as f64;
            prop_assert!((cur - schedule.cur()).abs() < 1e-12);
            prop_assert_eq!(figures.macs, shape.run_macs(&schedule));
            prop_assert!(figures.slots <= schedule.branches() && figures.writes <= figures.computed);
            prop_assert!(figures.spans <= figures.reused);
        }
    }

    #[test]
    fn a_full_schedule_touches_no_cache() {
        let plan = compile(&Schedule::full(5, 4).unwrap(), &shape(4));
        let figures = plan.accounting();
        assert_eq!((figures.slots, figures.writes, figures.spans), (0, 0, 0));
        assert_eq!(figures.macs, figures.macs_full);
    }

    #[test]
    fn a_person_can_read_a_plan() {
        let schedule = Schedule::from_rule(2, 4, |s, n| s == 0 || n == 1).unwrap();
        let text = compile(&schedule, &shape(4)).to_string();
        assert_eq!(
            text,
            "step  0  attn 0 → s0 · mlp 0 · attn 1 → s1 · mlp 1 → s2\n\
             step  1  [attn 0 ← s0] · mlp 0 · [attn 1 ← s1, mlp 1 ← s2]\n"
        );
    }
}
