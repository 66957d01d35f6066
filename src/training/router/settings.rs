//! What SDT and IEPO can be told.

use serde::{Deserialize, Serialize};

use super::{Budget, Proxy};
use crate::{
    models::Outline, sampler::batch_for, schedule::ends_a_pair, training::run::TrainingError,
};

/// Memory for activations where the micro-batch is chosen by itself; the graph keeps many times a forward pass.
const MICRO_BATCH_BYTES: u64 = 256 << 20;

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
    /// As Learning-to-Cache (arXiv 2406.01733): not along the student's path but on pairs of steps of the uncached one. The first of
    /// a pair is computed, the second alone may reuse ([`ends_a_pair`]), and `λ = 1`.
    #[serde(default)]
    pub pairs: bool,
}

impl SdtSettings {
    /// What is usual for a budget: a fixed β belongs to the published recipe; a steered one to what works best in minutes.
    pub fn usual(budget: Budget) -> Self {
        let (learning_rate, lambda_every, proxy) = match budget {
            Budget::Beta(_) => (0.01, 500, Proxy::LeaveOneOut),
            _ => (0.1, 200, Proxy::Sensitivity),
        };
        Self {
            passes: 80,
            batch: 4,
            micro_batch: 4,
            learning_rate,
            tau: 0.1,
            lambda_every,
            proxy,
            budget,
            seed: 0,
            gradient_checkpointing: false,
            pairs: false,
        }
    }

    /// Those of Learning-to-Cache.
    pub fn usual_of_pairs(budget: Budget) -> Self {
        Self {
            proxy: Proxy::None,
            pairs: true,
            ..Self::usual(budget)
        }
    }

    /// Whether row `s` of the router of such a run is trained.
    pub fn trains(&self, s: usize, steps: usize) -> bool {
        s > 0 && (!self.pairs || ends_a_pair(s, steps))
    }

    /// Images of a batch that the graph of a network has room for at a time.
    pub fn fitting_micro_batch(outline: &Outline, guided: bool, batch: usize) -> usize {
        batch_for(outline, guided, MICRO_BATCH_BYTES).min(batch.max(1))
    }

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
        if self.pairs && self.proxy != Proxy::None {
            return refused(
                "proxy",
                self.proxy.to_string(),
                "none: Learning-to-Cache weights all steps alike",
            );
        }
        self.budget.check()
    }

    /// Whether λ is due at the start of a pass of so many steps: by the release's rule, which wants `p·T` to be a multiple of `C`
    /// and so refreshes once in `lcm(T, C)` iterations, or, where β is steered, whenever `C` more iterations are begun.
    pub(super) fn refreshes_lambda(&self, pass: usize, steps: usize) -> bool {
        let every = self.lambda_every;
        let begun = |pass: usize| (pass * steps).div_ceil(every);
        match self.budget {
            Budget::Beta(_) => (pass * steps).is_multiple_of(every),
            _ => begun(pass + 1) > begun(pass),
        }
    }
}

#[cfg(test)]
impl SdtSettings {
    /// Passes of three images, for tests.
    pub(super) fn small(passes: usize) -> Self {
        Self {
            passes,
            batch: 3,
            micro_batch: 3,
            learning_rate: 0.05,
            tau: 0.1,
            lambda_every: 8,
            proxy: Proxy::LeaveOneOut,
            budget: Budget::Beta(1e-3),
            seed: 4,
            gradient_checkpointing: false,
            pairs: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steered_run_refreshes_lambda_as_often_as_it_was_asked_to() {
        let refreshes = |steps: usize, budget: Budget| -> Vec<usize> {
            let settings = SdtSettings {
                lambda_every: 50,
                budget,
                ..SdtSettings::small(30)
            };
            let due = |pass: &usize| settings.refreshes_lambda(*pass, steps);
            (0..30).filter(due).collect()
        };
        let target = Budget::TargetCur(0.3);
        assert_eq!(refreshes(7, target), [0, 7, 14, 21, 28]);
        assert_eq!(refreshes(10, target), [0, 5, 10, 15, 20, 25]);
        // The release wants a pass to begin with a multiple of C.
        let release = Budget::Beta(1e-3);
        assert_eq!(refreshes(7, release), [0]);
        assert_eq!(refreshes(10, release), [0, 5, 10, 15, 20, 25]);
    }
}
