//! SDT: Step-Wise Denoising Training.
//!
//! One *pass* walks a batch of noise down the whole trajectory. At every step but the first, the student mixes
//! fresh and cached features by the router's scores, is compared with the full model at the student's own
//! `x_t`, and one AdamW step moves that step's row of the router.

use std::{
    cell::Cell,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use serde::{Deserialize, Serialize};

use super::{
    Replay, SdtSettings,
    adamw::{AdamW, AdamWParts},
    budget::{Budget, Steering},
    iepo::{self, StepError},
    student::student_step,
    walk::{StepConditions, Treatment, Walk, Walker},
};
use crate::{
    device::DeviceFault,
    diffusion::ImageNoise,
    graph::Graph,
    models::{Condition, ConditionError, Model, Prompts},
    sampler::{SampleError, Settings},
    schedule::{LOGIT_LIMIT, Router},
    training::run::TrainingError,
};

/// Everything that training changes; enough to go on bit for bit.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    /// Passes done.
    pub pass: usize,
    pub router: Router,
    pub optimizer: AdamW,
    /// `λ_s` as refreshed last.
    pub lambda: Vec<f64>,
    pub beta: f64,
    /// What steering β remembers.
    pub steering: Steering,
}

impl TrainingState {
    /// Whether everything has the router's size.
    fn is_whole(&self) -> bool {
        let (steps, branches) = (self.router.steps(), self.router.branches());
        let AdamWParts(first, second, counts) = self.optimizer.parts();
        let tables = [first.len(), second.len(), self.steering.values.len()];
        tables == [steps * branches; 3] && counts.len() == steps && self.lambda.len() == steps
    }
}

/// One trained step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    pub pass: usize,
    pub step: usize,
    /// Mean of `(ε* − ε̂)²` over the network's whole guided output.
    pub mse: f64,
    /// `Σ_i r_{s,i}`
    pub score_sum: f64,
    pub lambda: f64,
    /// `λ_s·mse + β·Σ_i r_{s,i}`
    pub loss: f64,
}

/// What a pass tells while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress {
    /// λ is being refreshed, and has come to this step.
    Lambda {
        /// The step.
        step: usize,
    },
    /// A step was trained.
    Trained(Iteration),
}

/// A router in training.
pub struct Sdt<'m> {
    walker: Walker<'m>,
    settings: SdtSettings,
    graph: Graph,
    prompts: Prompts,
    replay: Option<Replay>,
    state: TrainingState,
}

