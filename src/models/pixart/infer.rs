//! From the tensors of a file, and a diffusers `config.json`, to the network they belong to.

use serde_json::Value;

use super::config::PixArtConfig;
use crate::{
    containers::{CheckpointError, TensorSource},
    models::{Hints, Naming, POSITIONS},
};

/// Heads of the published size, by hidden width.
const PUBLISHED_HEADS: (usize, usize) = (1152, 16);
/// Text tokens of PixArt-α and -Σ.
const ALPHA_TOKENS: usize = 120;
const SIGMA_TOKENS: usize = 300;

/// Whether a file holds a PixArt transformer: it projects captions.
pub(super) fn recognises(source: &TensorSource) -> bool {
    [
        "y_embedder.y_proj.fc1.weight",
        "caption_projection.linear_1.weight",
    ]
    .iter()
    .any(|name| source.get(name).is_some())
}

/// Whether the file holds positions for latents of this size.
pub(super) fn holds_positions(source: &TensorSource, input_size: [usize; 2], patch: usize) -> bool {
    let tokens: usize = input_size.iter().map(|side| side / patch.max(1)).product();
    source
        .get(POSITIONS)
        .is_some_and(|entry| entry.shape.get(1) == Some(&tokens))
}

/// The config of a file that brings none of ours.
pub(super) fn infer_config(
    source: &TensorSource,
    naming: Naming,
    hints: Hints,
) -> Result<PixArtConfig, CheckpointError> {
    let path = source.path();
    let (embedding, caption, last, prefix, micro) = match naming {
        Naming::Release => (
            "x_embedder.proj.weight",
            "y_embedder.y_proj.fc1.weight",
            "final_layer.linear.weight",
            "blocks.",
            "csize_embedder.mlp.0.weight",
        ),
        Naming::Diffusers => (
            "pos_embed.proj.weight",
            "caption_projection.linear_1.weight",
            "proj_out.weight",
            "transformer_blocks.",
            "adaln_single.emb.resolution_embedder.linear_1.weight",
        ),
    };
    let shape = |name: &str, axes: usize| -> Result<Vec<usize>, CheckpointError> {
        match source.get(name) {
            Some(entry) if entry.shape.len() == axes && !entry.shape.contains(&0) => {
                Ok(entry.shape.clone())
            }
            Some(entry) => Err(CheckpointError::Settings {
                path: path.into(),
                problem: format!(
                    "tensor `{name}` of a PixArt transformer has shape {:?}, expected {axes} axes",
                    entry.shape
                ),
            }),
            None => Err(CheckpointError::missing(path, name)),
        }
    };
    if let Some(norm) = source.entries().find(|e| e.name.contains("q_norm")) {
        return Err(CheckpointError::Settings {
            path: path.into(),
            problem: format!(
                "it normalises queries and keys (`{}`), which is not built in",
                norm.name
            ),
        });
    }
    let embedding = shape(embedding, 4)?;
    let [hidden, channels, patch] = [embedding[0], embedding[1], embedding[2]];
    let caption = shape(caption, 2)?[1];
    let outputs = shape(last, 2)?[0];
    let number = |name: &str| {
        name.strip_prefix(prefix)?
            .split('.')
            .next()?
            .parse::<usize>()
            .ok()
    };
    let blocks = source.entries().filter_map(|e| number(&e.name)).max();
    let blocks = blocks.map_or(0, |last| last.saturating_add(1));

    let json = match naming {
        Naming::Diffusers => source.config()?,
        // Beside a file with the release's names it is somebody else's.
        Naming::Release => None,
    };
    let json = Json {
        json: json.unwrap_or(Value::Null),
        source,
    };
    json.expect_class()?;
    json.expect("norm_type", "ada_norm_single")?;
    json.expect("activation_fn", "gelu-approximate")?;
    let heads = match hints.heads.or(json.count("num_attention_heads")?) {
        Some(heads) => heads,
        None if hidden == PUBLISHED_HEADS.0 => PUBLISHED_HEADS.1,
        None => {
            return Err(CheckpointError::HeadsNeeded {
                path: path.into(),
                hidden,
                hint: String::new(),
            });
        }
    };
    // The side of the latents that the network was made for: its config's, or that of its stored positions.
    let stored = source
        .get(POSITIONS)
        .and_then(|e| e.shape.get(1))
        .map(|tokens| tokens.isqrt() * patch);
    let side = json.count("sample_size")?.or(stored);
    let input_size = match hints.input_size.or(side.map(|side| [side; 2])) {
        Some(size) => size,
        None => {
            return Err(CheckpointError::SizeNeeded {
                path: path.into(),
                problem: "it does not say for which latent size it is".into(),
            });
        }
    };
    let side = side.unwrap_or(input_size[0].max(input_size[1]));
    let null = source
        .get("y_embedder.y_embedding")
        .map(|e| e.shape.clone());
    let text_tokens = match &null {
        Some(shape) if shape.len() == 2 => shape[0],
        // Micro-conditions are α's alone; without them the longer texts of Σ are let in.
        _ if source.get(micro).is_some() => ALPHA_TOKENS,
        _ => SIGMA_TOKENS,
    };
    let config = PixArtConfig {
        input_size,
        patch,
        channels,
        out_channels: outputs / (patch * patch).max(1),
        hidden,
        blocks,
        heads,
        caption,
        text_tokens,
        base_tokens: (side / patch.max(1)).max(1),
        interpolation_scale: match json.number("interpolation_scale")? {
            Some(scale) => scale,
            None => (side / 64).max(1) as f64,
        },
        micro_conditions: source.get(micro).is_some(),
        null_text: null.is_some(),
        stored_positions: naming == Naming::Release && holds_positions(source, input_size, patch),
    };
    config
        .check()
        .map_err(|problem| CheckpointError::Settings {
            path: path.into(),
            problem: format!("it describes no PixArt transformer: {problem}"),
        })?;
    Ok(config)
}

/// A diffusers `config.json`, or nothing.
struct Json<'a> {
    json: Value,
    source: &'a TensorSource,
}

impl Json<'_> {
    fn bad(&self, problem: String) -> CheckpointError {
        CheckpointError::Config {
            path: self.source.config_path(),
            problem,
        }
    }

    fn of(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn expect_class(&self) -> Result<(), CheckpointError> {
        let ours = ["PixArtTransformer2DModel", "Transformer2DModel"];
        match self.of("_class_name").and_then(Value::as_str) {
            Some(class) if !ours.contains(&class) => {
                Err(self.bad(format!("it describes a `{class}`, expected a {}", ours[0])))
            }
            _ => Ok(()),
        }
    }

    fn expect(&self, key: &str, wanted: &str) -> Result<(), CheckpointError> {
        match self.of(key).filter(|found| found.as_str() != Some(wanted)) {
            Some(found) => Err(self.bad(format!("`{key}` is {found}, PixArt has \"{wanted}\""))),
            None => Ok(()),
        }
    }

    fn count(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        let count = |value: &Value| value.as_u64().filter(|n| (1..=1 << 20).contains(n));
        match self.of(key) {
            None => Ok(None),
            Some(value) => match count(value) {
                Some(n) => Ok(Some(n as usize)),
                None => Err(self.bad(format!("`{key}` is {value}, expected a positive integer"))),
            },
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        match self.of(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.bad(format!("`{key}` is {value}, expected a number"))),
            },
        }
    }
}
