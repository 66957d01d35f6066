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
    let head = qkv.dims()[2] / 3 / heads;
    if route(&[Place::of(&qkv), Place::of(&bias)]) == Route::Fast && tile_of(head).is_some() {
        let (qkv, bias) = (qkv.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(<Dispatch as SamplingKernels>::attention(qkv, bias, heads));
    }
    let [batch, tokens, width] = qkv.dims();
    let dim = width / 3;
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

/// Keys of a tile for heads of this many channels: keys and values share WebGPU's 16 KiB of workgroup memory.
/// `None` where not even one fits.
fn tile_of(head: usize) -> Option<u32> {
    let bytes_of_key = 2 * 16 * head.div_ceil(4);
    match 16 * 1024 / bytes_of_key.max(1) {
        0 => None,
        keys => Some(keys.min(16) as u32),
    }
}

pub(super) fn attention_wgsl(qkv: CubeTensor, bias: CubeTensor, heads: usize) -> CubeTensor {
    /// Queries of a workgroup.
    const THREADS: u32 = 64;
    let (qkv, bias) = (into_contiguous(qkv), into_contiguous(bias));
    let [batch, tokens, width] = wgsl::dims(&qkv);
    let (dim, head) = (width / 3, width / 3 / heads);
    let out = wgsl::empty(&qkv, Shape::new([batch, tokens, dim]));
    let quads = head.div_ceil(4) as u32;
    // Without a tile the composed form was taken.
    let tile = tile_of(head).unwrap_or(1);
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

/// Queries that the CPU takes at a time: one or a few vectors of them.
const LANES: usize = 16;
/// Keys, or channels of a value, that meet the queries at a time. With 16 lanes, that many accumulators stay in
/// registers also where vectors are short.
const ROWS: usize = 4;
/// Queries of a thread's piece of work.
const PIECE: usize = 64;

/// The CPU twin; `qkv` is `[B, tokens, 3·dim]`.
pub(super) fn attention_cpu(
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
            let mut head = Head::new(tokens, dim, heads);
            for h in 0..heads {
                head.pack(image, bias, h);
                for (block, out) in out.chunks_mut(LANES * dim).enumerate() {
                    head.mix(image, bias, first + block * LANES, out);
                }
            }
        });
}

/// Keys and values of one head, laid out for [`Products`], and room for the scores of a vector of queries.
struct Head {
    tokens: usize,
    dim: usize,
    size: usize,
    /// First channel of the head.
    column: usize,
    /// `[tokens/4][size][4]`
    keys: Vec<f32>,
    /// `[size/4][tokens][4]`
    values: Vec<f32>,
    /// `[size][16]`
    queries: Vec<f32>,
    /// `[tokens][16]`, the keys padded to a multiple of 4
    scores: Vec<f32>,
    /// `[size][16]`, the channels padded likewise
    mixed: Vec<f32>,
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
            mixed: vec![0.0; size.next_multiple_of(ROWS) * LANES],
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
        let arch = pulp::Arch::new();
        arch.dispatch(Products {
            groups: &self.keys,
            by: &self.queries,
            out: &mut self.scores,
        });
        let (scores, _) = self.scores.as_chunks_mut::<LANES>();
        let scores = &mut scores[..self.tokens];
        let mut total = [0.0; LANES];
        arch.dispatch(|| {
            let mut largest = [f32::MIN; LANES];
            for score in scores.iter() {
                for lane in 0..LANES {
                    largest[lane] = largest[lane].max(score[lane]);
                }
            }
            for score in scores.iter_mut() {
                for lane in 0..LANES {
                    score[lane] = exp(score[lane] - largest[lane]);
                    total[lane] += score[lane];
                }
            }
        });
        arch.dispatch(Products {
            groups: &self.values,
            by: scores.as_flattened(),
            out: &mut self.mixed,
        });
        for (channel, mixed) in self.mixed.as_chunks::<LANES>().0[..size].iter().enumerate() {
            for lane in 0..rows {
                out[lane * dim + self.column + channel] = mixed[lane] / total[lane];
            }
        }
    }
}

/// `out[g][r][l] = Σ_k groups[g][k][r]·by[k][l]`.
struct Products<'a> {
    /// `[n][k][4]`
    groups: &'a [f32],
    /// `[k][16]`
    by: &'a [f32],
    /// `[n][4][16]`
    out: &'a mut [f32],
}

impl pulp::WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 1>(simd),
            8 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, LANES>(simd),
        }
    }
}

impl Products<'_> {
    /// With `LANES` as `V` vectors.
    #[inline(always)]
    fn run<S: pulp::Simd, const V: usize>(self, simd: S) {
        let by = self.by.as_chunks::<LANES>().0;
        let groups = self.groups.chunks_exact(by.len() * ROWS);
        let out = self.out.as_chunks_mut::<LANES>().0;
        for (group, out) in groups.zip(out.chunks_exact_mut(ROWS)) {
            let mut sums = [[simd.splat_f32s(0.0); V]; ROWS];
            for (a, b) in group.as_chunks::<ROWS>().0.iter().zip(by) {
                let (b, _) = S::as_simd_f32s(b);
                for (sums, a) in sums.iter_mut().zip(a) {
                    let a = simd.splat_f32s(*a);
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = simd.mul_add_f32s(a, *b, *sum);
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                S::as_mut_simd_f32s(out).0.copy_from_slice(&sums);
            }
        }
    }
}
