//! What networks are made of beside their blocks: linear layers, sinusoidal features.

use burn::{
    nn::Linear,
    tensor::{Tensor, TensorData, activation::silu},
};

use crate::kernels::{self, add_bias};

/// Width of the sinusoidal features of a timestep.
pub const TIMESTEP_CHANNELS: usize = 256;

/// Epsilon of the LayerNorms.
pub const NORM_EPS: f64 = 1e-6;

/// `x·W`, without the bias: whatever comes next adds that on its way.
pub fn product<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    kernels::product(x, layer.weight.val())
}

/// `x·W + b`.
pub fn affine<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    add_bias(product(layer, x), bias(layer))
}

/// A layer's bias, `[outputs]`.
pub fn bias(layer: &Linear) -> Tensor<1> {
    match &layer.bias {
        Some(bias) => bias.val(),
        None => {
            let [_, outputs] = layer.weight.val().dims();
            Tensor::zeros([outputs], &layer.weight.val().device())
        }
    }
}

/// The two-layer embedding of sinusoidal features, `[n, dim]` for `[n, 256]`.
pub fn embed_features(first: &Linear, second: &Linear, features: Tensor<2>) -> Tensor<2> {
    affine(second, silu(affine(first, features)))
}

/// Sinusoidal features, `[values.len(), 256]` row-major: cosines, then sines of frequencies `10000^(−i/(128 − shift))`.
///
/// In f32 throughout, since that is what the networks were trained with.
pub fn sinusoidal_features(values: &[f32], shift: usize) -> Vec<f32> {
    let half = TIMESTEP_CHANNELS / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10000f64.ln() as f32) * i as f32 / (half - shift) as f32).exp())
        .collect();
    let mut out = Vec::with_capacity(values.len() * TIMESTEP_CHANNELS);
    for t in values {
        out.extend(frequencies.iter().map(|f| (t * f).cos()));
        out.extend(frequencies.iter().map(|f| (t * f).sin()));
    }
    out
}

/// The same on a device, `[values.len(), 256]`.
pub fn features_on(values: &[f32], shift: usize, device: &burn::tensor::Device) -> Tensor<2> {
    let features = sinusoidal_features(values, shift);
    Tensor::from_data(
        TensorData::new(features, [values.len(), TIMESTEP_CHANNELS]),
        device,
    )
}

/// Fixed 2-D sine-cosine position embedding, `[rows · columns, dim]` row-major, of tokens that lie `[down, across]` apart.
///
/// The first half of a token's vector encodes its column, the second its row, each as sines then
/// cosines of frequencies `10000^(−i/(dim/4))`, as in the DiT release.
pub fn sincos_positions(
    [rows, columns]: [usize; 2],
    dim: usize,
    [down, across]: [f64; 2],
) -> Vec<f32> {
    let quarter = dim / 4;
    let mut out = Vec::with_capacity(rows * columns * dim);
    for row in 0..rows {
        for column in 0..columns {
            for position in [column as f64 * across, row as f64 * down] {
                let angle = |i: usize| position / 10000f64.powf(i as f64 / quarter as f64);
                out.extend((0..quarter).map(|i| angle(i).sin() as f32));
                out.extend((0..quarter).map(|i| angle(i).cos() as f32));
            }
        }
    }
    out
}
