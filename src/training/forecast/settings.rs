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
    /// Images that weights are fitted to and moves are believed on.
    pub draws: usize,
    /// Images of a first look at a move, at most as many.
    pub glance: usize,
    /// Images that what was found is judged on.
    pub validation: usize,
    /// Sweeps over all moves at most; 0 computes even steps.
    pub sweeps: usize,
    pub seed: u64,
}

impl Default for LadderSettings {
    fn default() -> Self {
        Self {
            draws: 96,
            glance: 32,
            validation: 96,
            sweeps: 3,
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
        check_draws(&[
            ("draws", self.draws),
            ("glance", self.glance),
            ("validation", self.validation),
        ])
    }
}
