//! One transformer block with adaLN-Zero conditioning, its branches callable one by one.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{DType, Tensor},
};

use super::config::NORM_EPS;
use crate::kernels::{self, VectorAt, add_bias, attention, gated_residual, gelu, modulate};

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

/// The adaLN vectors of one branch: shift, scale and gate of every batch element, where they lie in a slab.
#[derive(Debug, Clone)]
pub struct Modulation {
    /// `[blocks, rows, 6·dim]`
    slab: Tensor<3>,
    shift: VectorAt,
    dim: usize,
}

impl Modulation {
    /// Vectors of a branch of block `block` of the slab, those of element 0 in row `row`; elements beyond `count` rows
    /// share the last one.
    pub(super) fn new(
        slab: Tensor<3>,
        block: usize,
        branch: Branch,
        row: usize,
        count: usize,
    ) -> Self {
        let [_, rows, width] = slab.dims();
        let dim = width / 6;
        let column = match branch {
            Branch::Attention => 0,
            Branch::Mlp => 3 * dim,
        };
        let shift = VectorAt {
            start: (block * rows + row) * width + column,
            stride: width,
            count,
        };
        Self { slab, shift, dim }
    }

    /// What holds the vectors, `[blocks, rows, 6·dim]`.
    pub(crate) fn slab(&self) -> &Tensor<3> {
        &self.slab
    }

    /// Where the gates are in the slab.
    pub(crate) fn gate(&self) -> VectorAt {
        self.part(2)
    }

    /// Shift, scale and gate are neighbours.
    fn part(&self, i: usize) -> VectorAt {
        VectorAt {
            start: self.shift.start + i * self.dim,
            ..self.shift
        }
    }

    /// `LN(x)·(1 + scale) + shift`: what a branch is given. `[B, tokens, dim]`.
    fn apply(&self, x: Tensor<3>, eps: f64) -> Tensor<3> {
        modulate(x, &self.slab, self.part(0), self.part(1), eps)
    }

    /// `x + gate ⊙ feature`: how a branch's feature, fresh or cached, joins the residual stream.
    pub fn add(self, x: Tensor<3>, feature: Tensor<3>) -> Tensor<3> {
        gated_residual(x, &self.slab, self.gate(), feature, None)
    }

    /// `x + gate ⊙ (feature + bias)`.
    pub(crate) fn add_partial(&self, x: Tensor<3>, partial: Partial) -> Tensor<3> {
        let Partial { feature, bias } = partial;
        gated_residual(x, &self.slab, self.gate(), feature, Some(bias))
    }
}

/// A feature before the bias of its last layer, which is added where the feature is used anyway.
#[derive(Debug, Clone)]
pub(crate) struct Partial {
    /// `[B, tokens, dim]`
    pub feature: Tensor<3>,
    /// `[dim]`
    pub bias: Tensor<1>,
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
    /// The feature of a branch, before its gate and the residual add: `[B, tokens, dim]`.
    pub fn branch(&self, branch: Branch, x: Tensor<3>, modulation: &Modulation) -> Tensor<3> {
        let Partial { feature, bias } = self.partial(branch, x, modulation);
        add_bias(feature, bias)
    }

    /// The same with the branch's matrix products in `dtype`, which its weights must be in.
    pub(crate) fn branch_in(
        &self,
        dtype: DType,
        branch: Branch,
        x: Tensor<3>,
        modulation: &Modulation,
    ) -> Tensor<3> {
        let full = x.dtype();
        let x = self.modulated(branch, x, modulation).cast(dtype);
        let Partial { feature, bias } = self.products(branch, x);
        (feature + bias.unsqueeze()).cast(full)
    }

    /// The feature of a branch without its last bias.
    pub(crate) fn partial(&self, branch: Branch, x: Tensor<3>, modulation: &Modulation) -> Partial {
        self.products(branch, self.modulated(branch, x, modulation))
    }

    fn modulated(&self, branch: Branch, x: Tensor<3>, modulation: &Modulation) -> Tensor<3> {
        let eps = match branch {
            Branch::Attention => NORM_EPS,
            Branch::Mlp => self.mlp_norm_eps,
        };
        modulation.apply(x, eps)
    }

    /// Self-attention or the MLP of modulated tokens.
    fn products(&self, branch: Branch, x: Tensor<3>) -> Partial {
        let (feature, last) = match branch {
            Branch::Attention => {
                let qkv = product(&self.qkv, x);
                (attention(qkv, bias(&self.qkv), self.heads), &self.proj)
            }
            Branch::Mlp => (gelu(product(&self.fc1, x), bias(&self.fc1)), &self.fc2),
        };
        Partial {
            feature: product(last, feature),
            bias: bias(last),
        }
    }
}

/// `x·W`, without the bias: whatever comes next adds that on its way.
pub(super) fn product<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    kernels::product(x, layer.weight.val())
}

/// `x·W + b`.
pub(super) fn affine<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    add_bias(product(layer, x), bias(layer))
}

/// A layer's bias, `[outputs]`.
pub(super) fn bias(layer: &Linear) -> Tensor<1> {
    match &layer.bias {
        Some(bias) => bias.val(),
        None => {
            let [_, outputs] = layer.weight.val().dims();
            Tensor::zeros([outputs], &layer.weight.val().device())
        }
    }
}
