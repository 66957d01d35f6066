//! Muon: momentum whose matrices are made orthogonal, so that a step moves all their directions equally far.
//!
//! Keller Jordan's optimizer (<https://kellerjordan.github.io/posts/muon>): Nesterov momentum, then five Newton–Schulz
//! iterations of a quintic polynomial. Steps are scaled as in arXiv 2502.16982, equation 4, to the size that AdamW's
//! steps have, so that both share a learning rate.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::{GRAIN, Step};
use crate::{
    kernels::{Factors, Matrix},
    training::{
        TrainingError,
        network::forward::{flat, read},
    },
};

const MOMENTUM: f64 = 0.95;
const ITERATIONS: usize = 5;
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Keeps a gradient of zeros from a division by zero.
const EPSILON: f64 = 1e-7;
/// Root mean square of the entries of a step, in learning rates.
const STEP_SIZE: f64 = 0.2;
/// Numbers that are made orthogonal together, where shapes are equal: 64 MiB of f32, and a few times that on the way.
const TOGETHER: usize = if cfg!(test) { 1 << 13 } else { 1 << 24 };

/// How Muon sees a weight: one matrix, or some beside one another, as a branch's queries, keys and values are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct MuonMatrix {
    /// `[inputs, outputs]` of all parts together.
    pub shape: [usize; 2],
    /// Matrices among the outputs.
    pub parts: usize,
}

impl MuonMatrix {
    /// The shape of a part, its short side first.
    fn part(&self) -> [usize; 2] {
        let [inputs, outputs] = [self.shape[0], self.shape[1] / self.parts];
        [inputs.min(outputs), inputs.max(outputs)]
    }

    fn is_tall(&self) -> bool {
        self.shape[0] > self.shape[1] / self.parts
    }

    fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Flat to `[parts, short, long]`.
    fn split(&self, flat: Tensor<1>) -> Tensor<3> {
        let [inputs, outputs] = self.shape;
        let parts = flat
            .reshape([inputs, self.parts, outputs / self.parts])
            .swap_dims(0, 1);
        if self.is_tall() {
            parts.swap_dims(1, 2)
        } else {
            parts
        }
    }

    /// The way back.
    fn join(&self, parts: Tensor<3>) -> Tensor<1> {
        let parts = if self.is_tall() {
            parts.swap_dims(1, 2)
        } else {
            parts
        };
        parts.swap_dims(0, 1).reshape([self.len()])
    }
}

impl Step {
    /// Replaces the gradients of matrices by the directions to go, and moves their momentum.
    pub(super) fn muon_directions(
        &self,
        matrices: &[Option<MuonMatrix>],
        momentum: &mut [Tensor<1>],
        gradients: &mut [Tensor<1>],
        on_cpu: bool,
    ) -> Result<(), TrainingError> {
        let mut alike: BTreeMap<[usize; 2], Vec<(usize, MuonMatrix)>> = BTreeMap::new();
        for (place, matrix) in matrices.iter().enumerate() {
            if let Some(matrix) = matrix {
                alike
                    .entry(matrix.part())
                    .or_default()
                    .push((place, *matrix));
            }
        }
        for ([short, long], members) in alike {
            let largest = members.iter().map(|(_, m)| m.len()).max().unwrap_or(1);
            for members in members.chunks((TOGETHER / largest).max(1)) {
                let mut parts = Vec::with_capacity(members.len());
                for (place, matrix) in members {
                    let state = [momentum[*place].clone(), gradients[*place].clone()];
                    let [moved, ahead] = self.momentum(state, on_cpu)?;
                    momentum[*place] = moved;
                    parts.push(matrix.split(ahead));
                }
                let parts = Tensor::cat(parts, 0);
                let directions = match on_cpu {
                    true => orthogonal_cpu(parts, self.factors)?,
                    false => orthogonal(parts),
                } * STEP_SIZE
                    * (long as f64).sqrt();
                let mut first = 0;
                for (place, matrix) in members {
                    let part = directions.clone().narrow(0, first, matrix.parts);
                    gradients[*place] = matrix.join(part);
                    first += matrix.parts;
                }
                debug_assert_eq!(directions.dims(), [first, short, long]);
            }
        }
        Ok(())
    }

    /// `[momentum, gradient]` to `[momentum, where it will be]`, the second one Nesterov's.
    fn momentum(
        &self,
        [momentum, gradient]: [Tensor<1>; 2],
        on_cpu: bool,
    ) -> Result<[Tensor<1>; 2], TrainingError> {
        if !on_cpu {
            let fresh = gradient * (self.factor * (1.0 - MOMENTUM));
            let momentum = momentum * MOMENTUM + fresh.clone();
            return Ok([momentum.clone(), momentum * MOMENTUM + fresh]);
        }
        let device = gradient.device();
        let [mut momentum, mut gradient] = [read(momentum)?, read(gradient)?];
        let (keep, new) = (MOMENTUM as f32, (self.factor * (1.0 - MOMENTUM)) as f32);
        momentum
            .par_chunks_mut(GRAIN)
            .zip(gradient.par_chunks_mut(GRAIN))
            .for_each(|(momentum, gradient)| {
                for (momentum, gradient) in momentum.iter_mut().zip(gradient) {
                    let fresh = *gradient * new;
                    *momentum = *momentum * keep + fresh;
                    *gradient = *momentum * keep + fresh;
                }
            });
        Ok([momentum, gradient].map(|values| flat(values, &device)))
    }

