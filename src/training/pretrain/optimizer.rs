//! AdamW and the moving average of the weights, in one pass over memory on the CPU.
//!
//! On GPUs the composed form runs, which burn fuses; on burn's CPU backend, which fuses nothing, a loop of our own
//! reads and writes every number once. Both follow PyTorch's `AdamW` (arXiv 1711.05101, algorithm 2).

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::network::{flat, read};
use crate::training::TrainingError;

/// Numbers a thread takes at a time. Fixed, so that sums do not depend on the number of threads.
const GRAIN: usize = 1 << 14;
const EPSILON: f64 = 1e-8;

/// Weights, their average and their moments, each flat and by place in the parameter list.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    pub values: Vec<Tensor<1>>,
    pub ema: Vec<Tensor<1>>,
    pub first: Vec<Tensor<1>>,
    pub second: Vec<Tensor<1>>,
}

/// The numbers of one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    /// Counted from 1.
    pub number: u64,
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    /// Decay of the moving average.
    pub ema_decay: f64,
    /// What gradients are multiplied with first: clipping, and undoing the loss scale.
    pub factor: f64,
}

impl Weights {
    /// Weights before the first step; the average starts at them.
    pub fn new(values: Vec<Tensor<1>>) -> Self {
        let zeros: Vec<_> = values.iter().map(Tensor::zeros_like).collect();
        Self {
            ema: values.clone(),
            first: zeros.clone(),
            second: zeros,
            values,
        }
    }

    /// One step with these gradients, in the form for the CPU or in the composed one.
    pub fn step(
        &mut self,
        gradients: Vec<Tensor<1>>,
        step: Step,
        on_cpu: bool,
    ) -> Result<(), TrainingError> {
        // Taken out, so that every buffer has one owner and is written in place.
        let lists = [
            std::mem::take(&mut self.values),
            std::mem::take(&mut self.first),
            std::mem::take(&mut self.second),
            std::mem::take(&mut self.ema),
        ];
        let [values, first, second, ema] = lists;
        let moments = first.into_iter().zip(second);
        let state = values.into_iter().zip(moments).zip(ema);
        for (((value, (first, second)), ema), gradient) in state.zip(gradients) {
            let state = [value, first, second, ema];
            let [value, first, second, ema] = if on_cpu {
                step.on_cpu(state, gradient)?
            } else {
                step.composed(state, gradient)
            };
            self.values.push(value);
            self.first.push(first);
            self.second.push(second);
            self.ema.push(ema);
        }
        Ok(())
    }
}

impl Step {
    /// `(1 − β₁ⁿ)` and `√(1 − β₂ⁿ)`.
    fn corrections(&self) -> (f64, f64) {
        let power = |beta: f64| beta.powf(self.number as f64);
        (1.0 - power(self.beta1), (1.0 - power(self.beta2)).sqrt())
    }

    /// `[value, first, second, ema]` after the step.
    fn composed(&self, state: [Tensor<1>; 4], gradient: Tensor<1>) -> [Tensor<1>; 4] {
        let [value, first, second, ema] = state;
        let (by_first, by_second) = self.corrections();
        let g = gradient * self.factor;
        let first = first * self.beta1 + g.clone() * (1.0 - self.beta1);
        let second = second * self.beta2 + g.clone() * g * (1.0 - self.beta2);
        let denominator = second.clone().sqrt() / by_second + EPSILON;
        let value = value * (1.0 - self.learning_rate * self.weight_decay)
            - first.clone() / denominator * (self.learning_rate / by_first);
        let ema = ema.clone() + (value.clone() - ema) * (1.0 - self.ema_decay);
        [value, first, second, ema]
    }

