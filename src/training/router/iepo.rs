//! IEPO: how much reuse at step `s` hurts the final image, `λ_s`.
//!
//! Both proxies name `T` full trajectories. Each shares its beginning with the run that the router rules
//! everywhere, so that run is walked once, and from every step of it one other run branches off to the end:
//! `T + T(T−1)/2` passes instead of `T²`, and never more than two walks in memory.

use std::{fmt, ops::ControlFlow, str::FromStr};

use burn::tensor::Tensor;
use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use super::walk::{StepConditions, Treatment, Walk, Walker, numbers};
use crate::{schedule::Router, stop::Stopped, training::run::TrainingError};

/// What stands for the error in the final image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// The paper's: the router everywhere, against the same with step `s` computed in full.
    #[default]
    LeaveOneOut,
    /// The release's code: before against after step `s` was handed to the router, in execution order.
    Progressive,
    /// Image error per unit of output error: the error in the final image that flipping step `s` causes (to full
    /// computation where the router mostly reuses, to full reuse where it mostly computes), over the squared
    /// difference of the network's outputs at that step. `λ_s·mse_s` is then an estimate of the image error
    /// itself, where the other proxies multiply the step's output error in twice.
    Sensitivity,
    /// `λ = 1`: SDT alone.
    None,
}

impl FromStr for Proxy {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "leave-one-out" => Ok(Self::LeaveOneOut),
            "progressive" => Ok(Self::Progressive),
            "sensitivity" => Ok(Self::Sensitivity),
            "none" => Ok(Self::None),
            _ => {
                Err("expected leave-one-out, progressive, sensitivity, or none (SDT alone)".into())
            }
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaveOneOut => "leave-one-out",
            Self::Progressive => "progressive",
            Self::Sensitivity => "sensitivity",
            Self::None => "none",
        })
    }
}

/// What a step's `λ` is the ratio of, means over a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct StepError {
    /// In the final image.
    image: f64,
    /// In the network's output at the step; 1 where the proxy does not ask.
    output: f64,
}

impl StepError {
    /// Adds a micro-batch that is this share of the batch.
    pub fn add(&mut self, share: f64, part: Self) {
        self.image += share * part.image;
        self.output += share * part.output;
    }

    /// `λ_s`; a step that changes no output has no measurable weight.
    pub fn lambda(&self) -> f64 {
        if self.output > 1e-12 {
            self.image / self.output
        } else {
            0.0
        }
    }
}

