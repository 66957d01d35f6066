//! The shape of a DiT.

use serde::{Deserialize, Serialize};

use crate::{
    layers::{NORM_EPS, TIMESTEP_CHANNELS},
    words::counted,
};

/// MLP width over hidden width, fixed by the DiT family.
pub const MLP_RATIO: usize = 4;

/// The shape of a DiT: everything that fixes the names and sizes of its weights and how they are used.
///
/// Check with [`DitConfig::check`]; loaders refuse configs that do not pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitConfig {
    /// `[height, width]` of the input in pixels (or latent cells).
    pub input_size: [usize; 2],
    /// Side of a square patch; one patch is one token.
    pub patch: usize,
    /// Input channels `C`.
    pub channels: usize,
    /// Width of a token, `dim`.
    pub hidden: usize,
    /// Number of blocks `D`.
    pub blocks: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Number of classes; label `classes` is the null label of classifier-free guidance.
    pub classes: usize,
    /// Whether the network also predicts the variance: the output then has `2C` channels.
    pub learned_sigma: bool,
    /// Subtracted from the divisor of the timestep embedding's frequencies: 0 in the DiT release, 1 in diffusers.
    #[serde(default)]
    pub timestep_shift: usize,
    /// Epsilon of the LayerNorm before the MLP: 1e-6 in the DiT release, 1e-5 in diffusers' published configs.
    #[serde(default = "release_norm_eps")]
    pub mlp_norm_eps: f64,
}

/// More tokens than any DiT has: attention would need 16 GiB a head.
const MAX_TOKENS: usize = 1 << 16;

fn release_norm_eps() -> f64 {
    NORM_EPS
}

/// A config that describes no network.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A count that must be at least 1, or is beyond any real model.
    #[error("{field} is {value}, expected 1 to {max}")]
    OutOfRange {
        field: &'static str,
        value: usize,
        max: usize,
    },
    /// Two numbers that must divide.
    #[error("{what} {value} is no multiple of {of} {divisor}")]
    NotMultiple {
        what: &'static str,
        value: usize,
        of: &'static str,
        divisor: usize,
    },
    /// An epsilon that is not a small positive number.
    #[error("mlp_norm_eps is {value}, expected a number above 0 and at most 0.1")]
    Epsilon { value: f64 },
    /// A size name that is not published.
    #[error(
        "unknown size `{name}`: expected DiT-S/P, DiT-B/P, DiT-L/P or DiT-XL/P with patch P of 2, 4 or 8"
    )]
    UnknownSize { name: String },
}

/// `(name, blocks, hidden, heads)` of the published sizes.
pub const PUBLISHED: [(&str, usize, usize, usize); 4] = [
    ("S", 12, 384, 6),
    ("B", 12, 768, 12),
    ("L", 24, 1024, 16),
    ("XL", 28, 1152, 16),
];

impl DitConfig {
    /// A published size by name, such as `DiT-XL/2`, for `input_size` cells, with the release's 4 latent
    /// channels, 1000 classes and learned sigma.
    ///
    /// # Errors
    /// [`ConfigError::UnknownSize`], or a size that the patch does not divide.
    pub fn published(name: &str, input_size: [usize; 2]) -> Result<Self, ConfigError> {
        let unknown = || ConfigError::UnknownSize { name: name.into() };
        let (size, patch) = name
            .strip_prefix("DiT-")
            .and_then(|n| n.split_once('/'))
            .ok_or_else(unknown)?;
        let &(_, blocks, hidden, heads) = PUBLISHED
            .iter()
            .find(|(n, ..)| *n == size)
            .ok_or_else(unknown)?;
        let patch = patch
            .parse()
            .ok()
            .filter(|p| [2, 4, 8].contains(p))
            .ok_or_else(unknown)?;
        let config = Self {
            input_size,
            patch,
            channels: 4,
            hidden,
            blocks,
            heads,
            classes: 1000,
            learned_sigma: true,
            timestep_shift: 0,
            mlp_norm_eps: NORM_EPS,
        };
        config.check()?;
        Ok(config)
    }

    /// Heads of the published size with this hidden width.
    pub fn published_heads(hidden: usize) -> Option<usize> {
        PUBLISHED
            .iter()
            .find(|(_, _, h, _)| *h == hidden)
            .map(|(.., heads)| *heads)
    }

