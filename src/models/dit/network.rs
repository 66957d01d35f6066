//! The whole network.

use std::{ops::Range, sync::Arc};

use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation::silu};

use super::{
    DitConfig,
    block::{BRANCHES, Block},
    embed::ConditionEmbedder,
    own_embedder,
};
use crate::{
    kernels::{asked_on_the_way_back, embed_tokens, images_of, patches_of},
    layers::{Affine, NORM_EPS, affine, bias, features_on, product},
    models::{At, Condition, Context, Denoiser, Join, Outline, Partial, Supply, Times},
    stop::{Asked, Stopped},
};

/// A DiT. Made by [`crate::checkpoint::load_model`] or [`crate::checkpoint::random_model`].
#[derive(Debug)]
pub struct Dit {
    /// `[C·p², dim]`: the patch embedding, a strided convolution written as a matrix.
    pub patch_embedder: Affine,
    /// `[1, tokens, dim]`
    pub positions: Tensor<3>,
    /// One for the whole network, or one a block (diffusers trains them apart).
    pub embedders: Vec<ConditionEmbedder>,
    pub blocks: Vec<Block>,
    /// `[dim, 2·dim]`: shift, scale.
    pub final_modulation: Affine,
    /// `[dim, p²·C_out]`
    pub final_linear: Affine,
    config: DitConfig,
    outline: Arc<Outline>,
}

impl Dit {
    /// The network, or with fewer `blocks` a part of it with all that comes before and after them.
    ///
    /// `own_embedders`: one timestep and label embedder a block. A part without blocks then has block 0's, which
    /// conditions the last layer.
    pub fn assemble(
        config: &DitConfig,
        outline: Arc<Outline>,
        blocks: Range<usize>,
        own_embedders: bool,
        supply: &mut dyn Supply,
    ) -> Self {
        let prefixes: Vec<String> = match own_embedders {
            true if blocks.is_empty() => vec![own_embedder(0)],
            true => blocks.clone().map(own_embedder).collect(),
            false => vec![String::new()],
        };
        let embedders = prefixes
            .iter()
            .map(|p| ConditionEmbedder {
                timestep_in: supply.linear(&format!("{p}t_embedder.mlp.0")),
                timestep_out: supply.linear(&format!("{p}t_embedder.mlp.2")),
                labels: supply.matrix(&format!("{p}y_embedder.embedding_table.weight")),
            })
            .collect();
        let blocks = blocks
            .map(|b| Block {
                qkv: supply.linear(&format!("blocks.{b}.attn.qkv")),
                proj: supply.linear(&format!("blocks.{b}.attn.proj")),
                fc1: supply.linear(&format!("blocks.{b}.mlp.fc1")),
                fc2: supply.linear(&format!("blocks.{b}.mlp.fc2")),
                modulation: supply.linear(&format!("blocks.{b}.adaLN_modulation.1")),
                heads: config.heads,
                mlp_norm_eps: config.mlp_norm_eps,
            })
            .collect();
        Self {
            patch_embedder: supply.linear("x_embedder.proj"),
            positions: supply.positions(),
            embedders,
            blocks,
            final_modulation: supply.linear("final_layer.adaLN_modulation.1"),
            final_linear: supply.linear("final_layer.linear"),
            config: config.clone(),
            outline,
        }
    }

    /// The network's shape.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// adaLN vectors of `n` pairs of timestep and label, one a batch element, each block's in a tensor of its own.
    ///
    /// `timesteps` and `labels` have the same length `n`; labels are at most `classes` (the null label).
    pub fn condition(&self, timesteps: &[f32], labels: &[usize]) -> At {
        let (blocks, last) = self.adaln(timesteps, labels);
        let slabs = blocks.into_iter().map(|b| b.unsqueeze()).collect();
        At::new(slabs, last.unsqueeze(), labels.len())
    }

