//! Random numbers that depend on the seed and on what they are for, and on nothing else.
//!
//! Every drawn thing has a stream of its own: ChaCha8 keyed by a hash of purpose, seed and a number (the iteration, the
//! epoch), stream `index` of it (the place in the batch). So nothing has to be remembered to go on with a run, and
//! neither threads nor micro-batches change what is drawn.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// What numbers are drawn for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// The order of the pictures in an epoch.
    Epoch,
    /// A picture of a batch: which one, how augmented, with which label, timestep and noise.
    Picture,
    /// The weights that an autoencoder begins with.
    Weights,
    /// A picture of an autoencoder's batch: which one, how augmented, and what is added to its latents.
    Latents,
}

/// A stream of random numbers.
#[derive(Debug)]
pub(super) struct Stream(ChaCha8Rng);

impl Stream {
    pub fn new(seed: u64, purpose: Purpose, number: u64, index: u64) -> Self {
        let domain: &[u8] = match purpose {
            Purpose::Epoch => b"harmonica pretrain epoch",
            Purpose::Picture => b"harmonica pretrain picture",
            Purpose::Weights => b"harmonica autoencoder weights",
            Purpose::Latents => b"harmonica autoencoder latents",
        };
        let mut key = blake3::Hasher::new();
        key.update(domain)
            .update(&seed.to_le_bytes())
            .update(&number.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(*key.finalize().as_bytes());
        rng.set_stream(index);
        Self(rng)
    }

    /// Uniform on [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform on `0..bound`; `bound` is at least 1.
    pub fn below(&mut self, bound: usize) -> usize {
        // 64 random bits against a small bound: unbiased enough, and without rejections.
        ((u128::from(self.0.next_u64()) * bound.max(1) as u128) >> 64) as usize
    }

    /// N(0, 1) into every place of `out`.
    pub fn normal(&mut self, out: &mut [f32]) {
        out.iter_mut()
            .for_each(|v| *v = StandardNormal.sample(&mut self.0));
    }
}
