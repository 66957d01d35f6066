//! A network's weights outside any file or device.

use std::collections::HashMap;

use crate::models::dit::DitConfig;

/// Weights by canonical name (those of the public DiT release), row-major in PyTorch's shapes, and what a model
/// file says beside them. The position embedding follows its formula and is not among the tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct StateDict {
    pub config: DitConfig,
    /// Whether every block has timestep and label embedders of its own.
    pub own_embedders: bool,
    /// Names of the classes, or empty.
    pub class_names: Vec<String>,
    /// Whether sampling clips the predicted `x_0` by default.
    pub clip_x0: bool,
    pub tensors: HashMap<String, Vec<f32>>,
}
