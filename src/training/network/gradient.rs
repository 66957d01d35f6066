//! The gradient of the objective with respect to all weights.
//!
//! With `checkpoint`, only the blocks' inputs are kept on the way forward, and each block is run again on the way back:
//! memory for one block's graph instead of all of them, for one more forward pass. Every stage recomputes the
//! embeddings of timestep and label, which costs next to nothing, so their gradients come in parts, one a stage.

use burn::tensor::Tensor;

use super::{
    forward::Leaves,
    objective::{Batch, Losses, Noised, Objective},
    settings::PretrainSettings,
};
use crate::{
    kernels::backward,
    stop::{Asked, Stopped},
};

/// Losses and gradients of a batch, still on the device.
#[derive(Debug)]
pub struct BatchGradient {
    /// Mean squared error and variational bound of the batch, `[2]`.
    pub losses: Tensor<1>,
    /// Gradients of `scale·loss`, flat and by place in the parameter list; zeros where a weight has no part in it.
    pub gradients: Vec<Tensor<1>>,
}

/// The gradient of `scale·loss` over a batch, a micro-batch at a time; `asked` is asked before each branch, on the way back too.
///
/// # Errors
/// [`Stopped`].
pub(super) fn batch_gradient(
    leaves: &Leaves,
    objective: &Objective,
    batch: &Batch,
    settings: &PretrainSettings,
    scale: f64,
    asked: &Asked,
) -> Result<BatchGradient, Stopped> {
    let device = leaves.device();
    let mut sums: Vec<Option<Tensor<1>>> = vec![None; leaves.count()];
    let mut losses = Tensor::zeros([2], &device);
    for first in (0..batch.len()).step_by(settings.micro_batch.max(1)) {
        let part = batch.part(first, settings.micro_batch.min(batch.len() - first));
        let noised = objective.noise(&part, &device);
        let pass = Pass {
            leaves,
            objective,
            noised: &noised,
            timesteps: part.timesteps.iter().map(|t| *t as f32).collect(),
            labels: &part.labels,
            images: batch.len(),
            scale,
            asked,
        };
        let found = if settings.gradient_checkpointing {
            pass.by_blocks(&mut sums)?
        } else {
            pass.whole(&mut sums)?
        };
        losses = losses + Tensor::cat(vec![found.mse.inner(), found.vlb.inner()], 0);
    }
    let gradients = leaves.with_zeros(sums);
    Ok(BatchGradient { losses, gradients })
}

/// One micro-batch, forward and back.
struct Pass<'a> {
    leaves: &'a Leaves<'a>,
    objective: &'a Objective,
    noised: &'a Noised,
    timesteps: Vec<f32>,
    labels: &'a [usize],
    /// Images of the whole batch.
    images: usize,
    scale: f64,
    asked: &'a Asked,
}

impl Pass<'_> {
    fn whole(&self, sums: &mut [Option<Tensor<1>>]) -> Result<Losses, Stopped> {
        let model = self.leaves.network(0..self.leaves.blocks());
        let conditioning = model.condition(&self.timesteps, self.labels);
        let x = model.embed(self.noised.x_t.clone().autodiff());
        let x = model.run_blocks(x, &conditioning, self.leaves.half(), self.asked)?;
        let losses = self.losses(model.unembed(x, &conditioning));
        let mut gradients = backward(losses.total.clone() * self.scale)?;
        self.leaves.collect(&mut gradients, sums);
        Ok(losses)
    }

    fn by_blocks(&self, sums: &mut [Option<Tensor<1>>]) -> Result<Losses, Stopped> {
        // Forward without a graph, keeping what enters each block. Half precision rounds here as it does below.
        let plain = self.leaves.without_gradients();
        let model = plain.network(0..plain.blocks());
        let conditioning = model.condition(&self.timesteps, self.labels);
        let mut inputs = Vec::with_capacity(model.blocks.len());
        let mut x = model.embed(self.noised.x_t.clone());
        for b in 0..model.blocks.len() {
            inputs.push(x.clone());
            x = model.run_block(b, x, &conditioning, self.leaves.half(), self.asked)?;
        }

        let last = x.autodiff().require_grad();
        let model = self.leaves.network(0..0);
        let conditioning = model.condition(&self.timesteps, self.labels);
        let losses = self.losses(model.unembed(last.clone(), &conditioning));
        let mut gradients = backward(losses.total.clone() * self.scale)?;
        let mut flowing = last.grad_remove(&mut gradients);
        self.leaves.collect(&mut gradients, sums);

        for (b, input) in inputs.into_iter().enumerate().rev() {
            let Some(gradient) = flowing.take() else {
                break;
            };
            let x = input.autodiff().require_grad();
            let model = self.leaves.network(b..b + 1);
            let conditioning = model.condition(&self.timesteps, self.labels);
            let out = model.run_blocks(x.clone(), &conditioning, self.leaves.half(), self.asked)?;
            // The vector-Jacobian product with the gradient that flows into the block's output.
            let mut gradients = backward((out * gradient).sum())?;
            flowing = x.grad_remove(&mut gradients);
            self.leaves.collect(&mut gradients, sums);
        }
        if let Some(gradient) = flowing {
            let model = self.leaves.network(0..0);
            let tokens = model.embed(self.noised.x_t.clone().autodiff());
            let mut gradients = backward((tokens * gradient).sum())?;
            self.leaves.collect(&mut gradients, sums);
        }
        Ok(losses)
    }

    fn losses(&self, output: Tensor<4>) -> Losses {
        self.objective.losses(output, self.noised, self.images)
    }
}
