//! Router checkpoints of other projects.

use std::path::Path;

use crate::containers::{self, CheckpointError, TensorSource};

/// A released router: a `[N]` row of logits a step, index 0 the **least** noisy step, as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleasedRouter {
    pub rows: Vec<Vec<f32>>,
}

impl ReleasedRouter {
    /// Reads `routers.<i>.prob` (or `<i>.prob`, where the file holds the routers alone) of a `.pt`.
    ///
    /// Optimizer state and settings beside the routers are ignored; storages of any device load without it.
    ///
    /// # Errors
    /// [`CheckpointError`]: not a router file, or one with gaps or rows of unequal length.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        Self::of(containers::open(path)?)
    }

    /// The same of a file that is open.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of(mut source: TensorSource) -> Result<Self, CheckpointError> {
        let path = source.path().to_path_buf();
        let bad = |problem: String| CheckpointError::Settings {
            path: path.clone(),
            problem,
        };
        let index = |name: &str| -> Option<usize> {
            name.strip_prefix("routers.")
                .unwrap_or(name)
                .strip_suffix(".prob")?
                .parse()
                .ok()
        };
        let mut names: Vec<(usize, String)> = source
            .entries()
            .filter_map(|e| Some((index(&e.name)?, e.name.clone())))
            .collect();
        names.sort();
        if names.is_empty() {
            let some: Vec<_> = source
                .entries()
                .take(3)
                .map(|e| format!("`{}`", e.name))
                .collect();
            return Err(bad(format!(
                "it is no router: expected tensors `routers.<i>.prob`, found {}",
                some.join(", ")
            )));
        }
        let mut rows: Vec<Vec<f32>> = Vec::with_capacity(names.len());
        for (place, (i, name)) in names.iter().enumerate() {
            if *i != place {
                return Err(bad(format!(
                    "router {place} is missing, the next one is {i}"
                )));
            }
            let row = source.read_f32(name)?;
            if row.is_empty() || !row.len().is_multiple_of(2) {
                return Err(bad(format!(
                    "`{name}` holds {} logits, expected two a block",
                    row.len()
                )));
            }
            if let Some(first) = rows.first().filter(|first| first.len() != row.len()) {
                return Err(bad(format!(
                    "`{name}` holds {} logits, router 0 holds {}",
                    row.len(),
                    first.len()
                )));
            }
            if let Some(position) = row.iter().position(|l| !l.is_finite()) {
                return Err(CheckpointError::NotFinite {
                    path,
                    name: name.clone(),
                    position,
                });
            }
            rows.push(row);
        }
        Ok(Self { rows })
    }
}
