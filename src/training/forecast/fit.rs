//! Weights of a forecast, step by step along the run's own path.
//!
//! A step takes `X̂ = clip(Σ_j w_j·H_j + v·x)` for the clean image. Its target is the `Y` that lands on the uncached trajectory:
//! with `x'` where the step leads from its newest prediction `H_0`, and `p` what the clean image weighs in its update,
//! `Y = H_0 + (x_ref − x')/p`, where `x_ref` is the uncached run's next state from the same noise. `w` and `v` are ridge
//! least squares over all pixels of all draws, drawn to plain reuse of `H_0`; then the run moves on with what was fitted.
//!
//! Several [`Ranks`] walk the draws between them, and add up what each draw says of a step's weights in the order of the draws.

use std::{ops::ControlFlow, sync::Arc};

use bytemuck::{Pod, Zeroable};

use crate::{
    diffusion::{ImageNoise, Weights},
    metrics::mse,
    models::{Condition, Model, Prompts},
    plan::compile,
    ranks::Ranks,
    sampler::{SampleError, Sampler, Settings, Stand, Stepper, Stop, Uncorrected},
    schedule::{FORECAST_DEPTH, Forecast, Schedule},
    stop::Asked,
    training::run::{Drawn, TrainingError, check_pool},
};

/// How strongly weights are drawn to plain reuse, as a share of the mean diagonal of the normal equations.
const RIDGE: f64 = 1e-6;
/// A step whose update weighs the clean image less is left alone.
const LEAST_WEIGHT: f64 = 1e-6;
/// Unknowns of a step: predictions, and the state.
const UNKNOWNS: usize = FORECAST_DEPTH + 1;

/// What draws are for: each purpose has noise and conditions of its own, and none those of a sampled image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Tables are compared on them, each with weights fitted to them.
    Search,
    /// Weights that are kept are fitted to them.
    Fit,
    /// What was found is judged on them.
    Validation,
}

impl Purpose {
    fn stream(self) -> &'static str {
        match self {
            Self::Search => "harmonica forecast search",
            Self::Fit => "harmonica forecast fit",
            Self::Validation => "harmonica forecast validation",
        }
    }
}

/// What draws are made from.
pub struct Source<'a> {
    pub model: &'a Model,
    pub settings: Settings,
    pub prompts: &'a Prompts,
    pub seed: u64,
    /// Images in the network at a time.
    pub batch: usize,
    /// Asked before each branch, then and later.
    pub stop: Stop,
    /// Who walks them together.
    pub ranks: Ranks,
}

impl Source<'_> {
    /// Draws `images` of them and walks the uncached run.
    ///
    /// # Errors
    /// [`TrainingError`] of the device or other ranks, for settings that cannot be run, where there is nothing to draw, or where it
    /// is to stop.
    pub fn draw(&self, purpose: Purpose, images: usize) -> Result<Draws, TrainingError> {
        self.draw_telling(purpose, images, &mut |_| ControlFlow::Continue(()))
    }

    /// The same; `told` hears of every step what share of them is done, and may break off.
    pub(super) fn draw_telling(
        &self,
        purpose: Purpose,
        images: usize,
        told: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Draws, TrainingError> {
        if images == 0 || self.batch == 0 {
            return Err(TrainingError::Setting {
                setting: "draws",
                value: images.min(self.batch).to_string(),
                expected: "at least 1",
            });
        }
        check_pool(self.prompts)?;
        // As many at a time as leave each rank some.
        let batch = self.batch.min(images.div_ceil(self.ranks.size()));
        let own = self.ranks.share(images, batch);
        let size = self.model.outline().latents.numbers();
        let drawn = Drawn::new(self.prompts, size, (purpose.stream(), self.seed), own);
        Draws::walked(
            (self.model, self.settings, self.prompts.null.as_ref()),
            &drawn.conditions,
            (drawn.noise, drawn.streams),
            batch,
            Asked::of(self.stop.clone()),
            self.ranks.clone(),
            told,
        )
    }
}

/// Draws of noise and conditions, and the uncached trajectories from them: those that this rank walks.
pub struct Draws {
    stepper: Stepper,
    /// What the clean image weighs in each step's update.
    weights: Vec<f64>,
    clip: bool,
    /// `x` of the uncached run before each step and after the last, `[images, C, H, W]` each.
    reference: Vec<Vec<f32>>,
    asked: Asked,
    ranks: Ranks,
}

