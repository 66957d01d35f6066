//! Latents that were made beforehand: somebody's, or a run's own, which are made once.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{DataError, Dataset, Values};
use crate::checkpoint::{
    self, CheckpointError, METADATA_KEY, StoredDtype, TensorSource, write_safetensors,
};

/// `latents` `[N, C, H, W]` as the network is to see them (scaled), and perhaps `labels` `[N]`; without labels all are
/// of one class.
pub(super) fn read(path: &Path) -> Result<Dataset, DataError> {
    let bad = |problem: String| DataError::Latents {
        path: path.into(),
        problem,
    };
    let mut source = checkpoint::open(path)?;
    let shape = match source.get("latents").map(|e| e.shape.clone()) {
        None => {
            let held: Vec<_> = source.entries().take(3).map(|e| e.name.clone()).collect();
            return Err(bad(format!(
                "expected a tensor `latents` [N,C,H,W], found {}",
                held.join(", ")
            )));
        }
        Some(shape) => shape,
    };
    let [count, c, h, w] = shape[..] else {
        return Err(bad(format!("`latents` is {shape:?}, expected [N,C,H,W]")));
    };
    if shape.contains(&0) {
        return Err(bad(format!("`latents` {shape:?} is empty")));
    }
    let labels = match source.get("labels").map(|e| e.shape.clone()) {
        None => vec![0; count],
        Some(found) if found != [count] => {
            return Err(bad(format!("`labels` is {found:?}, expected [{count}]")));
        }
        Some(_) => source
            .read_i64("labels")?
            .into_iter()
            .map(|y| {
                u32::try_from(y)
                    .ok()
                    .filter(|y| *y < 1 << 24)
                    .ok_or_else(|| bad(format!("its label {y} is no class number")))
            })
            .collect::<Result<Vec<_>, _>>()?,
    };
    let values = source.read_f32("latents")?;
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(bad(format!("latent {} is not finite", at / (c * h * w))));
    }
    let mut hash = blake3::Hasher::new();
    hash.update(bytemuck::cast_slice(&values));
    hash.update(bytemuck::cast_slice(&labels));
    Ok(Dataset {
        path: path.into(),
        values: Values::Latents {
            values,
            mirrored: None,
        },
        shape: [c, h, w],
        labels,
        class_names: Vec::new(),
        skipped: Vec::new(),
        identity: hash.finalize().to_hex()[..32].to_owned(),
    })
}

/// What a file of kept latents says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    format: u32,
    /// Identity of the pictures that they are of.
    pictures: String,
}

impl Kept {
    fn of(pictures: &Dataset) -> Self {
        Self {
            format: 1,
            pictures: pictures.identity.clone(),
        }
    }
}

/// Of pictures as they are, and mirrored: tensors `[N, C, H, W]`. Not the name under which somebody's latents are found: these have
/// no labels.
const SIDES: [&str; 2] = ["plain", "mirrored"];

/// The latents of `shape` that are kept at `path`, where they are of these pictures and, with `mirror`, of the mirrored ones too.
pub(super) fn kept(
    path: &Path,
    pictures: &Dataset,
    shape: [usize; 3],
    mirror: bool,
) -> Option<Vec<Vec<f32>>> {
    if !path.exists() {
        return None;
    }
    let sides = &SIDES[..1 + usize::from(mirror)];
    let found = checkpoint::open(path).and_then(|mut source| {
        if says(&source) != Some(Kept::of(pictures)) {
            return Ok(None);
        }
        let mut read = |name: &&str| -> Result<Option<Vec<f32>>, CheckpointError> {
            let [c, h, w] = shape;
            let alike = |found: &[usize]| found == [pictures.len(), c, h, w];
            if !source.get(name).is_some_and(|entry| alike(&entry.shape)) {
                return Ok(None);
            }
            let values = source.read_f32(name)?;
            Ok(values.iter().all(|v| v.is_finite()).then_some(values))
        };
        sides
            .iter()
            .map(&mut read)
            .collect::<Result<Option<_>, _>>()
    });
    found.unwrap_or_else(|error| {
        tracing::warn!(%error, "latents are made anew");
        None
    })
}

fn says(source: &TensorSource) -> Option<Kept> {
    serde_json::from_str(source.metadata().get(METADATA_KEY)?).ok()
}

/// Keeps latents at `path`, whole or not at all.
pub(super) fn keep(
    path: &Path,
    pictures: &Dataset,
    [c, h, w]: [usize; 3],
    sides: &[Vec<f32>],
) -> Result<(), DataError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
    }
    let shape = vec![pictures.len(), c, h, w];
    let shapes: Vec<_> = SIDES[..sides.len()]
        .iter()
        .map(|name| (name.to_string(), shape.clone()))
        .collect();
    let says = serde_json::to_string(&Kept::of(pictures)).unwrap_or_default();
    let mut sides = sides.iter();
    let mut next = || Ok(sides.next().cloned().unwrap_or_default());
    write_safetensors(path, &shapes, Some(&says), StoredDtype::F32, &mut next)?;
    Ok(())
}
