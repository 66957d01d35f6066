//! The transformer of PixArt-α (arXiv 2310.00426) and -Σ (2403.04692).
//!
//! As a DiT's, but one adaLN projection serves all blocks ("adaLN-single"): a block adds a table of its own to it. Between
//! attention and MLP every block attends to the text, without a norm before and without a gate after it.

use std::sync::Arc;

use burn::tensor::{
    Device, Tensor, TensorData,
    activation::{silu, softmax},
};

use super::config::PixArtConfig;
use crate::{
    graph::SiteKind,
    kernels::{attention, embed_tokens, gelu, patches_of},
    layers::{Affine, NORM_EPS, affine, bias, embed_features, features_on, product},
    models::{
        At, Condition, Context, Denoiser, Join, Outline, Partial, Picture, Supply, TextContext,
        TextEmbedding, Times,
    },
};

/// The branches of a block in execution order.
pub(super) const BRANCHES: [SiteKind; 3] = [
    SiteKind::SelfAttention,
    SiteKind::CrossAttention,
    SiteKind::Mlp,
];

/// What a text token that does not count adds to its scores.
const MASKED: f32 = -10_000.0;

/// One block: `x += gate_a ⊙ Attn(LN(x)(1+scale_a)+shift_a)`, `x += Cross(x, text)`,
/// `x += gate_m ⊙ MLP(LN(x)(1+scale_m)+shift_m)`.
#[derive(Debug)]
pub struct PixArtBlock {
    qkv: Affine,
    proj: Affine,
    /// `[dim, dim]`: queries of the text attention.
    cross_q: Affine,
    /// `[dim, 2·dim]`: its keys and values.
    cross_kv: Affine,
    cross_proj: Affine,
    fc1: Affine,
    fc2: Affine,
    /// `[6, dim]`: what the block adds to the shared shift, scale and gate of attention and MLP.
    table: Tensor<2>,
}

/// The embeddings of resolution and aspect ratio.
#[derive(Debug)]
pub struct MicroEmbedder {
    resolution: [Affine; 2],
    aspect_ratio: [Affine; 2],
}

/// A PixArt transformer.
#[derive(Debug)]
pub struct PixArt {
    patch_embedder: Affine,
    /// `[1, tokens, dim]`
    positions: Tensor<3>,
    timestep: [Affine; 2],
    micro: Option<MicroEmbedder>,
    /// `[dim, 6·dim]`: shift, scale, gate of attention, then of the MLP, for all blocks.
    modulation: Affine,
    caption: [Affine; 2],
    /// `[text tokens, caption]`: what stands for no text.
    null_text: Option<Tensor<2>>,
    blocks: Vec<PixArtBlock>,
    /// `[2, dim]`: shift and scale of the last layer, added to the timestep's embedding.
    final_table: Tensor<2>,
    final_linear: Affine,
    config: PixArtConfig,
    outline: Arc<Outline>,
    null: Option<Condition>,
}

impl PixArt {
    pub(super) fn assemble(
        config: &PixArtConfig,
        outline: Arc<Outline>,
        supply: &mut dyn Supply,
    ) -> Self {
        let mut two = |first: &str, second: &str| [supply.linear(first), supply.linear(second)];
        let timestep = two("t_embedder.mlp.0", "t_embedder.mlp.2");
        let micro = config.micro_conditions.then(|| MicroEmbedder {
            resolution: two("csize_embedder.mlp.0", "csize_embedder.mlp.2"),
            aspect_ratio: two("ar_embedder.mlp.0", "ar_embedder.mlp.2"),
        });
        let caption = two("y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2");
        let blocks = (0..config.blocks)
            .map(|b| PixArtBlock {
                qkv: supply.linear(&format!("blocks.{b}.attn.qkv")),
                proj: supply.linear(&format!("blocks.{b}.attn.proj")),
                cross_q: supply.linear(&format!("blocks.{b}.cross_attn.q_linear")),
                cross_kv: supply.linear(&format!("blocks.{b}.cross_attn.kv_linear")),
                cross_proj: supply.linear(&format!("blocks.{b}.cross_attn.proj")),
                fc1: supply.linear(&format!("blocks.{b}.mlp.fc1")),
                fc2: supply.linear(&format!("blocks.{b}.mlp.fc2")),
                table: supply.matrix(&format!("blocks.{b}.scale_shift_table")),
            })
            .collect();
        Self {
            patch_embedder: supply.linear("x_embedder.proj"),
            positions: supply.positions(),
            timestep,
            micro,
            modulation: supply.linear("t_block.1"),
            caption,
            null_text: config
                .null_text
                .then(|| supply.matrix("y_embedder.y_embedding")),
            blocks,
            final_table: supply.matrix("final_layer.scale_shift_table"),
            final_linear: supply.linear("final_layer.linear"),
            config: config.clone(),
            outline,
            null: None,
        }
    }

