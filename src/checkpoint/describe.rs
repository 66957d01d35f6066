//! A file checked against the network it describes, before anything large is read.

use super::{
    error::CheckpointError,
    fingerprint::Fingerprint,
    infer::{Hints, check_config, infer_config, naming},
    layout::{self, Expected, Naming},
    save::METADATA_KEY,
    source::TensorSource,
    spec::{LoadOptions, Metadata},
};
use crate::dit::DitConfig;

/// What a file holds, checked against the network it describes; nothing large is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    pub config: DitConfig,
    pub class_names: Vec<String>,
    pub clip_x0: bool,
    /// The fingerprint that the file itself names.
    pub fingerprint: Option<Fingerprint>,
    /// `the DiT release's` or `diffusers'` names.
    pub naming: &'static str,
    /// One embedder a block.
    pub own_embedders: bool,
}

/// Checks a file as loading would, without reading weights.
///
/// # Errors
/// [`CheckpointError`].
pub fn describe(
    source: &TensorSource,
    options: LoadOptions,
) -> Result<Description, CheckpointError> {
    let path = source.path();
    let naming = naming(source);
    let metadata = read_metadata(source)?;
    let (config, class_names, clip_x0, fingerprint) = match metadata {
        Some(m) => {
            if let Some(heads) = options.heads.filter(|h| *h != m.config.heads) {
                return Err(CheckpointError::Settings {
                    path: path.into(),
                    problem: format!(
                        "--heads {heads} contradicts the file, which says {}",
                        m.config.heads
                    ),
                });
            }
            if let Some(size) = options.input_size.filter(|s| *s != m.config.input_size) {
                return Err(CheckpointError::Settings {
                    path: path.into(),
                    problem: format!(
                        "--input-size {size:?} contradicts the file, which says {:?}",
                        m.config.input_size
                    ),
                });
            }
            (m.config, m.classes, m.clip_x0, Some(m.fingerprint))
        }
        None => {
            let hints = Hints {
                heads: options.heads,
                input_size: options.input_size,
            };
            (
                infer_config(source, naming, hints)?,
                Vec::new(),
                false,
                None,
            )
        }
    };
    let stored = |name: &str| layout::stored_names(naming, name);
    let own = config.blocks > 1
        && stored(&format!(
            "{}t_embedder.mlp.0.weight",
            layout::own_embedder(config.blocks - 1)
        ))
        .iter()
        .any(|n| source.get(n).is_some());
    check_tensors(source, naming, &config, own)?;
    Ok(Description {
        config,
        class_names,
        clip_x0,
        fingerprint,
        naming: match naming {
            Naming::Release => "the DiT release's",
            Naming::Diffusers => "diffusers'",
        },
        own_embedders: own,
    })
}

fn read_metadata(source: &TensorSource) -> Result<Option<Metadata>, CheckpointError> {
    let Some(text) = source.metadata().get(METADATA_KEY) else {
        return Ok(None);
    };
    let path = source.path();
    let bad = |problem: String| CheckpointError::Config {
        path: path.into(),
        problem,
    };
    let metadata: Metadata = serde_json::from_str(text)
        .map_err(|e| bad(format!("its model description is not valid: {e}")))?;
    if metadata.format != 1 || metadata.family != "DiT" {
        return Err(bad(format!(
            "it was written for format {} of family {}, this program reads format 1 of family DiT",
            metadata.format, metadata.family
        )));
    }
    check_config(path, &metadata.config)?;
    if !metadata.classes.is_empty() && metadata.classes.len() != metadata.config.classes {
        return Err(bad(format!(
            "it names {} classes of {}",
            metadata.classes.len(),
            metadata.config.classes
        )));
    }
    Ok(Some(metadata))
}

/// Names and shapes of the file against those of the network.
fn check_tensors(
    source: &TensorSource,
    naming: Naming,
    config: &DitConfig,
    own_embedders: bool,
) -> Result<(), CheckpointError> {
    let path = source.path();
    let mut known = std::collections::HashSet::new();
    let mut missing: Vec<(String, Vec<usize>)> = Vec::new();
    for Expected { name, shape } in layout::expected(config, own_embedders) {
        let stored = layout::stored_names(naming, &name);
        let mut part = shape.clone();
        part[0] /= stored.len();
        for name in stored {
            match source.get(&name) {
                Some(entry) if entry.shape != part => {
                    return Err(CheckpointError::Shape {
                        path: path.into(),
                        name,
                        found: entry.shape.clone(),
                        expected: part,
                    });
                }
                Some(entry) if !entry.dtype.is_float() => {
                    return Err(CheckpointError::Dtype {
                        path: path.into(),
                        name,
                        dtype: entry.dtype.to_string(),
                    });
                }
                Some(_) => drop(known.insert(name)),
                None if is_positions(naming, &name) => {}
                None => missing.push((name, part.clone())),
            }
        }
    }
    if let Some((name, expected)) = missing.first() {
        return Err(CheckpointError::Missing {
            path: path.into(),
            name: name.clone(),
            expected: expected.clone(),
            count: missing.len(),
        });
    }
    let extra: Vec<_> = source
        .entries()
        .filter(|e| !known.contains(&e.name))
        .collect();
    if let Some(first) = extra.first() {
        return Err(CheckpointError::Unexpected {
            path: path.into(),
            name: first.name.clone(),
            shape: first.shape.clone(),
            model: config.name(),
            count: extra.len(),
        });
    }
    Ok(())
}

fn is_positions(naming: Naming, stored: &str) -> bool {
    layout::stored_names(naming, layout::POSITIONS)
        .iter()
        .any(|n| n == stored)
}
