//! Where a run stood, and going on from there.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use super::{
    SampleError, Settings,
    batch::Batch,
    run::{Request, Run},
    setup::{Sampler, Setup},
};
use crate::{
    diffusion::ImageNoise,
    plan::{compile, compile_probed},
    schedule::{Decisions, Reuse},
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
    /// What a run that decides step by step looks back to beyond the last computed step, if it does.
    pub(super) carried: Vec<f32>,
    pub(super) decisions: Decisions,
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
    /// Cached features are not part of the state, but for what some policies look back to beyond the last computed step: the
    /// first step that is resumed computes every branch, the following ones reuse as the schedule says. Without reuse the images
    /// are those of the undisturbed run, and those of a run that decides step by step are where it would have computed that step.
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
        let mut batch = Batch {
            step: state.step,
            history: run.history(state.history, images),
            decisions: state.decisions,
            ..run.batch(state.first, state.x, state.noise, Arc::new(plan))
        };
        setup.restore(&state.carried, &mut batch)?;
        Ok(run.going_on(state.first, Some(batch), state.reused_passes))
    }
}

impl Setup {
    /// Gives a batch back what its run carries.
    fn restore(&self, carried: &[f32], batch: &mut Batch) -> Result<(), SampleError> {
        if let Some(known) = &mut batch.known_output {
            return known.restore(carried, &batch.x);
        }
        let graph = &self.model.outline().graph;
        let elements = self.copies() * batch.conditions.len();
        let shape = [elements, graph.tokens(), graph.width()];
        let plan = batch.plan.clone();
        let mut features = carried.chunks_exact(shape.iter().product());
        if features.len() != plan.carried().len() || !features.remainder().is_empty() {
            return Err(SampleError::State);
        }
        for (slot, feature) in plan.carried().iter().zip(&mut features) {
            let data = TensorData::new(feature.to_vec(), shape);
            let feature = Tensor::from_data(data, &self.model.device());
            batch.store.keep(*slot, feature)?;
        }
        Ok(())
    }
}
