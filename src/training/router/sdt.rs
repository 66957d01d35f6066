//! SDT: Step-Wise Denoising Training.
//!
//! One *pass* walks a batch of noise down the whole trajectory. At every step but the first, the student mixes
//! fresh and cached features by the router's scores, is compared with the full model at the student's own
//! `x_t`, and one AdamW step moves that step's row of the router.
//!
//! Learning-to-Cache is the same on pairs of steps of the full model's path ([`SdtSettings::pairs`]).
//!
//! Several [`Ranks`] walk the micro-batches of a pass between them and give each other errors and gradients, which every one of them
//! sums in the order of the micro-batches: the router is that of one process, bit for bit.

use std::ops::ControlFlow;

use super::{
    Budget, Iteration, Progress, Replay, SdtSettings, TrainingState,
    adamw::unit_of,
    iepo::{self, StepError},
    student::student_step,
    walk::{StepConditions, Treatment, Walk, Walker},
};
#[cfg(not(target_family = "wasm"))]
use crate::training::run::guarded_telling;
use crate::{
    checkpoint::ModelInfo,
    graph::Graph,
    models::{Condition, Prompts},
    ranks::Ranks,
    sampler::{Stop, model_identity, run_settings},
    schedule::{PolicyRecord, ScheduleFile},
    stop::Asked,
    training::run::TrainingError,
};

/// A router in training.
pub struct Sdt<'m> {
    pub(super) walker: Walker<'m>,
    pub(super) settings: SdtSettings,
    pub(super) graph: Graph,
    pub(super) prompts: Prompts,
    pub(super) replay: Option<Replay>,
    pub(super) state: TrainingState,
    pub(super) ranks: Ranks,
}

/// A micro-batch on its way.
struct Part {
    walk: Walk,
    conditions: StepConditions,
}

/// Those of a pass.
struct Parts {
    /// Those that this rank walks.
    own: Vec<Part>,
    /// What each of them all is of the batch.
    shares: Vec<f64>,
}

