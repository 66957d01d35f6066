//! What fixes an autoencoder's shape.

use serde::{Deserialize, Serialize};

/// Scaling of the latents of Stable Diffusion's autoencoder, which DiT and PixArt-α were trained on: what configs of that
/// age do not name.
const SD_SCALING: f32 = 0.18215;

/// An `AutoencoderKL` as diffusers' `config.json` describes it. Loaders refuse what does not pass [`VaeConfig::check`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KlConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    /// Widths from the picture inwards.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of a stage of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    pub act_fn: String,
    pub latent_channels: usize,
    pub norm_num_groups: usize,
    /// What the encoder's latents are multiplied by for a network.
    pub scaling_factor: f32,
    /// What is taken from them before that.
    pub shift_factor: Option<f32>,
    pub latents_mean: Option<Vec<f32>>,
    pub latents_std: Option<Vec<f32>>,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    pub mid_block_add_attention: bool,
}

impl Default for KlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: Vec::new(),
            up_block_types: Vec::new(),
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".into(),
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: SD_SCALING,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl KlConfig {
    /// Outermost and innermost width; 0 where there are none, which the check refuses.
    pub(super) fn ends(&self) -> [usize; 2] {
        let widths = &self.block_out_channels;
        [widths.first(), widths.last()].map(|width| width.copied().unwrap_or(0))
    }
}

/// An `AutoencoderTiny` (TAESD) as diffusers' `config.json` describes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TinyConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub encoder_block_out_channels: Vec<usize>,
    pub decoder_block_out_channels: Vec<usize>,
    pub num_encoder_blocks: Vec<usize>,
    pub num_decoder_blocks: Vec<usize>,
    pub act_fn: String,
    pub upsample_fn: String,
    pub upsampling_scaling_factor: usize,
    pub latent_channels: usize,
    pub scaling_factor: f32,
    pub shift_factor: Option<f32>,
}

impl Default for TinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            act_fn: "relu".into(),
            upsample_fn: "nearest".into(),
            upsampling_scaling_factor: 2,
            latent_channels: 4,
            scaling_factor: 1.0,
            shift_factor: None,
        }
    }
}

/// An autoencoder of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum VaeConfig {
    Kl(KlConfig),
    Tiny(TinyConfig),
}

impl VaeConfig {
    /// What a config must be, in few words.
    pub(crate) const EXPECTED: &str =
        "1 to 6 widths that the norms' groups divide, 1 to 16 layers and 1 to 64 latent channels";

    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kl(_) => "AutoencoderKL",
            Self::Tiny(_) => "AutoencoderTiny",
        }
    }

    /// `C`
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Kl(config) => config.latent_channels,
            Self::Tiny(config) => config.latent_channels,
        }
    }

    /// Pixels along a latent cell.
    pub fn factor(&self) -> usize {
        let stages = match self {
            Self::Kl(config) => config.block_out_channels.len(),
            Self::Tiny(config) => config.num_decoder_blocks.len(),
        };
        1 << stages.saturating_sub(1)
    }

    fn scaling(&self) -> (f32, f32) {
        let (scale, shift) = match self {
            Self::Kl(config) => (config.scaling_factor, config.shift_factor),
            Self::Tiny(config) => (config.scaling_factor, config.shift_factor),
        };
        (scale, shift.unwrap_or(0.0))
    }

    /// A latent number as the decoder takes it, of one that a network drew.
    pub fn to_vae(&self, z: f32) -> f32 {
        let (scale, shift) = self.scaling();
        z / scale + shift
    }

    /// The way back.
    pub fn to_network(&self, z: f32) -> f32 {
        let (scale, shift) = self.scaling();
        (z - shift) * scale
    }

    /// What is wrong with it, or not supported, if anything.
    ///
    /// # Errors
    /// A sentence about the first such thing.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Kl(config) => check_kl(config)?,
            Self::Tiny(config) => check_tiny(config)?,
        }
        match self.scaling() {
            (scale, shift) if scale.is_normal() && scale > 0.0 && shift.is_finite() => Ok(()),
            (scale, shift) => Err(format!(
                "it scales latents by {scale} and shifts them by {shift}, expected a number above 0 and a number"
            )),
        }
    }
}

