//! Multi-head self-attention from the fused projection: `softmax(q·kᵀ/√head)·v`.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::{Shape, Tensor, module::attention as composed};
use rayon::prelude::*;

use super::{
    Place, Route,
    lanes::exp,
    route,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// Attention of every head, `[B, tokens, dim]`, for `qkv` `[B, tokens, 3·dim]` (queries, keys, values; heads one after
/// another in each) before its bias `[3·dim]`.
pub fn attention(qkv: Tensor<3>, bias: Tensor<1>, heads: usize) -> Tensor<3> {
    if route(&[Place::of(&qkv), Place::of(&bias)]) == Route::Fast {
        let (qkv, bias) = (qkv.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(<Dispatch as SamplingKernels>::attention(qkv, bias, heads));
    }
    let [batch, tokens, width] = qkv.dims();
    let (dim, head) = (width / 3, width / 3 / heads);
    let qkv = (qkv + bias.unsqueeze())
        .reshape([batch, tokens, 3, heads, head])
        .permute([2, 0, 3, 1, 4]);
    let part = |i: usize| {
        qkv.clone()
            .narrow(0, i, 1)
            .reshape([batch, heads, tokens, head])
    };
    let mixed = composed(part(0), part(1), part(2), None, None, Default::default());
    mixed.swap_dims(1, 2).reshape([batch, tokens, dim])
}

pub(super) fn attention_wgsl(qkv: CubeTensor, bias: CubeTensor, heads: usize) -> CubeTensor {
    /// Queries of a workgroup.
    const THREADS: u32 = 64;
    /// WebGPU's default limit of workgroup memory, which keys and values of a tile share.
    const MEMORY: u32 = 16 * 1024;
    let (qkv, bias) = (into_contiguous(qkv), into_contiguous(bias));
    let [batch, tokens, width] = wgsl::dims(&qkv);
    let (dim, head) = (width / 3, width / 3 / heads);
    let out = wgsl::empty(&qkv, Shape::new([batch, tokens, dim]));
    let quads = head.div_ceil(4) as u32;
    let tile = (MEMORY / (2 * 16 * quads)).clamp(1, 16);
    let shader = Shader {
        name: "attention",
        source: include_str!("../../shaders/attention.wgsl"),
        constants: vec![
            ("threads", THREADS),
            ("quads", quads),
            ("tile", tile),
            ("tile_quads", tile * quads),
        ],
    };
    let query_tiles = tokens.div_ceil(THREADS as usize);
    let groups = batch * heads * query_tiles;
    let info = Info::of(&[groups, tokens, heads, head, query_tiles])
        .with_f32(&[1.0 / (head as f64).sqrt()]);
    wgsl::launch(shader, THREADS, groups, &[&qkv, &bias, &out], info);
    out
}

/// Queries that the CPU takes at a time: the lanes of the vector unit.
const LANES: usize = 16;
/// Keys, or channels of a value, that meet a vector of queries at a time: its accumulators.
const ROWS: usize = 8;
/// Queries of a thread's piece of work.
const PIECE: usize = 64;

/// The CPU twin; `qkv` is `[B, tokens, 3·dim]`.
pub fn attention_cpu(
    [_, tokens, width]: [usize; 3],
    heads: usize,
    qkv: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    let dim = width / 3;
    if out.is_empty() {
        return;
    }
    out.par_chunks_mut(tokens * dim)
        .enumerate()
        .flat_map(|(image, out)| {
            let pieces = out.par_chunks_mut(PIECE * dim).enumerate();
            pieces.map(move |(piece, out)| (image, piece * PIECE, out))
        })
        .for_each(|(image, first, out)| {
            let image = &qkv[image * tokens * width..][..tokens * width];
            pulp::Arch::new().dispatch(|| {
                let mut head = Head::new(tokens, dim, heads);
                for h in 0..heads {
                    head.pack(image, bias, h);
                    for (block, out) in out.chunks_mut(LANES * dim).enumerate() {
                        head.mix(image, bias, first + block * LANES, out);
                    }
                }
            });
        });
}

/// Keys and values of one head, laid out for [`multiply`], and room for the scores of a vector of queries.
struct Head {
    tokens: usize,
    dim: usize,
    size: usize,
    /// First channel of the head.
    column: usize,
    /// `[tokens/8][size][8]`
    keys: Vec<f32>,
    /// `[size/8][tokens][8]`
    values: Vec<f32>,
    /// `[size][16]`
    queries: Vec<f32>,
    /// `[tokens][16]`, the keys padded to a multiple of 8
    scores: Vec<f32>,
}

impl Head {
    fn new(tokens: usize, dim: usize, heads: usize) -> Self {
        let size = dim / heads;
        Self {
            tokens,
            dim,
            size,
            column: 0,
            keys: vec![0.0; tokens.next_multiple_of(ROWS) * size],
            values: vec![0.0; size.next_multiple_of(ROWS) * tokens],
            queries: vec![0.0; size * LANES],
            scores: vec![0.0; tokens.next_multiple_of(ROWS) * LANES],
        }
    }

    #[inline(always)]
    fn pack(&mut self, image: &[f32], bias: &[f32], head: usize) {
        let (size, dim) = (self.size, self.dim);
        self.column = head * size;
        let key_bias = &bias[dim + self.column..][..size];
        let value_bias = &bias[2 * dim + self.column..][..size];
        for token in 0..self.tokens {
            let row = &image[token * 3 * dim..][..3 * dim];
            let key = &row[dim + self.column..][..size];
            let value = &row[2 * dim + self.column..][..size];
            let group = &mut self.keys[token / ROWS * size * ROWS..][..size * ROWS];
            for (c, (key, bias)) in key.iter().zip(key_bias).enumerate() {
                group[c * ROWS + token % ROWS] = key + bias;
            }
            for (c, (value, bias)) in value.iter().zip(value_bias).enumerate() {
                let at = (c / ROWS * self.tokens + token) * ROWS + c % ROWS;
                self.values[at] = value + bias;
            }
        }
    }

    /// Attention of the queries `first..` that `out` `[≤16, dim]` has rows for.
    #[inline(always)]
    fn mix(&mut self, image: &[f32], bias: &[f32], first: usize, out: &mut [f32]) {
        let (size, dim) = (self.size, self.dim);
        let scale = 1.0 / (size as f32).sqrt();
        let rows = out.len() / dim;
        self.queries.fill(0.0);
        for lane in 0..rows {
            let query = &image[(first + lane) * 3 * dim + self.column..][..size];
            let bias = &bias[self.column..][..size];
            for (c, (query, bias)) in query.iter().zip(bias).enumerate() {
                self.queries[c * LANES + lane] = (query + bias) * scale;
            }
        }
        let groups = self.keys.chunks_exact(size * ROWS);
        for (group, scores) in groups.zip(self.scores.chunks_exact_mut(ROWS * LANES)) {
            let product = multiply(group, &self.queries);
            scores.copy_from_slice(product.as_flattened());
        }
        let (scores, _) = self.scores.as_chunks_mut::<LANES>();
        let scores = &mut scores[..self.tokens];
        let mut largest = [f32::MIN; LANES];
        for score in scores.iter() {
            for lane in 0..LANES {
                largest[lane] = largest[lane].max(score[lane]);
            }
        }
        let mut total = [0.0; LANES];
        for score in scores.iter_mut() {
            for lane in 0..LANES {
                score[lane] = exp(score[lane] - largest[lane]);
                total[lane] += score[lane];
            }
        }
        let weights = scores.as_flattened();
        for (group, values) in self.values.chunks_exact(self.tokens * ROWS).enumerate() {
            let product = multiply(values, weights);
            for (c, product) in product.iter().enumerate().take(size - group * ROWS) {
                let channel = self.column + group * ROWS + c;
                for lane in 0..rows {
                    out[lane * dim + channel] = product[lane] / total[lane];
                }
            }
        }
    }
}

/// `out[r][l] = Σ_k a[k][r]·b[k][l]`: the accumulators stay in registers.
#[inline(always)]
fn multiply(a: &[f32], b: &[f32]) -> [[f32; LANES]; ROWS] {
    let mut out = [[0.0; LANES]; ROWS];
    for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for r in 0..ROWS {
            for l in 0..LANES {
                out[r][l] += a[r] * b[l];
            }
        }
    }
    out
}