impl Sdt<'_> {
    /// What training has reached.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// The settings.
    pub fn settings(&self) -> &SdtSettings {
        &self.settings
    }

    /// Asks this before each branch, on the way back too, whether to stop: a step of a large model may take a minute on a
    /// processor. A GPU still does what it was given before.
    pub fn with_stop(mut self, stop: Stop) -> Self {
        self.walker.asked = Asked::of(stop);
        self
    }

    /// Walks the micro-batches of a pass together with other ranks, which are to call [`Self::pass`] as often. One whose pass ends
    /// early, with an error or because it was to stop, must [leave](Ranks::leave); theirs then ends as well.
    pub fn with_ranks(self, ranks: Ranks) -> Self {
        Self { ranks, ..self }
    }

    /// Whether all passes are done.
    pub fn is_done(&self) -> bool {
        self.state.pass >= self.settings.passes
    }

    /// The schedule that the router stands for now at a target, with no more than `max_slots` features kept at a time.
    ///
    /// # Errors
    /// [`TrainingError`] for a threshold out of range.
    pub fn schedule_file(
        &self,
        target: Budget,
        max_slots: usize,
        info: &ModelInfo,
    ) -> Result<ScheduleFile, TrainingError> {
        let (state, settings) = (&self.state, &self.settings);
        let (schedule, threshold) = target.final_schedule(
            &state.router,
            settings.tau,
            &self.graph,
            &state.steering.values,
            max_slots,
        )?;
        let mut training = serde_json::to_value(settings).unwrap_or_default();
        training["passes_done"] = state.pass.into();
        training["final_beta"] = state.beta.into();
        training["weights"] = info.resident.kept.to_string().into();
        let policy = PolicyRecord {
            name: match settings.pairs {
                true => "learning-to-cache",
                false => "harmonica",
            }
            .into(),
            parameters: Some(serde_json::to_value(target).unwrap_or_default()),
        };
        let (model, run) = (
            model_identity(info),
            run_settings(info, &self.walker.settings)?,
        );
        let rows = 0..state.router.steps();
        Ok(ScheduleFile {
            threshold,
            logits: Some(rows.map(|s| state.router.row(s).to_vec()).collect()),
            lambda: Some(state.lambda.clone()),
            training: Some(training),
            ..ScheduleFile::of(&schedule, policy, model, run)
        })
    }

    /// Runs one pass; `each` sees every trained step and may break, which undoes the pass, as does whoever is asked by
    /// [`Self::with_stop`].
    ///
    /// Returns whether the pass was finished.
    ///
    /// # Errors
    /// [`TrainingError::NotFinite`], [`TrainingError::Device`]; the state is that before the pass then.
    pub async fn pass_async(
        &mut self,
        each: &mut impl AsyncFnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        let mut state = self.state.clone();
        let finished = match self.run_pass(&mut state, each).await {
            Err(TrainingError::Stopped) => false,
            finished => finished?,
        };
        if finished {
            self.state = state;
        }
        Ok(finished)
    }

    /// [`Self::pass_async`], waiting for it; what goes wrong on the device as a panic is an error.
    ///
    /// # Errors
    /// As [`Self::pass_async`].
    #[cfg(not(target_family = "wasm"))]
    pub fn pass(
        &mut self,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        guarded_telling(each, |each| {
            pollster::block_on(self.pass_async(&mut async |progress| each(progress)))
        })
    }

    async fn run_pass(
        &mut self,
        state: &mut TrainingState,
        each: &mut impl AsyncFnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        let steps = self.walker.steps.len();
        let mut parts = self.parts(state.pass);
        if self.settings.refreshes_lambda(state.pass, steps) {
            match self.refreshed(state, &parts, each).await? {
                Some(lambda) => state.lambda = lambda,
                None => return Ok(false),
            }
        }
        for s in 0..steps {
            if !self.settings.trains(s, steps) {
                for Part { walk, conditions } in &mut parts.own {
                    self.walker.step(s, walk, conditions, Treatment::Full)?;
                }
                continue;
            }
            let iteration = self.train(s, state, &mut parts).await?;
            if each(Progress::Trained(iteration)).await.is_break() {
                return Ok(false);
            }
        }
        // Whoever is told to stop by the last step undoes the pass, and so do all.
        self.ranks.gather(&[])?;
        state.pass += 1;
        let progress = state.pass as f64 / self.settings.passes as f64;
        state.beta = self.settings.budget.next_beta(
            state.beta,
            &mut state.steering,
            &state.router,
            self.settings.tau,
            &self.graph,
            progress,
        )?;
        Ok(true)
    }

    /// The batch of a pass, at step 0.
    fn parts(&self, pass: usize) -> Parts {
        let (noise, prompts) = self.draw(pass);
        let image = noise.len() / prompts.len();
        let size = self.settings.micro_batch;
        let own = self.ranks.share(prompts.len(), size);
        let noise = &noise[own.start * image..own.end * image];
        let parts = noise.chunks(image * size).zip(prompts[own].chunks(size));
        let part = |(noise, of_part): (&[f32], &[Condition])| Part {
            walk: self.walker.start(noise),
            conditions: self.walker.conditions(of_part),
        };
        let share = |of_part: &[Condition]| of_part.len() as f64 / prompts.len() as f64;
        Parts {
            own: parts.map(part).collect(),
            shares: prompts.chunks(size).map(share).collect(),
        }
    }

    /// `λ` of every step, by IEPO; none where `each` breaks off.
    async fn refreshed(
        &mut self,
        state: &TrainingState,
        parts: &Parts,
        each: &mut impl AsyncFnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<Vec<f64>>, TrainingError> {
        let mut own = Vec::new();
        for Part { walk, conditions } in &parts.own {
            let refreshed = iepo::lambda(
                &mut self.walker,
                self.settings.proxy,
                &state.router,
                walk,
                conditions,
                &mut async |step| each(Progress::Lambda { step }).await,
            )
            .await?;
            match refreshed {
                Some(of_part) => own.extend(of_part),
                None => return Ok(None),
            }
        }
        let steps = self.walker.steps.len();
        let all = self.ranks.gather_numbers(own)?;
        let mut errors = vec![StepError::default(); steps];
        for (of_part, share) in all.chunks(steps).zip(&parts.shares) {
            let sums = errors.iter_mut().zip(of_part);
            sums.for_each(|(sum, of_part)| sum.add(*share, *of_part));
        }
        let lambda: Vec<f64> = errors.iter().map(StepError::lambda).collect();
        tracing::debug!(pass = state.pass, ?lambda, "refreshed lambda");
        Ok(Some(lambda))
    }

    /// The student's step: its error `mse` and `∂mse/∂r` of every branch, means over the batch. Moves it on.
    async fn student(
        &mut self,
        s: usize,
        parts: &mut Parts,
        scores: &[f64],
    ) -> Result<(f64, Vec<f64>), TrainingError> {
        let mut own = Vec::new();
        for Part { walk, conditions } in &mut parts.own {
            let student = student_step(
                &mut self.walker,
                s,
                walk,
                conditions,
                scores,
                self.settings.gradient_checkpointing,
            )
            .await?;
            own.push(student.mse);
            own.extend(student.gradient);
            walk.cache = student.cache;
            // A pair says nothing of what its reuse does to later steps.
            let output = match self.settings.pairs {
                true => student.teacher,
                false => student.output,
            };
            self.walker.advance(s, walk, output);
        }
        let all = self.ranks.gather_numbers(own)?;
        let (mut mse, mut gradient) = (0.0, vec![0.0; scores.len()]);
        for (of_part, share) in all.chunks(1 + scores.len()).zip(&parts.shares) {
            mse += share * of_part[0];
            let sums = gradient.iter_mut().zip(&of_part[1..]);
            sums.for_each(|(sum, g)| *sum += share * g);
        }
        Ok((mse, gradient))
    }

    /// Trains row `s` of the router on `λ_s·mse + β·Σ_i r_{s,i}`.
    async fn train(
        &mut self,
        s: usize,
        state: &mut TrainingState,
        parts: &mut Parts,
    ) -> Result<Iteration, TrainingError> {
        let pass = state.pass;
        let scores = state.router.scores(s);
        let (mse, mut gradient) = self.student(s, parts, &scores).await?;
        let lambda = state.lambda[s];
        gradient.iter_mut().for_each(|g| *g *= lambda);
        let steered = self.settings.budget.target().is_some();
        if steered {
            state
                .steering
                .observe(s, &gradient, &scores, self.settings.tau, pass == 0);
        }
        let beta = match steered && pass == 0 {
            true => state.steering.first_beta(s, scores.len()),
            false => state.beta,
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
        state.update(s, self.settings.learning_rate, &gradient)?;
        Ok(Iteration {
            pass,
            step: s,
            mse,
            score_sum,
            lambda,
            loss,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use burn::tensor::Device;

    use super::*;
    use crate::{
        models::Model,
        ranks::{Leaving, threads::together},
        training::{router::Proxy, small},
    };

    fn train(model: &Model, settings: SdtSettings) -> (Vec<Iteration>, TrainingState) {
        train_on(Ranks::alone(), model, settings)
    }

    fn begun(ranks: Ranks, model: &Model, settings: SdtSettings) -> Sdt<'_> {
        let sdt = Sdt::new(model, small::run(4), settings, Prompts::of(&**model), None).unwrap();
        sdt.with_ranks(ranks)
    }

    fn train_on(
        ranks: Ranks,
        model: &Model,
        settings: SdtSettings,
    ) -> (Vec<Iteration>, TrainingState) {
        let mut sdt = begun(ranks, model, settings);
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
    fn micro_batches_and_checkpointing_change_nothing_but_rounding() {
        let (model, _) = small::model(1, &Device::flex());
        let cases = [
            (Proxy::LeaveOneOut, 1, false),
            (Proxy::Progressive, 2, true),
            (Proxy::Sensitivity, 1, true),
            (Proxy::Sensitivity, 2, false),
        ];
        for (proxy, micro_batch, gradient_checkpointing) in cases {
            let whole = SdtSettings {
                proxy,
                ..SdtSettings::small(3)
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
    fn ranks_train_the_router_of_one_process_bit_for_bit() {
        let (model, _) = small::model(1, &Device::flex());
        for (proxy, batch) in [(Proxy::Sensitivity, 4), (Proxy::LeaveOneOut, 3)] {
            let settings = SdtSettings {
                proxy,
                batch,
                micro_batch: 1,
                ..SdtSettings::small(3)
            };
            let (trace, state) = train(&model, settings.clone());
            // As many as there are micro-batches, fewer, and more.
            for size in [2, 3, 5] {
                let trained = together(size, |ranks| {
                    train_on(ranks.clone(), &model, settings.clone())
                });
                for other in trained {
                    assert_eq!(other, (trace.clone(), state.clone()), "{size} ranks");
                }
            }
        }
    }

    fn one_at_a_time() -> SdtSettings {
        SdtSettings {
            micro_batch: 1,
            ..SdtSettings::small(2)
        }
    }

    #[test]
    fn a_rank_that_stops_or_fails_ends_the_pass_of_all() {
        let (model, _) = small::model(1, &Device::flex());
        for at in [Some(2), Some(3), None] {
            let ended = together(2, |ranks| {
                let settings = one_at_a_time();
                let mut sdt = begun(ranks.clone(), &model, settings);
                // Step 3 is the last: what is left of the pass then is that all agree on its end.
                let stops = |progress: &Progress| match progress {
                    Progress::Trained(i) => ranks.rank() == 1 && Some(i.step) == at,
                    Progress::Lambda { .. } => ranks.rank() == 1 && at.is_none(),
                };
                let finished = sdt.pass(&mut |progress| match stops(&progress) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                });
                assert!(!finished.unwrap());
                ranks.leave(&Leaving::Stopped);
                sdt.state().pass
            });
            assert_eq!(ended, [0, 0]);
        }
        let ended = together(2, |ranks| {
            let settings = one_at_a_time();
            let mut sdt = begun(ranks.clone(), &model, settings);
            match ranks.rank() {
                0 => sdt
                    .pass(&mut |_| ControlFlow::Continue(()))
                    .unwrap_err()
                    .to_string(),
                _ => {
                    ranks.leave(&Leaving::Failed("out of memory".into()));
                    String::new()
                }
            }
        });
        assert_eq!(ended[0], "rank 1 failed: out of memory");
    }

    #[test]
    fn an_interrupted_pass_leaves_no_trace() {
        let (model, _) = small::model(1, &Device::flex());
        let settings = || SdtSettings::small(2);
        let (_, expected) = train(&model, settings());
        let mut sdt = Sdt::new(
            &model,
            small::run(4),
            settings(),
            Prompts::of(&*model),
            None,
        )
        .unwrap();
        assert!(
            !sdt.pass(&mut |i| match i {
                Progress::Trained(i) if i.step == 2 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
            .unwrap()
        );
        let panics = || {
            sdt.pass(&mut |i| match i {
                Progress::Trained(i) if i.step == 2 => panic!("the caller's own"),
                _ => ControlFlow::Continue(()),
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(sdt.state().pass, 0);
        while !sdt.is_done() {
            sdt.pass(&mut |_| ControlFlow::Continue(())).unwrap();
        }
        assert_eq!(*sdt.state(), expected);
    }
}
