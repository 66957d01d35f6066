//! Flags that several subcommands share.

use std::{io::IsTerminal, path::PathBuf, time::Instant};

use clap::Args;

use super::{Context, error::CliError, text::TextArgs};
use crate::{
    cache::CacheDtype,
    checkpoint::{Kept, LoadOptions, ModelInfo, ModelSpec, Part, Residence, StoredDtype},
    device::{DeviceChoice, Engine, adapters, dealt},
    diffusion::{Guidance, GuidedChannels, Solver},
    models::{Prompts, vae::Tiling},
    pipeline::{Pipeline, USUAL_STEPS, read_texts},
    ranks::number_on_machine,
    sampler::Settings,
};

#[derive(Args, Debug)]
pub(super) struct Verbosity {
    /// Print errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log what is done, on stderr: devices, models, schedules, batches (-vv: also every step)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Verbosity {
    /// Logs to stderr at the asked level; `RUST_LOG` overrides.
    pub fn start_logging(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) | (false, 0) => "error",
            (false, 1) => "warn,harmonica=debug",
            (false, _) => "info,harmonica=trace",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal() && !plain)
            .with_writer(std::io::stderr)
            .init();
    }
}

/// The model and the device it runs on.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// A .pt, .bin or .safetensors file, a diffusers folder, a name of the hub such as facebook/DiT-XL-2-256 (from the cache:
    /// `harmonica pull` fills it), `bundled`, or `random:DiT-S/2@256` (seeded random weights)
    #[arg(long, value_name = "FILE|DIR|NAME", default_value = "bundled")]
    pub model: String,
    /// The form of a folder's weights, such as fp16 [default: full precision, or what alone is there]
    #[arg(long, value_name = "FORM")]
    pub variant: Option<String>,
    /// Attention heads, where a bare .pt cannot tell
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Input size, where the file's tokens form no square, or the latents of a PixArt are to be of another size
    #[arg(long, value_name = "HEIGHTxWIDTH", value_parser = parse_size)]
    pub input_size: Option<[usize; 2]>,
    /// Encoded texts for a model that draws texts: a safetensors file with `prompt_embeds` [P,L,width],
    /// `prompt_attention_mask` [P,L] and, for guidance, `negative_prompt_embeds` [1,L,width]
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "prompt",
        help_heading = "Texts, for models that draw them"
    )]
    pub texts: Option<PathBuf>,
    /// The autoencoder that makes pictures of latents: a diffusers folder, or a file of an AutoencoderKL or of TAESD; none for
    /// a rough preview [default: the `vae` folder beside the model, where there is one]
    #[arg(long, value_name = "FILE|DIR|none")]
    pub vae: Option<String>,
    /// Decode latents in tiles of so many cells a side, for less memory [default: auto, whole where that takes at most 2 GiB]
    #[arg(long, value_name = "auto|off|N", value_parser = clap::value_parser!(Tiling))]
    pub vae_tile: Option<Tiling>,
    #[command(flatten)]
    pub text: TextArgs,
}

/// Element type of weights.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DtypeArg {
    F16,
    F32,
}

impl From<DtypeArg> for StoredDtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F16 => Self::F16,
            DtypeArg::F32 => Self::F32,
        }
    }
}

/// In what the weights of blocks are kept.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeptArg {
    F32,
    F16,
    Bf16,
    Auto,
}

/// Weights in fewer bits than a float has.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QuantArg {
    Q8,
}

/// Where its weights lie.
#[derive(Args, Debug)]
#[command(next_help_heading = "Device and memory")]
pub(super) struct ResidenceArgs {
    /// How the weights of blocks are kept: f32, or f16 in half the memory, on the CPU also bf16. A device with units for it
    /// multiplies by them and sums in f32, faster: a GPU f16 with f16, a processor (AMX, AVX-512's bf16 on AMD) bf16 with bf16. auto:
    /// what the device has units for (`harmonica devices`), else f32
    #[arg(
        long,
        value_name = "f32|f16|bf16|auto",
        value_enum,
        default_value = "f32"
    )]
    pub dtype: KeptArg,
    /// Keep the weights of blocks as a byte a number with an f32 scale an output channel, in a quarter of the memory (products
    /// are in f32); instead of --dtype f16 or bf16
    #[arg(long, value_name = "q8", value_enum)]
    pub quant: Option<QuantArg>,
    /// Weights on the device at most, such as 800M or 2G: what does not fit waits on the host and is sent when a branch is
    /// computed; reused branches send nothing
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_memory: Option<u64>,
}

