//! `harmonica train dit`

use std::{
    ops::ControlFlow,
    path::PathBuf,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use serde_json::json;

use super::{
    Context,
    error::CliError,
    options::{DeviceArgs, parse_switch, print_json, progress},
};
use crate::{
    checkpoint::{LoadOptions, ModelSpec, StoredDtype, load_state},
    device::DeviceReport,
    dit::{DitConfig, NORM_EPS},
    metrics::peak_memory_bytes,
    training::{
        TrainingError,
        pretrain::{
            DataError, DataOptions, Dataset, Length, Precision, PretrainEvent, PretrainFolder,
            PretrainOptions, PretrainRun, PretrainSettings, PretrainStart, PretrainStep, SavedRun,
        },
    },
};

/// The network of a run that names none: it learns 32×32 pixels on a laptop in hours.
const DEFAULT_SHAPE: [usize; 4] = [12, 192, 3, 4];
/// Skipped pictures that are named; the rest is counted.
const NAMED: usize = 10;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Pictures: a folder with one sub-folder a class, an atlas (a folder with classes.json), a flat folder (no
    /// classes), or a .safetensors file with `latents` [N,C,H,W] and `labels` [N]
    #[arg(long, value_name = "DIR|FILE")]
    data: PathBuf,
    /// Folder of the run: model.safetensors, checkpoint.safetensors, train.jsonl, curve.png, samples.png
    #[arg(long, value_name = "DIR", default_value = "dit")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    length: LengthArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Minutes between checkpoints
    #[arg(long, value_name = "MINUTES", default_value_t = 5.0)]
    save_every: f64,
    /// Minutes between sample grids; 0 draws one at the end only
    #[arg(long, value_name = "MINUTES", default_value_t = 10.0)]
    sample_every: f64,
    /// Element type of model.safetensors
    #[arg(long, value_name = "f32|f16", value_enum, default_value = "f32")]
    dtype: DtypeArg,
    /// Gigabytes of pictures to keep in memory; more than that goes to a temporary file
    #[arg(long, value_name = "GB", default_value_t = 2.0)]
    data_memory: f64,
    /// Go on with the run in --out; what is not said again stays as it was
    #[arg(long)]
    resume: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// The network.
#[derive(clap::Args, Debug)]
struct NetworkArgs {
    /// A published size such as DiT-S/4 [default: 12 blocks of 192, 3 heads, patch 4]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["blocks", "hidden", "heads", "patch"])]
    size: Option<String>,
    /// Number of blocks
    #[arg(long, value_name = "N")]
    blocks: Option<usize>,
    /// Width of a token
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// Attention heads [default: hidden / 64]
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Side of a patch
    #[arg(long, value_name = "N")]
    patch: Option<usize>,
    /// Side of the pictures in pixels [default: an atlas's own tiles, otherwise 64]
    #[arg(long, value_name = "N")]
    image_size: Option<usize>,
    /// Start from a model's weights instead of random ones: any file that `sample --model` takes
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["size", "blocks", "hidden", "patch"])]
    init: Option<String>,
}

/// How long.
#[derive(clap::Args, Debug)]
#[group(multiple = false)]
struct LengthArgs {
    /// Train for this long, over all sessions; the learning rate falls to 0 at its end [default: 60]
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Train on this many pictures
    #[arg(long, value_name = "N")]
    images: Option<u64>,
    /// Train for this many optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
}

