//! One pass through the network under a step of a plan.

use burn::tensor::Tensor;

use super::{
    SampleError,
    parts::{Part, PartTimes},
    setup::Setup,
};
use crate::{
    cache::FeatureStore,
    device::read,
    models::{At, Denoiser},
    plan::{Op, Slot, Tokens},
    schedule::{Decisions, Joint},
    stop::Asked,
};

/// How far past the last computed step, in units from the one before it, a correction goes.
const FARTHEST: f32 = 1.5;

/// A pass in progress.
pub(super) struct Pass<'a> {
    pub model: &'a dyn Denoiser,
    pub at: &'a At,
    pub store: &'a mut FeatureStore,
    pub parts: Option<&'a mut PartTimes>,
    stop: &'a Asked,
    /// The stream where each open segment begins.
    opened: Vec<Tensor<3>>,
    /// How the run has decided so far, and then how this step did.
    decisions: Decisions,
    /// Steps that were computed before it.
    computed_before: usize,
}

impl<'a> Pass<'a> {
    pub fn new(
        setup: &'a Setup,
        at: &'a At,
        store: &'a mut FeatureStore,
        parts: Option<&'a mut PartTimes>,
        decisions: Decisions,
    ) -> Self {
        Self {
            model: &*setup.model,
            at,
            store,
            parts,
            stop: &setup.stop,
            opened: Vec::new(),
            decisions,
            computed_before: decisions.computed,
        }
    }

    /// The tokens after the last block, `[copies·B, tokens, dim]`, for `x` `[B, C, H, W]` under one step's ops, and how the run has
    /// decided with this step.
    ///
    /// A reused branch issues no work but its part of `x + Σ gate ⊙ w·feature`.
    pub async fn tokens(
        mut self,
        ops: &[Op],
        x: Tensor<4>,
        copies: usize,
    ) -> Result<(Tensor<3>, Decisions), SampleError> {
        let x = self.model.begin(x, copies);
        self.mark(Part::Embedding);
        let decides = ops.iter().any(|op| matches!(op, Op::Decide { .. }));
        if !decides {
            self.decisions.note(false);
        }
        Ok((self.row(ops, x).await?, self.decisions))
    }

    async fn row(&mut self, ops: &[Op], mut x: Tensor<3>) -> Result<Tensor<3>, SampleError> {
        for op in ops {
            x = self.op(op, x).await?;
        }
        Ok(x)
    }

    async fn op(&mut self, op: &Op, x: Tensor<3>) -> Result<Tensor<3>, SampleError> {
        self.stop.go_on()?;
        let (model, at) = (self.model, self.at);
        match op {
            Op::Compute { branch, write } => {
                let partial = model.compute(*branch, x.clone(), at);
                let join = model.join(*branch, at);
                let x = match write {
                    Some(slot) => self.store.write(*slot, x, &join, partial)?,
                    None => join.add(x, partial),
                };
                self.mark(Part::Branch(model.outline().graph.sites()[*branch].kind));
                Ok(x)
            }
            Op::Reuse(reads) => {
                let joins: Vec<_> = reads
                    .iter()
                    .map(|read| (model.join(read.branch, at), *read))
                    .collect();
                let x = self.store.reuse(x, &joins)?;
                self.mark(Part::Reuse);
                Ok(x)
            }
            Op::Open => {
                self.opened.push(x.clone());
                Ok(x)
            }
            Op::Close { write } => {
                let added = self.added(&x);
                self.store.keep(*write, added)?;
                self.mark(Part::Decision);
                Ok(x)
            }
            Op::Decide {
                tokens,
                probe,
                rule,
                most,
                compute,
                reuse,
            } => {
                let now = match tokens {
                    Tokens::Added => self.added(&x),
                    tokens => self.tokens_of(*tokens, &x),
                };
                let may = most.is_none_or(|most| self.decisions.in_a_row < most);
                let reuses = may && {
                    let change = self.store.change(now.clone(), *probe)?;
                    let change = read_one(change).await?;
                    rule.reuses(change, &mut self.decisions)
                };
                self.decisions.note(reuses);
                if *tokens != Tokens::Added || !reuses {
                    self.store.keep(*probe, now)?;
                }
                self.mark(Part::Decision);
                let chosen = if reuses { reuse } else { compute };
                // Rows in rows: a future of a size that is known.
                Box::pin(self.row(chosen, x)).await
            }
            Op::Keep { tokens, write } => {
                let now = self.tokens_of(*tokens, &x);
                self.store.keep(*write, now)?;
                self.mark(Part::Decision);
                Ok(x)
            }
            Op::Shift { from, to } => {
                if self.computed_before > 0 {
                    let kept = self.store.kept(*from, &x.device())?;
                    self.store.keep(*to, kept)?;
                }
                self.mark(Part::Decision);
                Ok(x)
            }
            Op::Align { probes, slots, .. } => {
                let added = self.tokens_of(Tokens::Added, &x);
                let start = self.opened.pop().unwrap_or(x);
                let [last, _] = *slots;
                let again = match self.computed_before {
                    0 | 1 => self.store.kept(last, &start.device())?,
                    _ => self.aligned(added, *probes, *slots)?,
                };
                self.mark(Part::Reuse);
                Ok(start + again)
            }
            Op::Again { reads, joint, .. } => {
                let x = match joint {
                    Joint::Added => x,
                    Joint::Stream => x.zeros_like(),
                };
                let x = self.store.add(x, reads)?;
                self.mark(Part::Reuse);
                Ok(x)
            }
        }
    }

    /// What the segment opened last added to the stream; it ends.
    fn added(&mut self, x: &Tensor<3>) -> Tensor<3> {
        let added = self.tokens_of(Tokens::Added, x);
        self.opened.pop();
        added
    }

    /// Tokens of the stream `x` as it is.
    fn tokens_of(&self, tokens: Tokens, x: &Tensor<3>) -> Tensor<3> {
        match (tokens, self.opened.last()) {
            (Tokens::Added, Some(start)) => x.clone() - start.clone(),
            (Tokens::Modulated, _) => self.model.modulated(x.clone(), self.at),
            _ => x.clone(),
        }
    }

    /// `R₂ + γ·(R₁ − R₂)` with `γ = mean|p − p₂| / mean|p₁ − p₂|`, 1 to 1.5: `R₁` and `R₂` are kept in `slots`, `p₁` and `p₂` in
    /// `probes`.
    fn aligned(
        &mut self,
        p: Tensor<3>,
        probes: [Slot; 2],
        slots: [Slot; 2],
    ) -> Result<Tensor<3>, SampleError> {
        let device = p.device();
        let mut kept = |slot| self.store.kept(slot, &device);
        let [p1, p2, r1, r2] = [
            kept(probes[0])?,
            kept(probes[1])?,
            kept(slots[0])?,
            kept(slots[1])?,
        ];
        let distance = |a: Tensor<3>, b: Tensor<3>| (a - b).abs().mean();
        let gamma = distance(p, p2.clone()) / distance(p1, p2);
        let gamma = gamma.clamp(1.0, FARTHEST).reshape([1, 1, 1]);
        Ok(r2.clone() + (r1 - r2) * gamma)
    }

    fn mark(&mut self, part: Part) {
        if let Some(parts) = &mut self.parts {
            parts.mark(part, &self.model.device());
        }
    }
}

/// The number that a decision waits for.
pub(super) async fn read_one(number: Tensor<1>) -> Result<f32, SampleError> {
    let numbers = read(number).await?;
    Ok(numbers.first().copied().unwrap_or(f32::NAN))
}
