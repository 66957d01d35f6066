//! A network's weights outside any file or device.

use std::collections::HashMap;

use super::{CheckpointError, load::fresh_weights};
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

impl StateDict {
    /// The network for pictures of another size or other channels, or of other patches: what reads patches and what draws them
    /// begins anew where their numbers are others, all else is kept. Gives the names of the tensors that began anew too.
    ///
    /// # Errors
    /// [`CheckpointError::Settings`] if that describes no network.
    pub fn for_pictures(
        mut self,
        [channels, height, width]: [usize; 3],
        patch: usize,
        seed: u64,
    ) -> Result<(Self, Vec<String>), CheckpointError> {
        let config = DitConfig {
            channels,
            input_size: [height, width],
            patch,
            ..self.config.clone()
        };
        let mut fresh = fresh_weights(&config, seed)?;
        let other_patches =
            (config.channels, config.patch) != (self.config.channels, self.config.patch);
        let of_patches =
            |name: &str| name.starts_with("x_embedder.") || name.starts_with("final_layer.linear.");
        let mut begun = Vec::new();
        for tensor in fresh.expected() {
            if other_patches && of_patches(&tensor.name) {
                let values = fresh.read(&tensor)?;
                self.tensors.insert(tensor.name.clone(), values);
                begun.push(tensor.name);
            }
        }
        begun.sort_unstable();
        self.config = config;
        Ok((self, begun))
    }
}
