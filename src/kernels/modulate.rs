//! LayerNorm without weights of its own, then adaLN's scale and shift: `LN(x)·(1 + scale) + shift`.

use burn::{backend::Dispatch, tensor::Tensor};

use super::{
    lanes::{for_rows, sum},
    op::{CpuKernels, runs_on_cpu},
};

/// `LN(x)·(1 + scale) + shift` for `x` `[B, tokens, dim]`, `shift` and `scale` `[B, 1, dim]`.
pub fn modulate(x: Tensor<3>, shift: Tensor<3>, scale: Tensor<3>, eps: f64) -> Tensor<3> {
    if runs_on_cpu(&x.device()) {
        let [x, shift, scale] = [x, shift, scale].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(<Dispatch as CpuKernels>::modulate(x, shift, scale, eps));
    }
    let centred = x.clone() - x.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    centred * (variance + eps).sqrt().recip() * (scale + 1.0) + shift
}

/// The CPU form; `shape` is `[B, tokens, dim]`.
pub fn modulate_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &[f32],
    shift: &[f32],
    scale: &[f32],
    eps: f64,
    out: &mut [f32],
) {
    for_rows(out, dim, |first, out| {
        for (row, out) in out.chunks_exact_mut(dim).enumerate() {
            let row = first + row;
            let x = &x[row * dim..][..dim];
            let vector = row / tokens * dim;
            let (shift, scale) = (&shift[vector..][..dim], &scale[vector..][..dim]);
            let (mean, deviation) = moments(x, eps);
            for i in 0..dim {
                out[i] = (x[i] - mean) * deviation * (1.0 + scale[i]) + shift[i];
            }
        }
    });
}

/// The gradient with respect to `x`, given the gradient of the output.
pub fn modulate_gradient_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &[f32],
    scale: &[f32],
    grad: &[f32],
    eps: f64,
    out: &mut [f32],
) {
    for_rows(out, dim, |first, out| {
        for (row, out) in out.chunks_exact_mut(dim).enumerate() {
            let row = first + row;
            let (x, grad) = (&x[row * dim..][..dim], &grad[row * dim..][..dim]);
            let scale = &scale[row / tokens * dim..][..dim];
            let (mean, deviation) = moments(x, eps);
            // With g the gradient at LN(x): dx = (g − mean(g) − LN(x)·mean(g·LN(x))) / σ.
            let g = |i: usize| grad[i] * (1.0 + scale[i]);
            let normal = |i: usize| (x[i] - mean) * deviation;
            let mean_g = sum((0..dim).map(g)) / dim as f32;
            let mean_product = sum((0..dim).map(|i| g(i) * normal(i))) / dim as f32;
            for (i, out) in out.iter_mut().enumerate() {
                *out = (g(i) - mean_g - normal(i) * mean_product) * deviation;
            }
        }
    });
}

/// Mean, and one over the standard deviation, of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let mean = sum(x.iter().copied()) / x.len() as f32;
    let variance = sum(x.iter().map(|v| (v - mean) * (v - mean))) / x.len() as f32;
    (mean, 1.0 / (variance + eps as f32).sqrt())
}