/// What makes `λ_s` of every step, on one micro-batch at step 0; nothing for step 0, which is never trained. `at` is told
/// each step and may break off, which gives `None`.
pub(super) async fn lambda(
    walker: &mut Walker<'_>,
    proxy: Proxy,
    router: &Router,
    start: &Walk,
    conditions: &StepConditions,
    at: &mut impl AsyncFnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<StepError>>, TrainingError> {
    let steps = walker.steps.len();
    if proxy == Proxy::None {
        let one = StepError {
            image: 1.0,
            output: 1.0,
        };
        return Ok(Some(vec![one; steps]));
    }
    let scores: Vec<Vec<f64>> = (0..steps).map(|s| router.scores(s)).collect();
    let mut main = start.clone();
    walker.step(0, &mut main, conditions, Treatment::Full)?;
    // `finals[s]`: leave-one-out, step s in full; progressive, steps up to s by the router and the rest in full.
    let mut finals: Vec<Option<Tensor<4>>> = vec![None; steps];
    let mut output_errors = vec![1.0; steps];
    if proxy == Proxy::Progressive {
        finals[0] = Some(rest_in_full(walker, main.clone(), 1, conditions)?);
    }
    for s in 1..steps {
        if at(s).await.is_break() {
            return Ok(None);
        }
        // The output at s of the run that branches off, where it is asked for.
        let mut flipped = None;
        if matches!(proxy, Proxy::LeaveOneOut | Proxy::Sensitivity) {
            let mut other = main.clone();
            let reuse = proxy == Proxy::Sensitivity && mean(&scores[s]) > 0.5;
            let nothing = vec![0.0; scores[s].len()];
            let how = if reuse {
                Treatment::Soft(&nothing)
            } else {
                Treatment::Full
            };
            let output = walker.forward(s, &mut other, conditions, how)?;
            flipped = (proxy == Proxy::Sensitivity).then(|| output.clone());
            walker.advance(s, &mut other, output);
            for (later, scores) in scores.iter().enumerate().skip(s + 1) {
                walker.step(later, &mut other, conditions, Treatment::Soft(scores))?;
            }
            finals[s] = Some(other.x);
        }
        let output = walker.forward(s, &mut main, conditions, Treatment::Soft(&scores[s]))?;
        if let Some(flipped) = flipped {
            output_errors[s] = mean_square(output.clone() - flipped).await?;
        }
        walker.advance(s, &mut main, output);
        if proxy == Proxy::Progressive && s + 1 < steps {
            finals[s] = Some(rest_in_full(walker, main.clone(), s + 1, conditions)?);
        }
    }
    let ruled = main.x;
    if proxy == Proxy::Progressive {
        finals[steps - 1] = Some(ruled.clone());
    }
    let mut errors = vec![StepError::default(); steps];
    for s in 1..steps {
        let reference = if proxy == Proxy::Progressive {
            finals[s - 1].as_ref()
        } else {
            Some(&ruled)
        };
        if let (Some(a), Some(b)) = (reference, &finals[s]) {
            errors[s] = StepError {
                image: mean_square(a.clone() - b.clone()).await?,
                output: output_errors[s],
            };
        }
    }
    Ok(Some(errors))
}

fn rest_in_full(
    walker: &mut Walker<'_>,
    mut walk: Walk,
    from: usize,
    conditions: &StepConditions,
) -> Result<Tensor<4>, Stopped> {
    for s in from..walker.steps.len() {
        // Nothing after this reads the cache.
        walker.step(s, &mut walk, conditions, Treatment::Teacher)?;
    }
    Ok(walk.x)
}

fn mean(scores: &[f64]) -> f64 {
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

async fn mean_square(difference: Tensor<4>) -> Result<f64, TrainingError> {
    let mean = (difference.clone() * difference).mean();
    Ok(numbers(vec![mean]).await?[0])
}

/// `λ` the long way: every trajectory from its start. For tests.
#[cfg(test)]
fn lambda_long(
    walker: &mut Walker<'_>,
    proxy: Proxy,
    router: &Router,
    start: &Walk,
    conditions: &StepConditions,
) -> Result<Vec<f64>, TrainingError> {
    let steps = walker.steps.len();
    let scores: Vec<Vec<f64>> = (0..steps).map(|s| router.scores(s)).collect();
    if proxy == Proxy::Sensitivity {
        let nothing = vec![0.0; router.branches()];
        let mut lambda = vec![0.0; steps];
        for (s, lambda) in lambda.iter_mut().enumerate().skip(1) {
            let flip = if mean(&scores[s]) > 0.5 {
                Treatment::Soft(&nothing)
            } else {
                Treatment::Full
            };
            let mut ends = Vec::new();
            for at_s in [Treatment::Soft(&scores[s]), flip] {
                let mut walk = start.clone();
                let mut output = None;
                for (k, scores) in scores.iter().enumerate() {
                    let how = match k {
                        0 => Treatment::Full,
                        k if k == s => at_s,
                        _ => Treatment::Soft(scores),
                    };
                    let now = walker.forward(k, &mut walk, conditions, how)?;
                    if k == s {
                        output = Some(now.clone());
                    }
                    walker.advance(k, &mut walk, now);
                }
                ends.push((walk.x, output));
            }
            if let [(a, Some(x)), (b, Some(y))] = &ends[..] {
                let mean_square = |difference| pollster::block_on(mean_square(difference));
                *lambda = mean_square(a.clone() - b.clone())? / mean_square(x.clone() - y.clone())?;
            }
        }
        return Ok(lambda);
    }
    let mut run = |ruled: &dyn Fn(usize) -> bool| {
        let mut walk = start.clone();
        for (s, scores) in scores.iter().enumerate() {
            let how = if s > 0 && ruled(s) {
                Treatment::Soft(scores)
            } else {
                Treatment::Full
            };
            walker.step(s, &mut walk, conditions, how)?;
        }
        Ok::<_, Stopped>(walk.x)
    };
    let mut lambda = vec![0.0; steps];
    for (s, lambda) in lambda.iter_mut().enumerate().skip(1) {
        let (a, b) = match proxy {
            Proxy::LeaveOneOut => (run(&|_| true), run(&|k| k != s)),
            _ => (run(&|k| k < s), run(&|k| k <= s)),
        };
        *lambda = pollster::block_on(mean_square(a? - b?))?;
    }
    Ok(lambda)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        diffusion::ImageNoise,
        models::Condition,
        training::{router::state::initial_router, small},
    };

    #[test]
    fn lambda_with_shared_prefixes_is_lambda_the_long_way_for_about_half_the_passes() {
        let (model, _) = small::model(1, &Device::flex());
        for (steps, limit) in [(10, 0.55), (20, 0.55)] {
            let run = small::run(steps);
            let mut walker = Walker::new(&*model, model.null(), run, 0.1).unwrap();
            let router = initial_router(steps, 4, 9).unwrap();
            let mut noise = Vec::new();
            ImageNoise::new(2, 0).fill(2 * 4 * 8 * 8, &mut noise);
            let conditions = walker.conditions(&Condition::classes(&[0, 2]));
            for proxy in [Proxy::LeaveOneOut, Proxy::Progressive, Proxy::Sensitivity] {
                let start = walker.start(&noise);
                walker.forwards = 0;
                let mut each = async |_| ControlFlow::Continue(());
                let short = lambda(&mut walker, proxy, &router, &start, &conditions, &mut each);
                let short = pollster::block_on(short).unwrap().unwrap();
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
}
