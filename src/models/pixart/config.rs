//! The shape of a PixArt transformer.

use serde::{Deserialize, Serialize};

use super::tensors::tensors;
use crate::{models::Picture, words::counted};

/// MLP width over hidden width, fixed by the family.
pub const MLP_RATIO: usize = 4;

/// The shape of a PixArt-α or -Σ transformer. Loaders refuse configs that do not pass [`PixArtConfig::check`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PixArtConfig {
    /// `[height, width]` of the latents.
    pub input_size: [usize; 2],
    /// Side of a square patch; one patch is one token.
    pub patch: usize,
    /// Latent channels `C`.
    pub channels: usize,
    /// Channels of the output: `C`, or `2C` with learned sigma.
    pub out_channels: usize,
    /// Width of a token.
    pub hidden: usize,
    pub blocks: usize,
    pub heads: usize,
    /// Width of a text token.
    pub caption: usize,
    /// Text tokens at most: 120 for α, 300 for Σ.
    pub text_tokens: usize,
    /// Tokens along a side of the size that positions are counted for; other sizes are scaled to it.
    pub base_tokens: usize,
    /// What positions are divided by.
    pub interpolation_scale: f64,
    /// Whether resolution and aspect ratio of the picture are conditions too.
    pub micro_conditions: bool,
    /// Whether the file brings an embedding of no text.
    pub null_text: bool,
    /// Whether the file brings positions for this very size, as the authors' files do: only they tell the interpolation scale.
    #[serde(default)]
    pub stored_positions: bool,
}

/// Pixels along a latent cell.
pub const PIXELS_OF_CELL: usize = 8;

impl PixArtConfig {
    /// What is wrong with the numbers, if anything.
    ///
    /// # Errors
    /// A sentence about the first one.
    pub fn check(&self) -> Result<(), String> {
        let ranges = [
            ("input height", self.input_size[0], 1 << 14),
            ("input width", self.input_size[1], 1 << 14),
            ("patch", self.patch, 256),
            ("channels", self.channels, 4096),
            ("hidden", self.hidden, 1 << 16),
            ("blocks", self.blocks, 4096),
            ("heads", self.heads, 4096),
            ("caption width", self.caption, 1 << 16),
            ("text tokens", self.text_tokens, 1 << 14),
            ("base tokens", self.base_tokens, 1 << 14),
        ];
        for (field, value, most) in ranges {
            if value == 0 || value > most {
                return Err(format!("{field} is {value}, expected 1 to {most}"));
            }
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
                return Err(format!("{what} {value} is no multiple of {of} {divisor}"));
            }
        }
        if self.micro_conditions && !self.hidden.is_multiple_of(3) {
            return Err(format!(
                "hidden size {} is no multiple of 3, as micro-conditions need",
                self.hidden
            ));
        }
        if ![self.channels, 2 * self.channels].contains(&self.out_channels) {
            return Err(format!(
                "{} output channels are neither {} nor twice that",
                self.out_channels, self.channels
            ));
        }
        if !(self.interpolation_scale > 0.0 && self.interpolation_scale.is_finite()) {
            return Err(format!(
                "interpolation_scale is {}, expected a number above 0",
                self.interpolation_scale
            ));
        }
        if self.tokens() > 1 << 16 {
            return Err(format!("{} tokens are more than 65536", self.tokens()));
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

    /// Channels of one of the three micro-condition embeddings.
    pub fn micro_width(&self) -> usize {
        self.hidden / 3
    }

    /// Numbers of an output patch.
    pub fn patch_outputs(&self) -> usize {
        self.patch * self.patch * self.out_channels
    }

    /// The picture that the latents make.
    pub fn picture(&self) -> Picture {
        let [height, width] = self.input_size.map(|side| (side * PIXELS_OF_CELL) as f32);
        Picture {
            resolution: [height, width],
            aspect_ratio: height / width,
        }
    }

    /// Weights of the network, the fixed position embedding not counted.
    pub fn parameters(&self) -> u64 {
        let all = tensors(self);
        let trained = all.iter().filter(|tensor| !tensor.is_positions());
        trained.map(|tensor| tensor.numbers() as u64).sum()
    }

    /// The published name where there is one, otherwise a description.
    pub fn name(&self) -> String {
        match (self.blocks, self.hidden, self.heads) {
            (28, 1152, 16) => format!("PixArt-XL/{}", self.patch),
            (blocks, hidden, heads) => format!(
                "PixArt with {} of {hidden} ({}), patch {}",
                counted(blocks, "block"),
                counted(heads, "head"),
                self.patch
            ),
        }
    }
}
