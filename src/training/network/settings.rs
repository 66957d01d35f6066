//! The settings of a run.

use serde::{Deserialize, Serialize};

use crate::training::TrainingError;

/// How long to train. The learning rate's cosine ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// Minutes of wall-clock time, over all sessions of the run.
    Minutes(f64),
    /// Training pictures.
    Images(u64),
    /// Optimizer steps.
    Steps(u64),
}

impl Length {
    /// Share of a run in batches of `batch` that is done after `steps` optimizer steps and `seconds`, 1 at its end.
    pub fn progress(self, batch: usize, steps: u64, seconds: f64) -> f64 {
        let done = match self {
            Self::Minutes(minutes) => seconds / (60.0 * minutes),
            Self::Images(_) | Self::Steps(_) => {
                steps as f64 / self.steps(batch).unwrap_or(1).max(1) as f64
            }
        };
        done.clamp(0.0, 1.0)
    }

    /// Optimizer steps of the whole run, unless time ends it.
    pub fn steps(self, batch: usize) -> Option<u64> {
        match self {
            Self::Minutes(_) => None,
            Self::Images(images) => Some(images.div_ceil(batch as u64)),
            Self::Steps(steps) => Some(steps),
        }
    }

    /// Its name among settings, its number, and what that must be.
    pub(super) fn checked(self) -> (&'static str, f64, bool, &'static str) {
        let whole = "a whole number of at least 1";
        match self {
            Self::Minutes(m) => (
                "minutes",
                m,
                m > 0.0 && m.is_finite(),
                "a finite number above 0",
            ),
            Self::Images(n) => ("images", n as f64, n > 0, whole),
            Self::Steps(n) => ("steps", n as f64, n > 0, whole),
        }
    }
}

/// The learning rate of the step after `steps`, for the highest one and a run's progress: a linear rise over the warm-up, times a
/// cosine from 1 to 0 over the run (`½(1 + cos π·progress)`).
pub fn learning_rate([highest, progress]: [f64; 2], warmup: Option<u64>, steps: u64) -> f64 {
    let risen = |warmup: u64| (steps + 1) as f64 / warmup.max(1) as f64;
    let rise = match warmup {
        Some(warmup) => risen(warmup),
        // A run of two minutes has no 200 steps on every machine.
        None => risen(USUAL_WARMUP).max(progress / WARMUP_SHARE),
    };
    highest * rise.min(1.0) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

/// The decay of a moving average at step `n`, counted from 1.
pub fn ema_decay(highest: f64, n: u64) -> f64 {
    highest.min(n as f64 / (n as f64 + 10.0))
}

/// Whether pictures of a class of this name may be mirrored: none whose name holds one of `words`.
pub(super) fn mirrors(flip: bool, words: &[String], class: &str) -> bool {
    flip && !words.iter().any(|word| class.contains(word.as_str()))
}

/// Number type of the blocks' matrix products, where most of the work is. Weights, optimizer, norms, the residual
/// stream and the loss stay in f32; on the CPU so does all else but the factors of these products and of those of Muon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    /// On GPUs, with a loss scale that adapts itself.
    F16,
    /// On the CPU, by its units for bf16 where it has some (elsewhere f32 is faster), and on GPUs whose drivers have the type.
    Bf16,
}

impl Precision {
    /// As it is named in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// What turns gradients into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW for all weights, as the public release.
    #[default]
    AdamW,
    /// Muon (arXiv 2502.16982) for the matrices of attention and MLP, AdamW for the rest.
    Muon,
}

impl Optimizer {
    /// A learning rate for networks as small as the bundled one, in batches of 64.
    pub fn default_lr(self) -> f64 {
        match self {
            Self::AdamW => 5e-4,
            Self::Muon => 1.5e-3,
        }
    }
}

/// Steps of the warm-up where none are named.
pub const USUAL_WARMUP: u64 = 200;
/// The part of a run that its warm-up takes at most where its steps are not named.
pub const WARMUP_SHARE: f64 = 0.1;

/// Everything that decides what a run learns, apart from data and network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainSettings {
    pub length: Length,
    /// Pictures an optimizer step.
    pub batch: usize,
    /// Pictures in the network at a time; gradients of a batch are summed over its micro-batches.
    pub micro_batch: usize,
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Highest learning rate; [`Optimizer::default_lr`] knows what suits small networks.
    pub lr: f64,
    /// Steps over which the learning rate rises from 0; `None`: [`USUAL_WARMUP`], or [`WARMUP_SHARE`] of the run where that is
    /// shorter.
    pub warmup: Option<u64>,
    pub beta1: f64,
    pub beta2: f64,
    /// Decoupled weight decay, of all weights.
    pub weight_decay: f64,
    /// Decay `d` of the moving average of the weights; step `n` uses `min(d, n/(n + 10))`.
    pub ema: f64,
    /// Largest norm of the gradient over all weights; a longer one is shortened to it.
    pub clip: f64,
    /// Share of labels that are replaced by the null label.
    pub label_dropout: f64,
    /// Weight of the variational bound.
    pub vlb_weight: f64,
    /// `γ` of Min-SNR weighting, `None` for none.
    pub min_snr: Option<f64>,
    /// Mirror every second picture.
    pub flip: bool,
    /// Words in the names of classes that are never mirrored.
    pub no_flip: Vec<String>,
    /// Largest random shift in pixels.
    pub shift: usize,
    /// Exponent that evens out classes: 0 draws every picture equally often, 1 every class.
    pub balance: f64,
    pub precision: Precision,
    /// Keep only the blocks' inputs and run each block again on the way back.
    pub gradient_checkpointing: bool,
    /// Seed of weights, order, augmentation, labels, timesteps and noise.
    pub seed: u64,
}

