//! From the tensors of a file to the network they belong to.

use std::path::Path;

use serde_json::Value;

use super::{DitArchitecture, DitConfig, MLP_RATIO, own_embedder, tensors::tensors};
use crate::{
    containers::{CheckpointError, TensorSource},
    layers::{NORM_EPS, TIMESTEP_CHANNELS},
    models::{Hints, Naming, POSITIONS},
};

/// Whether a file holds a DiT: it embeds labels, or says nothing of text.
pub(super) fn recognises(source: &TensorSource) -> bool {
    let says = |part: &str| source.entries().any(|e| e.name.contains(part));
    says("y_embedder.embedding_table") || says("class_embedder")
}

/// The network of a config, as the file holds its embedders.
pub(super) fn of_file(config: DitConfig, source: &TensorSource, naming: Naming) -> DitArchitecture {
    let last = format!("{}t_embedder.mlp.0.weight", own_embedder(config.blocks - 1));
    let own = DitArchitecture {
        own_embedders: true,
        config,
    };
    let held = |arch: &DitArchitecture| {
        let all = tensors(&arch.config, true);
        let spec = all.iter().find(|spec| spec.name == last);
        spec.is_some_and(|spec| {
            spec.stored(naming)
                .iter()
                .any(|name| source.get(name).is_some())
        })
    };
    match own.config.blocks > 1 && held(&own) {
        true => own,
        false => DitArchitecture::shared(own.config),
    }
}

/// What a user says must not contradict a file that says it itself.
pub(super) fn check_hints(
    path: &Path,
    config: &DitConfig,
    hints: Hints,
) -> Result<(), CheckpointError> {
    let contradiction = |problem: String| {
        Err(CheckpointError::Settings {
            path: path.into(),
            problem,
        })
    };
    if let Some(heads) = hints.heads.filter(|heads| *heads != config.heads) {
        return contradiction(format!(
            "{heads} heads contradict the file, which says {}",
            config.heads
        ));
    }
    if let Some(size) = hints.input_size.filter(|size| *size != config.input_size) {
        return contradiction(format!(
            "input size {size:?} contradicts the file, which says {:?}",
            config.input_size
        ));
    }
    Ok(())
}

/// The config of a file that brings none of ours.
pub(super) fn infer_config(
    source: &TensorSource,
    naming: Naming,
    hints: Hints,
) -> Result<DitConfig, CheckpointError> {
    let path = source.path();
    let not_a_dit = |problem: String| CheckpointError::NotADit {
        path: path.into(),
        problem,
    };
    let shape = |canonical: &str, axes: usize| -> Result<Vec<usize>, CheckpointError> {
        let name = stored_name(naming, canonical);
        let entry = source.get(&name).ok_or_else(|| {
            let some: Vec<_> = source
                .entries()
                .take(3)
                .map(|e| format!("`{}`", e.name))
                .collect();
            not_a_dit(format!(
                "it has no tensor `{name}`, but {}",
                some.join(", ")
            ))
        })?;
        if entry.shape.len() != axes || entry.shape.contains(&0) {
            return Err(not_a_dit(format!(
                "tensor `{name}` has shape {:?}, expected {axes} axes",
                entry.shape
            )));
        }
        Ok(entry.shape.clone())
    };

    let patch_embedding = shape("x_embedder.proj.weight", 4)?;
    let [hidden, channels, patch] = [patch_embedding[0], patch_embedding[1], patch_embedding[2]];
    let classes = shape("y_embedder.embedding_table.weight", 2)?[0] - 1;
    let outputs = shape("final_layer.linear.weight", 2)?[0];
    let prefix = if naming == Naming::Diffusers {
        "transformer_blocks."
    } else {
        "blocks."
    };
    let blocks = source
        .entries()
        .filter_map(|e| {
            e.name
                .strip_prefix(prefix)?
                .split('.')
                .next()?
                .parse::<usize>()
                .ok()
        })
        .max()
        .map_or(0, |last| last.saturating_add(1));
    let learned_sigma = match outputs.checked_div(patch * patch) {
        Some(out) if out == 2 * channels => true,
        Some(out) if out == channels => false,
        _ => {
            return Err(not_a_dit(format!(
                "its last layer has {outputs} outputs, expected {patch}·{patch}·{channels} or, with learned sigma, twice that"
            )));
        }
    };

    // Beside a file with the release's names it is somebody else's.
    let config = match naming {
        Naming::Diffusers => diffusers_config(source)?,
        Naming::Release => None,
    };
    let tokens = match source.get(&stored_name(naming, POSITIONS)) {
        Some(entry) if entry.shape.len() == 3 => Some(entry.shape[1]),
        Some(entry) => {
            return Err(not_a_dit(format!(
                "its position embedding has shape {:?}, expected 3 axes",
                entry.shape
            )));
        }
        None => None,
    };
    let input_size = match (hints.input_size, tokens) {
        (Some(size), Some(tokens)) => {
            let [rows, columns] = size.map(|side| side / patch);
            if rows * columns != tokens || size.iter().any(|side| !side.is_multiple_of(patch)) {
                return Err(CheckpointError::Settings {
                    path: path.into(),
                    problem: format!(
                        "input size {}x{} makes {} tokens of {patch}×{patch}, the file is for {tokens}",
                        size[0],
                        size[1],
                        rows * columns
                    ),
                });
            }
            size
        }
        (Some(size), None) => size,
        (None, Some(tokens)) => {
            let side = tokens.isqrt();
            if side * side != tokens {
                return Err(CheckpointError::SizeNeeded {
                    path: path.into(),
                    problem: format!("{tokens} tokens form no square"),
                });
            }
            [side * patch; 2]
        }
        (None, None) => match config.as_ref().and_then(|c| c.sample_size) {
            Some(side) => [side; 2],
            None => {
                return Err(CheckpointError::SizeNeeded {
                    path: path.into(),
                    problem: "it does not say for which input size it is".into(),
                });
            }
        },
    };
    let heads = match hints
        .heads
        .or(config.as_ref().map(|c| c.heads))
        .or(DitConfig::published_heads(hidden))
    {
        Some(heads) => heads,
        None => {
            let hint = if hidden.is_multiple_of(64) {
                format!(
                    " (the sizes S, B and L have 64 numbers a head, so {} would be that)",
                    hidden / 64
                )
            } else {
                String::new()
            };
            return Err(CheckpointError::HeadsNeeded {
                path: path.into(),
                hidden,
                hint,
            });
        }
    };
    let inferred = DitConfig {
        input_size,
        patch,
        channels,
        hidden,
        blocks,
        heads,
        classes,
        learned_sigma,
        timestep_shift: usize::from(naming == Naming::Diffusers),
        mlp_norm_eps: config.map_or(NORM_EPS, |c| c.norm_eps),
    };
    check_config(path, &inferred)?;
    // A wider MLP or another embedding would be named by the shape check too; this text is clearer.
    let mlp = shape("blocks.0.mlp.fc1.weight", 2)?[0];
    if mlp != MLP_RATIO * hidden {
        return Err(not_a_dit(format!(
            "its MLP is {mlp} wide, expected {MLP_RATIO}·{hidden}"
        )));
    }
    let timestep = shape("t_embedder.mlp.0.weight", 2)?[1];
    if timestep != TIMESTEP_CHANNELS {
        return Err(not_a_dit(format!(
            "its timestep embedding has {timestep} channels, expected {TIMESTEP_CHANNELS}"
        )));
    }
    Ok(inferred)
}

