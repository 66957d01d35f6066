//! What a search for schedules can be told.

use serde::{Deserialize, Serialize};

use super::saved::Saved;
use crate::training::{
    router::RunFolder,
    run::{LADDER_STATE, TrainingError, check_draws},
};

/// How much is drawn and searched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LadderSettings {
    /// Images that moves are believed on, and as many others that weights are fitted to.
    pub draws: usize,
    /// Images of a first look at a move, at most as many.
    pub glance: usize,
    /// Images that what was found is judged on.
    pub validation: usize,
    /// Sweeps over all moves of whole steps at most; 0 computes even steps.
    pub sweeps: usize,
    /// Features that a schedule may keep at a time, as a share of one a branch; 0 for whole steps alone.
    #[serde(default)]
    pub max_cache: Option<f64>,
    pub seed: u64,
}

impl Default for LadderSettings {
    fn default() -> Self {
        Self {
            draws: 96,
            glance: 32,
            validation: 96,
            sweeps: 3,
            max_cache: None,
            seed: 0,
        }
    }
}

impl LadderSettings {
    /// Those of the run in a folder, if there is one.
    ///
    /// # Errors
    /// [`TrainingError`] for a state that cannot be read.
    pub fn of_run(folder: &RunFolder) -> Result<Option<Self>, TrainingError> {
        let path = folder.path().join(LADDER_STATE);
        match path.exists() {
            true => Ok(Some(Saved::read(&path)?.settings)),
            false => Ok(None),
        }
    }

    /// # Errors
    /// [`TrainingError::Setting`] for the first count out of range.
    pub(super) fn check(&self) -> Result<(), TrainingError> {
        if let Some(share) = self.max_cache.filter(|share| !(0.0..=2.0).contains(share)) {
            return Err(TrainingError::Setting {
                setting: "max-cache",
                value: share.to_string(),
                expected: "a number from 0 (whole steps alone) to 2 (all features of two steps)",
            });
        }
        check_draws(&[
            ("draws", self.draws),
            ("glance", self.glance),
            ("validation", self.validation),
        ])
    }
}
