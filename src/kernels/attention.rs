//! Multi-head self-attention from the fused projection: `softmax(q·kᵀ/√head)·v`.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::{Shape, Tensor, module::attention as composed};
use rayon::prelude::*;

use super::{
    Hardware, Place, Route,
    differentiable::DifferentiableKernels,
    lanes::{add, column_sums, exp, sums_of_pieces, vectorised},
    microkernel::{LANES, Products, ROWS},
    on_cpu, route,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// Attention of every head, `[B, tokens, dim]`, for `qkv` `[B, tokens, 3·dim]` (queries, keys, values; heads one after
/// another in each) before its bias `[3·dim]`.
pub fn attention(qkv: Tensor<3>, bias: Tensor<1>, heads: usize) -> Tensor<3> {
    let [batch, tokens, width] = qkv.dims();
    let (dim, head) = (width / 3, width / 3 / heads);
    let route = route(&[Place::of(&qkv), Place::of(&bias)]);
    if route == Route::DifferentiableCpu || route == Route::Fast && takes(&qkv, heads) {
        let (qkv, bias) = (qkv.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(match route {
            Route::Fast => <Dispatch as SamplingKernels>::attention(qkv, bias, heads),
            _ => <Dispatch as DifferentiableKernels>::self_attention(qkv, bias, heads),
        });
    }
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

/// Whether the fast form takes this projection.
fn takes(qkv: &Tensor<3>, heads: usize) -> bool {
    let [batch, tokens, width] = qkv.dims();
    let hardware = Hardware::of_device(&qkv.device());
    on_cpu(&qkv.device()) || cut_of(hardware, width / 3 / heads, batch * heads * tokens).is_some()
}

/// How the shader cuts its work.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Queries of a workgroup.
    queries: u32,
    /// Threads that share a query.
    parts: u32,
    /// Keys of a tile.
    tile: u32,
}

impl Cut {
    /// Threads of a workgroup.
    fn threads(self) -> u32 {
        self.queries * self.parts
    }
}

/// The cut for heads of this many channels and so many queries in all: few queries are shared by more threads, as a GPU has
/// thousands. `None` where the shader takes no such heads.
fn cut_of(hardware: Hardware, head: usize, queries: usize) -> Option<Cut> {
    if !head.is_multiple_of(4) || head == 0 {
        return None;
    }
    // Measured on an H100, where a fill of threads is some 30,000.
    let (group, parts) = match queries {
        _ if hardware.software => (64, 1),
        32_768.. => (64, 2),
        6_144.. => (32, 4),
        1_024.. => (16, 4),
        _ => (16, 8),
    };
    // Keys and values share WebGPU's 16 KiB of workgroup memory.
    let most = if hardware.software { 16 } else { 32 };
    let keys = (16 * 1024 / (2 * 4 * head)).min(most) as u32;
    match keys / parts * parts {
        0 => None,
        tile => Some(Cut {
            queries: group,
            parts,
            tile,
        }),
    }
}

pub(super) fn attention_wgsl(qkv: CubeTensor, bias: CubeTensor, heads: usize) -> CubeTensor {
    /// Quads of channels that a thread has in workgroup memory at the end.
    const STEP: u32 = 4;
    let (qkv, bias) = (into_contiguous(qkv), into_contiguous(bias));
    let [batch, tokens, width] = wgsl::dims(&qkv);
    let (dim, head) = (width / 3, width / 3 / heads);
    let out = wgsl::empty(&qkv, Shape::new([batch, tokens, dim]));
    // Without a cut the composed form was taken.
    let hardware = Hardware::of(&qkv.device);
    let Some(cut) = cut_of(hardware, head, batch * heads * tokens) else {
        return out;
    };
    let quads = head as u32 / 4;
    let shader = Shader {
        name: "attention",
        source: include_str!("../../shaders/attention.wgsl"),
        constants: vec![
            ("threads", cut.threads()),
            ("quads", quads),
            ("queries", cut.queries),
            ("parts", cut.parts),
            ("tile", cut.tile),
            ("each", cut.tile / cut.parts),
            ("to_the_end", u32::from(!hardware.software)),
            ("room", (2 * cut.tile * quads).max(cut.threads() * STEP)),
        ],
    };
    let query_tiles = tokens.div_ceil(cut.queries as usize);
    let groups = batch * heads * query_tiles;
    let info =
        Info::of(&[groups, tokens, heads, query_tiles]).with_f32(&[1.0 / (head as f64).sqrt()]);
    wgsl::launch(shader, cut.threads(), groups, &[&qkv, &bias, &out], info);
    out
}

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
            onto: false,
            out: &mut self.scores,
        });
        let (scores, _) = self.scores.as_chunks_mut::<LANES>();
        let scores = &mut scores[..self.tokens];
        let total = vectorised(
            #[inline(always)]
            || exponentials(scores),
        );
        arch.dispatch(Products {
            groups: &self.values,
            by: scores.as_flattened(),
            onto: false,
            out: &mut self.mixed,
        });
        for (channel, mixed) in self.mixed.as_chunks::<LANES>().0[..size].iter().enumerate() {
            for lane in 0..rows {
                out[lane * dim + self.column + channel] = mixed[lane] / total[lane];
            }
        }
    }
}

