//! Seeded noise, one stream an image.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// The random stream of one image: the same on every device and whatever the batch size.
///
/// Made on the CPU by ChaCha8 keyed by `(seed, image index)`; a run draws the starting noise first
/// and then, for stochastic solvers, one tensor a step.
#[derive(Debug, Clone)]
pub struct ImageNoise {
    rng: ChaCha8Rng,
}

impl ImageNoise {
    /// The stream of image number `index` under `seed`.
    pub fn new(seed: u64, index: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        Self { rng }
    }

    /// A stream of something else than an image to sample, so that the same seed gives other numbers.
    pub(crate) fn with_purpose(purpose: &str, seed: u64, index: u64) -> Self {
        let key = blake3::derive_key(purpose, &seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(index);
        Self { rng }
    }

    /// Appends `count` samples of N(0, 1) to `out`.
    pub fn fill(&mut self, count: usize, out: &mut Vec<f32>) {
        out.extend((0..count).map(|_| -> f32 { StandardNormal.sample(&mut self.rng) }));
    }

    /// A uniform integer below `bound` (`bound ≥ 1`).
    pub fn below(&mut self, bound: usize) -> usize {
        // Rejection-free and unbiased enough for class labels: 64 random bits against a small bound.
        ((u128::from(self.rng.next_u64()) * bound.max(1) as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64, index: u64, count: usize) -> Vec<f32> {
        let mut out = Vec::new();
        ImageNoise::new(seed, index).fill(count, &mut out);
        out
    }

    #[test]
    fn streams_repeat_and_differ() {
        assert_eq!(draw(7, 3, 64), draw(7, 3, 64));
        assert_ne!(draw(7, 3, 64), draw(7, 4, 64));
        assert_ne!(draw(7, 3, 64), draw(8, 3, 64));
        let mut other = Vec::new();
        ImageNoise::with_purpose("harmonica test", 7, 3).fill(64, &mut other);
        assert_ne!(draw(7, 3, 64), other);
    }

    #[test]
    fn moments_are_those_of_a_unit_normal() {
        let x = draw(1, 0, 100_000);
        let n = x.len() as f64;
        let mean = x.iter().map(|v| *v as f64).sum::<f64>() / n;
        let var = x.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / n;
        assert!(
            mean.abs() < 0.02 && (var - 1.0).abs() < 0.03,
            "mean {mean}, variance {var}"
        );
    }
}
