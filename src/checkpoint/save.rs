//! Writing safetensors: streamed, atomic, the same bytes for the same content.

use std::path::Path;

use half::f16;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    fingerprint::Fingerprint,
    spec::{LoadOptions, Metadata, ModelSpec},
    state::StateDict,
    weights::Weights,
};
use crate::{
    containers::CheckpointError,
    diffusion::{DiffusionError, Guidance, GuidedChannels},
    files::write_atomically,
};

/// The one key of our metadata; its value is a JSON document.
pub const METADATA_KEY: &str = "harmonica";

/// Names for the classes of a converted model.
pub type ClassNames = Vec<String>;

/// Element type of a written model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredDtype {
    #[default]
    F32,
    F16,
}

/// What a conversion sets beyond what the source says.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    pub class_names: Option<ClassNames>,
    pub clip_x0: Option<bool>,
    /// The scale of the usual guidance.
    pub guidance: Option<f64>,
    /// The channels that it guides.
    pub guidance_channels: Option<GuidedChannels>,
}

/// Writes any model that loads as one safetensors file with its config in the metadata.
///
/// One tensor is in memory at a time. The file appears at `out` whole or not at all.
///
/// # Errors
/// [`CheckpointError`], of reading or of writing.
pub fn save_model(
    spec: &ModelSpec,
    load: LoadOptions,
    save: SaveOptions,
    dtype: StoredDtype,
    out: &Path,
) -> Result<Fingerprint, CheckpointError> {
    let mut weights = Weights::open(spec, load)?;
    if let Some(names) = save.class_names {
        weights.class_names = names;
    }
    weights.clip_x0 = save.clip_x0.unwrap_or(weights.clip_x0);
    if save.guidance.is_some() || save.guidance_channels.is_some() {
        let before = weights.outline().usual_guidance(weights.guidance);
        let scale = save.guidance.unwrap_or(before.scale());
        let channels = save.guidance_channels.unwrap_or(before.channels());
        let refused = |e: DiffusionError| CheckpointError::Settings {
            path: out.into(),
            problem: e.to_string(),
        };
        weights.guidance = Some(Guidance::new(scale, channels).map_err(refused)?);
    }
    write_weights(&mut weights, spec, dtype, out)
}

/// Writes weights that are in memory as a model file.
///
/// # Errors
/// [`CheckpointError`]: a tensor is missing, or the file cannot be written.
pub fn save_state(
    state: StateDict,
    dtype: StoredDtype,
    out: &Path,
) -> Result<Fingerprint, CheckpointError> {
    let spec = ModelSpec::Path(out.into());
    write_weights(&mut Weights::memory(state), &spec, dtype, out)
}

fn write_weights(
    weights: &mut Weights,
    spec: &ModelSpec,
    dtype: StoredDtype,
    out: &Path,
) -> Result<Fingerprint, CheckpointError> {
    let classes = weights.class_names.clone();
    let outline = weights.architecture.outline();
    let expected = outline.conditioning.classes();
    if !classes.is_empty() && Some(classes.len()) != expected {
        return Err(CheckpointError::Settings {
            path: out.into(),
            problem: format!(
                "{} class names for {} classes",
                classes.len(),
                expected.unwrap_or(0)
            ),
        });
    }
    let mut tensors = weights.expected();
    // Positions that follow the formula are left out: a reader computes them exactly, f16 would round them.
    if weights.has_formula_positions()? {
        tensors.retain(|t| !t.is_positions());
    }
    // The fingerprint stands before the data, so the weights are read twice rather than kept.
    let fingerprint = weights.fingerprint()?;
    weights.check_fingerprint(spec, &fingerprint)?;
    let metadata = Metadata {
        format: 1,
        family: outline.family.into(),
        config: weights.architecture.to_json(),
        classes,
        clip_x0: weights.clip_x0,
        process: weights.process,
        solver: weights.solver,
        guidance: weights.guidance,
        fingerprint: fingerprint.clone(),
    };
    let metadata = serde_json::to_string(&metadata).map_err(|e| CheckpointError::Config {
        path: out.into(),
        problem: e.to_string(),
    })?;
    let shapes: Vec<_> = tensors
        .iter()
        .map(|t| (t.name.clone(), t.shape.clone()))
        .collect();
    let mut index = 0;
    write_safetensors(out, &shapes, Some(&metadata), dtype, || {
        index += 1;
        weights.read(&tensors[index - 1])
    })?;
    Ok(fingerprint)
}

/// Writes small f32 tensors by name: `(name, shape, values)`.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn write_tensors(out: &Path, tensors: &[NamedTensor<'_>]) -> Result<(), CheckpointError> {
    write_named(out, tensors, None)
}

/// Writes small f32 tensors with a JSON document under [`METADATA_KEY`] in the header.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn write_tensors_with_metadata(
    out: &Path,
    tensors: &[NamedTensor<'_>],
    metadata: &str,
) -> Result<(), CheckpointError> {
    write_named(out, tensors, Some(metadata))
}

/// Name, shape and row-major values.
pub type NamedTensor<'a> = (&'a str, Vec<usize>, Vec<f32>);

fn write_named(
    out: &Path,
    tensors: &[NamedTensor<'_>],
    metadata: Option<&str>,
) -> Result<(), CheckpointError> {
    let shapes: Vec<_> = tensors
        .iter()
        .map(|(name, shape, _)| (name.to_string(), shape.clone()))
        .collect();
    let mut values = tensors.iter().map(|(_, _, values)| values.clone());
    let next = || Ok(values.next().unwrap_or_default());
    write_safetensors(out, &shapes, metadata, StoredDtype::F32, next)
}

/// Writes a safetensors file, asking `next` for a tensor's values at a time, in the order of `shapes`.
pub(crate) fn write_safetensors<V: AsRef<[f32]>>(
    out: &Path,
    shapes: &[(String, Vec<usize>)],
    metadata: Option<&str>,
    dtype: StoredDtype,
    mut next: impl FnMut() -> Result<V, CheckpointError>,
) -> Result<(), CheckpointError> {
    let (name, width) = match dtype {
        StoredDtype::F32 => ("F32", 4),
        StoredDtype::F16 => ("F16", 2),
    };
    let mut header = serde_json::Map::new();
    if let Some(metadata) = metadata {
        header.insert("__metadata__".into(), json!({ METADATA_KEY: metadata }));
    }
    let mut offset = 0;
    for (tensor, shape) in shapes {
        let end = offset + shape.iter().product::<usize>() * width;
        header.insert(
            tensor.clone(),
            json!({ "dtype": name, "shape": shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // Data start at a multiple of 8, as the format asks.
    header.resize(header.len().next_multiple_of(8), b' ');

    let io = |source| CheckpointError::Io {
        action: "write",
        path: out.into(),
        source,
    };
    write_atomically(out, io, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())
            .map_err(io)?;
        file.write_all(&header).map_err(io)?;
        for _ in shapes {
            for values in next()?.as_ref().chunks(1 << 16) {
                let bytes: Vec<u8> = match dtype {
                    StoredDtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    StoredDtype::F16 => values
                        .iter()
                        .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                        .collect(),
                };
                file.write_all(&bytes).map_err(io)?;
            }
        }
        Ok(())
    })
}