/// Replaces scores by their exponentials, `e^(score − largest)`, and gives every lane's sum.
#[inline(always)]
fn exponentials(scores: &mut [[f32; LANES]]) -> [f32; LANES] {
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
    total
}

/// The gradients of [`attention_cpu`], given that of its output, `[B, tokens, dim]`: with respect to `qkv`, in its
/// place, and to the bias, `[3·dim]`.
///
/// With `S = Q·Kᵀ/√head`, `P = softmax(S)` and `dP = dO·Vᵀ`: `dV = Pᵀ·dO`, `dS = P∘(dP − Σ_keys P∘dP)`,
/// `dQ = dS·K/√head`, `dK = dSᵀ·Q/√head`. `P` is computed again, 16 queries at a time: nothing of `[tokens, tokens]`
/// is ever stored.
pub(super) fn attention_gradient_cpu(
    [_, tokens, width]: [usize; 3],
    heads: usize,
    qkv: &mut [f32],
    bias: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let dim = width / 3;
    let sums = sums_of_pieces(
        qkv,
        tokens * width,
        width,
        #[inline(always)]
        |image, qkv, sums| {
            let grad = &grad[image * tokens * dim..][..tokens * dim];
            let mut head = HeadGradient::new(tokens, dim, heads);
            for h in 0..heads {
                head.pack(qkv, bias, h);
                for first in (0..tokens).step_by(LANES) {
                    head.flow(qkv, bias, grad, first);
                }
                head.unpack(qkv);
            }
            for row in qkv.chunks_exact(width) {
                add(sums, row);
            }
        },
    );
    column_sums(&sums, width)
}

/// One head on the way back: its keys and values, laid out for [`Products`] of groups of 4 rows with columns of 16
/// numbers, what belongs to 16 queries, and the gradients so far.
struct HeadGradient {
    tokens: usize,
    dim: usize,
    size: usize,
    /// First channel of the head.
    column: usize,
    /// `[tokens/4][size][4]`
    keys: Vec<f32>,
    /// `[tokens/4][size][4]`
    values: Vec<f32>,
    /// `[size/16][tokens][16]`
    key_columns: Vec<f32>,
    /// Queries, scaled, and the gradients of their outputs: `[size][16]`
    queries: Vec<f32>,
    grads: Vec<f32>,
    /// The same the other way round, `[size/16][16][16]`
    query_columns: Vec<f32>,
    grad_columns: Vec<f32>,
    /// `P` and `dP`, then `dS`: `[tokens][16]`, the keys padded to a multiple of 4
    weights: Vec<f32>,
    slopes: Vec<f32>,
    /// One of them by groups of keys, `[tokens/4][16][4]`
    by_key: Vec<f32>,
    /// `dS` by groups of queries, `[16/4][tokens][4]`
    by_query: Vec<f32>,
    /// `[size/16][tokens][16]`, the tokens padded likewise
    key_gradient: Vec<f32>,
    value_gradient: Vec<f32>,
}

impl HeadGradient {
    fn new(tokens: usize, dim: usize, heads: usize) -> Self {
        let size = dim / heads;
        let (keys, channels) = (tokens.next_multiple_of(ROWS), size.next_multiple_of(LANES));
        let zeros = |count: usize| vec![0.0; count];
        Self {
            tokens,
            dim,
            size,
            column: 0,
            keys: zeros(keys * size),
            values: zeros(keys * size),
            key_columns: zeros(channels * tokens),
            queries: zeros(size * LANES),
            grads: zeros(size * LANES),
            query_columns: zeros(channels * LANES),
            grad_columns: zeros(channels * LANES),
            weights: zeros(keys * LANES),
            slopes: zeros(keys * LANES),
            by_key: zeros(keys * LANES),
            by_query: zeros(tokens * LANES),
            key_gradient: zeros(channels * keys),
            value_gradient: zeros(channels * keys),
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
            let group = token / ROWS * size * ROWS..;
            let (keys, values) = (&mut self.keys[group.clone()], &mut self.values[group]);
            for c in 0..size {
                let key = key[c] + key_bias[c];
                keys[c * ROWS + token % ROWS] = key;
                values[c * ROWS + token % ROWS] = value[c] + value_bias[c];
                self.key_columns[in_columns(self.tokens, token, c)] = key;
            }
        }
    }

