//! The settings of an autoencoder's run.

use serde::{Deserialize, Serialize};

use super::super::settings::{Length, check_all};
use crate::training::TrainingError;

/// Everything that decides what an autoencoder learns, apart from data and network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeSettings {
    pub length: Length,
    /// Pictures an optimizer step.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Steps over which the learning rate rises from 0; `None`: as [`crate::training::network::PretrainSettings::warmup`].
    pub warmup: Option<u64>,
    pub beta1: f64,
    pub beta2: f64,
    /// Decay `d` of the moving average of the weights; step `n` uses `min(d, n/(n + 10))`.
    pub ema: f64,
    /// Largest norm of the gradient over all weights; a longer one is shortened to it.
    pub clip: f64,
    /// Weight of the Kullback–Leibler divergence to N(0, 1), a latent number, beside the error a number of the picture.
    pub kl_weight: f64,
    /// Weight of the differences between neighbouring pixels, at three sizes of the picture.
    pub gradient_weight: f64,
    /// Weight of the squared error of areas, means of 4×4 pixels: mostly colour. Runs of before there was one have none.
    #[serde(default)]
    pub area_weight: f64,
    /// Mirror every second picture.
    pub flip: bool,
    /// Words in the names of classes that are never mirrored.
    pub no_flip: Vec<String>,
    /// Largest random shift in pixels.
    pub shift: usize,
    /// Exponent that evens out classes: 0 draws every picture equally often, 1 every class.
    pub balance: f64,
    /// Seed of weights, order, augmentation and noise.
    pub seed: u64,
}

impl Default for VaeSettings {
    fn default() -> Self {
        Self {
            length: Length::Minutes(60.0),
            batch: 16,
            lr: 2e-3,
            warmup: None,
            beta1: 0.9,
            beta2: 0.99,
            ema: 0.999,
            clip: 1.0,
            kl_weight: 1e-3,
            gradient_weight: 1.0,
            area_weight: 4.0,
            flip: true,
            no_flip: Vec::new(),
            shift: 0,
            balance: 0.0,
            seed: 0,
        }
    }
}

impl VaeSettings {
    /// # Errors
    /// [`TrainingError::Setting`] for the first number that is out of range.
    pub fn check(&self) -> Result<(), TrainingError> {
        let (positive, share) = ("a finite number above 0", "a number from 0 to below 1");
        let weight = "a finite number of at least 0";
        let above = |x: f64| x > 0.0 && x.is_finite();
        let at_least = |x: f64| x >= 0.0 && x.is_finite();
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        check_all(&[
            self.length.checked(),
            (
                "batch",
                self.batch as f64,
                self.batch > 0,
                "a whole number of at least 1",
            ),
            ("lr", self.lr, above(self.lr), positive),
            ("beta1", self.beta1, below_one(self.beta1), share),
            ("beta2", self.beta2, below_one(self.beta2), share),
            ("ema", self.ema, below_one(self.ema), share),
            ("clip", self.clip, above(self.clip), positive),
            (
                "kl-weight",
                self.kl_weight,
                at_least(self.kl_weight),
                weight,
            ),
            (
                "gradient-weight",
                self.gradient_weight,
                at_least(self.gradient_weight),
                weight,
            ),
            (
                "area-weight",
                self.area_weight,
                at_least(self.area_weight),
                weight,
            ),
            (
                "balance",
                self.balance,
                (0.0..=1.0).contains(&self.balance),
                "a number from 0 to 1",
            ),
        ])
    }
}
