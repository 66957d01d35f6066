//! Latents that were made beforehand.

use std::path::Path;

use super::{DataError, Dataset, Values};
use crate::checkpoint;

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