    /// Everything that flows through the queries `first..first + 16`; their own gradients go where they were.
    #[inline(always)]
    fn flow(&mut self, image: &mut [f32], bias: &[f32], grad: &[f32], first: usize) {
        let (size, dim, column) = (self.size, self.dim, self.column);
        let scale = 1.0 / (size as f32).sqrt();
        let rows = LANES.min(self.tokens - first);
        if rows < LANES {
            let lanes = [&mut self.queries, &mut self.query_columns];
            let lanes = lanes
                .into_iter()
                .chain([&mut self.grads, &mut self.grad_columns]);
            lanes.for_each(|values| values.fill(0.0));
        }
        for lane in 0..rows {
            let query = &image[(first + lane) * 3 * dim + column..][..size];
            let grad = &grad[(first + lane) * dim + column..][..size];
            let bias = &bias[column..][..size];
            for c in 0..size {
                let query = (query[c] + bias[c]) * scale;
                self.queries[c * LANES + lane] = query;
                self.query_columns[in_columns(LANES, lane, c)] = query;
                self.grads[c * LANES + lane] = grad[c];
                self.grad_columns[in_columns(LANES, lane, c)] = grad[c];
            }
        }
        let product = |groups: &[f32], by: &[f32], onto: bool, out: &mut [f32]| {
            pulp::Arch::new().dispatch(Products {
                groups,
                by,
                onto,
                out,
            });
        };
        product(&self.keys, &self.queries, false, &mut self.weights);
        product(&self.values, &self.grads, false, &mut self.slopes);
        let weights = &mut self.weights.as_chunks_mut::<LANES>().0[..self.tokens];
        let slopes = &mut self.slopes.as_chunks_mut::<LANES>().0[..self.tokens];
        let total = exponentials(weights);
        let mut mean = [0.0; LANES];
        for (weight, slope) in weights.iter_mut().zip(slopes.iter()) {
            for lane in 0..LANES {
                weight[lane] /= total[lane];
                mean[lane] += weight[lane] * slope[lane];
            }
        }
        for (weight, slope) in weights.iter().zip(slopes.iter_mut()) {
            for lane in 0..LANES {
                slope[lane] = weight[lane] * (slope[lane] - mean[lane]);
            }
        }

        let padded = self.tokens.next_multiple_of(ROWS);
        for (from, columns, out) in [
            (&self.weights, &self.grad_columns, &mut self.value_gradient),
            (&self.slopes, &self.query_columns, &mut self.key_gradient),
        ] {
            transpose(from, &mut self.by_key);
            let columns = columns.chunks_exact(LANES * LANES);
            for (columns, out) in columns.zip(out.chunks_exact_mut(padded * LANES)) {
                product(&self.by_key, columns, first > 0, out);
            }
        }

        let (by_query, _) = self.by_query.as_chunks_mut::<ROWS>();
        for (key, slopes) in self
            .slopes
            .chunks_exact(LANES)
            .take(self.tokens)
            .enumerate()
        {
            for (group, slopes) in slopes.as_chunks::<ROWS>().0.iter().enumerate() {
                by_query[group * self.tokens + key] = *slopes;
            }
        }
        for (panel, keys) in self
            .key_columns
            .chunks_exact(self.tokens * LANES)
            .enumerate()
        {
            let mut gradient = [0.0; LANES * LANES];
            product(&self.by_query, keys, false, &mut gradient);
            let first_channel = panel * LANES;
            let count = LANES.min(size - first_channel);
            for (lane, gradient) in gradient.chunks_exact(LANES).take(rows).enumerate() {
                let at = (first + lane) * 3 * dim + column + first_channel;
                for (out, gradient) in image[at..][..count].iter_mut().zip(gradient) {
                    *out = gradient * scale;
                }
            }
        }
    }

    /// The gradients of keys and values, to where these were.
    #[inline(always)]
    fn unpack(&self, image: &mut [f32]) {
        let (size, dim) = (self.size, self.dim);
        let padded = self.tokens.next_multiple_of(ROWS);
        for (token, row) in image.chunks_exact_mut(3 * dim).enumerate() {
            for (part, gradient) in [(1, &self.key_gradient), (2, &self.value_gradient)] {
                let row = &mut row[part * dim + self.column..][..size];
                for (c, out) in row.iter_mut().enumerate() {
                    *out = gradient[in_columns(padded, token, c)];
                }
            }
        }
    }
}

/// Where channel `c` of row `row` is in columns `[size/16][rows][16]`.
#[inline(always)]
fn in_columns(rows: usize, row: usize, c: usize) -> usize {
    (c / LANES * rows + row) * LANES + c % LANES
}

/// `[n][4][16]` as `[n][16][4]`.
#[inline(always)]
fn transpose(from: &[f32], to: &mut [f32]) {
    let from = from.as_chunks::<LANES>().0.as_chunks::<ROWS>().0;
    let to = to.as_chunks_mut::<ROWS>().0.as_chunks_mut::<LANES>().0;
    for (from, to) in from.iter().zip(to) {
        for lane in 0..LANES {
            for row in 0..ROWS {
                to[lane][row] = from[row][lane];
            }
        }
    }
}
