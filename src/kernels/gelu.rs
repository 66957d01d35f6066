//! GELU in its tanh form, `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
//!
//! Since `(1 + tanh u)/2 = sigmoid(2u)`, one exponential is enough.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::{Tensor, activation::sigmoid};

use super::{
    Place, Route,
    differentiable::DifferentiableKernels,
    lanes::{column_sums, exp, for_rows, rows_of, sums_of_pieces},
    route,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// `2·√(2/π)`
const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

/// `gelu(x + bias)` for `x` `[B, tokens, width]` and `bias` `[width]`.
pub fn gelu(x: Tensor<3>, bias: Tensor<1>) -> Tensor<3> {
    let route = route(&[Place::of(&x), Place::of(&bias)]);
    if route == Route::Fast {
        let (x, bias) = (x.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(<Dispatch as SamplingKernels>::gelu_biased(x, bias));
    }
    if route == Route::DifferentiableCpu {
        let (x, bias) = (x.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(<Dispatch as DifferentiableKernels>::gelu_biased(x, bias));
    }
    let x = x + bias.unsqueeze();
    let inner = (x.clone() * x.clone() * CUBIC + 1.0) * x.clone() * TWICE_SQRT_2_OVER_PI;
    x * sigmoid(inner)
}

pub(super) fn gelu_wgsl(x: CubeTensor, bias: CubeTensor) -> CubeTensor {
    let (x, bias) = (wgsl::owned(x), into_contiguous(bias));
    let count = x.meta.shape().num_elements();
    let width = bias.meta.shape().num_elements();
    let shader = Shader::flat("gelu", include_str!("../../shaders/gelu.wgsl"));
    wgsl::launch_flat(shader, count, &[&x, &bias], Info::of(&[count, width]));
    x
}

/// The CPU twin, in place: `x[i] = gelu(x[i] + bias[i mod width])`.
pub(super) fn gelu_biased_cpu(x: &mut [f32], bias: &[f32]) {
    for_rows(
        x,
        bias.len(),
        #[inline(always)]
        |_, row| {
            for (x, bias) in row.iter_mut().zip(bias) {
                let v = *x + bias;
                *x = v * gate(v);
            }
        },
    );
}

/// The CPU form: `out[i] = gelu(x[i] + bias[i mod width])`.
pub(super) fn gelu_cpu(x: &[f32], bias: &[f32], out: &mut [f32]) {
    let width = bias.len();
    for_rows(
        out,
        width,
        #[inline(always)]
        |row, out| {
            let x = &x[row * width..][..width];
            for ((out, x), bias) in out.iter_mut().zip(x).zip(bias) {
                let v = x + bias;
                *out = v * gate(v);
            }
        },
    );
}

/// The gradients with respect to `x`, in the place of the output's, and to the bias, `[width]`.
pub(super) fn gelu_gradient_cpu(x: &[f32], bias: &[f32], grad: &mut [f32]) -> Vec<f32> {
    let width = bias.len();
    let piece = rows_of(width) * width;
    let sums = sums_of_pieces(
        grad,
        piece,
        width,
        #[inline(always)]
        |part, grad, sums| {
            let x = x[part * piece..].chunks_exact(width);
            for (grad, x) in grad.chunks_exact_mut(width).zip(x) {
                let inputs = x.iter().zip(bias);
                for ((grad, sum), (x, bias)) in grad.iter_mut().zip(&mut *sums).zip(inputs) {
                    *grad *= slope(x + bias);
                    *sum += *grad;
                }
            }
        },
    );
    column_sums(&sums, width)
}

/// `gelu'(x)`
#[inline(always)]
fn slope(x: f32) -> f32 {
    let gate = gate(x);
    let inner = TWICE_SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
    gate + x * gate * (1.0 - gate) * inner
}

/// `sigmoid(2u)`
#[inline(always)]
fn gate(x: f32) -> f32 {
    let twice_u = TWICE_SQRT_2_OVER_PI * x * (1.0 + CUBIC * x * x);
    1.0 / (1.0 + exp(-twice_u))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + u.tanh())
    }

    #[test]
    fn value_and_slope_match_the_formula() {
        let x: Vec<f32> = (-20_000..20_000).map(|i| i as f32 / 2000.0).collect();
        let mut value = vec![0.0; x.len()];
        gelu_cpu(&x, &[0.0], &mut value);
        let mut slope = vec![2.0; x.len()];
        gelu_gradient_cpu(&x, &[0.0], &mut slope);
        for (i, &x) in x.iter().enumerate() {
            let x = f64::from(x);
            assert!(
                (f64::from(value[i]) - exact(x)).abs() < 1e-6 * x.abs().max(1.0),
                "gelu({x}) = {}",
                value[i]
            );
            let expected = (exact(x + 1e-5) - exact(x - 1e-5)) / 1e-5;
            assert!(
                (f64::from(slope[i]) - expected).abs() < 1e-5,
                "2·gelu'({x}) = {}, expected {expected}",
                slope[i]
            );
        }
    }
}
