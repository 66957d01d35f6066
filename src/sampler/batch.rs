//! The denoising of a batch, step by step.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use super::{
    SampleError,
    execute::Pass,
    output::KnownOutput,
    parts::{Part, PartTimes},
    setup::Setup,
};
use crate::{
    cache::FeatureStore,
    diffusion::{ImageNoise, Step, StepNoise},
    kernels::{Before, solver_step},
    models::{At, Condition, Context, Partial, Times},
    plan::Plan,
    schedule::{Decisions, Reuse},
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
    /// What is known of the output, where all of it may be reused.
    pub known_output: Option<KnownOutput>,
    /// How it has decided so far, where that is decided step by step.
    pub decisions: Decisions,
    /// adaLN vectors, and the steps that they are of.
    pub ahead: Option<(Vec<usize>, At)>,
}

impl Batch {
    /// One denoising step; the predicted clean images.
    pub async fn advance(
        &mut self,
        setup: &Setup,
        mut parts: Option<&mut PartTimes>,
    ) -> Result<Tensor<4>, SampleError> {
        let output = match self.plan.runs_network(self.step) {
            true => Some(self.output(setup, parts.as_deref_mut()).await?),
            false => None,
        };
        let x0 = self.step_on(setup, output);
        if let Some(parts) = parts {
            parts.mark(Part::Solver, &setup.model.device());
        }
        Ok(x0)
    }

    /// The solver's step from the last layer's output before its bias, and the bias; the predicted clean images.
    pub fn step_on(&mut self, setup: &Setup, output: Option<(Tensor<3>, Tensor<1>)>) -> Tensor<4> {
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
        after.x0
    }

    /// The last layer's output before its bias, and the bias.
    async fn output(
        &mut self,
        setup: &Setup,
        mut parts: Option<&mut PartTimes>,
    ) -> Result<(Tensor<3>, Tensor<1>), SampleError> {
        let again = self.output_again(setup).await?;
        if let Some(parts) = parts.as_deref_mut().filter(|_| self.known_output.is_some()) {
            parts.mark(Part::Decision, &setup.model.device());
        }
        if let Some(output) = again {
            let output = Partial::from(output);
            return Ok(output.apart());
        }
        let at = self.at(setup, parts.as_deref_mut());
        let pass = Pass::new(setup, &at, &mut self.store, parts, self.decisions);
        let ops = &self.plan.steps()[self.step];
        let (tokens, decisions) = pass.tokens(ops, self.x.clone(), setup.copies()).await?;
        self.decisions = decisions;
        let output = setup.model.end(tokens, &at);
        if let Some(known) = &mut self.known_output {
            known.note(self.x.clone(), output.clone().whole());
        }
        Ok(output.apart())
    }

    /// The last layer's output without running the network, where that was decided.
    async fn output_again(&mut self, setup: &Setup) -> Result<Option<Tensor<3>>, SampleError> {
        let (Some(known), Reuse::AtRunTime(probed)) = (&mut self.known_output, &setup.reuse) else {
            return Ok(None);
        };
        let may = probed
            .most()
            .is_none_or(|most| self.decisions.in_a_row < most);
        let reuses = may
            && probed.decides(self.step, 0)
            && known
                .reuses(&self.x, probed.rule(), &mut self.decisions)
                .await?;
        known.note_state(self.x.clone());
        let again = match reuses {
            true => known.again(self.x.clone()),
            false => None,
        };
        if again.is_some() {
            self.decisions.note(true);
        }
        Ok(again)
    }

    /// The adaLN vectors of the step at hand.
    pub fn at(&mut self, setup: &Setup, parts: Option<&mut PartTimes>) -> At {
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
