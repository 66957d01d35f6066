//! Twice the size by nearest neighbours.

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::PictureKernels;
use crate::kernels::{Place, Route, lanes::add, on_cpu, route};

/// Every cell of `x` `[B, H, W, C]` four times: `[B, 2H, 2W, C]`.
pub fn doubled(x: Tensor<4>) -> Tensor<4> {
    if route(&[Place::of(&x)]) != Route::Composed && on_cpu(&x.device()) {
        return Tensor::from_dispatch(<Dispatch as PictureKernels>::doubled(x.into_dispatch()));
    }
    let [b, h, w, c] = x.dims();
    let x = x.reshape([b, h, 1, w, 1, c]);
    x.expand([b, h, 2, w, 2, c]).reshape([b, 2 * h, 2 * w, c])
}

pub(super) fn doubled_cpu(x: &[f32], [_, _, w, c]: [usize; 4]) -> Vec<f32> {
    let row = (w * c).max(1);
    let mut out = vec![0.0; 4 * x.len()];
    out.par_chunks_mut(4 * row)
        .zip(x.par_chunks(row))
        .for_each(|(pair, from)| {
            let (first, second) = pair.split_at_mut(2 * row);
            for (twice, cell) in first.chunks_exact_mut(2 * c).zip(from.chunks_exact(c)) {
                twice[..c].copy_from_slice(cell);
                twice[c..].copy_from_slice(cell);
            }
            second.copy_from_slice(first);
        });
    out
}

/// `[B, H, W, C]` to `[B, H/2, W/2, C]`.
pub(super) fn doubled_gradient_cpu(grad: &[f32], [_, _, w, c]: [usize; 4]) -> Vec<f32> {
    let row = (w * c).max(2);
    let mut out = vec![0.0; grad.len() / 4];
    out.par_chunks_mut(row / 2)
        .zip(grad.par_chunks(2 * row))
        .for_each(|(sums, pair)| {
            for from in pair.chunks_exact(row) {
                for (sum, twice) in sums.chunks_exact_mut(c).zip(from.chunks_exact(2 * c)) {
                    add(sum, &twice[..c]);
                    add(sum, &twice[c..]);
                }
            }
        });
    out
}
