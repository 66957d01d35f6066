//! Images on their way through the steps, with the features they carry.

use burn::tensor::{Tensor, TensorData};

use crate::{
    diffusion::Trajectory,
    dit::{Branch, Conditioning, Dit},
    sampler::Settings,
};

/// A micro-batch of images at some step of a pass.
///
/// With guidance both halves are carried, conditional first, since channels that guidance leaves alone
/// drift apart; only the conditional half's state feeds the network.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    /// `[b or 2b, C, H, W]`
    pub x: Tensor<4>,
    /// What every branch handed to the residual stream when it was computed last, `[b or 2b, tokens, dim]`: under the
    /// router a mix of fresh and cached, a running mean of its past. Empty before step 0.
    pub cache: Vec<Tensor<3>>,
}

/// How the branches of a step are treated.
#[derive(Debug, Clone, Copy)]
pub(super) enum Treatment<'a> {
    /// Computed, and kept for later reuse.
    Full,
    /// Computed; the cache is neither read nor written.
    Teacher,
    /// Mixed with the cache by the soft score, `f̂ = r·f + (1−r)·f_cached`; where `r > τ` the mix replaces what is cached.
    Soft(&'a [f64]),
}

/// What moves walks: the frozen model and the run's fixed settings.
pub(super) struct Walker<'m> {
    pub model: &'m Dit,
    pub settings: Settings,
    pub trajectory: Trajectory,
    pub tau: f64,
    /// Passes through the network so far, a batch counted once.
    pub forwards: u64,
}

/// A step's constants for one micro-batch: adaLN vectors of both halves.
pub(super) type StepConditions = Vec<Conditioning>;

impl<'m> Walker<'m> {
    pub fn guided(&self) -> bool {
        self.settings.guidance.is_active()
    }

    fn halves(&self) -> usize {
        if self.guided() { 2 } else { 1 }
    }

    /// A walk at step 0.
    pub fn start(&self, noise: &[f32]) -> Walk {
        let [c, h, w] = self.model.config().image_shape();
        let images = noise.len() / (c * h * w);
        let x = Tensor::<4>::from_data(
            TensorData::new(noise.to_vec(), [images, c, h, w]),
            &self.model.device(),
        );
        let x = if self.guided() { x.repeat_dim(0, 2) } else { x };
        Walk {
            x,
            cache: Vec::new(),
        }
    }

    /// adaLN vectors of every step for these labels.
    pub fn conditions(&self, labels: &[usize]) -> StepConditions {
        let mut all = labels.to_vec();
        if self.guided() {
            all.extend(vec![self.model.config().classes; labels.len()]);
        }
        let steps = self.trajectory.steps().iter();
        steps
            .map(|step| {
                self.model
                    .condition(&vec![step.timestep as f32; all.len()], &all)
            })
            .collect()
    }

    /// The tokens the network sees: the conditional half's state, once or twice.
    pub fn tokens(&self, walk: &Walk) -> Tensor<3> {
        let images = walk.x.dims()[0] / self.halves();
        let tokens = self.model.embed(walk.x.clone().narrow(0, 0, images));
        if self.guided() {
            tokens.repeat_dim(0, 2)
        } else {
            tokens
        }
    }

    /// The network's whole output after guidance, both halves.
    pub fn guide(&self, output: Tensor<4>) -> Tensor<4> {
        if self.guided() {
            self.settings
                .guidance
                .guide_both(output, self.model.config().channels)
        } else {
            output
        }
    }

    /// Network output of a step, without gradients.
    pub fn forward(
        &mut self,
        s: usize,
        walk: &mut Walk,
        conditions: &StepConditions,
        how: Treatment<'_>,
    ) -> Tensor<4> {
        self.forwards += 1;
        let tau = self.tau;
        let branches = 2 * self.model.config().blocks;
        let mut written = Vec::with_capacity(branches);
        let cache = &walk.cache;
        let output = run_blocks(
            self.model,
            self.tokens(walk),
            &conditions[s],
            None,
            |n, fresh| match how {
                Treatment::Teacher => fresh,
                Treatment::Full => {
                    written.push(fresh.clone());
                    fresh
                }
                Treatment::Soft(scores) => {
                    let r = scores[n];
                    let mixed = fresh * r + cache[n].clone() * (1.0 - r);
                    written.push(if r > tau {
                        mixed.clone()
                    } else {
                        cache[n].clone()
                    });
                    mixed
                }
            },
        );
        if !matches!(how, Treatment::Teacher) {
            walk.cache = written;
        }
        self.guide(output)
    }

    /// Moves a walk on by the solver's step.
    pub fn advance(&self, s: usize, walk: &mut Walk, output: Tensor<4>) {
        let step = &self.trajectory.steps()[s];
        walk.x = self
            .settings
            .solver
            .step(step, walk.x.clone(), output, self.settings.clip_x0, None)
            .next;
    }

    /// Forward and advance.
    pub fn step(
        &mut self,
        s: usize,
        walk: &mut Walk,
        conditions: &StepConditions,
        how: Treatment<'_>,
    ) {
        let output = self.forward(s, walk, conditions, how);
        self.advance(s, walk, output);
    }
}

/// All blocks; `choose(n, fresh)` says what branch `n` adds to the residual stream. `first`: the feature of
/// branch 0, where it is known already.
pub(super) fn run_blocks(
    model: &Dit,
    tokens: Tensor<3>,
    conditioning: &Conditioning,
    mut first: Option<Tensor<3>>,
    mut choose: impl FnMut(usize, Tensor<3>) -> Tensor<3>,
) -> Tensor<4> {
    let mut x = tokens;
    for (b, block) in model.blocks.iter().enumerate() {
        for (kind, branch) in Branch::BLOCK.into_iter().enumerate() {
            let modulation = conditioning.branch(b, branch);
            let fresh = first
                .take()
                .unwrap_or_else(|| block.branch(branch, x.clone(), &modulation));
            x = modulation.add(x, choose(2 * b + kind, fresh));
        }
    }
    model.unembed(x, conditioning)
}