    /// Whether the numbers describe a network.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn check(&self) -> Result<(), ConfigError> {
        let ranges = [
            ("input height", self.input_size[0], 1 << 14),
            ("input width", self.input_size[1], 1 << 14),
            ("patch", self.patch, 256),
            ("channels", self.channels, 4096),
            ("hidden", self.hidden, 1 << 16),
            ("blocks", self.blocks, 4096),
            ("heads", self.heads, 4096),
            ("classes", self.classes, 1 << 24),
        ];
        for (field, value, max) in ranges {
            if value == 0 || value > max {
                return Err(ConfigError::OutOfRange { field, value, max });
            }
        }
        let tokens = (self.input_size[0] / self.patch) * (self.input_size[1] / self.patch);
        if tokens > MAX_TOKENS {
            return Err(ConfigError::OutOfRange {
                field: "number of tokens",
                value: tokens,
                max: MAX_TOKENS,
            });
        }
        let multiples = [
            ("input height", self.input_size[0], "patch", self.patch),
            ("input width", self.input_size[1], "patch", self.patch),
            ("hidden size", self.hidden, "heads", self.heads),
            (
                "hidden size",
                self.hidden,
                "the position embedding's four parts:",
                4,
            ),
        ];
        for (what, value, of, divisor) in multiples {
            if !value.is_multiple_of(divisor) {
                return Err(ConfigError::NotMultiple {
                    what,
                    value,
                    of,
                    divisor,
                });
            }
        }
        if self.timestep_shift > 1 {
            return Err(ConfigError::OutOfRange {
                field: "timestep_shift",
                value: self.timestep_shift,
                max: 1,
            });
        }
        if !(self.mlp_norm_eps > 0.0 && self.mlp_norm_eps <= 0.1) {
            return Err(ConfigError::Epsilon {
                value: self.mlp_norm_eps,
            });
        }
        Ok(())
    }

    /// `[rows, columns]` of the token grid.
    pub fn grid(&self) -> [usize; 2] {
        self.input_size.map(|side| side / self.patch)
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.grid().iter().product()
    }

    /// Output channels: `C`, or `2C` with learned sigma.
    pub fn out_channels(&self) -> usize {
        self.channels * if self.learned_sigma { 2 } else { 1 }
    }

    /// Inputs of the patch embedding, `C·p²`.
    pub fn patch_inputs(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// `[C, H, W]` of one image.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.channels, self.input_size[0], self.input_size[1]]
    }

    /// Weights of the network, the fixed position embedding not counted.
    pub fn parameters(&self) -> u64 {
        let d = self.hidden as u64;
        let linear = |i: u64, o: u64| i * o + o;
        let block = linear(d, 3 * d)
            + linear(d, d)
            + linear(d, MLP_RATIO as u64 * d)
            + linear(MLP_RATIO as u64 * d, d)
            + linear(d, 6 * d);
        linear(self.patch_inputs() as u64, d)
            + linear(TIMESTEP_CHANNELS as u64, d)
            + linear(d, d)
            + (self.classes as u64 + 1) * d
            + self.blocks as u64 * block
            + linear(d, 2 * d)
            + linear(d, (self.patch * self.patch * self.out_channels()) as u64)
    }

    /// The published name where there is one (`DiT-S/2`), otherwise a description.
    pub fn name(&self) -> String {
        let published = PUBLISHED
            .iter()
            .find(|(_, b, d, h)| (*b, *d, *h) == (self.blocks, self.hidden, self.heads));
        match published {
            Some((size, ..)) => format!("DiT-{size}/{}", self.patch),
            None => format!(
                "DiT with {} of {} ({}), patch {}",
                counted(self.blocks, "block"),
                self.hidden,
                counted(self.heads, "head"),
                self.patch
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_published_parameter_counts() {
        // Millions of parameters in table 1 of the DiT paper (arXiv 2212.09748).
        for (name, millions) in [
            ("DiT-S/2", 33),
            ("DiT-B/4", 130),
            ("DiT-L/2", 458),
            ("DiT-XL/2", 675),
        ] {
            let count = DitConfig::published(name, [32, 32]).unwrap().parameters();
            assert_eq!(
                (count as f64 / 1e6).round() as u64,
                millions,
                "{name}: {count}"
            );
        }
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let good = DitConfig::published("DiT-S/2", [32, 32]).unwrap();
        assert_eq!(
            DitConfig {
                heads: 5,
                ..good.clone()
            }
            .check(),
            Err(ConfigError::NotMultiple {
                what: "hidden size",
                value: 384,
                of: "heads",
                divisor: 5
            })
        );
        assert!(matches!(
            DitConfig {
                patch: 0,
                ..good.clone()
            }
            .check(),
            Err(ConfigError::OutOfRange { .. })
        ));
        assert!(matches!(
            DitConfig {
                input_size: [33, 32],
                ..good.clone()
            }
            .check(),
            Err(ConfigError::NotMultiple { .. })
        ));
        assert!(matches!(
            DitConfig {
                mlp_norm_eps: f64::NAN,
                ..good
            }
            .check(),
            Err(ConfigError::Epsilon { .. })
        ));
        assert!(matches!(
            DitConfig::published("DiT-H/2", [32, 32]),
            Err(ConfigError::UnknownSize { .. })
        ));
    }
}