/// How.
#[derive(clap::Args, Debug)]
struct RecipeArgs {
    /// Pictures an optimizer step [default: 64]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Pictures in the network at a time; gradients are summed up to --batch [default: --batch, at most 64]
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Highest learning rate [default: 5e-4]
    #[arg(long)]
    lr: Option<f64>,
    /// Steps over which the learning rate rises from 0 [default: 200]
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
    /// Number type of the blocks' matrix products: f32, f16 or bf16, where the device has it [default: f32]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArg>,
    /// Keep only the blocks' inputs and run each block again on the way back: less memory, a third more time
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Seed of weights, order, augmentation, timesteps and noise [default: 0]
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum DtypeArg {
    F32,
    F16,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum PrecisionArg {
    F32,
    F16,
    Bf16,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let engine = args.device.open(context)?;
    let folder = PretrainFolder::new(&args.out);
    // A resumed run keeps the settings that this command does not name.
    let before = match args.resume && folder.checkpoint().exists() {
        true => Some(SavedRun::read(&folder.checkpoint())?),
        false => None,
    };
    let settings = settings(&args, before.as_ref());
    settings.check()?;
    let minutes = |flag: &'static str, value: f64| {
        let text = value.to_string();
        Duration::try_from_secs_f64(60.0 * value).map_err(|_| TrainingError::Setting {
            flag,
            value: text,
            expected: "minutes: a number of at least 0",
        })
    };
    let save_every = minutes("save-every", args.save_every)?;
    let sample_every = minutes("sample-every", args.sample_every)?;

    let init = match (&args.network.init, &before) {
        (Some(init), None) => {
            let spec: ModelSpec = init.parse()?;
            let options = LoadOptions {
                heads: args.network.heads,
                input_size: None,
            };
            Some(load_state(&spec, options)?)
        }
        // A run goes on from its own weights.
        _ => None,
    };
    let known = init
        .as_ref()
        .map(|state| &state.config)
        .or(before.as_ref().map(|b| &b.config));
    let data = read_data(&args, known, context)?;
    let start = match (init, &before) {
        (Some(state), _) => PretrainStart::From(Box::new(state)),
        (None, Some(before)) if !args.network.names_one() => {
            PretrainStart::Fresh(before.config.clone())
        }
        (None, _) => {
            let base = before.as_ref().map(|b| &b.config);
            PretrainStart::Fresh(args.network.config(&data, base)?)
        }
    };
    let config = start.config().clone();
    let options = PretrainOptions {
        folder,
        settings: settings.clone(),
        resume: args.resume,
        save_every,
        sample_every: (!sample_every.is_zero()).then_some(sample_every),
        dtype: match args.dtype {
            DtypeArg::F32 => StoredDtype::F32,
            DtypeArg::F16 => StoredDtype::F16,
        },
    };
    let mut run = PretrainRun::open(&data, start, options, engine.device())?;
    context.say(format!(
        "{} with {:.1} M weights; {} pictures of {:?} in {} classes{}",
        config.name(),
        config.parameters() as f64 / 1e6,
        data.len(),
        data.shape(),
        data.classes(),
        match data.skipped().len() {
            0 => String::new(),
            skipped => format!(", {skipped} more could not be read"),
        },
    ));
    train(&mut run, &settings, &args, context)?;
    report(&run, &data, engine.report(), &args, context);
    Ok(())
}

/// Polls the run to its end.
fn train(
    run: &mut PretrainRun<'_>,
    settings: &PretrainSettings,
    args: &Args,
    context: &Context,
) -> Result<(), CliError> {
    let mut meter = Meter::new(run, settings, context);
    loop {
        if context.check_interrupt().is_err() {
            run.save()?;
            meter.bar.abandon();
            context.say(format!(
                "stopped after {} steps, saved in {}; --resume goes on",
                run.learner().steps(),
                args.out.display()
            ));
            return Err(CliError::Interrupted);
        }
        match run.next().transpose()? {
            Some(PretrainEvent::Step(step)) => meter.step(run, &step),
            Some(PretrainEvent::Saved | PretrainEvent::Sampled) => {}
            None => break,
        }
    }
    meter.bar.finish_and_clear();
    Ok(())
}

/// The line that shows where the training stands.
struct Meter {
    bar: ProgressBar,
    timed: bool,
    /// Running means: the last hundred steps, roughly.
    mse: Option<f64>,
    rate: Option<f64>,
}

impl Meter {
    fn new(run: &PretrainRun<'_>, settings: &PretrainSettings, context: &Context) -> Self {
        let bar = match (settings.length, settings.steps()) {
            (_, Some(steps)) => progress(context, steps, "steps"),
            (Length::Minutes(minutes), None) => {
                progress(context, (60.0 * minutes).ceil() as u64, "s")
            }
            (_, None) => ProgressBar::hidden(),
        };
        let meter = Self {
            bar,
            timed: settings.steps().is_none(),
            mse: None,
            rate: None,
        };
        meter.place(run);
        meter.bar.reset_eta();
        meter
    }

    fn place(&self, run: &PretrainRun<'_>) {
        self.bar.set_position(if self.timed {
            run.seconds() as u64
        } else {
            run.learner().steps()
        });
    }

