//! What a checkpoint of a training says of itself.

use serde::de::DeserializeOwned;

use crate::checkpoint::{CheckpointError, METADATA_KEY, TensorSource};

/// The metadata of a training's checkpoint, whose `format` must be the one that this program reads.
pub(super) fn read_metadata<T: DeserializeOwned>(
    source: &TensorSource,
    format: impl FnOnce(&T) -> u32,
    expected: u32,
) -> Result<T, CheckpointError> {
    let text = source.metadata().get(METADATA_KEY);
    let saved: T = serde_json::from_str(text.map_or("", String::as_str)).map_err(|e| {
        CheckpointError::Damaged {
            path: source.path().into(),
            problem: format!("its training state is not valid: {e}"),
        }
    })?;
    match format(&saved) {
        found if found == expected => Ok(saved),
        found => Err(CheckpointError::Config {
            path: source.path().into(),
            problem: format!(
                "its training state has format {found}, this program reads format {expected}"
            ),
        }),
    }
}