fn check_kl(config: &KlConfig) -> Result<(), String> {
    let of_kind = |types: &[String], kind: &str, what: &str| match types.iter().find(|t| *t != kind)
    {
        Some(other) => Err(format!(
            "it has a `{other}` in `{what}`, expected `{kind}` only"
        )),
        None => Ok(()),
    };
    of_kind(
        &config.down_block_types,
        "DownEncoderBlock2D",
        "down_block_types",
    )?;
    of_kind(&config.up_block_types, "UpDecoderBlock2D", "up_block_types")?;
    if config.act_fn != "silu" {
        return Err(format!(
            "its act_fn is `{}`, expected `silu`",
            config.act_fn
        ));
    }
    if config.latents_mean.is_some() || config.latents_std.is_some() {
        return Err("it normalises each latent channel (latents_mean, latents_std), which no network that is read here was trained on".into());
    }
    ranges(&[
        ("in_channels", config.in_channels, 3, 3),
        ("out_channels", config.out_channels, 3, 3),
        ("stages", config.block_out_channels.len(), 1, 6),
        ("layers_per_block", config.layers_per_block, 1, 16),
        ("latent_channels", config.latent_channels, 1, 64),
        ("norm_num_groups", config.norm_num_groups, 1, 4096),
    ])?;
    for width in &config.block_out_channels {
        ranges(&[("block_out_channels", *width, 1, 8192)])?;
        if !width.is_multiple_of(config.norm_num_groups) {
            return Err(format!(
                "its width {width} is no multiple of the {} groups of its norms",
                config.norm_num_groups
            ));
        }
    }
    Ok(())
}

fn check_tiny(config: &TinyConfig) -> Result<(), String> {
    if config.act_fn != "relu" || config.upsample_fn != "nearest" {
        return Err(format!(
            "its act_fn is `{}` and its upsample_fn `{}`, expected `relu` and `nearest`",
            config.act_fn, config.upsample_fn
        ));
    }
    let halves = [
        (
            &config.encoder_block_out_channels,
            &config.num_encoder_blocks,
        ),
        (
            &config.decoder_block_out_channels,
            &config.num_decoder_blocks,
        ),
    ];
    for (widths, blocks) in halves {
        if widths.len() != blocks.len() || widths.len() != config.num_decoder_blocks.len() {
            return Err(format!(
                "it has {} widths and {} numbers of blocks, expected one of each a stage",
                widths.len(),
                blocks.len()
            ));
        }
        ranges(&[("stages", widths.len(), 1, 6)])?;
        if widths.iter().any(|width| *width != widths[0]) {
            return Err(format!("its widths are {widths:?}, expected equal ones"));
        }
        ranges(&[("width", widths[0], 1, 4096)])?;
        for blocks in blocks {
            ranges(&[("blocks of a stage", *blocks, 0, 64)])?;
        }
    }
    ranges(&[
        ("in_channels", config.in_channels, 3, 3),
        ("out_channels", config.out_channels, 3, 3),
        ("latent_channels", config.latent_channels, 1, 64),
        (
            "upsampling_scaling_factor",
            config.upsampling_scaling_factor,
            2,
            2,
        ),
    ])
}

fn ranges(values: &[(&str, usize, usize, usize)]) -> Result<(), String> {
    match values
        .iter()
        .find(|(_, value, least, most)| !(least..=most).contains(&value))
    {
        None => Ok(()),
        Some((what, value, least, most)) if least == most => {
            Err(format!("its {what} is {value}, expected {least}"))
        }
        Some((what, value, least, most)) => {
            Err(format!("its {what} is {value}, expected {least} to {most}"))
        }
    }
}
