//! Classifier-free guidance (arXiv 2207.12598), in the release's and in the textbook form.

use std::{fmt, str::FromStr};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::DiffusionError;

/// Which channels of epsilon the guided prediction replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GuidedChannels {
    /// The first three only, as the public DiT release does; the rest stay those of each half.
    #[default]
    #[serde(rename = "3")]
    Three,
    /// Every epsilon channel.
    #[serde(rename = "all")]
    All,
}

impl FromStr for GuidedChannels {
    type Err = DiffusionError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "3" => Ok(Self::Three),
            "all" => Ok(Self::All),
            _ => Err(DiffusionError::UnknownGuidedChannels { name: name.into() }),
        }
    }
}

impl fmt::Display for GuidedChannels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Three => "3",
            Self::All => "all",
        })
    }
}

/// Guidance scale and mode. Cannot hold a scale that is not a finite number ≥ 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Guidance {
    scale: f64,
    channels: GuidedChannels,
}

/// As it is written in files.
#[derive(Deserialize)]
struct Unchecked {
    scale: f64,
    channels: GuidedChannels,
}

impl TryFrom<Unchecked> for Guidance {
    type Error = DiffusionError;

    fn try_from(Unchecked { scale, channels }: Unchecked) -> Result<Self, DiffusionError> {
        Self::new(scale, channels)
    }
}

impl Default for Guidance {
    /// None.
    fn default() -> Self {
        Self {
            scale: 1.0,
            channels: GuidedChannels::default(),
        }
    }
}

impl Guidance {
    /// # Errors
    /// [`DiffusionError::GuidanceScale`] if `scale` is negative, infinite or not a number.
    pub fn new(scale: f64, channels: GuidedChannels) -> Result<Self, DiffusionError> {
        if scale.is_finite() && scale >= 0.0 {
            Ok(Self { scale, channels })
        } else {
            Err(DiffusionError::GuidanceScale { scale })
        }
    }

    /// The scale `w` in `uncond + w (cond − uncond)`.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Which channels are guided.
    pub fn channels(&self) -> GuidedChannels {
        self.channels
    }

    /// Whether an unconditional half is needed: at scale 1 guidance is the conditional prediction itself.
    pub fn is_active(&self) -> bool {
        self.scale != 1.0
    }

    /// How many of `channels` image channels are guided: the first ones.
    pub fn guided_channels(&self, channels: usize) -> usize {
        match self.channels {
            GuidedChannels::Three => channels.min(3),
            GuidedChannels::All => channels,
        }
    }

    /// The guided prediction of the conditional half, `[B, C_out, H, W]`.
    ///
    /// `output` is the network's output `[2B, C_out, H, W]`, conditional half first; `channels` the
    /// number of image channels `C`, so `C_out` is `C` or, with learned sigma, `2C`. Sigma channels
    /// are never guided.
    pub fn guide(&self, output: Tensor<4>, channels: usize) -> Tensor<4> {
        let (cond, _, guided) = self.split(output, channels);
        join(guided, cond)
    }

    /// The guided prediction of both halves, `[2B, C_out, H, W]`: guided channels agree, all others stay
    /// those of each half (what a training loss over the network's whole output compares).
    pub fn guide_both(&self, output: Tensor<4>, channels: usize) -> Tensor<4> {
        let (cond, uncond, guided) = self.split(output, channels);
        Tensor::cat(vec![join(guided.clone(), cond), join(guided, uncond)], 0)
    }

    fn split(&self, output: Tensor<4>, channels: usize) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let [batch, ..] = output.dims();
        let half = batch / 2;
        let cond = output.clone().narrow(0, 0, half);
        let uncond = output.narrow(0, half, half);
        let count = self.guided_channels(channels);
        let (c, u) = (
            cond.clone().narrow(1, 0, count),
            uncond.clone().narrow(1, 0, count),
        );
        let guided = u.clone() + (c - u) * self.scale;
        (cond, uncond, guided)
    }
}

/// `guided` followed by the channels of `half` that it does not replace.
fn join(guided: Tensor<4>, half: Tensor<4>) -> Tensor<4> {
    let (count, all) = (guided.dims()[1], half.dims()[1]);
    if count == all {
        return guided;
    }
    Tensor::cat(vec![guided, half.narrow(1, count, all - count)], 1)
}
