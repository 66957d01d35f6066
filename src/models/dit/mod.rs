//! The Diffusion Transformer (Peebles & Xie, arXiv 2212.09748): classes, adaLN-Zero, self-attention and an MLP a block.

mod block;
mod config;
mod embed;
mod infer;
mod network;
mod tensors;

use std::{path::Path, sync::Arc};

use serde_json::Value;

pub use block::Block;
pub use config::{ConfigError, DitConfig, MLP_RATIO, PUBLISHED};
pub use embed::ConditionEmbedder;
pub use network::Dit;
pub(crate) use tensors::in_branch;
use tensors::own_embedder;

use super::{
    Architecture, Conditioning, Family, Hints, Latents, Model, Naming, Outline, Supply, TensorSpec,
};
use crate::{
    containers::{CheckpointError, TensorSource},
    diffusion::{GuidedChannels, Process},
    graph::{Graph, SiteKind, mlp_macs, self_attention_macs},
    layers::{TIMESTEP_CHANNELS, sincos_positions},
};

/// DiTs of the public release, of diffusers, and ours.
#[derive(Debug)]
pub struct DitFamily;

/// A DiT's shape, as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct DitArchitecture {
    pub config: DitConfig,
    /// Whether every block has timestep and label embedders of its own.
    pub own_embedders: bool,
}

impl DitArchitecture {
    /// A network whose blocks share their embedders. The config must pass [`DitConfig::check`].
    pub fn shared(config: DitConfig) -> Self {
        Self {
            config,
            own_embedders: false,
        }
    }
}

/// The one name of the family.
const NAME: &str = "DiT";

impl Family for DitFamily {
    fn name(&self) -> &'static str {
        NAME
    }

    fn recognises(&self, source: &TensorSource) -> bool {
        infer::recognises(source)
    }

    fn infer(
        &self,
        source: &TensorSource,
        naming: Naming,
        hints: Hints,
    ) -> Result<Arc<dyn Architecture>, CheckpointError> {
        let config = infer::infer_config(source, naming, hints)?;
        Ok(Arc::new(infer::of_file(config, source, naming)))
    }

    fn read(
        &self,
        config: Value,
        source: Option<&TensorSource>,
        hints: Hints,
        path: &Path,
    ) -> Result<Arc<dyn Architecture>, CheckpointError> {
        let config: DitConfig =
            serde_json::from_value(config).map_err(|e| CheckpointError::Config {
                path: path.into(),
                problem: format!("its model description is not valid: {e}"),
            })?;
        infer::check_config(path, &config)?;
        infer::check_hints(path, &config, hints)?;
        Ok(Arc::new(match source {
            Some(source) => infer::of_file(config, source, Naming::Release),
            None => DitArchitecture::shared(config),
        }))
    }

    fn published(
        &self,
        size: &str,
        tokens: usize,
    ) -> Option<Result<Arc<dyn Architecture>, String>> {
        size.starts_with("DiT").then(|| {
            let patch = size
                .rsplit('/')
                .next()
                .and_then(|p| p.parse::<usize>().ok());
            let side = tokens.isqrt() * patch.unwrap_or(0);
            let config = DitConfig::published(size, [side; 2]).map_err(|e| e.to_string())?;
            Ok(Arc::new(DitArchitecture::shared(config)) as Arc<dyn Architecture>)
        })
    }
}

impl DitConfig {
    /// The network of this shape whose blocks share their embedders.
    ///
    /// # Errors
    /// [`ConfigError`] if the config describes no network.
    pub fn architecture(self) -> Result<Arc<dyn Architecture>, ConfigError> {
        self.check()?;
        Ok(Arc::new(DitArchitecture::shared(self)))
    }

    /// What is known of a network of this shape beside its weights. The config must pass [`DitConfig::check`].
    pub fn outline(&self) -> Outline {
        let (tokens, dim) = (self.tokens(), self.hidden);
        let [n, d] = [tokens as u64, dim as u64];
        let outputs = (self.patch * self.patch * self.out_channels()) as u64;
        let embeddings = n * self.patch_inputs() as u64 * d + TIMESTEP_CHANNELS as u64 * d + d * d;
        let last = n * d * outputs + 2 * d * d;
        let pattern = [
            (SiteKind::SelfAttention, self_attention_macs(tokens, dim)),
            (SiteKind::Mlp, mlp_macs(tokens, dim, MLP_RATIO)),
        ];
        let fixed = embeddings + last + self.blocks as u64 * 6 * d * d;
        let graph = Graph::uniform(self.blocks, &pattern, [tokens, dim], fixed);
        Outline {
            family: NAME,
            name: self.name(),
            graph: graph.unwrap_or_else(|e| unreachable!("a config that was checked: {e}")),
            latents: Latents {
                channels: self.channels,
                size: self.input_size,
                patch: self.patch,
                out_channels: self.out_channels(),
                process: Process::default(),
            },
            conditioning: Conditioning::Classes(self.classes),
            parameters: self.parameters(),
            // Tokens, modulated tokens, qkv, the MLP's inner layer twice, and the scores of one branch.
            activations: n * d * 16 + 2 * self.heads as u64 * n * n,
            guidance: (1.5, GuidedChannels::Three),
        }
    }
}

impl Architecture for DitArchitecture {
    fn outline(&self) -> Outline {
        self.config.outline()
    }

    fn to_json(&self) -> Value {
        // A struct of plain data always serialises.
        serde_json::to_value(&self.config).unwrap_or_default()
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        tensors::tensors(&self.config, self.own_embedders)
    }

    fn positions(&self) -> Vec<f32> {
        sincos_positions(self.config.grid(), self.config.hidden, [1.0, 1.0])
    }

    fn build(&self, outline: Arc<Outline>, supply: &mut dyn Supply) -> Model {
        let blocks = 0..self.config.blocks;
        let dit = Dit::assemble(&self.config, outline, blocks, self.own_embedders, supply);
        Arc::new(dit)
    }

    fn as_dit(&self) -> Option<&DitArchitecture> {
        Some(self)
    }
}
