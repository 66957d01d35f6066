//! PixArt-α and -Σ: texts instead of classes, adaLN-single, attention to the text in every block.

mod config;
mod infer;
mod network;
mod sizes;
mod tensors;

use std::{path::Path, sync::Arc};

use serde_json::Value;

pub use config::{MLP_RATIO, PIXELS_OF_CELL, PixArtConfig};
pub use network::{PixArt, PixArtBlock};

use super::{
    Architecture, Conditioning, Family, Hints, Latents, Model, Naming, Outline, Supply, TensorSpec,
};
use crate::{
    containers::{CheckpointError, TensorSource},
    diffusion::{GuidedChannels, Process},
    graph::{Graph, SiteKind, cross_attention_macs, mlp_macs, self_attention_macs},
    layers::{TIMESTEP_CHANNELS, sincos_positions},
};

/// PixArt transformers of the authors' release, of diffusers, and ours.
#[derive(Debug)]
pub struct PixArtFamily;

/// A PixArt transformer's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct PixArtArchitecture(pub PixArtConfig);

/// The one name of the family.
const NAME: &str = "PixArt";

impl Family for PixArtFamily {
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
        Ok(Arc::new(PixArtArchitecture(config)))
    }

    fn read(
        &self,
        config: Value,
        source: Option<&TensorSource>,
        hints: Hints,
        path: &Path,
    ) -> Result<Arc<dyn Architecture>, CheckpointError> {
        let bad = |problem: String| CheckpointError::Config {
            path: path.into(),
            problem: format!("its model description is not valid: {problem}"),
        };
        let mut config: PixArtConfig =
            serde_json::from_value(config).map_err(|e| bad(e.to_string()))?;
        // The same weights serve any latent size.
        config.input_size = hints.input_size.unwrap_or(config.input_size);
        config.stored_positions = source
            .is_some_and(|source| infer::holds_positions(source, config.input_size, config.patch));
        config.check().map_err(bad)?;
        Ok(Arc::new(PixArtArchitecture(config)))
    }

    fn published(
        &self,
        size: &str,
        tokens: usize,
    ) -> Option<Result<Arc<dyn Architecture>, String>> {
        let patch = size.strip_prefix("PixArt-XL/")?;
        Some(match patch.parse() {
            Ok(2) => {
                let config = PixArtConfig::xl_2([2 * tokens.isqrt(); 2]);
                let checked = config.check();
                checked.map(|()| Arc::new(PixArtArchitecture(config)) as Arc<dyn Architecture>)
            }
            _ => Err(format!("unknown size `{size}`: expected PixArt-XL/2")),
        })
    }
}

impl PixArtConfig {
    /// The published size for latents of `input_size` cells, with texts of 120 tokens and an embedding of no text.
    pub fn xl_2(input_size: [usize; 2]) -> Self {
        Self {
            input_size,
            patch: 2,
            channels: 4,
            out_channels: 8,
            hidden: 1152,
            blocks: 28,
            heads: 16,
            caption: 4096,
            text_tokens: 120,
            base_tokens: (input_size[0] / 2).max(1),
            interpolation_scale: (input_size[0] / 64).max(1) as f64,
            micro_conditions: input_size[0] == 128,
            null_text: true,
            stored_positions: false,
        }
    }

    /// What is known of a network of this shape beside its weights. The config must pass [`PixArtConfig::check`].
    pub fn outline(&self) -> Outline {
        let (tokens, dim, text) = (self.tokens(), self.hidden, self.text_tokens);
        let [n, d, l] = [tokens as u64, dim as u64, text as u64];
        let of_kind = |kind: SiteKind| match kind {
            SiteKind::SelfAttention => self_attention_macs(tokens, dim),
            SiteKind::CrossAttention => cross_attention_macs(tokens, text, dim),
            SiteKind::Mlp => mlp_macs(tokens, dim, MLP_RATIO),
        };
        let pattern = network::BRANCHES.map(|kind| (kind, of_kind(kind)));
        // Patches, the timestep's embedding, the one adaLN projection, the last layer. Keys and values of the text are made
        // once a run and not counted.
        let inputs = (self.channels * self.patch * self.patch) as u64;
        let fixed = n * d * (inputs + self.patch_outputs() as u64)
            + TIMESTEP_CHANNELS as u64 * d
            + d * d
            + 6 * d * d;
        let graph = Graph::uniform(self.blocks, &pattern, [tokens, dim], fixed);
        Outline {
            family: NAME,
            name: self.name(),
            graph: graph.unwrap_or_else(|e| unreachable!("a config that was checked: {e}")),
            latents: Latents {
                channels: self.channels,
                size: self.input_size,
                patch: self.patch,
                out_channels: self.out_channels,
                process: Process::default(),
            },
            conditioning: Conditioning::Text {
                tokens: text,
                width: self.caption,
            },
            parameters: self.parameters(),
            // As a DiT's, and the text's keys and values of every block.
            activations: n * d * 16
                + 2 * self.heads as u64 * n * n.max(l)
                + self.blocks as u64 * 2 * l * d,
            guidance: (4.5, GuidedChannels::All),
        }
    }
}

impl Architecture for PixArtArchitecture {
    fn outline(&self) -> Outline {
        self.0.outline()
    }

    fn to_json(&self) -> Value {
        // A struct of plain data always serialises.
        serde_json::to_value(&self.0).unwrap_or_default()
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        tensors::tensors(&self.0)
    }

    /// The authors' files hold positions of the size they were trained for; they are computed for the size at hand.
    fn ignored(&self) -> &'static [&'static str] {
        &[super::POSITIONS]
    }

    fn latents_for(&self, pixels: [usize; 2]) -> Option<[usize; 2]> {
        let side = self.0.base_tokens * self.0.patch * PIXELS_OF_CELL;
        let drawn = sizes::nearest(side, self.0.patch * PIXELS_OF_CELL, pixels);
        Some(drawn.map(|side| side / PIXELS_OF_CELL))
    }

    fn positions(&self) -> Vec<f32> {
        let grid = self.0.grid();
        let apart =
            |side: usize| self.0.base_tokens as f64 / side as f64 / self.0.interpolation_scale;
        sincos_positions(grid, self.0.hidden, grid.map(apart))
    }

    fn build(&self, outline: Arc<Outline>, supply: &mut dyn Supply) -> Model {
        let network = PixArt::assemble(&self.0, outline, supply);
        Arc::new(network.with_null())
    }
}
