//! Timesteps and labels as vectors.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Int, Tensor},
};

use crate::layers::embed_features;

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
        let timestep = embed_features(&self.timestep_in, &self.timestep_out, features);
        timestep + self.labels.val().select(0, labels)
    }
}
