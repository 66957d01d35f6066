//! What training a router changes, and what it tells of it.

use serde::{Deserialize, Serialize};

use super::{AdamWParts, Steering, adamw::AdamW};
use crate::{
    diffusion::ImageNoise,
    schedule::{LOGIT_LIMIT, Router, ScheduleError},
};

/// Everything that training changes; enough to go on bit for bit.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    /// Passes done.
    pub pass: usize,
    pub router: Router,
    pub optimizer: AdamW,
    /// `λ_s` as refreshed last.
    pub lambda: Vec<f64>,
    pub beta: f64,
    /// What steering β remembers.
    pub steering: Steering,
}

impl TrainingState {
    /// Before the first pass.
    pub(super) fn of(router: Router, beta: f64) -> Self {
        let (steps, branches) = (router.steps(), router.branches());
        Self {
            pass: 0,
            router,
            optimizer: AdamW::new(steps, branches),
            lambda: vec![1.0; steps],
            beta,
            steering: Steering::new(steps, branches),
        }
    }

    /// Makes all branches of these steps be computed, whatever is learned.
    ///
    /// # Errors
    /// None that rows of the router can meet.
    pub(super) fn pin(&mut self, rows: impl Iterator<Item = usize>) -> Result<(), ScheduleError> {
        let branches = self.router.branches();
        let mut logits = self.router.logits().to_vec();
        for s in rows {
            let row = s * branches..(s + 1) * branches;
            logits[row.clone()].fill(LOGIT_LIMIT);
            self.steering.values[row].fill(f32::INFINITY);
        }
        self.router = Router::new(self.router.steps(), branches, logits)?;
        Ok(())
    }

    /// Whether everything has the router's size.
    pub(super) fn is_whole(&self) -> bool {
        let (steps, branches) = (self.router.steps(), self.router.branches());
        let AdamWParts(first, second, counts) = self.optimizer.parts();
        let tables = [first.len(), second.len(), self.steering.values.len()];
        tables == [steps * branches; 3] && counts.len() == steps && self.lambda.len() == steps
    }

    /// One AdamW step on row `s`, then the clamp of all logits.
    ///
    /// # Errors
    /// [`ScheduleError`] for logits that are no numbers.
    pub(super) fn update(
        &mut self,
        s: usize,
        learning_rate: f64,
        gradient: &[f64],
    ) -> Result<(), ScheduleError> {
        let mut logits = self.router.logits().to_vec();
        let branches = self.router.branches();
        let row = &mut logits[s * branches..(s + 1) * branches];
        self.optimizer.step(s, learning_rate, gradient, row);
        logits
            .iter_mut()
            .for_each(|l| *l = l.clamp(-LOGIT_LIMIT, LOGIT_LIMIT));
        self.router = Router::new(self.router.steps(), branches, logits)?;
        Ok(())
    }
}

/// One trained step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    pub pass: usize,
    pub step: usize,
    /// Mean of `(ε* − ε̂)²` over the network's whole guided output.
    pub mse: f64,
    /// `Σ_i r_{s,i}`
    pub score_sum: f64,
    pub lambda: f64,
    /// `λ_s·mse + β·Σ_i r_{s,i}`
    pub loss: f64,
}

/// What a pass tells while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress {
    /// λ is being refreshed, and has come to this step.
    Lambda {
        /// The step.
        step: usize,
    },
    /// A step was trained.
    Trained(Iteration),
}

/// Logits from N(0, 1), step 0 pinned.
///
/// # Errors
/// [`ScheduleError`] for no steps or branches.
pub(super) fn initial_router(
    steps: usize,
    branches: usize,
    seed: u64,
) -> Result<Router, ScheduleError> {
    let mut logits = vec![LOGIT_LIMIT; branches];
    ImageNoise::with_purpose("harmonica router logits", seed, 0)
        .fill(steps.saturating_sub(1) * branches, &mut logits);
    logits
        .iter_mut()
        .for_each(|l| *l = l.clamp(-LOGIT_LIMIT, LOGIT_LIMIT));
    Router::new(steps, branches, logits)
}
