//! One transformer block with adaLN-Zero conditioning, its branches callable one by one.

use burn::tensor::{DType, Tensor};

use crate::{
    graph::SiteKind,
    kernels::{attention, gelu},
    layers::{Affine, NORM_EPS, bias, product},
    models::{At, Partial},
};

/// The branches of a block in execution order, and where the vectors of each begin among the block's six.
pub(super) const BRANCHES: [(SiteKind, usize); 2] =
    [(SiteKind::SelfAttention, 0), (SiteKind::Mlp, 3)];

/// `x += gate_a ⊙ Attn(LN(x)(1+scale_a)+shift_a)`, then `x += gate_m ⊙ MLP(LN(x)(1+scale_m)+shift_m)`.
#[derive(Debug)]
pub struct Block {
    /// `[dim, 3·dim]`: queries, keys, values.
    pub qkv: Affine,
    /// `[dim, dim]`
    pub proj: Affine,
    /// `[dim, 4·dim]`
    pub fc1: Affine,
    /// `[4·dim, dim]`
    pub fc2: Affine,
    /// `[dim, 6·dim]`: shift, scale, gate of attention, then of the MLP.
    pub modulation: Affine,
    pub heads: usize,
    pub mlp_norm_eps: f64,
}

impl Block {
    /// The feature of branch `branch` of block `b` of `at`, without its last bias: `[B, tokens, dim]`.
    pub(super) fn partial(&self, branch: usize, x: Tensor<3>, b: usize, at: &At) -> Partial {
        let (kind, _) = BRANCHES[branch];
        self.products(kind, self.modulated(branch, x, b, at))
    }

    /// The feature with the branch's matrix products in `dtype`, which its weights must be in.
    pub(super) fn branch_in(
        &self,
        dtype: DType,
        branch: usize,
        x: Tensor<3>,
        b: usize,
        at: &At,
    ) -> Tensor<3> {
        let full = x.dtype();
        let x = self.modulated(branch, x, b, at).cast(dtype);
        let Partial { feature, bias } = self.products(BRANCHES[branch].0, x);
        match bias {
            Some(bias) => (feature + bias.unsqueeze()).cast(full),
            None => feature.cast(full),
        }
    }

    fn modulated(&self, branch: usize, x: Tensor<3>, b: usize, at: &At) -> Tensor<3> {
        let (kind, first) = BRANCHES[branch];
        let eps = match kind {
            SiteKind::Mlp => self.mlp_norm_eps,
            _ => NORM_EPS,
        };
        at.modulated(x, b, first, eps)
    }

    /// Self-attention or the MLP of modulated tokens.
    fn products(&self, kind: SiteKind, x: Tensor<3>) -> Partial {
        let (feature, last) = match kind {
            SiteKind::Mlp => (gelu(product(&self.fc1, x), bias(&self.fc1)), &self.fc2),
            _ => {
                let qkv = product(&self.qkv, x);
                (attention(qkv, bias(&self.qkv), self.heads), &self.proj)
            }
        };
        Partial {
            feature: product(last, feature),
            bias: Some(bias(last)),
        }
    }
}