    /// The same, knowing what stands for no text as a condition.
    pub(super) fn with_null(self) -> Self {
        let read = |table: &Tensor<2>| {
            let values = table
                .clone()
                .try_into_data()
                .ok()?
                .try_into_vec::<f32>()
                .ok()?;
            let width = self.config.caption;
            let mask = vec![true; values.len() / width];
            let text = TextEmbedding::new(values, width, mask).ok()?;
            Some(Condition::Text(Arc::new(text)))
        };
        let null = self.null_text.as_ref().and_then(read);
        Self { null, ..self }
    }

    /// `e`, `[n, dim]`: the embedding of timesteps and, where the network is told them, of the pictures' sizes; as many of
    /// both, or no pictures.
    fn embed_times(&self, timesteps: &[f32], pictures: &[Picture]) -> Tensor<2> {
        let device = Denoiser::device(self);
        let embedded = |layers: &[Affine; 2], values: &[f32]| {
            embed_features(&layers[0], &layers[1], features_on(values, 0, &device))
        };
        let e = embedded(&self.timestep, timesteps);
        let Some(micro) = &self.micro else {
            return e;
        };
        let width = self.config.micro_width();
        let sides: Vec<f32> = pictures
            .iter()
            .flat_map(|picture| picture.resolution)
            .collect();
        let ratios: Vec<f32> = pictures
            .iter()
            .map(|picture| picture.aspect_ratio)
            .collect();
        let size = embedded(&micro.resolution, &sides).reshape([pictures.len(), 2 * width]);
        e + Tensor::cat(vec![size, embedded(&micro.aspect_ratio, &ratios)], 1)
    }

    /// Texts as one tensor `[n, tokens, caption]`, shorter ones padded, and what their tokens add to scores, `[n, 1, 1, tokens]`.
    fn texts(&self, conditions: &[Condition]) -> (Tensor<3>, Tensor<4>) {
        let texts: Vec<&TextEmbedding> = conditions
            .iter()
            .filter_map(|condition| match condition {
                Condition::Text(text) => Some(&**text),
                Condition::Class(_) => None,
            })
            .collect();
        let (width, count) = (self.config.caption, texts.len());
        let tokens = texts.iter().map(|text| text.tokens()).max().unwrap_or(1);
        let mut values = Vec::with_capacity(count * tokens * width);
        let mut bias = Vec::with_capacity(count * tokens);
        for (i, text) in texts.iter().enumerate() {
            values.extend_from_slice(text.values());
            values.resize((i + 1) * tokens * width, 0.0);
            bias.extend(
                text.mask()
                    .iter()
                    .map(|counts| if *counts { 0.0 } else { MASKED }),
            );
            bias.resize((i + 1) * tokens, MASKED);
        }
        let device = Denoiser::device(self);
        (
            Tensor::from_data(TensorData::new(values, [count, tokens, width]), &device),
            Tensor::from_data(TensorData::new(bias, [count, 1, 1, tokens]), &device),
        )
    }

    /// Attention of image tokens to text tokens, before its last layer.
    fn attend_to_text(
        &self,
        block: &PixArtBlock,
        x: Tensor<3>,
        keys_values: Tensor<3>,
        bias: Tensor<4>,
    ) -> Tensor<3> {
        let [batch, tokens, dim] = x.dims();
        let text = keys_values.dims()[1];
        let heads = self.config.heads;
        let head = dim / heads;
        let split =
            |x: Tensor<3>, tokens: usize| x.reshape([batch, tokens, heads, head]).swap_dims(1, 2);
        let q = split(affine(&block.cross_q, x), tokens);
        let k = split(keys_values.clone().narrow(2, 0, dim), text);
        let v = split(keys_values.narrow(2, dim, dim), text);
        let scores = q.matmul(k.swap_dims(2, 3)) * (head as f64).sqrt().recip() + bias;
        let mixed = softmax(scores, 3).matmul(v);
        mixed.swap_dims(1, 2).reshape([batch, tokens, dim])
    }
}

/// `rows` of `x`, the last of them as often as it takes to have `count`.
fn share_last<const D: usize>(x: Tensor<D>, count: usize) -> Tensor<D> {
    let rows = x.dims()[0];
    if rows >= count {
        return x;
    }
    let last = x.clone().narrow(0, rows - 1, 1).repeat_dim(0, count - rows);
    Tensor::cat(vec![x, last], 0)
}

/// Block and branch of a site.
fn place(site: usize) -> (usize, SiteKind) {
    (site / BRANCHES.len(), BRANCHES[site % BRANCHES.len()])
}