impl<'m> Sdt<'m> {
    /// A fresh router (logits from N(0, 1), step 0 pinned at 5), or the replay's.
    ///
    /// # Errors
    /// [`TrainingError`] for settings that make no sense or a replay that does not fit.
    pub fn new(
        model: &'m Model,
        run: Settings,
        settings: SdtSettings,
        prompts: Prompts,
        replay: Option<Replay>,
    ) -> Result<Self, TrainingError> {
        let (steps, branches) = (run.steps, model.outline().graph.branches());
        let router = match &replay {
            Some(replay) => replay.router.clone(),
            None => initial_router(steps, branches, settings.seed)?,
        };
        let beta = match settings.budget {
            Budget::Beta(beta) => beta,
            _ => 0.0,
        };
        let state = TrainingState {
            pass: 0,
            router,
            optimizer: AdamW::new(steps, branches),
            lambda: vec![1.0; steps],
            beta,
            steering: Steering::new(steps, branches),
        };
        Self::resume(model, run, settings, prompts, replay, state)
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// As [`Sdt::new`].
    pub fn resume(
        model: &'m Model,
        run: Settings,
        settings: SdtSettings,
        prompts: Prompts,
        replay: Option<Replay>,
        state: TrainingState,
    ) -> Result<Self, TrainingError> {
        settings.check()?;
        if run.solver.is_stochastic() {
            return Err(TrainingError::Setting {
                setting: "solver",
                value: run.solver.to_string(),
                expected: "a deterministic one: routers are trained along the path without noise",
            });
        }
        if let Some(replay) = &replay {
            replay.check(&**model, settings.passes)?;
        } else if prompts.pool.is_empty() {
            return Err(TrainingError::Setting {
                setting: "texts",
                value: "missing".into(),
                expected: "embedded texts to draw from, since the model has no classes",
            });
        }
        let conditioning = model.outline().conditioning;
        for condition in prompts.pool.iter().chain(&prompts.null) {
            conditioning.check(condition).map_err(SampleError::from)?;
        }
        if run.guidance.is_active() && prompts.null.is_none() {
            return Err(SampleError::from(ConditionError::NoNull).into());
        }
        let numbers = run.numbers(&model.outline().latents)?;
        let graph = model.outline().graph.clone();
        let (steps, branches) = (numbers.len(), graph.branches());
        let found = (state.router.steps(), state.router.branches());
        if steps < 2 || found != (steps, branches) || !state.is_whole() {
            return Err(TrainingError::Setting {
                setting: "steps",
                value: steps.to_string(),
                expected: "at least 2, and the number of steps and branches that the router and its training have",
            });
        }
        let walker = Walker {
            model: &**model,
            null: prompts.null.clone(),
            settings: run,
            steps: numbers,
            tau: settings.tau,
            forwards: 0,
        };
        Ok(Self {
            walker,
            settings,
            graph,
            prompts,
            replay,
            state,
        })
    }

    /// What training has reached.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// The settings.
    pub fn settings(&self) -> &SdtSettings {
        &self.settings
    }

    /// Whether all passes are done.
    pub fn is_done(&self) -> bool {
        self.state.pass >= self.settings.passes
    }

    /// Runs one pass; `each` sees every trained step and may break, which undoes the pass.
    ///
    /// Returns whether the pass was finished.
    ///
    /// # Errors
    /// [`TrainingError::NotFinite`], [`TrainingError::Device`]; the state is that before the pass then.
    pub fn pass(
        &mut self,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        let before = self.state.clone();
        let telling = Cell::new(false);
        let mut tell = |progress| {
            telling.set(true);
            let answer = each(progress);
            telling.set(false);
            answer
        };
        let finished = match catch_unwind(AssertUnwindSafe(|| self.run_pass(&mut tell))) {
            Ok(finished) => finished,
            Err(panic) if telling.get() => {
                self.state = before;
                resume_unwind(panic)
            }
            // Some faults of a device come out of burn as panics.
            Err(panic) => Err(DeviceFault::of_panic(&*panic).into()),
        };
        if !matches!(finished, Ok(true)) {
            self.state = before;
        }
        finished
    }

    fn run_pass(
        &mut self,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        let pass = self.state.pass;
        let steps = self.walker.steps.len();
        let (noise, prompts) = self.draw(pass);
        let image = noise.len() / prompts.len();
        let mut walks: Vec<(Walk, StepConditions, f64)> = Vec::new();
        for (noise, part) in noise
            .chunks(image * self.settings.micro_batch)
            .zip(prompts.chunks(self.settings.micro_batch))
        {
            let share = part.len() as f64 / prompts.len() as f64;
            walks.push((
                self.walker.start(noise),
                self.walker.conditions(part),
                share,
            ));
        }

        if self.refreshes_lambda(pass) {
            let mut errors = vec![StepError::default(); steps];
            for (walk, conditions, share) in &walks {
                let refreshed = iepo::lambda(
                    &mut self.walker,
                    self.settings.proxy,
                    &self.state.router,
                    walk,
                    conditions,
                    &mut |step| each(Progress::Lambda { step }),
                )?;
                let Some(part) = refreshed else {
                    return Ok(false);
                };
                errors
                    .iter_mut()
                    .zip(part)
                    .for_each(|(sum, part)| sum.add(*share, part));
            }
            let lambda: Vec<f64> = errors.iter().map(StepError::lambda).collect();
            tracing::debug!(pass, ?lambda, "refreshed lambda");
            self.state.lambda = lambda;
        }

        for (walk, conditions, _) in &mut walks {
            self.walker.step(0, walk, conditions, Treatment::Full);
        }
        for s in 1..steps {
            let scores = self.state.router.scores(s);
            let (mut mse, mut gradient) = (0.0, vec![0.0; scores.len()]);
            for (walk, conditions, share) in &mut walks {
                let student = student_step(
                    &mut self.walker,
                    s,
                    walk,
                    conditions,
                    &scores,
                    self.settings.gradient_checkpointing,
                )?;
                mse += *share * student.mse;
                gradient
                    .iter_mut()
                    .zip(&student.gradient)
                    .for_each(|(sum, g)| *sum += *share * g);
                walk.cache = student.cache;
                self.walker.advance(s, walk, student.output);
            }
            let lambda = self.state.lambda[s];
            gradient.iter_mut().for_each(|g| *g *= lambda);
            let steered = self.settings.budget.target().is_some();
            if steered {
                self.state
                    .steering
                    .observe(s, &gradient, &scores, self.settings.tau, pass == 0);
            }
            let beta = match steered && pass == 0 {
                true => self.state.steering.first_beta(s, scores.len()),
                false => self.state.beta,
            };

            let score_sum: f64 = scores.iter().sum();
            let loss = lambda * mse + beta * score_sum;
            if !loss.is_finite() {
                return Err(TrainingError::NotFinite {
                    pass,
                    step: s,
                    loss,
                });
            }
            // λ can make the whole objective smaller than AdamW's epsilon, which would stall the logits. A steered
            // run has no unit of its own for β, so it counts in units of β.
            let unit = if steered {
                unit_of(beta, &gradient)
            } else {
                1.0
            };
            for (g, r) in gradient.iter_mut().zip(&scores) {
                *g = (*g + beta) * unit * r * (1.0 - r);
            }
            self.update(s, &gradient)?;
            let iteration = Iteration {
                pass,
                step: s,
                mse,
                score_sum,
                lambda,
                loss,
            };
            if each(Progress::Trained(iteration)).is_break() {
                return Ok(false);
            }
        }
        self.state.pass += 1;
        let progress = self.state.pass as f64 / self.settings.passes as f64;
        self.state.beta = self.settings.budget.next_beta(
            self.state.beta,
            &mut self.state.steering,
            &self.state.router,
            self.settings.tau,
            &self.graph,
            progress,
        )?;
        Ok(true)
    }

    /// Whether λ is due at the start of a pass: by the release's rule, which wants `p·T` to be a multiple of `C` and so
    /// refreshes once in `lcm(T, C)` iterations, or, where β is steered, whenever `C` more iterations are begun.
    fn refreshes_lambda(&self, pass: usize) -> bool {
        let (steps, every) = (self.walker.steps.len(), self.settings.lambda_every);
        let begun = |pass: usize| (pass * steps).div_ceil(every);
        match self.settings.budget {
            Budget::Beta(_) => (pass * steps).is_multiple_of(every),
            _ => begun(pass + 1) > begun(pass),
        }
    }

    /// One AdamW step on row `s`, then the clamp of all logits.
    fn update(&mut self, s: usize, gradient: &[f64]) -> Result<(), TrainingError> {
        let mut logits = self.state.router.logits().to_vec();
        let branches = self.state.router.branches();
        let row = &mut logits[s * branches..(s + 1) * branches];
        self.state
            .optimizer
            .step(s, self.settings.learning_rate, gradient, row);
        logits
            .iter_mut()
            .for_each(|l| *l = l.clamp(-LOGIT_LIMIT, LOGIT_LIMIT));
        self.state.router = Router::new(self.state.router.steps(), branches, logits)?;
        Ok(())
    }

    /// Noise and conditions of a pass, from the pass's own random streams, so that nothing need be remembered.
    fn draw(&self, pass: usize) -> (Vec<f32>, Vec<Condition>) {
        if let Some(replay) = &self.replay {
            let size = replay.noise.len() / replay.conditions.len();
            return (
                replay.noise[pass * size..(pass + 1) * size].to_vec(),
                replay.conditions[pass].clone(),
            );
        }
        let size = self.walker.model.outline().latents.numbers();
        let (mut noise, mut prompts) = (Vec::new(), Vec::new());
        for image in 0..self.settings.batch {
            let number = (pass * self.settings.batch + image) as u64;
            // Not what `sample` draws for the same seed: what is learned is judged on other noise.
            let mut stream =
                ImageNoise::with_purpose("harmonica router images", self.settings.seed, number);
            stream.fill(size, &mut noise);
            let pool = &self.prompts.pool;
            prompts.push(pool[stream.below(pool.len())].clone());
        }
        (noise, prompts)
    }
}

/// Logits from N(0, 1), step 0 pinned.
fn initial_router(steps: usize, branches: usize, seed: u64) -> Result<Router, TrainingError> {
    let mut logits = vec![LOGIT_LIMIT; branches];
    ImageNoise::with_purpose("harmonica router logits", seed, 0)
        .fill(steps.saturating_sub(1) * branches, &mut logits);
    logits
        .iter_mut()
        .for_each(|l| *l = l.clamp(-LOGIT_LIMIT, LOGIT_LIMIT));
    Ok(Router::new(steps, branches, logits)?)
}

/// `1/β`; where β is next to nothing against the gradient, as where most branches do no good, what keeps AdamW's
/// second moments finite.
fn unit_of(beta: f64, gradient: &[f64]) -> f64 {
    let largest = gradient.iter().fold(0.0, |most: f64, g| most.max(g.abs()));
    beta.max(1e-6 * largest).max(f64::MIN_POSITIVE).recip()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        checkpoint::random_model,
        diffusion::{Guidance, GuidedChannels, Solver, Spacing},
        models::dit::{DitArchitecture, DitConfig},
        training::router::{Proxy, iepo::lambda_long, walk::Walker},
    };

