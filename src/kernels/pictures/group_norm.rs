//! GroupNorm (arXiv 1803.08494), and the SiLU that mostly follows it.

use burn::backend::Dispatch;
use burn::tensor::{Tensor, activation::silu};
use rayon::prelude::*;

use super::PictureKernels;
use crate::kernels::{
    Place, Route,
    lanes::{add, exp, vectorised},
    on_cpu, route,
};

/// Numbers of a run of cells that one loop takes, so that few channels fill a vector too.
const RUN: usize = 64;

/// How a norm groups its channels, and what follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Groups {
    pub count: usize,
    /// What is added to a variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// GroupNorm of `x` `[B, H, W, C]`, `scale` and `shift` `[C]`, then SiLU where asked.
pub fn group_norm(x: Tensor<4>, scale: Tensor<1>, shift: Tensor<1>, groups: Groups) -> Tensor<4> {
    let route = route(&[Place::of(&x), Place::of(&scale), Place::of(&shift)]);
    if route != Route::Composed && on_cpu(&x.device()) {
        let (x, scale, shift) = (
            x.into_dispatch(),
            scale.into_dispatch(),
            shift.into_dispatch(),
        );
        let out = <Dispatch as PictureKernels>::group_norm(x, scale, shift, groups);
        return Tensor::from_dispatch(out);
    }
    let [b, h, w, c] = x.dims();
    let of_group = c / groups.count;
    let x = x.reshape([b, h * w, groups.count, of_group]);
    let mean = x.clone().mean_dim(3).mean_dim(1);
    let x = x - mean;
    let variance = x.clone().powi_scalar(2).mean_dim(3).mean_dim(1);
    let per_channel = |v: Tensor<1>| v.reshape([1, 1, groups.count, of_group]);
    let x = x / (variance + groups.eps).sqrt();
    let x = x * per_channel(scale) + per_channel(shift);
    let x = x.reshape([b, h, w, c]);
    if groups.silu { silu(x) } else { x }
}

/// What a norm knows of a picture, a number a channel, repeated to a run of cells.
struct Normal {
    /// The picture's, of the channel's group.
    mean: Vec<f32>,
    /// `1/√(variance + ε)`
    rate: Vec<f32>,
}

/// `values`, a number a channel, for as many cells as fill a run.
fn repeated(values: &[f32]) -> Vec<f32> {
    values.repeat((RUN / values.len().max(1)).max(1))
}

/// Sums over the cells of a run, by channel.
fn folded(sums: &[f64], channels: usize) -> Vec<f64> {
    let mut folded = vec![0.0; channels];
    for cell in sums.chunks_exact(channels.max(1)) {
        folded.iter_mut().zip(cell).for_each(|(sum, v)| *sum += v);
    }
    folded
}

impl Normal {
    fn of(picture: &[f32], channels: usize, groups: Groups) -> Self {
        let of_group = channels / groups.count.max(1);
        let count = (picture.len() / channels.max(1) * of_group) as f64;
        let run = repeated(&vec![0.0; channels]).len();
        let by_group = |sums: Vec<f64>| -> Vec<f64> {
            let groups = sums.chunks_exact(of_group.max(1));
            groups
                .map(|sums| sums.iter().sum::<f64>() / count)
                .collect()
        };
        let spread = |of_groups: &[f64]| -> Vec<f32> {
            let of_channel = |channel: usize| of_groups[channel / of_group] as f32;
            repeated(&(0..channels).map(of_channel).collect::<Vec<_>>())
        };
        let mut sums = vec![0.0f64; run];
        for cells in picture.chunks(run) {
            sums.iter_mut()
                .zip(cells)
                .for_each(|(sum, v)| *sum += f64::from(*v));
        }
        let means = by_group(folded(&sums, channels));
        let mean = spread(&means);
        // Around the mean as it is rounded, which costs nothing but exactness of the last digit.
        let mut squares = vec![0.0f64; run];
        for cells in picture.chunks(run) {
            for ((sum, v), mean) in squares.iter_mut().zip(cells).zip(&mean) {
                let from_mean = v - mean;
                *sum += f64::from(from_mean * from_mean);
            }
        }
        let rates: Vec<f64> = by_group(folded(&squares, channels))
            .iter()
            .map(|variance| 1.0 / (variance + groups.eps).sqrt())
            .collect();
        Self {
            mean,
            rate: spread(&rates),
        }
    }
}