impl ResidenceArgs {
    /// What was asked, on this engine.
    pub fn residence(&self, engine: &Engine) -> Result<Residence, CliError> {
        let hardware = engine.hardware();
        let kept = match self.dtype {
            KeptArg::F16 => Kept::F16,
            KeptArg::Bf16 => Kept::Bf16,
            KeptArg::Auto if hardware.matrix_units => Kept::F16,
            KeptArg::Auto if hardware.bf16_units => Kept::Bf16,
            KeptArg::F32 | KeptArg::Auto => Kept::F32,
        };
        let kept = match self.quant {
            None => kept,
            Some(QuantArg::Q8) => match self.dtype {
                KeptArg::F32 | KeptArg::Auto => Kept::Q8,
                KeptArg::F16 | KeptArg::Bf16 => {
                    return Err(CliError::Usage(format!(
                        "--quant q8 keeps the weights of blocks in a byte a number, --dtype {kept} in two; pass one of them"
                    )));
                }
            },
        };
        Ok(Residence {
            kept,
            max_bytes: self.max_memory,
        })
    }
}

impl ModelArgs {
    pub fn spec(&self) -> Result<ModelSpec, CliError> {
        let spec: ModelSpec = self.model.parse()?;
        Ok(match &self.variant {
            Some(variant) => spec.with_variant(variant)?,
            None => spec,
        })
    }

    pub fn load_options(&self, context: &Context) -> Result<LoadOptions, CliError> {
        let options = LoadOptions {
            heads: self.heads,
            input_size: self.input_size,
        };
        match self.text.latents(&self.spec()?, options, context)? {
            None => Ok(options),
            latents => Ok(LoadOptions {
                input_size: latents,
                ..options
            }),
        }
    }

    /// `drawing`: with what makes pictures of its latents.
    pub fn load(
        &self,
        engine: &Engine,
        residence: &ResidenceArgs,
        drawing: bool,
        context: &Context,
    ) -> Result<Pipeline, CliError> {
        let (spec, options) = (self.spec()?, self.load_options(context)?);
        let residence = residence.residence(engine)?;
        let mut pipeline = Pipeline::open_in(engine, &spec, options, residence)?;
        // Before texts are encoded, which may take minutes.
        if drawing {
            pipeline = self.with_decoder(pipeline)?;
        }
        match &self.texts {
            None => self.text.encode(pipeline, context),
            Some(path) => Ok(pipeline.with_texts(read_texts(path)?)?),
        }
    }

    /// Where the autoencoder of a model lies that makes pictures of its latents, if one is to.
    pub fn vae_of(&self, info: &ModelInfo) -> Result<Option<PathBuf>, CliError> {
        // A pipeline whose index names a decoder that is not there says so.
        let named = match &info.folder {
            Some(folder) => folder.part(Part::Vae)?.is_some(),
            None => true,
        };
        Ok(match self.vae.as_deref() {
            Some("none") => None,
            Some(path) => Some(path.into()),
            None if named => info.folder_with(Part::Vae.name()),
            None => None,
        })
    }

    /// The same with what makes pictures of its latents, for commands that write some.
    pub fn with_decoder(&self, pipeline: Pipeline) -> Result<Pipeline, CliError> {
        match self.vae_of(&pipeline.info)? {
            None => Ok(pipeline),
            Some(path) => Ok(pipeline.with_vae(&path, self.vae_tile.unwrap_or_default())?),
        }
    }
}

/// Bytes, maybe with K, M or G of a thousand.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let unit = text
        .chars()
        .last()
        .and_then(|unit| match unit.to_ascii_uppercase() {
            'K' => Some(1e3),
            'M' => Some(1e6),
            'G' => Some(1e9),
            _ => None,
        });
    let number = match unit {
        Some(_) => &text[..text.len() - 1],
        None => text,
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => {
            Ok((number * unit.unwrap_or(1.0)) as u64)
        }
        _ => Err("expected a number of bytes such as 800M or 2G".into()),
    }
}

pub(super) fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let sides: Option<Vec<usize>> = text.split('x').map(|side| side.parse().ok()).collect();
    match sides.as_deref() {
        Some([height, width]) => Ok([*height, *width]),
        Some([side]) => Ok([*side; 2]),
        _ => Err("expected HEIGHTxWIDTH such as 32x48".into()),
    }
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Device and memory")]
pub(super) struct DeviceArgs {
    /// auto, vulkan, metal, dx12, gl, cpu, or an index from `harmonica devices`
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
}

impl DeviceArgs {
    pub fn open(&self, context: &Context) -> Result<Engine, CliError> {
        let mut choice: DeviceChoice = self.device.parse()?;
        if let Some(number) = number_on_machine().filter(|_| !context.ranks.is_alone()) {
            choice = dealt(choice, &adapters(), number);
        }
        let chosen = Engine::open(choice)?;
        if let Some(notice) = chosen.notice {
            context.say(notice);
        }
        let report = chosen.engine.report();
        tracing::debug!(device = report.device, backend = %report.backend, "computes");
        Ok(chosen.engine)
    }
}

