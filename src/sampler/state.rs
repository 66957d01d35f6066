//! Where a run stood, and going on from there.

use std::sync::Arc;

use super::{
    SampleError, Settings,
    batch::Batch,
    run::{Request, Run},
    setup::Sampler,
};
use crate::{
    diffusion::ImageNoise,
    plan::{compile, compile_probed},
    schedule::Reuse,
};

/// Where a run stood after its last finished step, on the host: all that [`Sampler::resume`] needs, on any device.
#[derive(Debug, Clone)]
pub struct RunState {
    pub(super) request: Arc<Request>,
    pub(super) settings: Settings,
    /// First image of the batch at hand.
    pub(super) first: usize,
    pub(super) step: usize,
    /// `[B, C, H, W]` of the batch at hand; nothing between batches.
    pub(super) x: Vec<f32>,
    /// Earlier predictions that the solver reads, `[kept·B, C, H, W]`.
    pub(super) history: Vec<f32>,
    pub(super) noise: Vec<ImageNoise>,
    pub(super) reused_passes: u64,
}

impl RunState {
    /// First image of the batch at hand; those before it were delivered.
    pub fn first_image(&self) -> usize {
        self.first
    }

    /// The step that comes next.
    pub fn step(&self) -> usize {
        self.step
    }
}

impl Sampler {
    /// Goes on with a run of the same model and settings where it stood, on this sampler's device.
    ///
    /// Cached features are not part of the state: the first step that is resumed computes every branch, the following
    /// ones reuse as the schedule says. Without reuse the images are those of the undisturbed run.
    ///
    /// # Errors
    /// [`SampleError`] for a state that does not fit the model or its settings.
    pub fn resume(&self, state: RunState) -> Result<Run, SampleError> {
        let run = self.run(Request::clone(&state.request))?;
        let setup = &self.setup;
        let steps = setup.settings.steps;
        let size = setup.latents().numbers();
        let images = state.noise.len();
        let fits =
            state.x.len() == images * size && state.history.len() == setup.history * images * size;
        if state.settings != setup.settings || state.step > steps || !fits {
            return Err(SampleError::State);
        }
        if state.noise.is_empty() {
            return Ok(run.going_on(state.first, None, state.reused_passes));
        }
        let graph = &setup.model.outline().graph;
        let plan = match &setup.reuse {
            Reuse::Ahead(schedule) => compile(&schedule.resumed_at(state.step)?, graph),
            Reuse::AtRunTime(probed) => compile_probed(probed, graph, state.step),
        };
        let batch = Batch {
            step: state.step,
            history: run.history(state.history, images),
            ..run.batch(state.first, state.x, state.noise, Arc::new(plan))
        };
        Ok(run.going_on(state.first, Some(batch), state.reused_passes))
    }
}
