//! The denoising of a batch, step by step.

use std::{ops::Range, sync::Arc};

use burn::tensor::{Tensor, TensorData};

use super::{
    SampleError, Settings,
    execute::planned_tokens,
    parts::{Part, PartTimes},
    setup::Setup,
};
use crate::{
    cache::FeatureStore,
    diffusion::{ImageNoise, Solver, SolverStep, StepCoefficients},
    kernels::{DdimStep, runs_kernels, solver_step},
    models::{At, Condition, Context, Times, output},
    plan::Plan,
};

/// The images that are being denoised together.
#[derive(Debug)]
pub(super) struct Batch {
    /// Its first image among those of the run.
    pub first: usize,
    pub conditions: Vec<Condition>,
    /// What depends on the conditions alone.
    pub context: Context,
    pub noise: Vec<ImageNoise>,
    /// `[B, C, H, W]`
    pub x: Tensor<4>,
    /// The step that comes next.
    pub step: usize,
    pub plan: Arc<Plan>,
    pub store: FeatureStore,
    /// adaLN vectors, and the steps that they are of.
    pub ahead: Option<(Range<usize>, At)>,
}

impl Batch {
    /// One denoising step; the predicted clean images.
    pub fn advance(
        &mut self,
        setup: &Setup,
        mut parts: Option<&mut PartTimes>,
    ) -> Result<Tensor<4>, SampleError> {
        let at = self.at(setup, parts.as_deref_mut());
        let model = &*setup.model;
        let tokens = planned_tokens(
            model,
            &self.plan.steps()[self.step],
            self.x.clone(),
            setup.copies(),
            &at,
            &mut self.store,
            parts.as_deref_mut(),
        )?;
        let step = &setup.trajectory.steps()[self.step];
        let (next, x0) = match fused_step(setup, step) {
            Some(fused) => {
                let (patches, bias) = model.end(tokens, &at).apart();
                solver_step(self.x.clone(), patches, bias, fused)
            }
            None => {
                let output = output(model, tokens, &at);
                let step = self.composed_step(setup, step, output);
                (step.next, step.x0)
            }
        };
        self.x = next;
        self.step += 1;
        if let Some(parts) = parts {
            parts.mark(Part::Solver, &setup.model.device());
        }
        Ok(x0)
    }

    /// The adaLN vectors of the step at hand.
    fn at(&mut self, setup: &Setup, parts: Option<&mut PartTimes>) -> At {
        let ready = self.ahead.take();
        let (steps, at) = ready
            .filter(|(steps, _)| steps.contains(&self.step))
            .unwrap_or_else(|| self.ahead(setup, parts));
        let of_step = at.step(self.step - steps.start);
        self.ahead = Some((steps, at));
        of_step
    }

    /// The adaLN vectors of as many steps as the memory bound allows, from the one at hand on.
    fn ahead(&self, setup: &Setup, parts: Option<&mut PartTimes>) -> (Range<usize>, At) {
        let ahead = setup.steps_ahead(self.conditions.len());
        let end = setup.settings.steps.min(self.step.saturating_add(ahead));
        let steps = &setup.trajectory.steps()[self.step..end];
        let timesteps: Vec<_> = steps.iter().map(|s| s.timestep as f32).collect();
        let at = setup.model.prepare(Times::Steps(&timesteps), &self.context);
        if let Some(parts) = parts {
            parts.mark(Part::Conditioning, &setup.model.device());
        }
        (self.step..end, at)
    }

    /// Any solver's step from the network's output `[B or 2B, C_out, H, W]`.
    fn composed_step(
        &mut self,
        setup: &Setup,
        step: &StepCoefficients,
        output: Tensor<4>,
    ) -> SolverStep {
        let Settings {
            solver,
            guidance,
            clip_x0,
            ..
        } = setup.settings;
        let output = if guidance.is_active() {
            guidance.guide(output, setup.latents().channels)
        } else {
            output
        };
        let noise = (solver.is_stochastic() && !step.last).then(|| {
            let dims = self.x.dims();
            let size: usize = dims[1..].iter().product();
            let mut values = Vec::with_capacity(dims[0] * size);
            self.noise
                .iter_mut()
                .for_each(|stream| stream.fill(size, &mut values));
            Tensor::from_data(TensorData::new(values, dims), &self.x.device())
        });
        solver.step(step, self.x.clone(), output, clip_x0, noise)
    }
}

/// The step as one kernel, where it is deterministic DDIM on a device that runs it.
fn fused_step(setup: &Setup, step: &StepCoefficients) -> Option<DdimStep> {
    let Settings {
        solver,
        guidance,
        clip_x0,
        ..
    } = setup.settings;
    let latents = setup.latents();
    let deterministic = matches!(solver, Solver::Ddim { eta: 0.0 });
    (deterministic && runs_kernels(&setup.model.device())).then(|| DdimStep {
        patch: latents.patch,
        out_channels: latents.out_channels,
        guided: if guidance.is_active() {
            guidance.guided_channels(latents.channels)
        } else {
            0
        },
        guidance: guidance.scale(),
        clip_x0,
        alpha_bar: step.alpha_bar,
        alpha_bar_prev: step.alpha_bar_prev,
    })
}