/// The diffusion run.
#[derive(Args, Debug)]
#[command(next_help_heading = "Denoising")]
pub(super) struct RunArgs {
    /// Denoising steps [default: 20]
    #[arg(long, value_name = "T")]
    pub steps: Option<usize>,
    /// Where the steps lie: even, timesteps 999 to 0; ddim, multiples of a whole number (the DiT release's ddimN); dpm, even ones
    /// without 0 (PixArt with dpm++2m); flow[:SHIFT] for flow-matching models [default: what the model's pipeline folder says, otherwise even, and
    /// flow for those]
    #[arg(long)]
    pub spacing: Option<String>,
    /// ddim, ddim:ETA, ddpm, euler, dpm++2m, dpm++3m, dpm++2m-sde or sa-solver [default: what the model's pipeline folder says,
    /// otherwise ddim]
    #[arg(long)]
    pub solver: Option<String>,
    /// DDIM's eta: 0 deterministic, 1 as noisy as DDPM
    #[arg(long, value_name = "ETA")]
    pub eta: Option<f64>,
    /// Classifier-free guidance scale; 1 is none [default: what the model says, otherwise 1.5 for DiTs and 4.5 for
    /// PixArt]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// Channels that guidance replaces: 3 as the public DiT release, or all [default: what the model says;
    /// otherwise 3 for DiTs, all for PixArt]
    #[arg(long, value_name = "3|all")]
    pub guidance_channels: Option<String>,
    /// Clip the predicted clean image to [-1, 1] at every step [default: what the model says]
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    pub clip_x0: Option<bool>,
}

impl RunArgs {
    pub fn settings(&self, info: &ModelInfo) -> Result<Settings, CliError> {
        let mut solver = match &self.solver {
            Some(solver) => solver.parse()?,
            None => info.usual_solver(),
        };
        if let Some(eta) = self.eta {
            if !matches!(solver, Solver::Ddim { .. }) {
                return Err(CliError::Usage(format!(
                    "--eta belongs to the ddim solver, not to {solver}"
                )));
            }
            solver = Solver::ddim(eta)?;
        }
        let channels: GuidedChannels = match &self.guidance_channels {
            Some(channels) => channels.parse()?,
            None => info.usual_guidance().channels(),
        };
        let scale = self.guidance.unwrap_or(info.usual_guidance().scale());
        let spacing = match &self.spacing {
            Some(spacing) => spacing.parse()?,
            None => info.usual_spacing(),
        };
        let settings = Settings {
            steps: self.steps.unwrap_or(USUAL_STEPS),
            spacing,
            solver,
            guidance: Guidance::new(scale, channels)?,
            clip_x0: self.clip_x0.unwrap_or(info.clip_x0),
        };
        settings.numbers(&info.outline.latents)?;
        Ok(settings)
    }
}

/// What the commands that run a model begin with.
#[derive(Args, Debug)]
pub(super) struct SessionArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub residence: ResidenceArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// A model on an open device, and how to run it.
pub(super) struct Session {
    pub pipeline: Pipeline,
    pub settings: Settings,
    /// What loading the model took.
    pub seconds_load: f64,
}

impl SessionArgs {
    pub fn open(&self, context: &Context) -> Result<Session, CliError> {
        self.open_for(context, None, false)
    }

    /// The same with what makes pictures of latents.
    pub fn open_drawing(&self, context: &Context) -> Result<Session, CliError> {
        self.open_for(context, None, true)
    }

    /// The same with texts that were read elsewhere.
    pub fn open_with(
        &self,
        context: &Context,
        texts: Option<Prompts>,
    ) -> Result<Session, CliError> {
        self.open_for(context, texts, false)
    }

    fn open_for(
        &self,
        context: &Context,
        texts: Option<Prompts>,
        drawing: bool,
    ) -> Result<Session, CliError> {
        let engine = self.device.open(context)?;
        let started = Instant::now();
        let mut pipeline = self
            .model
            .load(&engine, &self.residence, drawing, context)?;
        if let Some(texts) = texts {
            pipeline = pipeline.with_texts(texts)?;
        }
        let seconds_load = started.elapsed().as_secs_f64();
        for note in &pipeline.info.notes {
            context.say(format!("note: the model's scheduler: {note}"));
        }
        let settings = self.run.settings(&pipeline.info)?;
        tracing::debug!(
            steps = settings.steps,
            spacing = %settings.spacing,
            solver = %settings.solver,
            guidance = settings.guidance.scale(),
            "runs"
        );
        if pipeline.prompts.pool.is_empty() {
            return Err(CliError::Usage(
                "this model draws texts: pass --prompt TEXT, or --texts with a file of encoded ones"
                    .into(),
            ));
        }
        Ok(Session {
            pipeline,
            settings,
            seconds_load,
        })
    }
}

/// How cached features are kept.
#[derive(Args, Debug)]
#[command(next_help_heading = "Device and memory")]
pub(super) struct CacheArgs {
    /// f32, or f16 for half the cache memory
    #[arg(long, value_name = "f32|f16", default_value = "f32")]
    pub cache_dtype: CacheDtype,
}

/// A seed; a negative number is none.
pub(super) fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

/// Prints the one JSON document of `--json`.
pub(super) fn print_json(value: &serde_json::Value) {
    out!("{value:#}");
}
