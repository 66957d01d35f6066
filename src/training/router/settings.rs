//! What SDT and IEPO can be told.

use serde::{Deserialize, Serialize};

use super::{Budget, Proxy};
use crate::training::run::TrainingError;

/// Every setting of SDT and IEPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SdtSettings {
    /// Passes to train for.
    pub passes: usize,
    /// Images a pass; guidance doubles what the network sees.
    pub batch: usize,
    /// Images in the network at a time.
    pub micro_batch: usize,
    pub learning_rate: f64,
    /// Threshold `τ`.
    pub tau: f64,
    /// `C`: λ is refreshed at the start of pass `p` when `p·T` is a multiple of it; where β is steered, when one of the
    /// pass's iterations `p·T…` is.
    pub lambda_every: usize,
    pub proxy: Proxy,
    /// β, or what steers it.
    pub budget: Budget,
    pub seed: u64,
    /// Keep only the blocks' inputs in the forward pass.
    pub gradient_checkpointing: bool,
}

impl SdtSettings {
    /// # Errors
    /// [`TrainingError::Setting`] for the first setting out of range.
    pub fn check(&self) -> Result<(), TrainingError> {
        let refused = |setting, value: String, expected| {
            Err(TrainingError::Setting {
                setting,
                value,
                expected,
            })
        };
        for (setting, value) in [
            ("passes", self.passes),
            ("batch", self.batch),
            ("micro-batch", self.micro_batch),
            ("lambda-every", self.lambda_every),
        ] {
            if value == 0 {
                return refused(setting, "0".into(), "a whole number of at least 1");
            }
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return refused(
                "lr",
                self.learning_rate.to_string(),
                "a finite number above 0",
            );
        }
        if !(self.tau > 0.0 && self.tau < 1.0) {
            return refused("tau", self.tau.to_string(), "a number between 0 and 1");
        }
        self.budget.check()
    }
}
