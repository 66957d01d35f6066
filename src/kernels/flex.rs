//! Tensors of burn's CPU backend as the kernels take and give them.

use burn::tensor::{Shape, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::lanes::GRAIN;

/// `[B, tokens, dim]` of a tensor of rank 3.
pub(super) fn dims(x: &FlexTensor) -> [usize; 3] {
    let shape = x.layout().shape();
    [shape[0], shape[1], shape[2]]
}

/// The tensor in row-major order with nothing around it: itself where it is, so that nobody else holds it.
pub(super) fn own(x: FlexTensor) -> FlexTensor {
    let contiguous = x.to_contiguous();
    drop(x);
    contiguous
}

/// A tensor to be written, cleared by all threads: large ones come from the system page by page.
pub(super) fn empty<const D: usize>(shape: [usize; D]) -> FlexTensor {
    let zeros = rayon::iter::repeat_n(0.0f32, shape.iter().product());
    tensor(zeros.with_min_len(GRAIN).collect(), shape)
}

/// A tensor of these values.
pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}