    #[test]
    fn a_beta_of_next_to_nothing_keeps_the_logits_finite() {
        for beta in [0.0, 1e-30, 1e-3] {
            for gradient in [[0.3, 0.0, -1e-20], [0.0; 3], [1e-40, 5.0, -7e4]] {
                let mut adam = AdamW::new(1, 3);
                let (mut logits, unit) = ([0.0; 3], unit_of(beta, &gradient));
                assert!(beta < 1e-3 || gradient[2] < -1.0 || unit == 1.0 / beta);
                for _ in 0..3 {
                    adam.step(0, 0.1, &gradient.map(|g| (g + beta) * unit), &mut logits);
                }
                assert!(logits.iter().all(|p| p.is_finite()), "{beta} {logits:?}");
            }
        }
    }

    pub fn tiny() -> Arc<DitArchitecture> {
        Arc::new(DitArchitecture::shared(DitConfig {
            input_size: [8, 8],
            patch: 4,
            channels: 4,
            hidden: 16,
            blocks: 2,
            heads: 2,
            classes: 3,
            learned_sigma: true,
            timestep_shift: 0,
            mlp_norm_eps: 1e-6,
        }))
    }

    fn run(steps: usize) -> Settings {
        let guidance = Guidance::new(1.5, GuidedChannels::Three).unwrap();
        Settings {
            steps,
            spacing: Spacing::Even,
            solver: Solver::ddim(0.0).unwrap(),
            guidance,
            clip_x0: true,
        }
    }

