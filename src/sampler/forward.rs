//! One pass through the network under a step of a plan.

use burn::tensor::Tensor;

use super::parts::{Part, PartTimes};
use crate::{
    cache::FeatureStore,
    dit::{Branch, Conditioning, Dit},
    plan::Op,
};

/// The tokens after the last block, `[copies·B, tokens, dim]`, for `x` `[B, C, H, W]` under one step's ops.
///
/// A reused branch issues no work but its part of `x + Σ gate ⊙ feature`.
pub(super) fn planned_tokens(
    model: &Dit,
    ops: &[Op],
    x: Tensor<4>,
    copies: usize,
    conditioning: &Conditioning,
    store: &mut FeatureStore,
    mut parts: Option<&mut PartTimes>,
) -> Tensor<3> {
    let mut mark = |part: Part| {
        if let Some(parts) = &mut parts {
            parts.mark(part, &model.device());
        }
    };
    let mut x = model.embed_copies(x, copies);
    mark(Part::Embedding);
    for op in ops {
        match op {
            Op::Compute { branch: n, write } => {
                let branch = Branch::BLOCK[n % 2];
                let modulation = conditioning.branch(n / 2, branch);
                let partial = model.blocks[n / 2].partial(branch, x.clone(), &modulation);
                x = match write {
                    Some(slot) => store.write(
                        *slot,
                        x,
                        (modulation.slab(), modulation.gate()),
                        partial.feature,
                        partial.bias,
                    ),
                    None => modulation.add_partial(x, partial),
                };
                mark(match branch {
                    Branch::Attention => Part::Attention,
                    Branch::Mlp => Part::Mlp,
                });
            }
            Op::Reuse(reads) => {
                let modulation = |n: usize| conditioning.branch(n / 2, Branch::BLOCK[n % 2]);
                let span: Vec<_> = reads
                    .iter()
                    .map(|read| (modulation(read.branch).gate(), *read))
                    .collect();
                x = store.reuse(x, modulation(0).slab(), &span);
                mark(Part::Reuse);
            }
        }
    }
    x
}