impl Denoiser for PixArt {
    fn outline(&self) -> &Outline {
        &self.outline
    }

    fn device(&self) -> Device {
        self.positions.clone().device()
    }

    fn null(&self) -> Option<Condition> {
        self.null.clone()
    }

    fn context(&self, conditions: &[Condition], elements: usize) -> Context {
        let (texts, bias) = self.texts(conditions);
        let [first, second] = &self.caption;
        let inner = gelu(product(first, texts), crate::layers::bias(first));
        let captions = affine(second, inner);
        let keys_values = self
            .blocks
            .iter()
            .map(|block| share_last(affine(&block.cross_kv, captions.clone()), elements))
            .collect();
        let asked = |condition: &Condition| match condition {
            Condition::Text(text) => text.picture(),
            Condition::Class(_) => None,
        };
        let picture = |condition| asked(condition).unwrap_or(self.config.picture());
        Context {
            labels: Vec::new(),
            pictures: match self.micro.is_some() {
                true => conditions.iter().map(picture).collect(),
                false => Vec::new(),
            },
            conditions: conditions.len(),
            text: Some(Arc::new(TextContext {
                keys_values,
                bias: share_last(bias, elements),
            })),
        }
    }

    fn prepare(&self, times: Times<'_>, context: &Context) -> At {
        // Vectors do not depend on the text, only on the picture's size where the network is told that: a step has one row
        // then, or one in all.
        let rows = match (times, context.pictures.len()) {
            (Times::Each(times), _) => times.len(),
            (Times::Steps(_), pictures) => pictures.max(1),
        };
        let timesteps = times.by_row(rows);
        let pictures = context.pictures.repeat(timesteps.len() / rows.max(1));
        let (n, dim) = (timesteps.len(), self.config.hidden);
        let e = self.embed_times(&timesteps, &pictures);
        let shared = affine(&self.modulation, silu(e.clone())).reshape([1, n, 6 * dim]);
        let mut slab: Vec<Tensor<3>> = self
            .blocks
            .iter()
            .map(|block| shared.clone() + block.table.clone().reshape([1, 1, 6 * dim]))
            .collect();
        // A block more of ones: the gates of branches that have none.
        slab.push(shared.ones_like());
        let last = e.unsqueeze_dim::<3>(1) + self.final_table.clone().unsqueeze::<3>();
        At::new(
            vec![Tensor::cat(slab, 0)],
            last.reshape([1, n, 2 * dim]),
            rows,
        )
        .with_text(context.text.clone())
    }

    fn prepared_numbers(&self, conditions: usize) -> [usize; 2] {
        let width = self.config.hidden * (6 * (self.config.blocks + 1) + 2);
        let rows = if self.micro.is_some() { conditions } else { 1 };
        [rows * width, self.config.hidden * 6 * self.config.hidden]
    }

    fn begin(&self, x: Tensor<4>, copies: usize) -> Tensor<3> {
        let layer = &self.patch_embedder;
        let tokens = product(layer, patches_of(x, self.config.patch));
        embed_tokens(tokens, bias(layer), self.positions.clone(), copies)
    }

    fn compute(&self, site: usize, x: Tensor<3>, at: &At) -> Partial {
        let (b, kind) = place(site);
        let block = &self.blocks[b];
        let (feature, last) = match kind {
            SiteKind::SelfAttention => {
                let qkv = product(&block.qkv, at.modulated(x, b, 0, NORM_EPS));
                (
                    attention(qkv, bias(&block.qkv), self.config.heads),
                    &block.proj,
                )
            }
            SiteKind::CrossAttention => {
                let mixed = match at.text() {
                    Some(text) => {
                        let keys_values = text.keys_values[b].clone();
                        self.attend_to_text(block, x, keys_values, text.bias.clone())
                    }
                    // Without a text there is nothing to attend to.
                    None => x.zeros_like(),
                };
                (mixed, &block.cross_proj)
            }
            SiteKind::Mlp => {
                let inner = product(&block.fc1, at.modulated(x, b, 3, NORM_EPS));
                (gelu(inner, bias(&block.fc1)), &block.fc2)
            }
        };
        Partial {
            feature: product(last, feature),
            bias: Some(bias(last)),
        }
    }

    fn join(&self, site: usize, at: &At) -> Join {
        match place(site) {
            (b, SiteKind::SelfAttention) => at.join(b, 2),
            (b, SiteKind::Mlp) => at.join(b, 5),
            (_, SiteKind::CrossAttention) => at.join(self.blocks.len(), 0),
        }
    }

    fn end(&self, x: Tensor<3>, at: &At) -> Partial {
        let x = at.modulated_last(x, NORM_EPS);
        Partial {
            feature: product(&self.final_linear, x),
            bias: Some(bias(&self.final_linear)),
        }
    }
}
