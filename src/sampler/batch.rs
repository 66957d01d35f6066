//! The denoising of a batch, step by step.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use super::{
    SampleError,
    execute::Pass,
    parts::{Part, PartTimes},
    setup::Setup,
};
use crate::{
    cache::FeatureStore,
    diffusion::{ImageNoise, Step, StepNoise},
    kernels::{Before, solver_step},
    models::{At, Condition, Context, Times},
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
    /// Earlier predictions, the newest first, `[kept·B, C, H, W]`.
    pub history: Option<Tensor<4>>,
    /// The step that comes next.
    pub step: usize,
    pub plan: Arc<Plan>,
    pub store: FeatureStore,
    /// Steps up to the one before that decided to reuse, in a row.
    pub reused_in_a_row: usize,
    /// adaLN vectors, and the steps that they are of.
    pub ahead: Option<(Vec<usize>, At)>,
}

impl Batch {
    /// One denoising step; the predicted clean images.
    pub fn advance(
        &mut self,
        setup: &Setup,
        mut parts: Option<&mut PartTimes>,
    ) -> Result<Tensor<4>, SampleError> {
        let output = match self.plan.runs_network(self.step) {
            true => Some(self.output(setup, parts.as_deref_mut())?),
            false => None,
        };
        let step = &setup.steps[self.step];
        let before = Before {
            x: self.x.clone(),
            output,
            history: self.history.take(),
            noise: self.noise_of(step),
        };
        let after = solver_step(before, setup.output_layout(), step);
        (self.x, self.history) = (after.x, after.history);
        self.step += 1;
        if let Some(parts) = parts {
            parts.mark(Part::Solver, &setup.model.device());
        }
        Ok(after.x0)
    }

    /// The last layer's output before its bias, and the bias.
    fn output(
        &mut self,
        setup: &Setup,
        mut parts: Option<&mut PartTimes>,
    ) -> Result<(Tensor<3>, Tensor<1>), SampleError> {
        let at = self.at(setup, parts.as_deref_mut());
        let in_a_row = self.reused_in_a_row;
        let pass = Pass::new(&*setup.model, &at, &mut self.store, parts, in_a_row);
        let ops = &self.plan.steps()[self.step];
        let (tokens, in_a_row) = pass.tokens(ops, self.x.clone(), setup.copies())?;
        self.reused_in_a_row = in_a_row;
        Ok(setup.model.end(tokens, &at).apart())
    }

    /// The adaLN vectors of the step at hand.
    fn at(&mut self, setup: &Setup, parts: Option<&mut PartTimes>) -> At {
        let ready = self.ahead.take();
        let (steps, at) = ready
            .filter(|(steps, _)| steps.contains(&self.step))
            .unwrap_or_else(|| self.ahead(setup, parts));
        let place = steps.iter().position(|s| *s == self.step);
        let of_step = at.step(place.unwrap_or(0));
        self.ahead = Some((steps, at));
        of_step
    }

    /// The adaLN vectors of as many steps as the memory bound allows, from the one at hand on.
    fn ahead(&self, setup: &Setup, parts: Option<&mut PartTimes>) -> (Vec<usize>, At) {
        let ahead = setup.steps_ahead(self.conditions.len());
        let later = (self.step..setup.settings.steps).filter(|s| self.plan.runs_network(*s));
        let steps: Vec<usize> = later.take(ahead).collect();
        let time = |s: &usize| setup.steps[*s].timestep as f32;
        let timesteps: Vec<_> = steps.iter().map(time).collect();
        let at = setup.model.prepare(Times::Steps(&timesteps), &self.context);
        if let Some(parts) = parts {
            parts.mark(Part::Conditioning, &setup.model.device());
        }
        (steps, at)
    }

    /// Fresh noise for a step that adds some, from the images' own streams.
    fn noise_of(&mut self, step: &Step) -> Option<Tensor<4>> {
        if step.noise == StepNoise::None {
            return None;
        }
        let dims = self.x.dims();
        let size: usize = dims[1..].iter().product();
        let mut values = Vec::with_capacity(dims[0] * size);
        self.noise
            .iter_mut()
            .for_each(|stream| stream.fill(size, &mut values));
        let values = TensorData::new(values, dims);
        Some(Tensor::from_data(values, &self.x.device()))
    }
}
