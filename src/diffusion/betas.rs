//! The noise that a network was trained on: `β` over the training timesteps.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{DiffusionError, MAX_STEPS, Prediction};

/// How `β` grows from the first training timestep to the last; the names are diffusers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaCurve {
    /// Evenly (arXiv 2006.11239).
    #[default]
    Linear,
    /// Its root does, as in latent diffusion (arXiv 2112.10752).
    ScaledLinear,
}

/// `β_t` of all training timesteps. Cannot hold ends that are no variances.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
pub struct NoiseSchedule {
    curve: BetaCurve,
    first: f64,
    last: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    curve: BetaCurve,
    first: f64,
    last: f64,
}

impl Default for NoiseSchedule {
    /// That of the public DiT release, and of PixArt: linear from 1e-4 to 0.02.
    fn default() -> Self {
        Self {
            curve: BetaCurve::Linear,
            first: 1e-4,
            last: 0.02,
        }
    }
}

impl NoiseSchedule {
    /// # Errors
    /// [`DiffusionError::Betas`] unless `0 < first ≤ last < 1`.
    pub fn new(curve: BetaCurve, first: f64, last: f64) -> Result<Self, DiffusionError> {
        if 0.0 < first && first <= last && last < 1.0 {
            Ok(Self { curve, first, last })
        } else {
            Err(DiffusionError::Betas { first, last })
        }
    }

    /// `ᾱ_t = Π (1 − β)`, the share of signal at every training timestep.
    pub(super) fn alpha_bars(&self) -> Vec<f64> {
        let mut product = 1.0;
        let share = |t: usize| t as f64 / (MAX_STEPS - 1) as f64;
        (0..MAX_STEPS)
            .map(|t| {
                let beta = match self.curve {
                    BetaCurve::Linear => self.first + (self.last - self.first) * share(t),
                    BetaCurve::ScaledLinear => {
                        let [first, last] = [self.first.sqrt(), self.last.sqrt()];
                        (first + (last - first) * share(t)).powi(2)
                    }
                };
                product *= 1.0 - beta;
                product
            })
            .collect()
    }
}

impl TryFrom<Raw> for NoiseSchedule {
    type Error = DiffusionError;
    fn try_from(raw: Raw) -> Result<Self, Self::Error> {
        Self::new(raw.curve, raw.first, raw.last)
    }
}

impl fmt::Display for NoiseSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let curve = match self.curve {
            BetaCurve::Linear => "linear",
            BetaCurve::ScaledLinear => "scaled_linear",
        };
        write!(f, "{curve} β from {} to {}", self.first, self.last)
    }
}

/// What a network learned to undo: the noise of its training, and what it predicts of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pub prediction: Prediction,
    pub noise: NoiseSchedule,
}

impl Process {
    /// Whether it is that of the public DiT release.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_curves_end_where_they_say_and_differ_between() {
        let of = |curve| {
            NoiseSchedule::new(curve, 0.00085, 0.012)
                .unwrap()
                .alpha_bars()
        };
        let (linear, scaled) = (of(BetaCurve::Linear), of(BetaCurve::ScaledLinear));
        for bars in [&linear, &scaled] {
            assert_eq!(bars.len(), MAX_STEPS);
            assert!((bars[0] - (1.0 - 0.00085)).abs() < 1e-12);
            assert!((bars[999] / bars[998] - (1.0 - 0.012)).abs() < 1e-12);
        }
        // The root's mean, squared, lies below the mean.
        assert!(scaled[500] > linear[500] + 0.05);
    }

    #[test]
    fn ends_that_are_no_variances_are_refused() {
        for (first, last) in [(0.0, 0.02), (0.02, 1e-4), (1e-4, 1.0), (f64::NAN, 0.02)] {
            assert!(NoiseSchedule::new(BetaCurve::Linear, first, last).is_err());
        }
        let read = serde_json::from_str::<NoiseSchedule>;
        assert!(read(r#"{"curve":"linear","first":0.0001,"last":2.0}"#).is_err());
        let scaled = read(r#"{"curve":"scaled_linear","first":0.00085,"last":0.012}"#).unwrap();
        assert_eq!(scaled.to_string(), "scaled_linear β from 0.00085 to 0.012");
    }
}