    fn settings(passes: usize) -> SdtSettings {
        SdtSettings {
            passes,
            batch: 3,
            micro_batch: 3,
            learning_rate: 0.05,
            tau: 0.1,
            lambda_every: 8,
            proxy: Proxy::LeaveOneOut,
            budget: Budget::Beta(1e-3),
            seed: 4,
            gradient_checkpointing: false,
        }
    }

    fn train(model: &Model, settings: SdtSettings) -> (Vec<Iteration>, TrainingState) {
        let mut sdt = Sdt::new(model, run(4), settings, Prompts::of(&**model), None).unwrap();
        let mut trace = Vec::new();
        while !sdt.is_done() {
            assert!(
                sdt.pass(&mut |i| {
                    if let Progress::Trained(i) = i {
                        trace.push(i)
                    };
                    ControlFlow::Continue(())
                })
                .unwrap()
            );
        }
        (trace, sdt.state().clone())
    }

    #[test]
    fn lambda_with_shared_prefixes_is_lambda_the_long_way_for_about_half_the_passes() {
        let (model, _) = random_model(tiny(), 1, &burn::tensor::Device::flex()).unwrap();
        for (steps, limit) in [(10, 0.55), (20, 0.55)] {
            let mut walker = Walker {
                model: &*model,
                null: model.null(),
                settings: run(steps),
                steps: run(steps).numbers(&model.outline().latents).unwrap(),
                tau: 0.1,
                forwards: 0,
            };
            let router = initial_router(steps, 4, 9).unwrap();
            let mut noise = Vec::new();
            ImageNoise::new(2, 0).fill(2 * 4 * 8 * 8, &mut noise);
            let conditions = walker.conditions(&Condition::classes(&[0, 2]));
            for proxy in [Proxy::LeaveOneOut, Proxy::Progressive, Proxy::Sensitivity] {
                let start = walker.start(&noise);
                walker.forwards = 0;
                let short = iepo::lambda(
                    &mut walker,
                    proxy,
                    &router,
                    &start,
                    &conditions,
                    &mut |_| ControlFlow::Continue(()),
                )
                .unwrap()
                .unwrap();
                let passes = std::mem::take(&mut walker.forwards);
                assert!(
                    passes as f64 <= limit * (steps * steps) as f64,
                    "{proxy}: {passes} of {}",
                    steps * steps
                );
                let long = lambda_long(&mut walker, proxy, &router, &start, &conditions).unwrap();
                let short: Vec<f64> = short.iter().map(StepError::lambda).collect();
                assert_eq!(short, long, "{proxy}");
                assert!(short[1..].iter().all(|l| *l > 0.0));
            }
        }
    }

