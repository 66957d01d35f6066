//! Timesteps and labels as vectors.

use burn::tensor::{Int, Tensor};

use crate::layers::{Affine, embed_features};

/// Timestep and label embedding: `c = MLP(features(t)) + table[y]`.
#[derive(Debug)]
pub struct ConditionEmbedder {
    /// `[256, dim]`
    pub timestep_in: Affine,
    /// `[dim, dim]`
    pub timestep_out: Affine,
    /// One row a class, then the null label: `[classes + 1, dim]`.
    pub labels: Tensor<2>,
}

impl ConditionEmbedder {
    /// `c`, `[n, dim]`, for `features` `[n, 256]` and `labels` `[n]`.
    pub fn forward(&self, features: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<2> {
        let timestep = embed_features(&self.timestep_in, &self.timestep_out, features);
        timestep + self.labels.clone().select(0, labels)
    }
}
