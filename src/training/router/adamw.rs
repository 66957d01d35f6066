//! AdamW without weight decay on the rows of a router.

/// Optimizer state of `[rows, columns]` parameters. A row moves only when it is stepped, and its moments
/// and step count with it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    columns: usize,
    first: Vec<f32>,
    second: Vec<f32>,
    steps: Vec<u32>,
}

/// First moments, second moments, step counts.
pub struct AdamWParts<'a>(pub &'a [f32], pub &'a [f32], pub &'a [u32]);

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

impl AdamW {
    /// State before the first step.
    pub fn new(rows: usize, columns: usize) -> Self {
        Self {
            columns,
            first: vec![0.0; rows * columns],
            second: vec![0.0; rows * columns],
            steps: vec![0; rows],
        }
    }

    /// Its numbers, to store.
    pub fn parts(&self) -> AdamWParts<'_> {
        AdamWParts(&self.first, &self.second, &self.steps)
    }

    /// From stored numbers: `[rows, columns]` moments and a count a row.
    pub fn from_parts(columns: usize, first: Vec<f32>, second: Vec<f32>, steps: Vec<u32>) -> Self {
        Self {
            columns,
            first,
            second,
            steps,
        }
    }

    /// Moves `parameters` (the row's values) against `gradient`.
    pub fn step(
        &mut self,
        row: usize,
        learning_rate: f64,
        gradient: &[f64],
        parameters: &mut [f32],
    ) {
        self.steps[row] += 1;
        let t = self.steps[row] as i32;
        let (bias_1, bias_2) = (1.0 - BETA_1.powi(t), 1.0 - BETA_2.powi(t));
        let range = row * self.columns..(row + 1) * self.columns;
        let moments = self.first[range.clone()]
            .iter_mut()
            .zip(&mut self.second[range]);
        for ((m, v), (p, g)) in moments.zip(parameters.iter_mut().zip(gradient)) {
            *m = (BETA_1 * f64::from(*m) + (1.0 - BETA_1) * g) as f32;
            *v = (BETA_2 * f64::from(*v) + (1.0 - BETA_2) * g * g) as f32;
            let denominator = (f64::from(*v) / bias_2).sqrt() + EPSILON;
            *p = (f64::from(*p) - learning_rate * (f64::from(*m) / bias_1) / denominator) as f32;
        }
    }
}

/// What a gradient is multiplied with so that AdamW's epsilon does not stall it: `1/β`; where β is next to nothing against the gradient, as where most branches do no good, what keeps AdamW's
/// second moments finite.
pub(super) fn unit_of(beta: f64, gradient: &[f64]) -> f64 {
    let largest = gradient.iter().fold(0.0, |most: f64, g| most.max(g.abs()));
    beta.max(1e-6 * largest).max(f64::MIN_POSITIVE).recip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_the_learning_rate_and_rows_are_apart() {
        let mut adam = AdamW::new(2, 2);
        let mut row = [1.0, 1.0];
        adam.step(1, 0.01, &[3.0, -0.002], &mut row);
        assert!(
            (row[0] - 0.99).abs() < 1e-6 && (row[1] - 1.01).abs() < 1e-6,
            "{row:?}"
        );
        assert_eq!(
            (adam.steps.as_slice(), &adam.first[..2]),
            (&[0, 1][..], &[0.0, 0.0][..])
        );
    }

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
}
