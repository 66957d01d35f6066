//! What a checkpoint of a training says of itself.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use super::TrainingError;

use crate::checkpoint::{CheckpointError, METADATA_KEY, TensorSource};

/// The metadata of a training's checkpoint, whose `format` must be the one that this program reads.
pub(in crate::training) fn read_metadata<T: DeserializeOwned>(
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

/// What a run and the command to resume it disagree about: a setting, and its values on both sides.
#[derive(Debug)]
pub(in crate::training) struct Difference {
    pub setting: String,
    pub found: String,
    pub asked: String,
}

impl Difference {
    pub fn new(setting: impl Into<String>, found: String, asked: String) -> Self {
        Self {
            setting: setting.into(),
            found,
            asked,
        }
    }

    /// That the run in this folder cannot go on so.
    pub fn refuses(self, path: &Path) -> TrainingError {
        let Self {
            setting,
            found,
            asked,
        } = self;
        TrainingError::Resume {
            path: path.into(),
            setting,
            found,
            asked,
        }
    }
}

/// The first field that two settings differ in, but for those in `free`, with its values as JSON.
pub(in crate::training) fn difference<T: Serialize>(
    found: &T,
    asked: &T,
    free: &[&str],
) -> Option<Difference> {
    let fields = |settings: &T| serde_json::to_value(settings).unwrap_or_default();
    let (found, asked) = (fields(found), fields(asked));
    let (found, asked) = (found.as_object()?, asked.as_object()?);
    let differs =
        |key: &&String| !free.contains(&key.as_str()) && found.get(*key) != asked.get(*key);
    let key = found.keys().chain(asked.keys()).find(differs)?;
    let value = |of: &serde_json::Map<String, serde_json::Value>| {
        of.get(key).map_or("none".to_owned(), ToString::to_string)
    };
    Some(Difference::new(key, value(found), value(asked)))
}