    /// `[n, 6·dim]` a block, and `[n, 2·dim]` of the last layer.
    fn adaln(&self, timesteps: &[f32], labels: &[usize]) -> (Vec<Tensor<2>>, Tensor<2>) {
        let device = Denoiser::device(self);
        let features = features_on(timesteps, self.config.timestep_shift, &device);
        let labels: Vec<i32> = labels.iter().map(|y| *y as i32).collect();
        let count = labels.len();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [count]), &device);
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

    /// All blocks that this part has, their matrix products in half precision where that is named. Before each branch, on the way
    /// back too, `asked` is asked.
    ///
    /// # Errors
    /// [`Stopped`].
    pub(crate) fn run_blocks(
        &self,
        x: Tensor<3>,
        at: &At,
        half: Option<DType>,
        asked: &Asked,
    ) -> Result<Tensor<3>, Stopped> {
        (0..self.blocks.len()).try_fold(x, |x, b| self.run_block(b, x, at, half, asked))
    }

    /// One block.
    ///
    /// # Errors
    /// [`Stopped`].
    pub(crate) fn run_block(
        &self,
        b: usize,
        x: Tensor<3>,
        at: &At,
        half: Option<DType>,
        asked: &Asked,
    ) -> Result<Tensor<3>, Stopped> {
        (0..BRANCHES.len()).try_fold(x, |x, i| {
            asked.go_on()?;
            let x = asked_on_the_way_back(x, asked);
            Ok(self.run_branch(b, i, x, at, half))
        })
    }

    fn run_branch(
        &self,
        b: usize,
        i: usize,
        x: Tensor<3>,
        at: &At,
        half: Option<DType>,
    ) -> Tensor<3> {
        let block = &self.blocks[b];
        let partial = match half {
            None => block.partial(i, x.clone(), b, at),
            Some(half) => block.branch_in(half, i, x.clone(), b, at).into(),
        };
        at.join(b, BRANCHES[i].1 + 2).add(x, partial)
    }

    /// Images `[B, C, H, W]` as tokens with positions, `[B, tokens, dim]`.
    pub(crate) fn embed(&self, x: Tensor<4>) -> Tensor<3> {
        self.begin(x, 1)
    }

    /// Tokens `[B, tokens, dim]` after the last block as network output `[B, C_out, H, W]`.
    pub(crate) fn unembed(&self, x: Tensor<3>, at: &At) -> Tensor<4> {
        images_of(
            self.end(x, at).whole(),
            self.config.grid(),
            self.config.patch,
        )
    }
}

/// Block and branch of a site.
fn place(site: usize) -> (usize, usize) {
    (site / BRANCHES.len(), site % BRANCHES.len())
}

impl Denoiser for Dit {
    fn outline(&self) -> &Outline {
        &self.outline
    }

    fn device(&self) -> Device {
        self.positions.clone().device()
    }

    fn null(&self) -> Option<Condition> {
        Some(Condition::Class(self.config.classes))
    }

    fn context(&self, conditions: &[Condition], _elements: usize) -> Context {
        Context {
            labels: conditions.iter().filter_map(Condition::class).collect(),
            pictures: Vec::new(),
            conditions: conditions.len(),
            text: None,
        }
    }

    fn prepare(&self, times: Times<'_>, context: &Context) -> At {
        let timesteps = times.by_row(context.conditions);
        let labels = context
            .labels
            .repeat(timesteps.len() / context.conditions.max(1));
        let (blocks, last) = self.adaln(&timesteps, &labels);
        let blocks = blocks.into_iter().map(|b| b.unsqueeze()).collect();
        At::new(
            vec![Tensor::cat(blocks, 0)],
            last.unsqueeze(),
            context.conditions,
        )
    }

    fn prepared_numbers(&self, conditions: usize) -> [usize; 2] {
        let width = self.config.hidden * (6 * self.config.blocks + 2);
        [conditions * width, self.config.hidden * width]
    }

    fn begin(&self, x: Tensor<4>, copies: usize) -> Tensor<3> {
        let layer = &self.patch_embedder;
        let tokens = product(layer, patches_of(x, self.config.patch));
        embed_tokens(tokens, bias(layer), self.positions.clone(), copies)
    }

    fn compute(&self, site: usize, x: Tensor<3>, at: &At) -> Partial {
        let (b, branch) = place(site);
        self.blocks[b].partial(branch, x, b, at)
    }

    fn join(&self, site: usize, at: &At) -> Join {
        let (b, branch) = place(site);
        // Shift, scale and gate are neighbours.
        at.join(b, BRANCHES[branch].1 + 2)
    }

    fn end(&self, x: Tensor<3>, at: &At) -> Partial {
        let x = at.modulated_last(x, NORM_EPS);
        Partial {
            feature: product(&self.final_linear, x),
            bias: Some(bias(&self.final_linear)),
        }
    }
}
