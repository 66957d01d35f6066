//! Latents that were made beforehand: somebody's, or a run's own, which are made once.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{DataError, Dataset, Values};
use crate::{
    checkpoint::{
        self, CheckpointError, METADATA_KEY, StoredDtype, TensorSource, write_safetensors,
    },
    models::vae::Vae,
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
            origin: None,
        },
        shape: [c, h, w],
        labels,
        class_names: Vec::new(),
        skipped: Vec::new(),
        identity: hash.finalize().to_hex()[..32].to_owned(),
    })
}

/// Of what a run made its latents; what a file of kept ones says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    format: u32,
    /// Identity of the pictures.
    pictures: String,
    /// [`Vae::encoder_identity`].
    autoencoder: String,
}

impl Origin {
    pub fn of(pictures: &Dataset, vae: &Vae) -> Result<Self, CheckpointError> {
        Ok(Self {
            format: 1,
            pictures: pictures.identity.clone(),
            autoencoder: vae.encoder_identity()?,
        })
    }

    /// What a file says of itself; `None` where it is no file of kept latents.
    fn read(source: &TensorSource) -> Option<Self> {
        serde_json::from_str(source.metadata().get(METADATA_KEY)?).ok()
    }

    /// Whether a file holds these sides of so many latents of this origin.
    fn lies_in(&self, source: &TensorSource, shape: [usize; 4], sides: &[&str]) -> bool {
        let there = |side: &&str| source.get(side).is_some_and(|entry| entry.shape == shape);
        Self::read(source).as_ref() == Some(self) && sides.iter().all(there)
    }
}

/// Of pictures as they are, and mirrored: tensors `[N, C, H, W]`. Not the name under which somebody's latents are found: these have
/// no labels.
const SIDES: [&str; 2] = ["plain", "mirrored"];

/// So many latents of this origin, `[N, C, H, W]`, where the file at `path` holds them; with `mirror` those of the mirrored pictures
/// too.
pub(super) fn kept(
    path: &Path,
    origin: &Origin,
    shape: [usize; 4],
    mirror: bool,
) -> Option<Vec<Vec<f32>>> {
    if !path.exists() {
        return None;
    }
    let sides = &SIDES[..1 + usize::from(mirror)];
    let found = checkpoint::open(path).and_then(|mut source| {
        if !origin.lies_in(&source, shape, sides) {
            return Ok(None);
        }
        let sides = sides.iter().map(|side| source.read_f32(side));
        let sides = sides.collect::<Result<Vec<_>, _>>()?;
        let finite = sides.iter().flatten().all(|v| v.is_finite());
        Ok(finite.then_some(sides))
    });
    found.unwrap_or_else(|error| {
        tracing::warn!(%error, "kept latents are made anew");
        None
    })
}

/// Keeps latents at `path`, whole or not at all, unless they lie there; a file that holds none is somebody's, and is left alone.
pub(super) fn keep(
    path: &Path,
    origin: &Origin,
    shape: [usize; 4],
    sides: &[&[f32]],
) -> Result<(), DataError> {
    let names = &SIDES[..sides.len()];
    if path.exists() {
        match checkpoint::open(path) {
            Ok(source) if origin.lies_in(&source, shape, names) => return Ok(()),
            Ok(source) if Origin::read(&source).is_some() => {}
            _ => {
                return Err(DataError::Latents {
                    path: path.into(),
                    problem: "that were kept by a run; it is left as it is".into(),
                });
            }
        }
    }
    let named = names.iter().map(|name| (name.to_string(), shape.to_vec()));
    let shapes: Vec<_> = named.collect();
    let says = serde_json::to_string(origin).unwrap_or_default();
    let mut sides = sides.iter();
    let next = || Ok(sides.next().copied().unwrap_or_default());
    write_safetensors(path, &shapes, Some(&says), StoredDtype::F32, next)?;
    Ok(())
}
