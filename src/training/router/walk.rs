//! Images on their way through the steps, with the features they carry.

use burn::tensor::{Tensor, TensorData};

use crate::{
    device::read,
    diffusion::{DiffusionError, Step, solvers::kept_predictions},
    kernels::solver_step_of_images,
    models::{At, Condition, Denoiser, Times, output, walk},
    sampler::Settings,
    stop::{Asked, Stopped},
    training::run::TrainingError,
};

/// A micro-batch of images at some step of a pass.
///
/// With guidance both halves are carried, conditional first, since channels that guidance leaves alone
/// drift apart; only the conditional half's state feeds the network.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    /// `[b or 2b, C, H, W]`
    pub x: Tensor<4>,
    /// Predictions of the clean image at earlier steps, the newest first.
    pub history: Vec<Tensor<4>>,
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
    pub model: &'m dyn Denoiser,
    /// What stands for no condition, under guidance.
    pub null: Option<Condition>,
    pub settings: Settings,
    pub steps: Vec<Step>,
    pub tau: f64,
    /// Whoever is asked before each branch, on the way back too.
    pub asked: Asked,
    /// Passes through the network so far, a batch counted once.
    pub forwards: u64,
}

/// A step's constants for one micro-batch: adaLN vectors of both halves.
pub(super) type StepConditions = Vec<At>;

impl<'m> Walker<'m> {
    /// Of a run of a model; `null` stands for no condition, `tau` is the threshold above which a mix replaces what is cached.
    ///
    /// # Errors
    /// As [`Settings::numbers`].
    pub fn new(
        model: &'m dyn Denoiser,
        null: Option<Condition>,
        settings: Settings,
        tau: f64,
    ) -> Result<Self, DiffusionError> {
        Ok(Self {
            steps: settings.numbers(&model.outline().latents)?,
            model,
            null,
            settings,
            tau,
            asked: Asked::default(),
            forwards: 0,
        })
    }

    pub fn guided(&self) -> bool {
        self.settings.guidance.is_active()
    }

    fn halves(&self) -> usize {
        if self.guided() { 2 } else { 1 }
    }

    /// A walk at step 0.
    pub fn start(&self, noise: &[f32]) -> Walk {
        let [c, h, w] = self.model.outline().latents.shape();
        let images = noise.len() / (c * h * w);
        let x = Tensor::<4>::from_data(
            TensorData::new(noise.to_vec(), [images, c, h, w]),
            &self.model.device(),
        );
        let x = if self.guided() { x.repeat_dim(0, 2) } else { x };
        Walk {
            x,
            history: Vec::new(),
            cache: Vec::new(),
        }
    }

    /// What every step knows of these conditions.
    pub fn conditions(&self, conditions: &[Condition]) -> StepConditions {
        let mut all = conditions.to_vec();
        if let Some(null) = self.null.as_ref().filter(|_| self.guided()) {
            all.extend(vec![null.clone(); conditions.len()]);
        }
        let context = self.model.context(&all, all.len());
        self.steps
            .iter()
            .map(|step| {
                let times = vec![step.timestep as f32; all.len()];
                self.model.prepare(Times::Each(&times), &context)
            })
            .collect()
    }

    /// The tokens the network sees: the conditional half's state, once or twice.
    pub fn tokens(&self, walk: &Walk) -> Tensor<3> {
        let images = walk.x.dims()[0] / self.halves();
        let tokens = self.model.begin(walk.x.clone().narrow(0, 0, images), 1);
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
                .guide_both(output, self.model.outline().latents.channels)
        } else {
            output
        }
    }

    /// Network output of a step, without gradients.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn forward(
        &mut self,
        s: usize,
        walked: &mut Walk,
        conditions: &StepConditions,
        how: Treatment<'_>,
    ) -> Result<Tensor<4>, Stopped> {
        self.forwards += 1;
        let tau = self.tau;
        let (model, at) = (self.model, &conditions[s]);
        let branches = model.outline().graph.branches();
        let mut written = Vec::with_capacity(branches);
        let cache = &walked.cache;
        let tokens = self.tokens(walked);
        let x = walk(model, 0..branches, tokens, at, |n, x| {
            self.asked.go_on()?;
            let fresh = model.compute(n, x.clone(), at).whole();
            let feature = match how {
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
            };
            Ok(feature.into())
        })?;
        let output = output(model, x, at);
        if !matches!(how, Treatment::Teacher) {
            walked.cache = written;
        }
        Ok(self.guide(output))
    }

    /// Moves a walk on by the solver's step.
    pub fn advance(&self, s: usize, walk: &mut Walk, output: Tensor<4>) {
        let (x, output) = (walk.x.clone(), Some(output));
        let (next, _, prediction) =
            solver_step_of_images(x, output, &walk.history, None, &self.steps[s]);
        walk.x = next;
        walk.history.splice(0..0, prediction);
        walk.history
            .truncate(kept_predictions(&self.steps, |_| true));
    }

    /// Forward and advance.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn step(
        &mut self,
        s: usize,
        walk: &mut Walk,
        conditions: &StepConditions,
        how: Treatment<'_>,
    ) -> Result<(), Stopped> {
        let output = self.forward(s, walk, conditions, how)?;
        self.advance(s, walk, output);
        Ok(())
    }
}

/// Numbers that lie on the device as `[1]` each, in one read-back.
pub(super) async fn numbers(of: Vec<Tensor<1>>) -> Result<Vec<f64>, TrainingError> {
    let values = read(Tensor::cat(of, 0)).await?;
    Ok(values.into_iter().map(f64::from).collect())
}