/// A table with its forecast, and how the draws fared under it.
#[derive(Debug, Clone)]
pub struct Fit {
    pub schedule: Schedule,
    /// Mean squared error to the uncached image, one an image.
    pub errors: Vec<f64>,
    /// Where the images stood before each step.
    stands: Vec<Arc<Stand>>,
}

impl Fit {
    /// The mean of the errors.
    pub fn error(&self) -> f64 {
        self.errors.iter().sum::<f64>() / self.errors.len().max(1) as f64
    }

    /// What an image is usually off.
    pub fn typical(&self) -> f64 {
        typical(&self.errors)
    }
}

impl Draws {
    /// Draws that are given: `noise` `[images, C, H, W]` for as many conditions; `null` stands for none of them.
    ///
    /// # Errors
    /// [`TrainingError`] of the device, for settings that cannot be run, or for noise of another size.
    pub fn given(
        model: &Model,
        settings: Settings,
        null: Option<&Condition>,
        conditions: &[Condition],
        noise: Vec<f32>,
    ) -> Result<Self, TrainingError> {
        let streams = (0..conditions.len() as u64)
            .map(|number| ImageNoise::with_purpose(Purpose::Fit.stream(), 0, number))
            .collect();
        let of = (model, settings, null);
        Self::walked(
            of,
            conditions,
            (noise, streams),
            conditions.len(),
            Asked::default(),
            Ranks::alone(),
            &mut |_| ControlFlow::Continue(()),
        )
    }

