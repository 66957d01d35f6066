//! The same network on the CPU, on plain numbers: a convolution as nine matrix products per strip of rows, without laying patches
//! out, and each norm in two passes.

use rayon::prelude::*;

use super::{
    layers::{NORM_EPS, Padding},
    machine::Machine,
};
use crate::kernels::{Matrix, exp, product_cpu, product_onto};

/// Numbers of a strip's output: what stays in a core's cache.
const STRIP_NUMBERS: usize = 1 << 18;
/// Queries that attention takes at a time.
const QUERIES: usize = 256;

/// The CPU.
#[derive(Debug, Clone)]
pub(super) struct OnHost;

#[derive(Debug, Clone)]
pub(super) struct Norm {
    groups: usize,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// A picture `[H, W, C]`.
#[derive(Debug, Clone)]
pub(super) struct Picture {
    pub size: [usize; 2],
    pub channels: usize,
    values: Vec<f32>,
}

/// A convolution's weights, `[kernel · kernel · inputs, outputs]`, and its bias.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    kernel: usize,
    outputs: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Picture {
    fn new(size: [usize; 2], channels: usize, values: Vec<f32>) -> Self {
        Self {
            size,
            channels,
            values,
        }
    }

    /// Of planes `[C, H, W]`.
    pub fn of_planes(planes: &[f32], [c, h, w]: [usize; 3]) -> Self {
        let mut values = vec![0.0; planes.len()];
        for (channel, plane) in planes.chunks(h * w).enumerate() {
            let cells = values.iter_mut().skip(channel).step_by(c);
            cells.zip(plane).for_each(|(to, from)| *to = *from);
        }
        Self::new([h, w], c, values)
    }

    /// The way back.
    pub fn planes(&self) -> Vec<f32> {
        let of_channel = |channel| self.values.iter().skip(channel).step_by(self.channels);
        (0..self.channels).flat_map(of_channel).copied().collect()
    }

    /// Every number by itself.
    fn map(mut self, f: impl Fn(f32) -> f32 + Sync) -> Self {
        self.values
            .par_chunks_mut(1 << 14)
            .for_each(|part| part.iter_mut().for_each(|v| *v = f(*v)));
        self
    }

    /// `+`
    fn plus(mut self, other: &Self) -> Self {
        let pairs = self
            .values
            .par_chunks_mut(1 << 14)
            .zip(other.values.par_chunks(1 << 14));
        pairs.for_each(|(part, other)| part.iter_mut().zip(other).for_each(|(a, b)| *a += b));
        self
    }

    /// Every cell four times.
    fn doubled(&self) -> Self {
        let ([h, w], c) = (self.size, self.channels);
        let mut values = vec![0.0; 4 * self.values.len()];
        values
            .par_chunks_mut((2 * w * c).max(1))
            .enumerate()
            .for_each(|(y, row)| {
                let from = &self.values[y / 2 * w * c..][..w * c];
                for (pair, cell) in row.chunks_exact_mut(2 * c).zip(from.chunks_exact(c)) {
                    pair[..c].copy_from_slice(cell);
                    pair[c..].copy_from_slice(cell);
                }
            });
        Self::new([2 * h, 2 * w], c, values)
    }

    /// Zeros around it, and so many numbers after its end.
    fn padded(&self, before: usize, after: usize, tail: usize) -> (Vec<f32>, [usize; 2]) {
        let ([h, w], c) = (self.size, self.channels);
        let [tall, wide] = [h, w].map(|side| side + before + after);
        let mut values = vec![0.0; tall * wide * c + tail];
        let inner = &mut values[before * wide * c..];
        for (row, from) in inner.chunks_mut(wide * c).zip(self.values.chunks(w * c)) {
            row[before * c..][..w * c].copy_from_slice(from);
        }
        (values, [tall, wide])
    }

    /// GroupNorm, then `f`.
    fn normed(&self, norm: &Norm, f: impl Fn(f32) -> f32 + Sync) -> Self {
        let (c, groups) = (self.channels, norm.groups);
        let of_group = c / groups;
        let count = (self.values.len() / c.max(1) * of_group) as f64;
        // In f64, strip by strip: pictures have millions of cells.
        let sums = |term: &(dyn Fn(usize, f32) -> f64 + Sync)| -> Vec<f64> {
            let strips = self.values.par_chunks(c * 1024).map(|strip| {
                let mut sums = vec![0.0f64; groups];
                for cell in strip.chunks_exact(c) {
                    for (g, sum) in sums.iter_mut().enumerate() {
                        let numbers = &cell[g * of_group..][..of_group];
                        *sum += numbers.iter().map(|v| term(g, *v)).sum::<f64>();
                    }
                }
                sums
            });
            let strips: Vec<Vec<f64>> = strips.collect();
            (0..groups)
                .map(|g| strips.iter().map(|sums| sums[g]).sum())
                .collect()
        };
        let means: Vec<f64> = sums(&|_, v| f64::from(v))
            .iter()
            .map(|sum| sum / count)
            .collect();
        let squares = sums(&|g, v| (f64::from(v) - means[g]).powi(2));
        let (mut factor, mut offset) = (vec![0.0; c], vec![0.0; c]);
        for n in 0..c {
            let g = n / of_group;
            let deviation = (squares[g] / count + NORM_EPS).sqrt();
            let of_channel = f64::from(norm.scale[n]) / deviation;
            factor[n] = of_channel as f32;
            offset[n] = (f64::from(norm.shift[n]) - means[g] * of_channel) as f32;
        }
        let mut values = vec![0.0; self.values.len()];
        let strips = values
            .par_chunks_mut(c * 1024)
            .zip(self.values.par_chunks(c * 1024));
        strips.for_each(|(out, strip)| {
            for (out, cell) in out.chunks_exact_mut(c).zip(strip.chunks_exact(c)) {
                let parameters = factor.iter().zip(&offset);
                for ((out, v), (factor, offset)) in out.iter_mut().zip(cell).zip(parameters) {
                    *out = f(v * factor + offset);
                }
            }
        });
        Self::new(self.size, c, values)
    }

    /// One head of attention over all cells.
    fn attention(query: &Self, key: &Self, value: &Self) -> Self {
        let c = query.channels;
        let factor = 1.0 / (c as f32).sqrt();
        let keys = Matrix::new(&key.values, c).transposed();
        let values = Matrix::new(&value.values, c);
        let pieces = query.values.chunks(QUERIES * c).flat_map(|queries| {
            let cells = key.values.len() / c.max(1);
            let mut scores = product_cpu(Matrix::new(queries, c), keys);
            scores
                .par_chunks_mut(cells)
                .for_each(|row| softmax(row, factor));
            product_cpu(Matrix::new(&scores, cells), values)
        });
        Self::new(query.size, c, pieces.collect())
    }
}

fn softmax(row: &mut [f32], factor: f32) {
    let most = row.iter().fold(f32::NEG_INFINITY, |most, v| most.max(*v));
    let mut sum = 0.0;
    for v in &mut *row {
        *v = ((*v - most) * factor).exp();
        sum += *v;
    }
    row.iter_mut().for_each(|v| *v /= sum);
}

impl Filter {
    /// The size kept.
    fn same(&self, x: &Picture) -> Picture {
        if self.kernel == 1 {
            let product = product_cpu(
                Matrix::new(&x.values, x.channels),
                Matrix::new(&self.weight, self.outputs),
            );
            let mut out = Picture::new(x.size, self.outputs, product);
            if let Some(bias) = &self.bias {
                let cells = out.values.par_chunks_mut(self.outputs);
                cells.for_each(|cell| cell.iter_mut().zip(bias).for_each(|(v, b)| *v += b));
            }
            return out;
        }
        // Rows of a strip overlap their neighbours' margins: a product over whole padded rows makes two columns of nonsense each.
        let ([h, w], c, o) = (x.size, x.channels, self.outputs);
        let (padded, [_, wide]) = x.padded(1, 1, 2 * c);
        let rows = (STRIP_NUMBERS / (wide * o).max(1))
            .clamp(1, h.div_ceil(rayon::current_num_threads()).max(1));
        let mut values = vec![0.0; h * w * o];
        values
            .par_chunks_mut(rows * w * o)
            .enumerate()
            .for_each(|(strip, out)| {
                let rows_here = out.len() / (w * o);
                let mut sums = vec![0.0; rows_here * wide * o];
                for (place, filter) in self.weight.chunks_exact(c * o).enumerate() {
                    let first = (strip * rows + place / 3) * wide + place % 3;
                    let cells = &padded[first * c..][..rows_here * wide * c];
                    product_onto(
                        &mut sums,
                        Matrix::new(cells, c),
                        Matrix::new(filter, o),
                        place > 0,
                    );
                }
                for (out, sums) in out.chunks_exact_mut(w * o).zip(sums.chunks_exact(wide * o)) {
                    out.copy_from_slice(&sums[..w * o]);
                    if let Some(bias) = &self.bias {
                        let cells = out.chunks_exact_mut(o);
                        cells.for_each(|cell| cell.iter_mut().zip(bias).for_each(|(v, b)| *v += b));
                    }
                }
            });
        Picture::new([h, w], o, values)
    }