    fn step(&mut self, run: &PretrainRun<'_>, step: &PretrainStep) {
        let mean = |before: Option<f64>, new: f64| {
            Some(before.map_or(new, |before| before + 0.02 * (new - before)))
        };
        self.mse = mean(self.mse, step.mse);
        self.rate = mean(self.rate, step.images_per_second);
        self.place(run);
        let memory = peak_memory_bytes().map_or(String::new(), |bytes| {
            format!(" · {:.1} GB", bytes as f64 / 1e9)
        });
        self.bar.set_message(format!(
            "· {} pictures · mse {:.4} · {:.1} images/s{memory}",
            step.images,
            self.mse.unwrap_or(step.mse),
            self.rate.unwrap_or(step.images_per_second),
        ));
    }
}

fn report(
    run: &PretrainRun<'_>,
    data: &Dataset,
    device: &DeviceReport,
    args: &Args,
    context: &Context,
) {
    for skipped in data.skipped().iter().take(NAMED) {
        context.say(format!(
            "skipped {}: {}",
            skipped.path.display(),
            skipped.reason
        ));
    }
    if data.skipped().len() > NAMED {
        context.say(format!(
            "… and {} more (--json names all)",
            data.skipped().len() - NAMED
        ));
    }
    let (seconds, images) = (run.seconds(), run.images());
    let rate = images as f64 / seconds.max(1e-9);
    let peak = peak_memory_bytes();
    let folder = run.folder();
    context.say(format!(
        "{}: {} steps, {images} pictures in {:.1} min on {} ({}), {rate:.1} images/s{}",
        folder.model().display(),
        run.learner().steps(),
        seconds / 60.0,
        device.device,
        device.backend,
        peak.map_or(String::new(), |b| format!(
            ", peak memory {:.2} GB",
            b as f64 / 1e9
        )),
    ));
    context.say(format!(
        "draw with it: harmonica sample --model {}",
        folder.model().display()
    ));
    if args.json {
        let last = run.last_step();
        let config = run.learner().config();
        print_json(&json!({
            "device": device.device, "backend": device.backend, "model": config.name(),
            "parameters": config.parameters(), "pictures": data.len(), "classes": data.classes(),
            "skipped": data.skipped(), "steps": run.learner().steps(), "images": images, "seconds": seconds,
            "images_per_second": rate, "mse": last.map(|s| s.mse), "vlb": last.map(|s| s.vlb),
            "loss": last.map(|s| s.loss), "peak_memory_bytes": peak, "out": {
                "model": folder.model(), "checkpoint": folder.checkpoint(), "log": folder.log(),
                "curve": folder.curve(), "samples": folder.samples(),
            },
        }));
    }
}

/// What this command says, what the run said before, or the default.
fn settings(args: &Args, before: Option<&SavedRun>) -> PretrainSettings {
    let standard = PretrainSettings::default();
    let base = before.map_or(&standard, |saved| &saved.settings);
    let recipe = &args.recipe;
    let batch = recipe.batch.unwrap_or(base.batch);
    let fitting = if before.is_some() {
        base.micro_batch
    } else {
        batch.min(standard.micro_batch)
    };
    PretrainSettings {
        length: match &args.length {
            LengthArgs {
                minutes: Some(m), ..
            } => Length::Minutes(*m),
            LengthArgs {
                images: Some(n), ..
            } => Length::Images(*n),
            LengthArgs { steps: Some(n), .. } => Length::Steps(*n),
            _ => base.length,
        },
        batch,
        micro_batch: recipe.micro_batch.unwrap_or(fitting),
        lr: recipe.lr.unwrap_or(base.lr),
        warmup: recipe.warmup.unwrap_or(base.warmup),
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

/// Reads the pictures, with a bar.
fn read_data(
    args: &Args,
    known: Option<&DitConfig>,
    context: &Context,
) -> Result<Dataset, CliError> {
    let image_size = args.network.image_size.or(known.map(|c| c.input_size[0]));
    if image_size.is_some_and(|size| size == 0 || size > 1 << 14) {
        return Err(CliError::Usage(format!(
            "--image-size is {}, expected 1 to {}",
            image_size.unwrap_or_default(),
            1 << 14
        )));
    }
    if args.data_memory.is_nan() || args.data_memory < 0.0 {
        return Err(CliError::Usage(format!(
            "--data-memory is {}, expected a number of gigabytes of at least 0",
            args.data_memory
        )));
    }
    let options = DataOptions {
        image_size,
        memory: (args.data_memory * 1e9) as u64,
    };
    let bar = progress(context, 0, "pictures");
    let started = Instant::now();
    let data = Dataset::open(&args.data, &options, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        match context.check_interrupt() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    bar.finish_and_clear();
    match data {
        Ok(data) => {
            tracing::debug!(seconds = started.elapsed().as_secs_f64(), "read the data");
            Ok(data)
        }
        Err(DataError::Stopped) => Err(CliError::Interrupted),
        Err(e) => Err(TrainingError::from(e).into()),
    }
}

impl NetworkArgs {
    /// Whether the command says anything about the network.
    fn names_one(&self) -> bool {
        self.size.is_some()
            || [self.blocks, self.hidden, self.heads, self.patch]
                .iter()
                .any(Option::is_some)
    }

    /// The network for this data; what is not said is as in `base`.
    fn config(&self, data: &Dataset, base: Option<&DitConfig>) -> Result<DitConfig, CliError> {
        let [channels, height, width] = data.shape();
        let size = [height, width];
        let usage = |e: crate::dit::ConfigError| CliError::Usage(e.to_string());
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
