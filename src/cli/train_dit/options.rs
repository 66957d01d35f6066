//! What the command says about network, length and recipe.

use super::super::{
    error::CliError,
    options::{parse_seed, parse_switch},
    training_data::LengthArgs,
};
use crate::{
    layers::NORM_EPS,
    models::dit::{ConfigError, DitConfig},
    training::network::{Dataset, Optimizer, Precision, PretrainSettings, SavedRun},
};

/// The network of a run that names none: it learns 32×32 pixels on a laptop in hours.
const DEFAULT_SHAPE: [usize; 4] = [12, 192, 3, 4];
/// The network.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkArgs {
    /// A published size such as DiT-S/4 [default: 12 blocks of 192, 3 heads, patch 4]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["blocks", "hidden", "heads", "patch"])]
    pub size: Option<String>,
    /// Number of blocks
    #[arg(long, value_name = "N")]
    pub blocks: Option<usize>,
    /// Width of a token
    #[arg(long, value_name = "N")]
    pub hidden: Option<usize>,
    /// Attention heads [default: hidden / 64]
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Side of a patch
    #[arg(long, value_name = "N")]
    pub patch: Option<usize>,
    /// Side of the pictures in pixels [default: an atlas's own tiles, otherwise the pictures' own up to 64]
    #[arg(long, value_name = "N")]
    pub image_size: Option<usize>,
    /// Start from a model's weights instead of random ones: any file that `sample --model` takes. Classes are
    /// known again by their names; for pictures of another size, other channels or another --patch, what reads and draws patches
    /// begins anew
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["size", "blocks", "hidden", "resume"])]
    pub init: Option<String>,
}

