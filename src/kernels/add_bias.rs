//! `x + bias`, where no other kernel takes the bias along.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::{
    Place, Route,
    differentiable::DifferentiableKernels,
    lanes::{add, for_rows},
    on_cpu, route,
};

/// `x + bias` for `x` `[…, width]` and `bias` `[width]`.
pub fn add_bias<const D: usize>(x: Tensor<D>, bias: Tensor<1>) -> Tensor<D> {
    let route = route(&[Place::of(&x), Place::of(&bias)]);
    if route == Route::Composed || !on_cpu(&x.device()) {
        return x + bias.unsqueeze();
    }
    let (x, bias) = (x.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as DifferentiableKernels>::add_bias(x, bias))
}

/// The CPU form, in place.
pub(super) fn add_bias_cpu(x: &mut [f32], bias: &[f32]) {
    for_rows(
        x,
        bias.len(),
        #[inline(always)]
        |_, row| add(row, bias),
    );
}
