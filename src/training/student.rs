//! The student's step: soft-mixed features, and the gradient of its error with respect to the scores.
//!
//! Weights are constants, so only activations are differentiated. With `checkpoint`, only the blocks'
//! inputs are kept in the forward pass and each block is run again on the way back: memory for one
//! block's graph instead of all of them, for one more forward pass.

use burn::tensor::Tensor;

use super::walk::{StepConditions, Walk, Walker, run_blocks};
use crate::{
    device::DeviceFault,
    dit::{Branch, Conditioning},
    training::TrainingError,
};

/// What a student step yields for one micro-batch.
pub(super) struct StudentStep {
    /// Guided output `[b or 2b, C_out, H, W]`, without gradients.
    pub output: Tensor<4>,
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
pub(super) fn student_step(
    walker: &mut Walker<'_>,
    s: usize,
    walk: &Walk,
    conditions: &StepConditions,
    scores: &[f64],
    checkpoint: bool,
) -> Result<StudentStep, TrainingError> {
    let (model, conditioning) = (walker.model, &conditions[s]);
    walker.forwards += 2;
    let tokens = walker.tokens(walk);
    let mut first = None;
    let teacher = run_blocks(model, tokens.clone(), conditioning, None, |n, fresh| {
        if n == 0 {
            first = Some(fresh.clone());
        }
        fresh
    });
    let teacher = walker.guide(teacher);
    if checkpoint {
        return checkpointed(walker, walk, conditioning, tokens, teacher, scores);
    }

    let leaves = leaves(scores, &tokens);
    let mut cache = Vec::with_capacity(scores.len());
    let tau = walker.tau;
    let output = run_blocks(model, tokens, conditioning, first, |n, fresh| {
        let stored = &walk.cache[n];
        let mixed = mix(&leaves[n], fresh, stored.clone());
        cache.push(if scores[n] > tau {
            mixed.clone().inner()
        } else {
            stored.clone()
        });
        mixed
    });
    let output = walker.guide(output);
    let difference = output.clone() - teacher;
    let loss = (difference.clone() * difference).mean();
    let mut gradients = loss.backward();
    let mut gradient = Vec::with_capacity(scores.len());
    for leaf in &leaves {
        gradient.push(match leaf.grad_remove(&mut gradients) {
            Some(grad) => scalar(grad)?,
            None => 0.0,
        });
    }
    Ok(StudentStep {
        output: output.inner(),
        mse: scalar(loss.inner())?,
        gradient,
        cache,
    })
}

/// The same by blocks: forward without a graph, then backward one block at a time.
fn checkpointed(
    walker: &Walker<'_>,
    walk: &Walk,
    conditioning: &Conditioning,
    tokens: Tensor<3>,
    teacher: Tensor<4>,
    scores: &[f64],
) -> Result<StudentStep, TrainingError> {
    let model = walker.model;
    let blocks = model.blocks.len();
    let mut inputs = Vec::with_capacity(blocks + 1);
    let mut cache = Vec::with_capacity(scores.len());
    let mut x = tokens;
    for (b, block) in model.blocks.iter().enumerate() {
        inputs.push(x.clone());
        for (kind, branch) in Branch::BLOCK.into_iter().enumerate() {
            let n = 2 * b + kind;
            let modulation = conditioning.branch(b, branch);
            let fresh = block.branch(branch, x.clone(), &modulation);
            let stored = &walk.cache[n];
            let mixed = fresh * scores[n] + stored.clone() * (1.0 - scores[n]);
            cache.push(if scores[n] > walker.tau {
                mixed.clone()
            } else {
                stored.clone()
            });
            x = modulation.add(x, mixed);
        }
    }

    let last = x.autodiff().require_grad();
    let output = walker.guide(model.unembed(last.clone(), conditioning));
    let difference = output.clone() - teacher;
    let loss = (difference.clone() * difference).mean();
    let mut gradients = loss.backward();
    let mut flowing = last.grad_remove(&mut gradients);

    let mut gradient = vec![0.0; scores.len()];
    for b in (0..blocks).rev() {
        let Some(grad) = flowing.take() else { break };
        let x = inputs.pop().map(|x| x.autodiff().require_grad());
        let Some(x) = x else { break };
        let leaves = leaves(&scores[2 * b..2 * b + 2], &grad);
        let mut out = x.clone();
        for (kind, branch) in Branch::BLOCK.into_iter().enumerate() {
            let modulation = conditioning.branch(b, branch);
            let fresh = model.blocks[b].branch(branch, out.clone(), &modulation);
            out = modulation.add(
                out,
                mix(&leaves[kind], fresh, walk.cache[2 * b + kind].clone()),
            );
        }
        // The block's vector-Jacobian product with the gradient that flows into its output.
        let mut gradients = (out * grad).sum().backward();
        for (kind, leaf) in leaves.iter().enumerate() {
            if let Some(grad) = leaf.grad_remove(&mut gradients) {
                gradient[2 * b + kind] = scalar(grad)?;
            }
        }
        flowing = x.grad_remove(&mut gradients);
    }
    Ok(StudentStep {
        output: output.inner(),
        mse: scalar(loss.inner())?,
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

fn scalar<const D: usize>(value: Tensor<D>) -> Result<f64, TrainingError> {
    value
        .try_into_scalar::<f32>()
        .map(f64::from)
        .map_err(|e| DeviceFault::failed(e).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::random_model,
        device::{Api, DeviceChoice, Engine},
        diffusion::{Guidance, GuidedChannels, ImageNoise, Solver},
        sampler::Settings,
        training::walk::Treatment,
    };

    /// Router gradients against central differences of the loss, on both devices.
    #[test]
    fn gradients_match_finite_differences() {
        let vulkan = Engine::open(DeviceChoice::Api(Api::Vulkan))
            .unwrap_or_else(|e| panic!("this test needs a Vulkan driver: {e}"))
            .engine;
        let config = crate::training::sdt::tests::tiny();
        for engine in [Engine::cpu(), vulkan] {
            let (model, _) = random_model(&config, 7, engine.device()).unwrap();
            let settings = Settings {
                steps: 4,
                solver: Solver::ddim(0.0).unwrap(),
                guidance: Guidance::new(1.5, GuidedChannels::Three).unwrap(),
                clip_x0: true,
            };
            let trajectory = settings.trajectory().unwrap();
            let mut walker = Walker {
                model: &model,
                settings,
                trajectory,
                tau: 0.1,
                forwards: 0,
            };
            let mut noise = Vec::new();
            ImageNoise::new(3, 0).fill(2 * 4 * 8 * 8, &mut noise);
            let conditions = walker.conditions(&[0, 2]);
            let mut walk = walker.start(&noise);
            walker.step(0, &mut walk, &conditions, Treatment::Full);
            let scores = [0.3, 0.8, 0.05, 0.5];
            let mut at = |scores: &[f64], checkpoint: bool| {
                student_step(&mut walker, 1, &walk, &conditions, scores, checkpoint).unwrap()
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
