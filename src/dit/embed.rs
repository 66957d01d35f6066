//! Positions, timesteps and labels as vectors.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Device, Int, Tensor, TensorData, activation::silu},
};

use super::{block::affine, config::TIMESTEP_CHANNELS};

/// Fixed 2-D sine-cosine position embedding, `[rows · columns, dim]` row-major.
///
/// The first half of a token's vector encodes its column, the second its row, each as sines then
/// cosines of frequencies `10000^(−i/(dim/4))`, as in the DiT release.
pub fn sincos_positions(rows: usize, columns: usize, dim: usize) -> Vec<f32> {
    let quarter = dim / 4;
    let mut out = Vec::with_capacity(rows * columns * dim);
    for row in 0..rows {
        for column in 0..columns {
            for position in [column, row] {
                let angle = |i: usize| position as f64 / 10000f64.powf(i as f64 / quarter as f64);
                out.extend((0..quarter).map(|i| angle(i).sin() as f32));
                out.extend((0..quarter).map(|i| angle(i).cos() as f32));
            }
        }
    }
    out
}

/// Sinusoidal features of timesteps, `[timesteps.len(), 256]` row-major: cosines, then sines.
///
/// In f32 throughout, since that is what the networks were trained with.
pub fn timestep_features(timesteps: &[f32], shift: usize) -> Vec<f32> {
    let half = TIMESTEP_CHANNELS / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10000f64.ln() as f32) * i as f32 / (half - shift) as f32).exp())
        .collect();
    let mut out = Vec::with_capacity(timesteps.len() * TIMESTEP_CHANNELS);
    for t in timesteps {
        out.extend(frequencies.iter().map(|f| (t * f).cos()));
        out.extend(frequencies.iter().map(|f| (t * f).sin()));
    }
    out
}

/// Timestep and label embedding: `c = MLP(features(t)) + table[y]`.
#[derive(Module, Debug)]
pub struct ConditionEmbedder {
    /// `[256, dim]`
    pub timestep_in: Linear,
    /// `[dim, dim]`
    pub timestep_out: Linear,
    /// One row a class, then the null label: `[classes + 1, dim]`.
    pub labels: Param<Tensor<2>>,
}

impl ConditionEmbedder {
    /// `c`, `[n, dim]`, for `features` `[n, 256]` and `labels` `[n]`.
    pub fn forward(&self, features: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<2> {
        let hidden = silu(affine(&self.timestep_in, features));
        let timestep = affine(&self.timestep_out, hidden);
        timestep + self.labels.val().select(0, labels)
    }
}

/// Timesteps and labels as the tensors [`ConditionEmbedder::forward`] takes.
pub(super) fn condition_inputs(
    timesteps: &[f32],
    labels: &[usize],
    shift: usize,
    device: &Device,
) -> (Tensor<2>, Tensor<1, Int>) {
    let features = TensorData::new(
        timestep_features(timesteps, shift),
        [timesteps.len(), TIMESTEP_CHANNELS],
    );
    let labels: Vec<i32> = labels.iter().map(|y| *y as i32).collect();
    let count = labels.len();
    (
        Tensor::from_data(features, device),
        Tensor::from_data(TensorData::new(labels, [count]), device),
    )
}