pub(super) fn group_norm_cpu(
    x: &[f32],
    [_, h, w, c]: [usize; 4],
    [scale, shift]: [&[f32]; 2],
    groups: Groups,
) -> Vec<f32> {
    let picture = (h * w * c).max(1);
    let (scale, shift) = (repeated(scale), repeated(shift));
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(picture)
        .zip(x.par_chunks(picture))
        .for_each(|(out, x)| {
            vectorised(
                #[inline(always)]
                || {
                    let Normal { mean, rate } = Normal::of(x, c, groups);
                    let run = mean.len();
                    for (out, x) in out.chunks_mut(run).zip(x.chunks(run)) {
                        let parameters = mean.iter().zip(&rate).zip(scale.iter().zip(&shift));
                        for ((out, x), ((mean, rate), (scale, shift))) in
                            out.iter_mut().zip(x).zip(parameters)
                        {
                            let y = (x - mean) * rate * scale + shift;
                            *out = if groups.silu { y / (1.0 + exp(-y)) } else { y };
                        }
                    }
                },
            )
        });
    out
}

/// Turns `grad` into the gradient of `x`; gives those of scale and shift.
pub(super) fn group_norm_gradient_cpu(
    x: &[f32],
    [_, h, w, c]: [usize; 4],
    [scale, shift]: [&[f32]; 2],
    groups: Groups,
    grad: &mut [f32],
) -> [Vec<f32>; 2] {
    let picture = (h * w * c).max(1);
    let of_group = c / groups.count.max(1);
    let count = (h * w * of_group) as f64;
    let (scales, shifts) = (repeated(scale), repeated(shift));
    let pictures = grad.par_chunks_mut(picture).zip(x.par_chunks(picture));
    let sums: Vec<[Vec<f32>; 2]> = pictures
        .map(|(grad, x)| {
            vectorised(
                #[inline(always)]
                || -> [Vec<f32>; 2] {
                    let Normal { mean, rate } = Normal::of(x, c, groups);
                    let run = mean.len();
                    // By channel: the sums of the gradient behind the SiLU, and of its product with the normalised number.
                    let (mut plain, mut weighted) = (vec![0.0f64; run], vec![0.0f64; run]);
                    for (grad, x) in grad.chunks_mut(run).zip(x.chunks(run)) {
                        let sums = plain.iter_mut().zip(weighted.iter_mut());
                        let parameters = mean.iter().zip(&rate).zip(scales.iter().zip(&shifts));
                        let numbers = grad.iter_mut().zip(x);
                        for (((grad, x), (plain, weighted)), ((mean, rate), (scale, shift))) in
                            numbers.zip(sums).zip(parameters)
                        {
                            let normal = (x - mean) * rate;
                            if groups.silu {
                                let y = normal * scale + shift;
                                let gate = 1.0 / (1.0 + exp(-y));
                                *grad *= gate * (1.0 + y * (1.0 - gate));
                            }
                            *plain += f64::from(*grad);
                            *weighted += f64::from(*grad * normal);
                        }
                    }
                    let (plain, weighted) = (folded(&plain, c), folded(&weighted, c));
                    let of_groups = |sums: &[f64]| -> Vec<f32> {
                        let scaled = sums.iter().zip(scale).map(|(sum, s)| sum * f64::from(*s));
                        let scaled: Vec<f64> = scaled.collect();
                        let mean = |group: &[f64]| (group.iter().sum::<f64>() / count) as f32;
                        let means: Vec<f32> =
                            scaled.chunks_exact(of_group.max(1)).map(mean).collect();
                        repeated(&(0..c).map(|n| means[n / of_group]).collect::<Vec<_>>())
                    };
                    let (mean_plain, mean_weighted) = (of_groups(&plain), of_groups(&weighted));
                    for (grad, x) in grad.chunks_mut(run).zip(x.chunks(run)) {
                        let of_x = mean.iter().zip(&rate).zip(&scales);
                        let of_groups = mean_plain.iter().zip(&mean_weighted);
                        for (((grad, x), ((mean, rate), scale)), (plain, weighted)) in
                            grad.iter_mut().zip(x).zip(of_x).zip(of_groups)
                        {
                            let normal = (x - mean) * rate;
                            *grad = rate * (*grad * scale - plain - normal * weighted);
                        }
                    }
                    [weighted, plain].map(|sums| sums.iter().map(|sum| *sum as f32).collect())
                },
            )
        })
        .collect();
    let mut whole = [vec![0.0; c], vec![0.0; c]];
    for sums in &sums {
        whole
            .iter_mut()
            .zip(sums)
            .for_each(|(whole, sum)| add(whole, sum));
    }
    whole
}