/// How.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Recipe")]
pub(super) struct RecipeArgs {
    /// Pictures an optimizer step [default: 64]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Pictures in the network at a time; gradients are summed up to --batch [default: --batch, at most 64]
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// What turns gradients into steps: adamw, or muon for the matrices of attention and MLP [default: adamw]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerArg>,
    /// Highest learning rate [default: 5e-4, 1.5e-3 with muon]
    #[arg(long)]
    lr: Option<f64>,
    /// Steps over which the learning rate rises from 0 [default: 200, in short runs a tenth of the run]
    #[arg(long, value_name = "STEPS")]
    warmup: Option<u64>,
    /// AdamW's decay of the first moment [default: 0.9]
    #[arg(long)]
    beta1: Option<f64>,
    /// AdamW's decay of the second moment [default: 0.99]
    #[arg(long)]
    beta2: Option<f64>,
    /// Decoupled weight decay [default: 0]
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Decay of the moving average of the weights, which is the model that is written [default: 0.9995]
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
    /// Largest norm of the gradient [default: 1]
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// Share of labels replaced by the null label, for guidance [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    label_dropout: Option<f64>,
    /// Weight of the variational bound that trains the learned sigma [default: 1, as the DiT release]
    #[arg(long, value_name = "WEIGHT")]
    vlb_weight: Option<f64>,
    /// Min-SNR weighting of the timesteps with this gamma, such as 5 [default: none]
    #[arg(long, value_name = "GAMMA")]
    min_snr: Option<f64>,
    /// Mirror every second picture [default: on]
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    flip: Option<bool>,
    /// Never mirror classes whose name contains one of these words
    #[arg(long, value_name = "WORD,…", value_delimiter = ',')]
    no_flip: Vec<String>,
    /// Shift pictures by up to this many pixels, their edges repeated [default: 0]
    #[arg(long, value_name = "PIXELS")]
    shift: Option<usize>,
    /// Even out classes of different size: 0 draws every picture equally often, 1 every class [default: 0]
    #[arg(long, value_name = "EXPONENT")]
    balance: Option<f64>,
    /// Number type of the blocks' matrix products: f32; f16 on GPUs that have it; bf16 on those that have it, and on the CPU, where
    /// it is faster only by AMX, or by AVX-512's bf16 on AMD [default: f32]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArg>,
    /// Keep only the blocks' inputs and run each block again on the way back: less memory, a third more time
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Seed of weights, order, augmentation, timesteps and noise [default: 0]
    #[arg(long, value_parser = parse_seed)]
    seed: Option<u64>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
pub(super) enum PrecisionArg {
    F32,
    F16,
    Bf16,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
pub(super) enum OptimizerArg {
    Adamw,
    Muon,
}

/// What this command says, what the run said before, or the default.
pub(super) fn settings(
    length: &LengthArgs,
    recipe: &RecipeArgs,
    before: Option<&SavedRun>,
) -> PretrainSettings {
    let standard = PretrainSettings::default();
    let base = before.map_or(&standard, |saved| &saved.settings);
    let batch = recipe.batch.unwrap_or(base.batch);
    let fitting = if before.is_some() {
        base.micro_batch
    } else {
        batch.min(standard.micro_batch)
    };
    let optimizer = match recipe.optimizer {
        None => base.optimizer,
        Some(OptimizerArg::Adamw) => Optimizer::AdamW,
        Some(OptimizerArg::Muon) => Optimizer::Muon,
    };
    let lr = match before {
        Some(saved) => saved.settings.lr,
        None => optimizer.default_lr(),
    };
    PretrainSettings {
        length: length.length().unwrap_or(base.length),
        batch,
        micro_batch: recipe.micro_batch.unwrap_or(fitting),
        optimizer,
        lr: recipe.lr.unwrap_or(lr),
        warmup: recipe.warmup.or(base.warmup),
        beta1: recipe.beta1.unwrap_or(base.beta1),
        beta2: recipe.beta2.unwrap_or(base.beta2),
        weight_decay: recipe.weight_decay.unwrap_or(base.weight_decay),
        ema: recipe.ema.unwrap_or(base.ema),
        clip: recipe.clip.unwrap_or(base.clip),
        label_dropout: recipe.label_dropout.unwrap_or(base.label_dropout),
        vlb_weight: recipe.vlb_weight.unwrap_or(base.vlb_weight),
        min_snr: recipe.min_snr.or(base.min_snr),
        flip: recipe.flip.unwrap_or(base.flip),
        no_flip: if recipe.no_flip.is_empty() {
            base.no_flip.clone()
        } else {
            recipe.no_flip.clone()
        },
        shift: recipe.shift.unwrap_or(base.shift),
        balance: recipe.balance.unwrap_or(base.balance),
        precision: match recipe.precision {
            None => base.precision,
            Some(PrecisionArg::F32) => Precision::F32,
            Some(PrecisionArg::F16) => Precision::F16,
            Some(PrecisionArg::Bf16) => Precision::Bf16,
        },
        gradient_checkpointing: recipe.gradient_checkpointing || base.gradient_checkpointing,
        seed: recipe.seed.unwrap_or(base.seed),
    }
}

impl NetworkArgs {
    /// Whether the command says anything about the network.
    pub fn names_one(&self) -> bool {
        self.size.is_some()
            || [self.blocks, self.hidden, self.heads, self.patch]
                .iter()
                .any(Option::is_some)
    }

    /// The network for this data; what is not said is as in `base`.
    pub fn config(&self, data: &Dataset, base: Option<&DitConfig>) -> Result<DitConfig, CliError> {
        let [channels, height, width] = data.shape();
        let size = [height, width];
        let usage = |e: ConfigError| CliError::Usage(e.to_string());
        if let Some(name) = &self.size {
            let published = DitConfig::published(name, size).map_err(usage)?;
            return Ok(DitConfig {
                channels,
                classes: data.classes(),
                ..published
            });
        }
        let [blocks, hidden, heads, patch] =
            base.map_or(DEFAULT_SHAPE, |b| [b.blocks, b.hidden, b.heads, b.patch]);
        let width = self.hidden.unwrap_or(hidden);
        let fitting = if width == hidden {
            heads
        } else {
            width.div_ceil(64)
        };
        let config = DitConfig {
            input_size: size,
            patch: self.patch.unwrap_or(patch),
            channels,
            hidden: width,
            blocks: self.blocks.unwrap_or(blocks),
            heads: self.heads.unwrap_or(fitting),
            classes: data.classes(),
            learned_sigma: base.is_none_or(|b| b.learned_sigma),
            timestep_shift: base.map_or(0, |b| b.timestep_shift),
            mlp_norm_eps: base.map_or(NORM_EPS, |b| b.mlp_norm_eps),
        };
        config.check().map_err(usage)?;
        Ok(config)
    }
}