    fn walked(
        (model, settings, null): (&Model, Settings, Option<&Condition>),
        conditions: &[Condition],
        (noise, streams): (Vec<f32>, Vec<ImageNoise>),
        batch: usize,
        asked: Asked,
        ranks: Ranks,
        told: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, TrainingError> {
        let sampler = Sampler::new(model, settings, None)?.asking(asked.clone());
        let sampler = match null {
            Some(null) => sampler.with_null(null.clone()),
            None => sampler,
        };
        let steps = settings.numbers(&model.outline().latents)?;
        let mut stepper = Stepper::new(&sampler, conditions, noise, streams, batch)?;
        let mut stand = stepper.start();
        let mut reference = vec![stand.x.clone()];
        for s in 0..steps.len() {
            asked.go_on()?;
            let mut after = stepper.step(s, &stand)?;
            let x = std::mem::take(&mut after.x);
            if let Some(bad) = x.iter().position(|v| !v.is_finite()) {
                let image = bad / stepper.image_numbers();
                return Err(SampleError::NotFinite { image, step: s }.into());
            }
            reference.push(x.clone());
            stand = after.moved_to(x);
            if told((s + 1) as f64 / steps.len() as f64).is_break() {
                return Err(TrainingError::Stopped);
            }
        }
        Ok(Self {
            stepper,
            weights: steps.iter().map(|s| s.update.predictions[0]).collect(),
            clip: settings.clip_x0,
            reference,
            asked,
            ranks,
        })
    }

    /// The forecast of a table whose `skipped` steps run no network. The steps before `from` are those of `before`, whose table
    /// must be the same there: of them only those are run again whose features are read later.
    ///
    /// # Errors
    /// [`TrainingError`] of the device, or for steps that cannot be skipped.
    pub fn fit(
        &mut self,
        table: &Schedule,
        skipped: &[usize],
        before: Option<(&Fit, usize)>,
    ) -> Result<Fit, TrainingError> {
        let mut forecast = Forecast {
            skipped: skipped.to_vec(),
            ..Forecast::default()
        };
        let bare = table.clone().with_forecast(forecast.clone())?;
        let plan = Arc::new(compile(&bare, self.stepper.graph()));
        self.stepper.follow(&plan);
        let (mut stands, mut stand, from) = match before {
            Some((fit, from)) => {
                let known = fit.schedule.forecast().estimates.range(..from);
                forecast.estimates = known.map(|(s, estimate)| (*s, *estimate)).collect();
                for s in bare.steps_read_from(from) {
                    self.asked.go_on()?;
                    self.stepper.step(s, &fit.stands[s])?;
                }
                let stand = Stand::clone(&fit.stands[from]);
                (fit.stands[..from].to_vec(), stand, from)
            }
            None => (Vec::new(), self.stepper.start(), 0),
        };
        for s in from..table.steps() {
            self.asked.go_on()?;
            let after = self.stepper.step(s, &stand)?;
            let weight = self.weights[s];
            let mut x = after.x.clone();
            if s > 0 && weight.abs() > LEAST_WEIGHT {
                let basis = Basis {
                    history: &after.history,
                    state: &stand.x,
                };
                let target = |i: usize| {
                    let off = f64::from(self.reference[s + 1][i]) - f64::from(after.x[i]);
                    f64::from(after.x0[i]) + off / weight
                };
                let own = basis.sums(self.stepper.image_numbers(), target);
                let all = self.ranks.gather_numbers(own)?;
                let estimate = Sums::total(&all).solved(after.history.len());
                x = self.corrected(s, &estimate, &basis, &after);
                forecast.estimates.insert(s, estimate);
            }
            let before = std::mem::replace(&mut stand, after.moved_to(x));
            stands.push(Arc::new(before));
        }
        Ok(Fit {
            schedule: table.clone().with_forecast(forecast)?,
            errors: self.errors(&stand)?,
            stands,
        })
    }

    /// Errors to the uncached images under a schedule as it is, one an image.
    ///
    /// # Errors
    /// [`TrainingError`] of the device.
    pub fn judge(&mut self, schedule: &Schedule) -> Result<Vec<f64>, TrainingError> {
        let plan = Arc::new(compile(schedule, self.stepper.graph()));
        self.stepper.follow(&plan);
        let mut stand = self.stepper.start();
        for s in 0..schedule.steps() {
            self.asked.go_on()?;
            let after = self.stepper.step(s, &stand)?;
            let x = match schedule.forecast().estimates.get(&s) {
                None => after.x.clone(),
                Some(estimate) => {
                    let basis = Basis {
                        history: &after.history,
                        state: &stand.x,
                    };
                    self.corrected(s, estimate, &basis, &after)
                }
            };
            stand = after.moved_to(x);
        }
        self.errors(&stand)
    }

    /// Where step `s` leads with this estimate instead of the newest prediction.
    fn corrected(
        &self,
        s: usize,
        estimate: &Weights,
        basis: &Basis<'_>,
        after: &Uncorrected,
    ) -> Vec<f32> {
        let of_pixel = |i: usize| {
            let mut clean = basis.weighed(estimate, i);
            if self.clip {
                clean = clean.clamp(-1.0, 1.0);
            }
            let moved = self.weights[s] * (clean - f64::from(after.x0[i]));
            (f64::from(after.x[i]) + moved) as f32
        };
        (0..after.x.len()).map(of_pixel).collect()
    }

    /// Mean squared error to the uncached image, one an image, of all ranks' images.
    fn errors(&self, stand: &Stand) -> Result<Vec<f64>, TrainingError> {
        let size = self.stepper.image_numbers();
        let last = self.reference.last().map_or(&[][..], Vec::as_slice);
        let images = stand.x.chunks(size).zip(last.chunks(size));
        let own = images.map(|(found, right)| mse(found, right)).collect();
        Ok(self.ranks.gather_numbers(own)?)
    }
}

/// The square of the mean root of errors: where few images that went astray make most of the mean, this compares runs on fewer
/// draws.
pub fn typical(errors: &[f64]) -> f64 {
    let roots: f64 = errors.iter().map(|error| error.sqrt()).sum();
    (roots / errors.len().max(1) as f64).powi(2)
}

/// What a step may weigh.
struct Basis<'a> {
    /// Predictions, newest first.
    history: &'a [Vec<f32>],
    state: &'a [f32],
}

impl Basis<'_> {
    /// The terms of pixel `i`, those that are not there yet as zeros.
    fn terms(&self, i: usize) -> [f64; UNKNOWNS] {
        let mut terms = [0.0; UNKNOWNS];
        for (term, plane) in terms.iter_mut().zip(self.history) {
            *term = f64::from(plane[i]);
        }
        terms[FORECAST_DEPTH] = f64::from(self.state[i]);
        terms
    }

    fn weighed(&self, estimate: &Weights, i: usize) -> f64 {
        let terms = self.terms(i);
        let predictions = estimate.predictions.iter().zip(terms);
        estimate.state * terms[FORECAST_DEPTH] + predictions.map(|(w, h)| w * h).sum::<f64>()
    }

    /// What each image of so many numbers says of the weights that come nearest to `target`.
    fn sums(&self, image: usize, target: impl Fn(usize) -> f64) -> Vec<Sums> {
        let end = self.state.len();
        let images = (0..end).step_by(image.max(1));
        let of_image = |first: usize| {
            let mut sums = Sums::default();
            for i in first..end.min(first + image) {
                sums.add(&self.terms(i), target(i));
            }
            sums
        };
        images.map(of_image).collect()
    }
}

