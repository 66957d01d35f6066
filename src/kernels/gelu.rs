//! GELU in its tanh form, `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
//!
//! Since `(1 + tanh u)/2 = sigmoid(2u)`, one exponential is enough.

use burn::backend::Dispatch;
use burn::tensor::{Tensor, activation::sigmoid};

use super::{
    lanes::{exp, for_rows},
    op::{CpuKernels, runs_on_cpu},
};

/// `2·√(2/π)`
const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

/// GELU (tanh form) of every element.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if runs_on_cpu(&x.device()) {
        return Tensor::from_dispatch(<Dispatch as CpuKernels>::gelu_tanh(x.into_dispatch()));
    }
    let inner = (x.clone() * x.clone() * CUBIC + 1.0) * x.clone() * TWICE_SQRT_2_OVER_PI;
    x * sigmoid(inner)
}

/// The CPU form: `out[i] = gelu(x[i])`.
pub fn gelu_cpu(x: &[f32], out: &mut [f32]) {
    for_rows(out, 1, |first, out| {
        for (out, &x) in out.iter_mut().zip(&x[first..]) {
            *out = x * gate(x);
        }
    });
}

/// `out[i] = grad[i]·gelu'(x[i])`.
pub fn gelu_gradient_cpu(x: &[f32], grad: &[f32], out: &mut [f32]) {
    for_rows(out, 1, |first, out| {
        for ((out, &x), &grad) in out.iter_mut().zip(&x[first..]).zip(&grad[first..]) {
            let gate = gate(x);
            let slope = TWICE_SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            *out = grad * (gate + x * gate * (1.0 - gate) * slope);
        }
    });
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
        gelu_cpu(&x, &mut value);
        let mut slope = vec![0.0; x.len()];
        gelu_gradient_cpu(&x, &vec![2.0; x.len()], &mut slope);
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