/// The first name under which a file of one block holds a canonical tensor.
fn stored_name(naming: Naming, canonical: &str) -> String {
    // Names do not depend on sizes.
    let any = DitConfig {
        input_size: [1, 1],
        patch: 1,
        channels: 1,
        hidden: 4,
        blocks: 1,
        heads: 1,
        classes: 1,
        learned_sigma: false,
        timestep_shift: 0,
        mlp_norm_eps: NORM_EPS,
    };
    let all = tensors(&any, false);
    let spec = all.iter().find(|spec| spec.name == canonical);
    let names = spec.map(|spec| spec.stored(naming)).unwrap_or_default();
    names.into_iter().next().unwrap_or_else(|| canonical.into())
}

/// A config that passes, or what is wrong with it.
pub(super) fn check_config(path: &Path, config: &DitConfig) -> Result<(), CheckpointError> {
    config.check().map_err(|e| CheckpointError::Settings {
        path: path.into(),
        problem: format!("it describes no DiT: {e}"),
    })
}

/// What we use of a diffusers `config.json`.
struct DiffusersConfig {
    heads: usize,
    sample_size: Option<usize>,
    norm_eps: f64,
}

fn diffusers_config(source: &TensorSource) -> Result<Option<DiffusersConfig>, CheckpointError> {
    let Some(json) = source.config()? else {
        return Ok(None);
    };
    let bad = |problem: String| CheckpointError::Config {
        path: source.config_path(),
        problem,
    };
    if let Some(class) = json.get("_class_name").and_then(Value::as_str)
        && !["DiTTransformer2DModel", "Transformer2DModel"].contains(&class)
    {
        return Err(bad(format!(
            "it describes a `{class}`, expected a DiTTransformer2DModel"
        )));
    }
    let expected = [
        ("norm_type", "ada_norm_zero"),
        ("activation_fn", "gelu-approximate"),
    ];
    for (key, wanted) in expected {
        if let Some(found) = json.get(key).filter(|v| v.as_str() != Some(wanted)) {
            return Err(bad(format!("`{key}` is {found}, a DiT has \"{wanted}\"")));
        }
    }
    let count = |key: &str| -> Result<Option<usize>, CheckpointError> {
        match json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .filter(|n| (1..=1 << 20).contains(n))
                .map(|n| Some(n as usize))
                .ok_or_else(|| bad(format!("`{key}` is {value}, expected a positive integer"))),
        }
    };
    let heads = count("num_attention_heads")?
        .ok_or_else(|| bad("`num_attention_heads` is missing".into()))?;
    let norm_eps = match json.get("norm_eps") {
        None => 1e-5,
        Some(value) => value
            .as_f64()
            .ok_or_else(|| bad(format!("`norm_eps` is {value}, expected a number")))?,
    };
    Ok(Some(DiffusersConfig {
        heads,
        sample_size: count("sample_size")?,
        norm_eps,
    }))
}
