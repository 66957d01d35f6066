//! The whole network.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Device, Tensor, activation::silu},
};

use super::{
    block::{Block, Branch, Modulation, affine, bias, product},
    config::{DitConfig, NORM_EPS},
    embed::{ConditionEmbedder, condition_inputs},
};
use crate::kernels::{VectorAt, add_bias, embed_tokens, modulate};

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

/// Everything in a forward pass that depends on `(t, y)` alone, of one step or of many.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// `[blocks, rows, 6·dim]` of all blocks, or `[1, rows, 6·dim]` a block.
    slabs: Vec<Tensor<3>>,
    /// `[1, rows, 2·dim]`
    last: Tensor<3>,
    /// First row, and rows, of the step at hand.
    row: usize,
    count: usize,
}

impl Conditioning {
    /// The adaLN vectors of one branch of block `block`.
    pub fn branch(&self, block: usize, branch: Branch) -> Modulation {
        let (slab, block) = match self.slabs.as_slice() {
            [all] => (all, block),
            each => (&each[block], 0),
        };
        Modulation::new(slab.clone(), block, branch, self.row, self.count)
    }

    /// The same vectors, those of step `step` of a [`Dit::condition_steps`] of `count` rows a step.
    pub fn step(&self, step: usize, count: usize) -> Self {
        Self {
            row: step * count,
            count,
            ..self.clone()
        }
    }

    /// Shift and scale of the last layer.
    fn last(&self, dim: usize) -> [VectorAt; 2] {
        let at = |part: usize| VectorAt {
            start: self.row * 2 * dim + part * dim,
            stride: 2 * dim,
            count: self.count,
        };
        [at(0), at(1)]
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

    /// adaLN vectors of `n` pairs of timestep and label, one a batch element.
    ///
    /// `timesteps` and `labels` have the same length `n`; labels are at most `classes` (the null label).
    pub fn condition(&self, timesteps: &[f32], labels: &[usize]) -> Conditioning {
        let (blocks, last) = self.adaln(timesteps, labels);
        let count = labels.len();
        Conditioning {
            slabs: blocks.into_iter().map(|b| b.unsqueeze()).collect(),
            last: last.unsqueeze(),
            row: 0,
            count,
        }
    }

    /// adaLN vectors of many steps at once: every adaLN weight is read once instead of once a step.
    ///
    /// [`Conditioning::step`] picks a step's vectors, `labels.len()` rows. In a guided batch of `B` images, `labels` are
    /// those of the images and the null label once: elements beyond the rows share the last.
    pub fn condition_steps(&self, timesteps: &[f32], labels: &[usize]) -> Conditioning {
        let times: Vec<f32> = timesteps
            .iter()
            .flat_map(|t| std::iter::repeat_n(*t, labels.len()))
            .collect();
        let all = labels.repeat(timesteps.len());
        let (blocks, last) = self.adaln(&times, &all);
        let blocks = blocks.into_iter().map(|b| b.unsqueeze()).collect();
        Conditioning {
            slabs: vec![Tensor::cat(blocks, 0)],
            last: last.unsqueeze(),
            row: 0,
            count: labels.len(),
        }
    }

    /// `[n, 6·dim]` a block, and `[n, 2·dim]` of the last layer.
    fn adaln(&self, timesteps: &[f32], labels: &[usize]) -> (Vec<Tensor<2>>, Tensor<2>) {
        let (features, labels) = condition_inputs(
            timesteps,
            labels,
            self.config.timestep_shift,
            &self.device(),
        );
        let c: Vec<_> = self
            .embedders
            .iter()
            .map(|e| silu(e.forward(features.clone(), labels.clone())))
            .collect();
        let of = |block: usize| c[block.min(c.len() - 1)].clone();
        let blocks = self.blocks.iter().enumerate();
        (
            blocks
                .map(|(b, block)| affine(&block.modulation, of(b)))
                .collect(),
            affine(&self.final_modulation, of(0)),
        )
    }

    /// Images `[B, C, H, W]` as tokens with positions, `[B, tokens, dim]`.
    pub fn embed(&self, x: Tensor<4>) -> Tensor<3> {
        self.embed_copies(x, 1)
    }

    /// The same `copies` times one after another, `[copies·B, tokens, dim]`: both halves of a guided batch see the
    /// same images.
    pub(crate) fn embed_copies(&self, x: Tensor<4>, copies: usize) -> Tensor<3> {
        let [batch, channels, ..] = x.dims();
        let ([rows, columns], p) = (self.config.grid(), self.config.patch);
        let patches = x
            .reshape([batch, channels, rows, p, columns, p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, channels * p * p]);
        let layer = &self.patch_embedder;
        let tokens = product(layer, patches);
        embed_tokens(tokens, bias(layer), self.positions.val(), copies)
    }

    /// Tokens `[B, tokens, dim]` after the last block as patches of the output before their bias,
    /// `[B, tokens, p²·C_out]`.
    pub(crate) fn patches(
        &self,
        x: Tensor<3>,
        conditioning: &Conditioning,
    ) -> (Tensor<3>, Tensor<1>) {
        let [shift, scale] = conditioning.last(x.dims()[2]);
        let x = modulate(x, &conditioning.last, shift, scale, NORM_EPS);
        (product(&self.final_linear, x), bias(&self.final_linear))
    }

    /// Tokens `[B, tokens, dim]` after the last block as network output `[B, C_out, H, W]`.
    pub fn unembed(&self, x: Tensor<3>, conditioning: &Conditioning) -> Tensor<4> {
        let batch = x.dims()[0];
        let (patches, bias) = self.patches(x, conditioning);
        let ([rows, columns], p, channels) = (
            self.config.grid(),
            self.config.patch,
            self.config.out_channels(),
        );
        add_bias(patches, bias)
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
                let partial = block.partial(branch, x.clone(), &modulation);
                x = modulation.add_partial(x, partial);
            }
        }
        self.unembed(x, &conditioning)
    }
}
