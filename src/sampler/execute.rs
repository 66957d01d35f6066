//! One pass through the network under a step of a plan.

use burn::tensor::Tensor;

use super::{
    SampleError,
    parts::{Part, PartTimes},
};
use crate::{
    cache::FeatureStore,
    models::{At, Denoiser},
    plan::Op,
};

/// The tokens after the last block, `[copies·B, tokens, dim]`, for `x` `[B, C, H, W]` under one step's ops.
///
/// A reused branch issues no work but its part of `x + Σ gate ⊙ w·feature`.
pub(super) fn planned_tokens(
    model: &dyn Denoiser,
    ops: &[Op],
    x: Tensor<4>,
    copies: usize,
    at: &At,
    store: &mut FeatureStore,
    mut parts: Option<&mut PartTimes>,
) -> Result<Tensor<3>, SampleError> {
    let mut mark = |part: Part| {
        if let Some(parts) = &mut parts {
            parts.mark(part, &model.device());
        }
    };
    let sites = model.outline().graph.sites();
    let mut x = model.begin(x, copies);
    mark(Part::Embedding);
    for op in ops {
        match op {
            Op::Compute { branch, write } => {
                let partial = model.compute(*branch, x.clone(), at);
                let join = model.join(*branch, at);
                x = match write {
                    Some(slot) => store.write(*slot, x, &join, partial)?,
                    None => join.add(x, partial),
                };
                mark(Part::Branch(sites[*branch].kind));
            }
            Op::Reuse(reads) => {
                let joins: Vec<_> = reads
                    .iter()
                    .map(|read| (model.join(read.branch, at), *read))
                    .collect();
                x = store.reuse(x, &joins)?;
                mark(Part::Reuse);
            }
        }
    }
    Ok(x)
}