/// Sums over pixels: normal equations of a step's weights.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct Sums {
    normal: [[f64; UNKNOWNS]; UNKNOWNS],
    right: [f64; UNKNOWNS],
}

impl Sums {
    fn add(&mut self, terms: &[f64; UNKNOWNS], target: f64) {
        for (row, a) in terms.iter().enumerate() {
            self.right[row] += a * target;
            for (column, b) in terms.iter().enumerate() {
                self.normal[row][column] += a * b;
            }
        }
    }

    /// Of all images, in their order.
    fn total(all: &[Self]) -> Self {
        let mut total = Self::default();
        for of_image in all {
            for row in 0..UNKNOWNS {
                total.right[row] += of_image.right[row];
                for column in 0..UNKNOWNS {
                    total.normal[row][column] += of_image.normal[row][column];
                }
            }
        }
        total
    }

    /// Ridge least squares: `min Σ (w·terms − target)² + μ·|w − e_0|²`, where so many predictions are there to weigh.
    fn solved(self, predictions_there: usize) -> Weights {
        let Self {
            mut normal,
            mut right,
        } = self;
        let ridge = RIDGE * (0..UNKNOWNS).map(|k| normal[k][k]).sum::<f64>() / UNKNOWNS as f64;
        let ridge = ridge.max(f64::MIN_POSITIVE);
        for (k, row) in normal.iter_mut().enumerate() {
            row[k] += ridge;
        }
        right[0] += ridge;
        let mut predictions = [0.0; FORECAST_DEPTH];
        let solution = solved(normal, right);
        predictions.copy_from_slice(&solution[..FORECAST_DEPTH]);
        // What is not there yet has no weight, to the last bit.
        predictions[predictions_there..].fill(0.0);
        Weights {
            state: solution[FORECAST_DEPTH],
            predictions,
        }
    }
}

/// Gaussian elimination with pivots of a small symmetric positive system.
fn solved(mut matrix: [[f64; UNKNOWNS]; UNKNOWNS], mut right: [f64; UNKNOWNS]) -> [f64; UNKNOWNS] {
    for k in 0..UNKNOWNS {
        let pivot = (k..UNKNOWNS)
            .max_by(|a, b| matrix[*a][k].abs().total_cmp(&matrix[*b][k].abs()))
            .unwrap_or(k);
        matrix.swap(k, pivot);
        right.swap(k, pivot);
        let (pivot_row, pivot_right) = (matrix[k], right[k]);
        for (row, right) in matrix.iter_mut().zip(&mut right).skip(k + 1) {
            let factor = row[k] / pivot_row[k];
            for (cell, above) in row.iter_mut().zip(pivot_row) {
                *cell -= factor * above;
            }
            *right -= factor * pivot_right;
        }
    }
    for k in (0..UNKNOWNS).rev() {
        let known: f64 = (k + 1..UNKNOWNS).map(|c| matrix[k][c] * right[c]).sum();
        right[k] = (right[k] - known) / matrix[k][k];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_finds_the_weights_that_made_its_target() {
        let plane = |k: usize| -> Vec<f32> {
            (0..200)
                .map(|i| ((i * (2 * k + 3) + k) as f32).sin())
                .collect()
        };
        let history = [plane(0), plane(1)];
        let state = plane(5);
        let basis = Basis {
            history: &history,
            state: &state,
        };
        let made = Weights {
            state: 0.25,
            predictions: [1.5, -0.5, 0.0],
        };
        let sums = basis.sums(50, |i| basis.weighed(&made, i));
        assert_eq!(sums.len(), 4);
        let found = Sums::total(&sums).solved(2);
        assert_eq!(found.predictions[2], 0.0);
        for (found, made) in found.predictions.iter().zip(made.predictions) {
            assert!((found - made).abs() < 1e-5, "{found}");
        }
        assert!((found.state - 0.25).abs() < 1e-5);
    }

    #[test]
    fn where_nothing_is_known_plain_reuse_stays() {
        let nothing = [vec![0.0f32; 10]];
        let basis = Basis {
            history: &nothing,
            state: &nothing[0],
        };
        let found = Sums::total(&basis.sums(10, |_| 0.0)).solved(1);
        assert_eq!(found, Weights::NEWEST);
    }
}