    /// The same in one pass.
    fn on_cpu(
        &self,
        state: [Tensor<1>; 4],
        gradient: Tensor<1>,
    ) -> Result<[Tensor<1>; 4], TrainingError> {
        let device = gradient.device();
        let [mut value, mut first, mut second, mut ema] = {
            let [a, b, c, d] = state;
            [read(a)?, read(b)?, read(c)?, read(d)?]
        };
        let gradient = read(gradient)?;
        let (by_first, by_second) = self.corrections();
        let (factor, beta1, beta2) = (self.factor as f32, self.beta1 as f32, self.beta2 as f32);
        let (new1, new2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let keep = (1.0 - self.learning_rate * self.weight_decay) as f32;
        let rate = (self.learning_rate / by_first) as f32;
        let (by_second, epsilon) = ((1.0 / by_second) as f32, EPSILON as f32);
        let toward = (1.0 - self.ema_decay) as f32;
        value
            .par_chunks_mut(GRAIN)
            .zip(first.par_chunks_mut(GRAIN))
            .zip(second.par_chunks_mut(GRAIN))
            .zip(ema.par_chunks_mut(GRAIN))
            .zip(gradient.par_chunks(GRAIN))
            .for_each(|((((value, first), second), ema), gradient)| {
                pulp::Arch::new().dispatch(|| {
                    let count = gradient.len();
                    // One length for all, so that no index is checked in the loop.
                    let (value, first) = (&mut value[..count], &mut first[..count]);
                    let (second, ema) = (&mut second[..count], &mut ema[..count]);
                    for i in 0..count {
                        let g = gradient[i] * factor;
                        first[i] = beta1 * first[i] + new1 * g;
                        second[i] = beta2 * second[i] + new2 * g * g;
                        let denominator = second[i].sqrt() * by_second + epsilon;
                        value[i] = value[i] * keep - rate * first[i] / denominator;
                        ema[i] += (value[i] - ema[i]) * toward;
                    }
                });
            });
        Ok([value, first, second, ema].map(|values| flat(values, &device)))
    }
}

/// The norm of all gradients together, and the values of `losses` with it: one wait for the device. The gradients are
/// taken out of their list meanwhile, since the values of a tensor that somebody else holds would be a copy.
pub(super) fn norm(
    gradients: &mut Vec<Tensor<1>>,
    losses: Tensor<1>,
    on_cpu: bool,
) -> Result<(f64, Vec<f32>), TrainingError> {
    if on_cpu {
        let mut square = 0.0;
        for gradient in std::mem::take(gradients) {
            let device = gradient.device();
            let values = read(gradient)?;
            let parts: Vec<f64> = values
                .par_chunks(GRAIN)
                .map(|part| part.iter().map(|g| f64::from(*g).powi(2)).sum())
                .collect();
            square += parts.iter().sum::<f64>();
            gradients.push(flat(values, &device));
        }
        return Ok((square.sqrt(), read(losses)?));
    }
    let mut parts = vec![losses];
    parts.extend(gradients.iter().map(|g| (g.clone() * g.clone()).sum()));
    let mut values = read(Tensor::cat(parts, 0))?;
    let squares = values.split_off(2);
    let square: f64 = squares.iter().map(|s| f64::from(*s)).sum();
    Ok((square.sqrt(), values))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn both_forms_agree() {
        let device = Device::flex();
        let wave = |shift: f32| -> Vec<f32> {
            (0..40_000)
                .map(|i| (i as f32 * 0.37 + shift).sin() * 0.1)
                .collect()
        };
        let mut states = [0, 1].map(|_| Weights::new(vec![flat(wave(0.0), &device)]));
        for number in 1..=3 {
            let step = Step {
                number,
                learning_rate: 1e-2,
                beta1: 0.9,
                beta2: 0.99,
                weight_decay: 0.1,
                ema_decay: 0.9,
                factor: 0.5,
            };
            for (form, state) in states.iter_mut().enumerate() {
                let gradient = flat(wave(number as f32), &device);
                state.step(vec![gradient], step, form == 0).unwrap();
            }
        }
        let [a, b] = states
            .map(|s| [s.values, s.ema, s.first, s.second].map(|mut v| read(v.remove(0)).unwrap()));
        for (a, b) in a.iter().zip(&b) {
            assert!(crate::metrics::max_abs_error(a, b) < 1e-6);
        }
    }
}
