//! The student's step: soft-mixed features, and the gradient of its error with respect to the scores.
//!
//! Weights are constants, so only activations are differentiated. With `checkpoint`, only the blocks'
//! inputs are kept in the forward pass and each block is run again on the way back: memory for one
//! block's graph instead of all of them, for one more forward pass.

use std::ops::Range;

use burn::tensor::Tensor;

use super::walk::{StepConditions, Walk, Walker, numbers};
use crate::{
    kernels::{asked_on_the_way_back, backward},
    models::{At, output, walk},
    stop::Stopped,
    training::run::TrainingError,
};

/// What a student step yields for one micro-batch.
pub(super) struct StudentStep {
    /// Guided output `[b or 2b, C_out, H, W]`, without gradients.
    pub output: Tensor<4>,
    /// The full model's.
    pub teacher: Tensor<4>,
    /// Mean of `(ε* − ε̂)²` over this micro-batch.
    pub mse: f64,
    /// `∂mse/∂r` of every branch.
    pub gradient: Vec<f64>,
    /// The cache after the step.
    pub cache: Vec<Tensor<3>>,
}

/// One student step at the walk's own state, against the teacher at the same state.
///
/// Teacher and student share the patch embedding, the conditioning and branch 0's feature, which no mixing
/// has touched yet.
pub(super) async fn student_step(
    walker: &mut Walker<'_>,
    s: usize,
    walked: &Walk,
    conditions: &StepConditions,
    scores: &[f64],
    checkpoint: bool,
) -> Result<StudentStep, TrainingError> {
    let (model, at) = (walker.model, &conditions[s]);
    let asked = walker.asked.clone();
    let branches = scores.len();
    walker.forwards += 2;
    let tokens = walker.tokens(walked);
    let mut first = None;
    let x = walk(model, 0..branches, tokens.clone(), at, |n, x| {
        asked.go_on()?;
        let fresh = model.compute(n, x.clone(), at).whole();
        if n == 0 {
            first = Some(fresh.clone());
        }
        Ok::<_, Stopped>(fresh.into())
    })?;
    let teacher = walker.guide(output(model, x, at));
    if checkpoint {
        return checkpointed(walker, walked, at, tokens, teacher, scores).await;
    }

    let leaves = leaves(scores, &tokens);
    let mut cache = Vec::with_capacity(branches);
    let tau = walker.tau;
    let x = walk(model, 0..branches, tokens, at, |n, x| {
        asked.go_on()?;
        let known = first.take();
        let fresh = known.unwrap_or_else(|| {
            let x = asked_on_the_way_back(x.clone(), &asked);
            model.compute(n, x, at).whole()
        });
        let stored = &walked.cache[n];
        let mixed = mix(&leaves[n], fresh, stored.clone());
        cache.push(if scores[n] > tau {
            mixed.clone().inner()
        } else {
            stored.clone()
        });
        Ok::<_, Stopped>(mixed.into())
    })?;
    let output = walker.guide(output(model, x, at));
    let difference = output.clone() - teacher.clone();
    let loss = (difference.clone() * difference).mean();
    let mut gradients = backward(loss.clone())?;
    let leaves = leaves.iter();
    let slopes = leaves.map(|leaf| slope(leaf.grad_remove(&mut gradients), &loss));
    let (mse, gradient) = error_and_slopes(loss.clone().inner(), slopes.collect()).await?;
    Ok(StudentStep {
        output: output.inner(),
        teacher,
        mse,
        gradient,
        cache,
    })
}