    #[test]
    fn micro_batches_and_checkpointing_change_nothing_but_rounding() {
        let (model, _) = random_model(tiny(), 1, &burn::tensor::Device::flex()).unwrap();
        let cases = [
            (Proxy::LeaveOneOut, 1, false),
            (Proxy::Progressive, 2, true),
            (Proxy::Sensitivity, 1, true),
            (Proxy::Sensitivity, 2, false),
        ];
        for (proxy, micro_batch, gradient_checkpointing) in cases {
            let whole = SdtSettings {
                proxy,
                ..settings(3)
            };
            let (trace, state) = train(&model, whole.clone());
            let (other, end) = train(
                &model,
                SdtSettings {
                    micro_batch,
                    gradient_checkpointing,
                    ..whole
                },
            );
            for (a, b) in trace.iter().zip(&other) {
                assert!((a.loss / b.loss - 1.0).abs() < 1e-3, "{a:?} {b:?}");
            }
            let worst = crate::metrics::max_abs_error(state.router.logits(), end.router.logits());
            assert!(
                worst < 1e-3,
                "{proxy}, micro-batch {micro_batch}, checkpointing {gradient_checkpointing}: {worst}"
            );
        }
    }

    #[test]
    fn a_steered_run_refreshes_lambda_as_often_as_it_was_asked_to() {
        let (model, _) = random_model(tiny(), 1, &burn::tensor::Device::flex()).unwrap();
        let refreshes = |steps: usize, lambda_every: usize, budget: Budget| -> Vec<usize> {
            let settings = SdtSettings {
                lambda_every,
                budget,
                ..settings(30)
            };
            let sdt = Sdt::new(&model, run(steps), settings, Prompts::of(&*model), None).unwrap();
            (0..30).filter(|pass| sdt.refreshes_lambda(*pass)).collect()
        };
        let target = Budget::TargetCur(0.3);
        assert_eq!(refreshes(7, 50, target), [0, 7, 14, 21, 28]);
        assert_eq!(refreshes(10, 50, target), [0, 5, 10, 15, 20, 25]);
        // The release wants a pass to begin with a multiple of C.
        assert_eq!(refreshes(7, 50, Budget::Beta(1e-3)), [0]);
        assert_eq!(
            refreshes(10, 50, Budget::Beta(1e-3)),
            [0, 5, 10, 15, 20, 25]
        );
    }

    #[test]
    fn an_interrupted_pass_leaves_no_trace() {
        let (model, _) = random_model(tiny(), 1, &burn::tensor::Device::flex()).unwrap();
        let (_, expected) = train(&model, settings(2));
        let mut sdt = Sdt::new(&model, run(4), settings(2), Prompts::of(&*model), None).unwrap();
        assert!(
            !sdt.pass(&mut |i| match i {
                Progress::Trained(i) if i.step == 2 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
            .unwrap()
        );
        assert_eq!(sdt.state().pass, 0);
        while !sdt.is_done() {
            sdt.pass(&mut |_| ControlFlow::Continue(())).unwrap();
        }
        assert_eq!(*sdt.state(), expected);
    }
}