    /// Half of it.
    fn halved(&self, x: &Picture, padding: Padding) -> Picture {
        let before = match padding {
            Padding::Around => 1,
            Padding::After => 0,
        };
        let (c, o) = (x.channels, self.outputs);
        let (padded, [tall, wide]) = x.padded(before, 1, 0);
        let [h, w] = [tall, wide].map(|side| (side - 3) / 2 + 1);
        let mut values = vec![0.0; h * w * o];
        values
            .par_chunks_mut((w * o).max(1))
            .enumerate()
            .for_each(|(row, out)| {
                let mut patches = Vec::with_capacity(w * 9 * c);
                for column in 0..w {
                    for down in 0..3 {
                        let first = (2 * row + down) * wide + 2 * column;
                        patches.extend_from_slice(&padded[first * c..][..3 * c]);
                    }
                }
                product_onto(
                    out,
                    Matrix::new(&patches, 9 * c),
                    Matrix::new(&self.weight, o),
                    false,
                );
                if let Some(bias) = &self.bias {
                    let cells = out.chunks_exact_mut(o);
                    cells.for_each(|cell| cell.iter_mut().zip(bias).for_each(|(v, b)| *v += b));
                }
            });
        Picture::new([h, w], o, values)
    }
}

impl Machine for OnHost {
    type Picture = Picture;
    type Filter = Filter;
    type Norm = Norm;

