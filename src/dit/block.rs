//! One transformer block with adaLN-Zero conditioning, its branches callable one by one.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Tensor, activation::silu, module::attention},
};

use super::config::NORM_EPS;
use crate::kernels::{gated_residual, gelu, modulate};

/// A residual branch of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Branch {
    /// Self-attention.
    Attention,
    /// The two-layer MLP.
    Mlp,
}

impl Branch {
    /// Branches of a block in execution order; branch `n` of the network is `BLOCK[n % 2]` of block `n / 2`.
    pub const BLOCK: [Self; 2] = [Self::Attention, Self::Mlp];
}

/// The adaLN vectors of one branch, each `[B, 1, dim]`.
#[derive(Debug, Clone)]
pub struct Modulation {
    pub shift: Tensor<3>,
    pub scale: Tensor<3>,
    pub gate: Tensor<3>,
}

impl Modulation {
    /// `LN(x)·(1 + scale) + shift`: what a branch is given. `[B, tokens, dim]`.
    fn apply(&self, x: Tensor<3>, eps: f64) -> Tensor<3> {
        modulate(x, self.shift.clone(), self.scale.clone(), eps)
    }

    /// `x + gate ⊙ feature`: how a branch's feature, fresh or cached, joins the residual stream.
    pub fn add(self, x: Tensor<3>, feature: Tensor<3>) -> Tensor<3> {
        gated_residual(x, self.gate, feature)
    }
}

/// `x += gate_a ⊙ Attn(LN(x)(1+scale_a)+shift_a)`, then `x += gate_m ⊙ MLP(LN(x)(1+scale_m)+shift_m)`.
#[derive(Module, Debug)]
pub struct Block {
    /// `[dim, 3·dim]`: queries, keys, values.
    pub qkv: Linear,
    /// `[dim, dim]`
    pub proj: Linear,
    /// `[dim, 4·dim]`
    pub fc1: Linear,
    /// `[4·dim, dim]`
    pub fc2: Linear,
    /// `[dim, 6·dim]`: shift, scale, gate of attention, then of the MLP.
    pub modulation: Linear,
    pub heads: usize,
    pub mlp_norm_eps: f64,
}

impl Block {
    /// All adaLN vectors of the block for conditioning `c` `[n, dim]`: `[n, 6·dim]`.
    pub fn condition(&self, c: Tensor<2>) -> Tensor<2> {
        self.modulation.forward(silu(c))
    }

    /// The feature of a branch, before its gate and the residual add: `[B, tokens, dim]`.
    pub fn branch(&self, branch: Branch, x: Tensor<3>, modulation: &Modulation) -> Tensor<3> {
        match branch {
            Branch::Attention => self.attention(modulation.apply(x, NORM_EPS)),
            Branch::Mlp => self.mlp(modulation.apply(x, self.mlp_norm_eps)),
        }
    }

    /// Multi-head self-attention of modulated tokens, `[B, tokens, dim]` to the same.
    pub fn attention(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, dim] = x.dims();
        let head = dim / self.heads;
        let qkv = self
            .qkv
            .forward(x)
            .reshape([batch, tokens, 3, self.heads, head])
            .permute([2, 0, 3, 1, 4]);
        let part = |i: usize| {
            qkv.clone()
                .narrow(0, i, 1)
                .reshape([batch, self.heads, tokens, head])
        };
        let mixed = attention(part(0), part(1), part(2), None, None, Default::default());
        self.proj
            .forward(mixed.swap_dims(1, 2).reshape([batch, tokens, dim]))
    }

    /// The MLP of modulated tokens, `[B, tokens, dim]` to the same.
    pub fn mlp(&self, x: Tensor<3>) -> Tensor<3> {
        self.fc2.forward(gelu(self.fc1.forward(x)))
    }
}