    /// `[value, ema]` after a step of one learning rate along `direction`, with decoupled weight decay.
    pub(super) fn along(
        &self,
        [value, ema]: [Tensor<1>; 2],
        direction: Tensor<1>,
        on_cpu: bool,
    ) -> Result<[Tensor<1>; 2], TrainingError> {
        let (keep, toward) = (
            1.0 - self.learning_rate * self.weight_decay,
            1.0 - self.ema_decay,
        );
        if !on_cpu {
            let value = value * keep - direction * self.learning_rate;
            let ema = ema.clone() + (value.clone() - ema) * toward;
            return Ok([value, ema]);
        }
        let device = direction.device();
        let [mut value, mut ema, direction] = [read(value)?, read(ema)?, read(direction)?];
        let (keep, toward, rate) = (keep as f32, toward as f32, self.learning_rate as f32);
        value
            .par_chunks_mut(GRAIN)
            .zip(ema.par_chunks_mut(GRAIN))
            .zip(direction.par_chunks(GRAIN))
            .for_each(|((value, ema), direction)| {
                for ((value, ema), direction) in value.iter_mut().zip(ema).zip(direction) {
                    *value = *value * keep - rate * direction;
                    *ema += (*value - *ema) * toward;
                }
            });
        Ok([value, ema].map(|values| flat(values, &device)))
    }
}

/// [`orthogonal`] on the CPU, each matrix by one task, so that it stays in the cache; with products of such factors.
fn orthogonal_cpu(x: Tensor<3>, factors: Factors) -> Result<Tensor<3>, TrainingError> {
    let (shape, device) = (x.dims(), x.device());
    let [_, short, long] = shape;
    let mut values = read(x)?;
    let matrices = values.par_chunks_mut((short * long).max(1));
    matrices.for_each(|x| {
        let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let unit = (1.0 / (norm + EPSILON)) as f32;
        x.iter_mut().for_each(|x| *x *= unit);
        let [a, b, c] = COEFFICIENTS.map(|c| c as f32);
        for _ in 0..ITERATIONS {
            let of_x = Matrix::new(x, long);
            let gram = factors.product(of_x, of_x.transposed());
            let of_gram = Matrix::new(&gram, short);
            let mut polynomial = factors.product(of_gram, of_gram);
            for (p, gram) in polynomial.iter_mut().zip(&gram) {
                *p = b * gram + c * *p;
            }
            let turned = factors.product(Matrix::new(&polynomial, short), of_x);
            for (x, turned) in x.iter_mut().zip(turned) {
                *x = a * *x + turned;
            }
        }
    });
    Ok(Tensor::from_data(TensorData::new(values, shape), &device))
}

/// `U·Vᵀ`, nearly, of matrices `U·Σ·Vᵀ` (`[count, short, long]`): singular values above 0.0015 of the Frobenius norm come
/// out between 0.68 and 1.21, smaller ones up to 480 times as large as they were.
fn orthogonal(x: Tensor<3>) -> Tensor<3> {
    let norm = (x.clone() * x.clone()).sum_dim(2).sum_dim(1).sqrt();
    let [a, b, c] = COEFFICIENTS;
    let mut x = x / (norm + EPSILON);
    for _ in 0..ITERATIONS {
        let gram = x.clone().matmul(x.clone().swap_dims(1, 2));
        let polynomial = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + polynomial.matmul(x);
    }
    x
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn matrices_are_made_orthogonal_with_factors_of_any_kind() {
        let [count, short, long] = [3, 40, 100];
        let wave = |i: usize| ((i * i % 1009) as f32 * 0.37).sin();
        let values = (0..count * short * long).map(wave).collect();
        let data = TensorData::new::<f32, _>(values, [count, short, long]);
        let x: Tensor<3> = Tensor::from_data(data, &Device::flex());
        let composed = read(orthogonal(x.clone())).unwrap();
        for (factors, bound) in [(Factors::F32, 1e-5), (Factors::Bf16, 2e-2)] {
            let found = read(orthogonal_cpu(x.clone(), factors).unwrap()).unwrap();
            let error = crate::metrics::max_abs_error(&found, &composed);
            assert!(error < bound, "{factors:?}: {error}");
            for matrix in found.chunks_exact(short * long) {
                let of_x = Matrix::new(matrix, long);
                let gram = Factors::F32.product(of_x, of_x.transposed());
                // The mean square of the singular values.
                let square = (0..short).map(|i| gram[i * short + i]).sum::<f32>() / short as f32;
                assert!((0.5..1.4).contains(&square), "{factors:?}: {square}");
            }
        }
    }
}