/// The same by blocks: forward without a graph, then backward one block at a time.
async fn checkpointed(
    walker: &Walker<'_>,
    walked: &Walk,
    at: &At,
    tokens: Tensor<3>,
    teacher: Tensor<4>,
    scores: &[f64],
) -> Result<StudentStep, TrainingError> {
    let (model, asked) = (walker.model, &walker.asked);
    let sites = model.outline().graph.sites();
    // The sites of each block.
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for of_block in sites.chunk_by(|a, b| a.block == b.block) {
        let first = blocks.last().map_or(0, |block| block.end);
        blocks.push(first..first + of_block.len());
    }
    let mut inputs = Vec::with_capacity(blocks.len());
    let mut cache = Vec::with_capacity(scores.len());
    let mut x = tokens;
    for block in &blocks {
        inputs.push(x.clone());
        x = walk(model, block.clone(), x, at, |n, x| {
            asked.go_on()?;
            let fresh = model.compute(n, x.clone(), at).whole();
            let stored = &walked.cache[n];
            let mixed = fresh * scores[n] + stored.clone() * (1.0 - scores[n]);
            cache.push(if scores[n] > walker.tau {
                mixed.clone()
            } else {
                stored.clone()
            });
            Ok::<_, Stopped>(mixed.into())
        })?;
    }

    let last = x.autodiff().require_grad();
    let output = walker.guide(output(model, last.clone(), at));
    let difference = output.clone() - teacher.clone();
    let loss = (difference.clone() * difference).mean();
    let mut gradients = backward(loss.clone())?;
    let mut flowing = last.grad_remove(&mut gradients);

    let mut slopes = vec![slope(None, &loss); scores.len()];
    for (block, input) in blocks.into_iter().zip(inputs).rev() {
        let Some(grad) = flowing.take() else { break };
        let x = input.autodiff().require_grad();
        let first = block.start;
        let leaves = leaves(&scores[block.clone()], &grad);
        let out = walk(model, block, x.clone(), at, |n, x| {
            asked.go_on()?;
            let x = asked_on_the_way_back(x.clone(), asked);
            let fresh = model.compute(n, x, at).whole();
            Ok::<_, Stopped>(mix(&leaves[n - first], fresh, walked.cache[n].clone()).into())
        })?;
        // The block's vector-Jacobian product with the gradient that flows into its output.
        let mut gradients = backward((out * grad).sum())?;
        for (leaf, of_leaf) in leaves.iter().zip(&mut slopes[first..]) {
            *of_leaf = slope(leaf.grad_remove(&mut gradients), &loss);
        }
        flowing = x.grad_remove(&mut gradients);
    }
    let (mse, gradient) = error_and_slopes(loss.inner(), slopes).await?;
    Ok(StudentStep {
        output: output.inner(),
        teacher,
        mse,
        gradient,
        cache,
    })
}

/// The scores as tensors that gradients are kept for, `[1, 1, 1]` each.
fn leaves(scores: &[f64], like: &Tensor<3>) -> Vec<Tensor<3>> {
    let device = like.device();
    scores
        .iter()
        .map(|r| {
            Tensor::full([1, 1, 1], *r, &device)
                .autodiff()
                .require_grad()
        })
        .collect()
}

/// `f̂ = r·f + (1−r)·f_cached`, the cached feature a constant.
fn mix(r: &Tensor<3>, fresh: Tensor<3>, stored: Tensor<3>) -> Tensor<3> {
    (fresh - stored.clone()) * r.clone() + stored
}

/// The gradient of a score as one number on the device, `[1]`; 0 where the loss does not depend on it.
fn slope(gradient: Option<Tensor<3>>, loss: &Tensor<1>) -> Tensor<1> {
    match gradient {
        Some(gradient) => gradient.reshape([1]),
        None => Tensor::zeros([1], &loss.device()),
    }
}

/// The error and its gradient by the scores, in one read-back: each waits for the device.
async fn error_and_slopes(
    mse: Tensor<1>,
    mut slopes: Vec<Tensor<1>>,
) -> Result<(f64, Vec<f64>), TrainingError> {
    slopes.push(mse);
    let mut numbers = numbers(slopes).await?;
    let mse = numbers.pop().unwrap_or(f64::NAN);
    Ok((mse, numbers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::{Api, DeviceChoice, Engine},
        diffusion::ImageNoise,
        models::Condition,
        training::{router::walk::Treatment, small},
    };

    /// Router gradients against central differences of the loss, on both devices.
    #[test]
    fn gradients_match_finite_differences() {
        let vulkan = Engine::open(DeviceChoice::Api(Api::Vulkan))
            .unwrap_or_else(|e| panic!("this test needs a Vulkan driver: {e}"))
            .engine;
        for engine in [Engine::cpu(), vulkan] {
            let (model, _) = small::model(7, engine.device());
            let mut walker = Walker::new(&*model, model.null(), small::run(4), 0.1).unwrap();
            let mut noise = Vec::new();
            ImageNoise::new(3, 0).fill(2 * 4 * 8 * 8, &mut noise);
            let conditions = walker.conditions(&Condition::classes(&[0, 2]));
            let mut walk = walker.start(&noise);
            walker
                .step(0, &mut walk, &conditions, Treatment::Full)
                .unwrap();
            let scores = [0.3, 0.8, 0.05, 0.5];
            let mut at = |scores: &[f64], checkpoint: bool| {
                pollster::block_on(student_step(
                    &mut walker,
                    1,
                    &walk,
                    &conditions,
                    scores,
                    checkpoint,
                ))
                .unwrap()
            };
            let backend = &engine.report().backend;
            for checkpoint in [false, true] {
                let gradient = at(&scores, checkpoint).gradient;
                let largest = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
                for n in 0..4 {
                    let shifted = |by: f64| {
                        let mut scores = scores;
                        scores[n] += by;
                        scores
                    };
                    let h = 0.02;
                    let difference =
                        (at(&shifted(h), false).mse - at(&shifted(-h), false).mse) / (2.0 * h);
                    let error = (gradient[n] - difference).abs() / largest;
                    assert!(
                        error < 0.01,
                        "{backend}, branch {n}: {} against {difference}",
                        gradient[n]
                    );
                }
            }
        }
    }
}
