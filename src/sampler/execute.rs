//! One pass through the network under a step of a plan.

use burn::tensor::Tensor;

use super::{
    SampleError,
    parts::{Part, PartTimes},
};
use crate::{
    cache::FeatureStore,
    device::read_back,
    models::{At, Denoiser},
    plan::Op,
    schedule::Joint,
};

/// A pass in progress.
pub(super) struct Pass<'a> {
    pub model: &'a dyn Denoiser,
    pub at: &'a At,
    pub store: &'a mut FeatureStore,
    pub parts: Option<&'a mut PartTimes>,
    /// The stream where each open segment begins.
    opened: Vec<Tensor<3>>,
    /// Steps before it that decided to reuse, in a row; one more where it does so too, and none where it does not.
    in_a_row: usize,
}

impl<'a> Pass<'a> {
    pub fn new(
        model: &'a dyn Denoiser,
        at: &'a At,
        store: &'a mut FeatureStore,
        parts: Option<&'a mut PartTimes>,
        in_a_row: usize,
    ) -> Self {
        Self {
            model,
            at,
            store,
            parts,
            opened: Vec::new(),
            in_a_row,
        }
    }

    /// The tokens after the last block, `[copies·B, tokens, dim]`, for `x` `[B, C, H, W]` under one step's ops, and how many steps
    /// in a row, this one the last, decided to reuse.
    ///
    /// A reused branch issues no work but its part of `x + Σ gate ⊙ w·feature`.
    pub fn tokens(
        mut self,
        ops: &[Op],
        x: Tensor<4>,
        copies: usize,
    ) -> Result<(Tensor<3>, usize), SampleError> {
        let x = self.model.begin(x, copies);
        self.mark(Part::Embedding);
        let decides = ops.iter().any(|op| matches!(op, Op::Decide { .. }));
        if !decides {
            self.in_a_row = 0;
        }
        Ok((self.row(ops, x)?, self.in_a_row))
    }

    fn row(&mut self, ops: &[Op], x: Tensor<3>) -> Result<Tensor<3>, SampleError> {
        ops.iter().try_fold(x, |x, op| self.op(op, x))
    }

    fn op(&mut self, op: &Op, x: Tensor<3>) -> Result<Tensor<3>, SampleError> {
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
                probe,
                threshold,
                most,
                compute,
                reuse,
            } => {
                let added = self.added(&x);
                let may = most.is_none_or(|most| self.in_a_row < most);
                let reuses = may && {
                    let change = self.store.change(added.clone(), *probe)?;
                    !threshold.is_exceeded_by(read_one(change)?)
                };
                let row = if reuses {
                    self.in_a_row += 1;
                    reuse
                } else {
                    self.in_a_row = 0;
                    self.store.keep(*probe, added)?;
                    compute
                };
                self.mark(Part::Decision);
                self.row(row, x)
            }
            Op::Keep { write } => {
                self.store.keep(*write, x.clone())?;
                self.mark(Part::Reuse);
                Ok(x)
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

    /// What the segment opened last added to the stream.
    fn added(&mut self, x: &Tensor<3>) -> Tensor<3> {
        match self.opened.pop() {
            Some(start) => x.clone() - start,
            None => x.clone(),
        }
    }

    fn mark(&mut self, part: Part) {
        if let Some(parts) = &mut self.parts {
            parts.mark(part, &self.model.device());
        }
    }
}

/// The number that a decision waits for.
fn read_one(number: Tensor<1>) -> Result<f32, SampleError> {
    let numbers = read_back(number)?;
    Ok(numbers.first().copied().unwrap_or(f32::NAN))
}
