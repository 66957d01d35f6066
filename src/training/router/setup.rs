//! What a router's training starts from, and what its passes draw.

use super::{Budget, Replay, Sdt, SdtSettings, TrainingState, state::initial_router, walk::Walker};
use crate::{
    diffusion::ImageNoise,
    models::{Condition, ConditionError, Model, Prompts},
    ranks::Ranks,
    sampler::{SampleError, Settings},
    training::run::{TrainingError, check_pool},
};

impl<'m> Sdt<'m> {
    /// A fresh router (logits from N(0, 1), rows that are not trained pinned at 5), or the replay's.
    ///
    /// # Errors
    /// [`TrainingError`] for settings that make no sense or a replay that does not fit.
    pub fn new(
        model: &'m Model,
        run: Settings,
        settings: SdtSettings,
        prompts: Prompts,
        replay: Option<Replay>,
    ) -> Result<Self, TrainingError> {
        let (steps, branches) = (run.steps, model.outline().graph.branches());
        let router = match &replay {
            Some(replay) => replay.router.clone(),
            None => initial_router(steps, branches, settings.seed)?,
        };
        let beta = match settings.budget {
            Budget::Beta(beta) => beta,
            _ => 0.0,
        };
        let mut state = TrainingState::of(router, beta);
        let untrained = (1..steps).filter(|s| !settings.trains(*s, steps));
        state.pin(untrained)?;
        Self::resume(model, run, settings, prompts, replay, state)
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// As [`Sdt::new`].
    pub fn resume(
        model: &'m Model,
        run: Settings,
        settings: SdtSettings,
        prompts: Prompts,
        replay: Option<Replay>,
        state: TrainingState,
    ) -> Result<Self, TrainingError> {
        settings.check()?;
        if run.solver.is_stochastic() {
            return Err(TrainingError::Setting {
                setting: "solver",
                value: run.solver.to_string(),
                expected: "a deterministic one: routers are trained along the path without noise",
            });
        }
        if let Some(replay) = &replay {
            replay.check(&**model, settings.passes)?;
        } else {
            check_pool(&prompts)?;
        }
        let conditioning = model.outline().conditioning;
        for condition in prompts.pool.iter().chain(&prompts.null) {
            conditioning.check(condition).map_err(SampleError::from)?;
        }
        if run.guidance.is_active() && prompts.null.is_none() {
            return Err(SampleError::from(ConditionError::NoNull).into());
        }
        let walker = Walker::new(&**model, prompts.null.clone(), run, settings.tau)?;
        let graph = model.outline().graph.clone();
        let (steps, branches) = (walker.steps.len(), graph.branches());
        let found = (state.router.steps(), state.router.branches());
        if steps < 2 || found != (steps, branches) || !state.is_whole() {
            return Err(TrainingError::Setting {
                setting: "steps",
                value: steps.to_string(),
                expected: "at least 2, and the number of steps and branches that the router and its training have",
            });
        }
        Ok(Self {
            walker,
            settings,
            graph,
            prompts,
            replay,
            state,
            ranks: Ranks::alone(),
        })
    }

    /// Noise and conditions of a pass, from the pass's own random streams, so that nothing need be remembered.
    pub(super) fn draw(&self, pass: usize) -> (Vec<f32>, Vec<Condition>) {
        if let Some(replay) = &self.replay {
            let size = replay.noise.len() / replay.conditions.len();
            return (
                replay.noise[pass * size..(pass + 1) * size].to_vec(),
                replay.conditions[pass].clone(),
            );
        }
        let size = self.walker.model.outline().latents.numbers();
        let (mut noise, mut prompts) = (Vec::new(), Vec::new());
        for image in 0..self.settings.batch {
            let number = (pass * self.settings.batch + image) as u64;
            // Not what `sample` draws for the same seed: what is learned is judged on other noise.
            let mut stream =
                ImageNoise::with_purpose("harmonica router images", self.settings.seed, number);
            stream.fill(size, &mut noise);
            let pool = &self.prompts.pool;
            prompts.push(pool[stream.below(pool.len())].clone());
        }
        (noise, prompts)
    }
}
