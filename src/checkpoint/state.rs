//! A network's weights outside any file or device.

use std::collections::HashMap;

use super::{CheckpointError, load::fresh_weights};
use crate::{diffusion::Guidance, models::dit::DitConfig};

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
    /// The guidance that its pictures are usually drawn under, where it is not its family's. A network that is trained further
    /// gets that of its training's samples.
    pub guidance: Option<Guidance>,
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

    /// The network for classes of these names, in their order: it keeps what it knows of those that it has by name and of the null
    /// class, others begin anew. Gives how many it knows. Where either side has no names classes are numbers, and nothing changes.
    ///
    /// # Errors
    /// [`CheckpointError::Settings`] if that describes no network.
    pub fn for_classes(
        mut self,
        names: &[String],
        seed: u64,
    ) -> Result<(Self, usize), CheckpointError> {
        let before = self.config.classes;
        if names.is_empty() || self.class_names.is_empty() || names == self.class_names {
            return Ok((self, before));
        }
        let config = DitConfig {
            classes: names.len(),
            ..self.config.clone()
        };
        let known = names.iter().map(|name| {
            let mut known = self.class_names.iter();
            known.position(|known| known == name)
        });
        let known: Vec<Option<usize>> = known.collect();
        let count = known.iter().flatten().count();
        // The null class is the last.
        let rows: Vec<_> = known.into_iter().chain([Some(before)]).collect();
        let mut fresh = fresh_weights(&config, seed)?;
        let expected = fresh.expected();
        let table = expected.iter().find(|tensor| tensor.name.ends_with(LABELS));
        let table = table.map(|table| fresh.read(table)).transpose()?;
        let table = table.unwrap_or_default();
        for (_, values) in self
            .tensors
            .iter_mut()
            .filter(|(name, _)| name.ends_with(LABELS))
        {
            let mut new = table.clone();
            let width = values.len() / (before + 1);
            for (row, known) in new.chunks_mut(width.max(1)).zip(&rows) {
                let known = known.and_then(|known| values.get(known * width..(known + 1) * width));
                if let Some(known) = known.filter(|known| known.len() == row.len()) {
                    row.copy_from_slice(known);
                }
            }
            *values = new;
        }
        self.class_names = names.to_vec();
        self.config = config;
        Ok((self, count))
    }
}

/// How names of tables of labels end: blocks may have some of their own.
const LABELS: &str = "y_embedder.embedding_table.weight";
