//! The whole network.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Device, Tensor, activation::silu},
};

use super::{
    block::{Block, Branch, Modulation},
    config::{DitConfig, NORM_EPS},
    embed::{ConditionEmbedder, condition_inputs},
};
use crate::kernels::modulate;

/// A DiT. Made by [`crate::checkpoint::load_model`] or [`crate::checkpoint::random_model`].
#[derive(Module, Debug)]
pub struct Dit {
    /// `[C·p², dim]`: the patch embedding, a strided convolution written as a matrix.
    pub patch_embedder: Linear,
    /// `[1, tokens, dim]`
    pub positions: Param<Tensor<3>>,
    /// One for the whole network, or one a block (diffusers trains them apart).
    pub embedders: Vec<ConditionEmbedder>,
    pub blocks: Vec<Block>,
    /// `[dim, 2·dim]`: shift, scale.
    pub final_modulation: Linear,
    /// `[dim, p²·C_out]`
    pub final_linear: Linear,
    #[module(skip)]
    pub(crate) config: DitConfig,
}

/// Everything in a forward pass that depends on `(t, y)` alone.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// `[n, 6·dim]` a block.
    blocks: Vec<Tensor<2>>,
    /// `[n, 2·dim]`
    last: Tensor<2>,
}

impl Conditioning {
    /// The adaLN vectors of one branch of block `block`.
    pub fn branch(&self, block: usize, branch: Branch) -> Modulation {
        let first = match branch {
            Branch::Attention => 0,
            Branch::Mlp => 3,
        };
        let all = &self.blocks[block];
        let [rows, width] = all.dims();
        let dim = width / 6;
        let part = |i: usize| {
            all.clone()
                .narrow(1, (first + i) * dim, dim)
                .reshape([rows, 1, dim])
        };
        Modulation {
            shift: part(0),
            scale: part(1),
            gate: part(2),
        }
    }
}

impl Dit {
    /// The network's shape.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// The device its weights live on.
    pub fn device(&self) -> Device {
        self.positions.val().device()
    }

    /// adaLN vectors of `n` pairs of timestep and label.
    ///
    /// `timesteps` and `labels` have the same length `n`; labels are at most `classes` (the null label).
    pub fn condition(&self, timesteps: &[f32], labels: &[usize]) -> Conditioning {
        let (features, labels) = condition_inputs(
            timesteps,
            labels,
            self.config.timestep_shift,
            &self.device(),
        );
        let c: Vec<_> = self
            .embedders
            .iter()
            .map(|e| e.forward(features.clone(), labels.clone()))
            .collect();
        let of = |block: usize| c[block.min(c.len() - 1)].clone();
        Conditioning {
            blocks: self
                .blocks
                .iter()
                .enumerate()
                .map(|(b, block)| block.condition(of(b)))
                .collect(),
            last: self.final_modulation.forward(silu(of(0))),
        }
    }

    /// Images `[B, C, H, W]` as tokens with positions, `[B, tokens, dim]`.
    pub fn embed(&self, x: Tensor<4>) -> Tensor<3> {
        let [batch, channels, ..] = x.dims();
        let ([rows, columns], p) = (self.config.grid(), self.config.patch);
        let patches = x
            .reshape([batch, channels, rows, p, columns, p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, channels * p * p]);
        self.patch_embedder.forward(patches) + self.positions.val()
    }

    /// Tokens `[B, tokens, dim]` after the last block as network output `[B, C_out, H, W]`.
    pub fn unembed(&self, x: Tensor<3>, conditioning: &Conditioning) -> Tensor<4> {
        let [batch, _, dim] = x.dims();
        let last = conditioning.last.clone().reshape([batch, 2, dim]);
        let (shift, scale) = (last.clone().narrow(1, 0, 1), last.narrow(1, 1, 1));
        let patches = self
            .final_linear
            .forward(modulate(x, shift, scale, NORM_EPS));
        let ([rows, columns], p, channels) = (
            self.config.grid(),
            self.config.patch,
            self.config.out_channels(),
        );
        patches
            .reshape([batch, rows, columns, p, p, channels])
            .permute([0, 5, 1, 3, 2, 4])
            .reshape([batch, channels, rows * p, columns * p])
    }

    /// The network's output `[B, C_out, H, W]` for `x` `[B, C, H, W]`, a timestep and a label an image.
    pub fn forward(&self, x: Tensor<4>, timesteps: &[f32], labels: &[usize]) -> Tensor<4> {
        let conditioning = self.condition(timesteps, labels);
        let mut x = self.embed(x);
        for (b, block) in self.blocks.iter().enumerate() {
            for branch in Branch::BLOCK {
                let modulation = conditioning.branch(b, branch);
                let feature = block.branch(branch, x.clone(), &modulation);
                x = modulation.add(x, feature);
            }
        }
        self.unembed(x, &conditioning)
    }
}