impl Default for PretrainSettings {
    /// An hour for a small network. The release's own, for weeks on many GPUs: batch 256, learning rate 1e-4 without
    /// warm-up or decay, `beta2` 0.999, EMA 0.9999.
    fn default() -> Self {
        Self {
            length: Length::Minutes(60.0),
            batch: 64,
            micro_batch: 64,
            optimizer: Optimizer::AdamW,
            lr: Optimizer::AdamW.default_lr(),
            warmup: None,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.0,
            ema: 0.9995,
            clip: 1.0,
            label_dropout: 0.1,
            vlb_weight: 1.0,
            min_snr: None,
            flip: true,
            no_flip: Vec::new(),
            shift: 0,
            balance: 0.0,
            precision: Precision::F32,
            gradient_checkpointing: false,
            seed: 0,
        }
    }
}

/// Refuses the first setting that is out of range: `(name, value, whether it is good, what was expected)`.
pub(super) fn check_all(
    checks: &[(&'static str, f64, bool, &'static str)],
) -> Result<(), TrainingError> {
    match checks.iter().find(|(_, _, good, _)| !good) {
        None => Ok(()),
        Some((setting, value, _, expected)) => Err(TrainingError::Setting {
            setting,
            value: value.to_string(),
            expected,
        }),
    }
}

impl PretrainSettings {
    /// # Errors
    /// [`TrainingError::Setting`] for the first number that is out of range.
    pub fn check(&self) -> Result<(), TrainingError> {
        let positive = "a finite number above 0";
        let share = "a number from 0 to below 1";
        let weight = "a finite number of at least 0";
        let above = |x: f64| x > 0.0 && x.is_finite();
        let at_least = |x: f64| x >= 0.0 && x.is_finite();
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        let whole = "a whole number of at least 1";
        let checks = [
            self.length.checked(),
            ("batch", self.batch as f64, self.batch > 0, whole),
            (
                "micro-batch",
                self.micro_batch as f64,
                self.micro_batch > 0,
                whole,
            ),
            ("lr", self.lr, above(self.lr), positive),
            ("beta1", self.beta1, below_one(self.beta1), share),
            ("beta2", self.beta2, below_one(self.beta2), share),
            (
                "weight-decay",
                self.weight_decay,
                at_least(self.weight_decay),
                weight,
            ),
            ("ema", self.ema, below_one(self.ema), share),
            ("clip", self.clip, above(self.clip), positive),
            (
                "label-dropout",
                self.label_dropout,
                below_one(self.label_dropout),
                share,
            ),
            (
                "vlb-weight",
                self.vlb_weight,
                at_least(self.vlb_weight),
                weight,
            ),
            (
                "min-snr",
                self.min_snr.unwrap_or(1.0),
                self.min_snr.is_none_or(above),
                positive,
            ),
            (
                "balance",
                self.balance,
                (0.0..=1.0).contains(&self.balance),
                "a number from 0 to 1",
            ),
        ];
        check_all(&checks)
    }

    /// [`Length::progress`].
    pub fn progress(&self, steps: u64, seconds: f64) -> f64 {
        self.length.progress(self.batch, steps, seconds)
    }

    /// [`Length::steps`].
    pub fn steps(&self) -> Option<u64> {
        self.length.steps(self.batch)
    }

    /// [`learning_rate`].
    pub fn learning_rate(&self, steps: u64, progress: f64) -> f64 {
        learning_rate([self.lr, progress], self.warmup, steps)
    }

    /// [`ema_decay`].
    pub fn ema_decay(&self, n: u64) -> f64 {
        ema_decay(self.ema, n)
    }

    /// Whether pictures of a class of this name may be mirrored.
    pub fn mirrors(&self, class: &str) -> bool {
        mirrors(self.flip, &self.no_flip, class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_then_falls_to_nothing() {
        let settings = PretrainSettings {
            length: Length::Steps(100),
            warmup: Some(10),
            lr: 1.0,
            ..Default::default()
        };
        let at = |step| settings.learning_rate(step, settings.progress(step, 0.0));
        assert!((at(0) - 0.1).abs() < 1e-12);
        assert!(at(9) > 0.97 && at(9) < 1.0);
        assert!((at(50) - 0.5).abs() < 1e-12);
        assert!(at(100).abs() < 1e-12);
        let timed = PretrainSettings {
            length: Length::Minutes(2.0),
            ..settings
        };
        assert_eq!(timed.progress(7, 60.0), 0.5);
    }

    #[test]
    fn a_short_run_leaves_its_warm_up() {
        let rate = |settings: &PretrainSettings, step, seconds| {
            settings.learning_rate(step, settings.progress(step, seconds))
        };
        let short = PretrainSettings {
            length: Length::Minutes(2.0),
            lr: 1.0,
            ..Default::default()
        };
        // 40 steps in two minutes: at the highest rate after a tenth of the time, not at a fifth of it at the end.
        assert!(rate(&short, 2, 6.0) < 0.5 && rate(&short, 4, 12.0) > 0.97);
        // Enough steps: as many as usual.
        let long = PretrainSettings {
            length: Length::Steps(100_000),
            ..short.clone()
        };
        assert!((rate(&long, 99, 0.0) - 0.5).abs() < 1e-3 && rate(&long, 199, 0.0) > 0.99);
        // What was asked for is done.
        let named = PretrainSettings {
            warmup: Some(1000),
            ..short
        };
        assert!(rate(&named, 39, 60.0) < 0.05);
    }
}
