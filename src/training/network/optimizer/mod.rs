//! What turns gradients into steps: AdamW, or Muon for the branches' matrices, and the moving average of the weights.
//!
//! On GPUs composed forms run, which burn fuses. On burn's CPU backend, which fuses nothing, all but Muon's matrix
//! products are loops of our own: AdamW's reads and writes every number once.

mod adamw;
mod muon;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::forward::{flat, read};
use crate::{kernels::Factors, training::TrainingError};
pub(super) use muon::MuonMatrix;

/// Numbers a thread takes at a time. Fixed, so that sums do not depend on the number of threads.
const GRAIN: usize = 1 << 14;

/// Weights, their average and their moments, each flat and by place in the parameter list.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    pub values: Vec<Tensor<1>>,
    pub ema: Vec<Tensor<1>>,
    /// AdamW's first moment, or Muon's momentum.
    pub first: Vec<Tensor<1>>,
    /// AdamW's second moment; what Muon moves has zeros there, so that all weights are stored alike.
    pub second: Vec<Tensor<1>>,
    /// How Muon sees the weights that it moves; AdamW moves the others.
    pub matrices: Vec<Option<MuonMatrix>>,
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
    /// What products of Muon's matrices have, on the CPU.
    pub factors: Factors,
}

impl Weights {
    /// Weights before the first step; the average starts at them.
    pub fn new(values: Vec<Tensor<1>>, matrices: Vec<Option<MuonMatrix>>) -> Self {
        let zeros: Vec<_> = values.iter().map(Tensor::zeros_like).collect();
        Self {
            ema: values.clone(),
            first: zeros.clone(),
            second: zeros,
            values,
            matrices,
        }
    }

    /// One step with these gradients, in the forms for the CPU or in the composed ones.
    pub fn step(
        &mut self,
        mut gradients: Vec<Tensor<1>>,
        step: Step,
        on_cpu: bool,
    ) -> Result<(), TrainingError> {
        // Taken out, so that every buffer has one owner, and AdamW writes it in place.
        let [values, mut first, second, ema] = [
            std::mem::take(&mut self.values),
            std::mem::take(&mut self.first),
            std::mem::take(&mut self.second),
            std::mem::take(&mut self.ema),
        ];
        step.muon_directions(&self.matrices, &mut first, &mut gradients, on_cpu)?;
        let moments = first.into_iter().zip(second);
        let state = values.into_iter().zip(moments).zip(ema);
        let moves = gradients.into_iter().zip(&self.matrices);
        for (((value, (first, second)), ema), (gradient, matrix)) in state.zip(moves) {
            let [value, first, second, ema] = if matrix.is_some() {
                let [value, ema] = step.along([value, ema], gradient, on_cpu)?;
                [value, first, second, ema]
            } else {
                step.adamw([value, first, second, ema], gradient, on_cpu)?
            };
            self.values.push(value);
            self.first.push(first);
            self.second.push(second);
            self.ema.push(ema);
        }
        Ok(())
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
    let count = losses.dims()[0];
    let mut parts = vec![losses];
    parts.extend(gradients.iter().map(|g| (g.clone() * g.clone()).sum()));
    let mut values = read(Tensor::cat(parts, 0))?;
    let squares = values.split_off(count);
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
            (0..120 * 360)
                .map(|i| (i as f32 * 0.37 + shift).sin() * 0.1 + (i as f32 * 0.011).cos() * 0.05)
                .collect()
        };
        let matrix = MuonMatrix {
            shape: [120, 360],
            parts: 3,
        };
        let mut states = [0, 1].map(|_| {
            let values = vec![flat(wave(0.0), &device); 2];
            Weights::new(values, vec![None, Some(matrix)])
        });
        for number in 1..=3 {
            let step = Step {
                number,
                learning_rate: 1e-2,
                beta1: 0.9,
                beta2: 0.99,
                weight_decay: 0.1,
                ema_decay: 0.9,
                factor: 0.5,
                factors: Factors::F32,
            };
            for (form, state) in states.iter_mut().enumerate() {
                let gradients = vec![flat(wave(number as f32), &device); 2];
                state.step(gradients, step, form == 0).unwrap();
            }
        }
        let [a, b] = states.map(|s| [s.values, s.ema, s.first, s.second].concat());
        for (a, b) in a.into_iter().zip(b) {
            assert!(crate::metrics::max_abs_error(&read(a).unwrap(), &read(b).unwrap()) < 2e-6);
        }
    }

    /// Whatever is stacked, split and turned for the batched products, a matrix moves as it would alone.
    #[test]
    fn matrices_do_not_see_one_another() {
        let device = Device::flex();
        let matrix = |shape, parts| Some(MuonMatrix { shape, parts });
        let matrices = [
            matrix([24, 96], 1),
            matrix([96, 24], 1),
            matrix([24, 72], 3),
            matrix([96, 24], 1),
            matrix([24, 24], 1),
            matrix([24, 96], 1),
        ];
        let wave = |place: usize, shift: f32| {
            let [inputs, outputs] = matrices[place].unwrap().shape;
            let value = |i: usize| ((i * (place + 3)) as f32 * 0.61 + shift).sin();
            flat((0..inputs * outputs).map(value).collect(), &device)
        };
        let step = Step {
            number: 1,
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.1,
            ema_decay: 0.9,
            factor: 1.0,
            factors: Factors::F32,
        };
        let after = |places: Vec<usize>| -> Vec<Vec<f32>> {
            let values = places.iter().map(|p| wave(*p, 0.0)).collect();
            let gradients = places.iter().map(|p| wave(*p, 1.0)).collect();
            let chosen = places.iter().map(|p| matrices[*p]).collect();
            let mut weights = Weights::new(values, chosen);
            weights.step(gradients, step, true).unwrap();
            weights
                .values
                .into_iter()
                .map(|v| read(v).unwrap())
                .collect()
        };
        for (place, together) in after((0..matrices.len()).collect()).iter().enumerate() {
            let alone = after(vec![place]).remove(0);
            assert!(crate::metrics::max_abs_error(together, &alone) < 1e-5);
            // A step is 0.2 learning rates long by its root mean square, give or take the iteration's spread.
            let before = read(wave(place, 0.0)).unwrap();
            let moved = alone
                .iter()
                .zip(&before)
                .map(|(a, b)| (a - b * 0.99).powi(2));
            let length = (moved.sum::<f32>() / alone.len() as f32).sqrt();
            assert!((0.005..0.025).contains(&length), "{place}: {length}");
        }
    }
}
