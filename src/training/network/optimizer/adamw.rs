//! AdamW (arXiv 1711.05101, algorithm 2), as PyTorch's.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{GRAIN, Step};
use crate::{
    kernels::vectorised,
    training::{
        TrainingError,
        network::forward::{flat, read},
    },
};

const EPSILON: f64 = 1e-8;

impl Step {
    /// `(1 − β₁ⁿ)` and `√(1 − β₂ⁿ)`.
    fn corrections(&self) -> (f64, f64) {
        let power = |beta: f64| beta.powf(self.number as f64);
        (1.0 - power(self.beta1), (1.0 - power(self.beta2)).sqrt())
    }

    /// `[value, first, second, ema]` after the step.
    pub(super) fn adamw(
        &self,
        state: [Tensor<1>; 4],
        gradient: Tensor<1>,
        on_cpu: bool,
    ) -> Result<[Tensor<1>; 4], TrainingError> {
        if on_cpu {
            self.adamw_on_cpu(state, gradient)
        } else {
            Ok(self.adamw_composed(state, gradient))
        }
    }

    fn adamw_composed(&self, state: [Tensor<1>; 4], gradient: Tensor<1>) -> [Tensor<1>; 4] {
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
    fn adamw_on_cpu(
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
                vectorised(
                    #[inline(always)]
                    || {
                        let (beta1, beta2, new1, new2) = (beta1, beta2, new1, new2);
                        let (keep, rate, by_second, epsilon) = (keep, rate, by_second, epsilon);
                        let (factor, toward) = (factor, toward);
                        let moments = first.iter_mut().zip(&mut *second);
                        let weights = value.iter_mut().zip(&mut *ema);
                        for (((value, ema), (first, second)), gradient) in
                            weights.zip(moments).zip(gradient)
                        {
                            let g = gradient * factor;
                            *first = beta1 * *first + new1 * g;
                            *second = beta2 * *second + new2 * g * g;
                            let denominator = second.sqrt() * by_second + epsilon;
                            *value = *value * keep - rate * *first / denominator;
                            *ema += (*value - *ema) * toward;
                        }
                    },
                );
            });
        Ok([value, first, second, ema].map(|values| flat(values, &device)))
    }
}