    fn filter(
        &self,
        weight: Vec<f32>,
        kernel: usize,
        outputs: usize,
        bias: Option<Vec<f32>>,
    ) -> Filter {
        Filter {
            kernel,
            outputs,
            weight,
            bias,
        }
    }

    fn norm(&self, groups: usize, scale: Vec<f32>, shift: Vec<f32>) -> Norm {
        Norm {
            groups,
            scale,
            shift,
        }
    }

    fn same(filter: &Filter, x: &Picture) -> Picture {
        filter.same(x)
    }

    fn halved(filter: &Filter, x: &Picture, padding: Padding) -> Picture {
        filter.halved(x, padding)
    }

    fn doubled(x: &Picture) -> Picture {
        x.doubled()
    }

    fn normed(norm: &Norm, x: &Picture, silu: bool) -> Picture {
        match silu {
            true => x.normed(norm, |v| v / (1.0 + exp(-v))),
            false => x.normed(norm, |v| v),
        }
    }

    fn attention(query: &Picture, key: &Picture, value: &Picture) -> Picture {
        Picture::attention(query, key, value)
    }

    fn plus(x: Picture, y: &Picture) -> Picture {
        x.plus(y)
    }

    fn relu(x: Picture) -> Picture {
        // Damaged numbers stay damaged, unlike under `max`.
        x.map(|v| if v < 0.0 { 0.0 } else { v })
    }

    fn soft_clamp(x: Picture) -> Picture {
        x.map(|v| (v / 3.0).tanh() * 3.0)
    }

    fn affine(x: Picture, a: f32, b: f32) -> Picture {
        x.map(|v| a * v + b)
    }
}
