//! `harmonica train vae`

use std::path::PathBuf;

use indicatif::ProgressBar;
use serde_json::json;

use super::{
    Context, again,
    error::CliError,
    options::{DeviceArgs, DtypeArg, parse_seed, parse_switch, print_json},
    progress::progress,
    training_data::{LengthArgs, TrainingPictures, minutes, place_of_data},
};
use crate::{
    checkpoint::StoredDtype,
    metrics::peak_memory_bytes,
    models::vae::{KlConfig, Vae, VaeConfig},
    training::network::{
        Length,
        autoencoder::{
            SavedVae, VaeEvent, VaeFolder, VaeOptions, VaeRun, VaeSettings, VaeStart, VaeStep,
        },
    },
    words::counted,
};

const EXAMPLES: &str = "\
Examples:
  harmonica train vae --data pictures --image-size 128 --minutes 60
  harmonica train vae --resume --minutes 120           goes on in vae/
  harmonica train dit --data pictures --image-size 128 --vae vae --patch 2";

/// Widths of an autoencoder that names none: a laptop learns it in hours.
const WIDTHS: [usize; 4] = [16, 16, 32, 64];
/// Groups of its norms.
const GROUPS: usize = 8;

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(super) struct Args {
    /// Pictures: a folder with one sub-folder a class, an atlas (a folder with classes.json), or a flat folder [default with
    /// --resume: what the run began with]
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "resume",
        help_heading = "Data"
    )]
    data: Option<PathBuf>,
    /// Side of the pictures in pixels [default: an atlas's own tiles, otherwise the pictures' own up to 64]
    #[arg(long, value_name = "N", help_heading = "Data")]
    image_size: Option<usize>,
    /// Gigabytes of pictures to keep in memory; more than that goes to a temporary file
    #[arg(long, value_name = "GB", default_value_t = 2.0, help_heading = "Data")]
    data_memory: f64,
    /// Folder of the run, which `--vae` takes: config.json, diffusion_pytorch_model.safetensors, autoencoder.safetensors (the
    /// training state), train.jsonl, curve.png, samples.png
    #[arg(
        long,
        value_name = "DIR",
        default_value = "vae",
        help_heading = "Output"
    )]
    out: PathBuf,
    /// Minutes between checkpoints
    #[arg(
        long,
        value_name = "MINUTES",
        default_value_t = 5.0,
        help_heading = "Output"
    )]
    save_every: f64,
    /// Element type of the autoencoder's file [default: f32]
    #[arg(long, value_name = "f32|f16", value_enum, help_heading = "Output")]
    dtype: Option<DtypeArg>,
    /// Go on with the run in --out; what is not said again stays as it was
    #[arg(long, help_heading = "Output")]
    resume: bool,
    /// One JSON document on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    length: LengthArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
}

/// The network.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Network")]
struct NetworkArgs {
    /// Channels of each stage, from the picture inwards; every stage but the last halves the size [default: 16,16,32,64]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    widths: Vec<usize>,
    /// Residual layers of a stage of the encoder; the decoder has one more [default: 1]
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Channels of the latents [default: 4]
    #[arg(long, value_name = "N")]
    latent_channels: Option<usize>,
    /// Groups of the norms, which divide every width [default: 8]
    #[arg(long, value_name = "N")]
    groups: Option<usize>,
    /// Start from the weights of an AutoencoderKL instead of random ones: any that `sample --vae` takes
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["widths", "layers", "latent_channels", "groups", "resume"])]
    init: Option<PathBuf>,
}

/// How.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Recipe")]
struct RecipeArgs {
    /// Pictures an optimizer step [default: 16]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Highest learning rate [default: 2e-3]
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
    /// Decay of the moving average of the weights, which is the autoencoder that is written [default: 0.999]
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
    /// Largest norm of the gradient [default: 1]
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// Weight of the latents' divergence to N(0, 1), a number of them: smoother latents for softer pictures [default: 1e-3]
    #[arg(long, value_name = "WEIGHT")]
    kl_weight: Option<f64>,
    /// Weight of the error of edges, at three sizes, beside that of pixels [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    gradient_weight: Option<f64>,
    /// Weight of the squared error of areas (means of 4×4 pixels), which is mostly colour [default: 4]
    #[arg(long, value_name = "WEIGHT")]
    area_weight: Option<f64>,
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
    /// Seed of weights, order, augmentation and noise [default: 0]
    #[arg(long, value_parser = parse_seed)]
    seed: Option<u64>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let folder = VaeFolder::new(&args.out);
    // A resumed run keeps what this command does not name.
    let before = match folder.check(args.resume)? {
        true => Some(SavedVae::read(&folder.checkpoint())?),
        false => None,
    };
    let settings = settings(&args, before.as_ref());
    settings.check()?;
    let start = match (&args.network.init, &before) {
        (Some(init), None) => {
            let (config, weights) = Vae::read_weights(init)?;
            VaeStart::From(config, weights)
        }
        // A run goes on from its own weights.
        _ => VaeStart::Fresh(args.network.config(before.as_ref())),
    };
    let vae = VaeConfig::Kl(start.config().clone());
    vae.check().map_err(CliError::Usage)?;
    let save_every = minutes("save-every", args.save_every)?;
    let lay = before.as_ref().and_then(|saved| saved.data_path.as_deref());
    let place = place_of_data(args.data.as_deref(), lay, &args.out)?;
    let known = before.as_ref().and_then(|saved| saved.image_size);
    let wanted = TrainingPictures {
        image_size: args.image_size.or(known),
        factor: vae.factor(),
        patch: 1,
        memory: args.data_memory,
    };
    let engine = args.device.open(context)?;
    let data = wanted.read(&place, context)?;
    let options = VaeOptions {
        folder,
        settings: settings.clone(),
        resume: args.resume,
        save_every,
        dtype: match args.dtype {
            Some(dtype) => dtype.into(),
            None => before.map_or(StoredDtype::F32, |saved| saved.dtype),
        },
    };
    context.something_is_at_stake();
    let mut run = VaeRun::open(&data, start, options, engine.device())?.with_engine(&engine);
    let [_, height, width] = data.shape();
    context.say(format!(
        "AutoencoderKL with {:.2} M weights; {} of {width}×{height} pixels to latents [{}, {}, {}]; {}",
        run.learner().parameters() as f64 / 1e6,
        counted(data.len(), "picture"),
        vae.latent_channels(),
        height / vae.factor(),
        width / vae.factor(),
        match settings.length {
            Length::Minutes(minutes) => format!("{minutes} min (--minutes)"),
            Length::Images(images) => counted(images, "training picture"),
            Length::Steps(steps) => counted(steps, "step"),
        },
    ));
    train(&mut run, &settings, &args, context)?;
    let (seconds, images, peak) = (run.seconds(), run.images(), peak_memory_bytes());
    let report = engine.report();
    context.say(format!(
        "{}: {}, {} in {:.1} min on {} ({}), {:.1} images/s{}",
        args.out.display(),
        counted(run.learner().steps(), "step"),
        counted(images, "picture"),
        seconds / 60.0,
        report.device,
        report.backend,
        images as f64 / seconds.max(1e-9),
        peak.map_or(String::new(), |b| format!(
            ", peak memory {:.2} GB",
            b as f64 / 1e9
        )),
    ));
    context.say(format!(
        "next: harmonica train dit --data {} --image-size {width} --vae {} --patch 2",
        again::path(&place),
        again::path(&args.out)
    ));
    if args.json {
        let (last, folder) = (run.last_step(), run.folder());
        print_json(&json!({
            "device": report.device, "backend": report.backend, "parameters": run.learner().parameters(),
            "pictures": data.len(), "skipped": data.skipped(), "steps": run.learner().steps(), "images": images,
            "seconds": seconds, "images_per_second": images as f64 / seconds.max(1e-9),
            "loss": last.map(|s| s.loss), "error": last.map(|s| s.error), "edges": last.map(|s| s.edges), "areas": last.map(|s| s.areas),
            "kl": last.map(|s| s.kl), "peak_memory_bytes": peak, "out": {
                "vae": folder.path(), "checkpoint": folder.checkpoint(), "log": folder.log(),
                "curve": folder.curve(), "samples": folder.samples(),
            },
        }));
    }
    Ok(())
}

/// Polls the run to its end.
fn train(
    run: &mut VaeRun<'_>,
    settings: &VaeSettings,
    args: &Args,
    context: &Context,
) -> Result<(), CliError> {
    let bar = match (settings.length, settings.length.steps(settings.batch)) {
        (_, Some(steps)) => progress(context, steps, "steps"),
        (Length::Minutes(minutes), None) => progress(context, (60.0 * minutes).ceil() as u64, "s"),
        (_, None) => ProgressBar::hidden(),
    };
    let timed = settings.length.steps(settings.batch).is_none();
    let place = |run: &VaeRun<'_>| {
        bar.set_position(match timed {
            true => run.seconds() as u64,
            false => run.learner().steps(),
        });
    };
    place(run);
    bar.reset_eta();
    let mut mean: Option<[f64; 2]> = None;
    loop {
        if context.check_interrupt().is_err() {
            run.save()?;
            bar.abandon();
            context.say(format!(
                "stopped after {}, saved in {}; harmonica train vae --resume --out {} goes on",
                counted(run.learner().steps(), "step"),
                args.out.display(),
                again::path(&args.out),
            ));
            return Err(CliError::Interrupted);
        }
        match run.next().transpose()? {
            Some(VaeEvent::Step(step)) => {
                let VaeStep {
                    error,
                    images_per_second,
                    ..
                } = step;
                let [error, rate] = mean.map_or([error, images_per_second], |[e, r]| {
                    [e + 0.02 * (error - e), r + 0.02 * (images_per_second - r)]
                });
                mean = Some([error, rate]);
                place(run);
                bar.set_message(format!(
                    "· {} · error {error:.4} · kl {:.2} · {rate:.1} images/s",
                    counted(step.images, "picture"),
                    step.kl
                ));
            }
            Some(VaeEvent::Saved) => {}
            None => break,
        }
    }
    bar.finish_and_clear();
    Ok(())
}

impl NetworkArgs {
    fn config(&self, before: Option<&SavedVae>) -> KlConfig {
        let base = before.map_or_else(
            || KlConfig {
                block_out_channels: WIDTHS.to_vec(),
                norm_num_groups: GROUPS,
                ..KlConfig::default()
            },
            |saved| saved.config.clone(),
        );
        let widths = match self.widths.is_empty() {
            true => base.block_out_channels.clone(),
            false => self.widths.clone(),
        };
        KlConfig {
            down_block_types: vec!["DownEncoderBlock2D".into(); widths.len()],
            up_block_types: vec!["UpDecoderBlock2D".into(); widths.len()],
            block_out_channels: widths,
            layers_per_block: self.layers.unwrap_or(base.layers_per_block),
            latent_channels: self.latent_channels.unwrap_or(base.latent_channels),
            norm_num_groups: self.groups.unwrap_or(base.norm_num_groups),
            ..base
        }
    }
}

/// What the command says, over what the run had, over the defaults.
fn settings(args: &Args, before: Option<&SavedVae>) -> VaeSettings {
    let base = before.map_or_else(VaeSettings::default, |saved| saved.settings.clone());
    let recipe = &args.recipe;
    VaeSettings {
        length: args.length.length().unwrap_or(base.length),
        batch: recipe.batch.unwrap_or(base.batch),
        lr: recipe.lr.unwrap_or(base.lr),
        warmup: recipe.warmup.or(base.warmup),
        beta1: recipe.beta1.unwrap_or(base.beta1),
        beta2: recipe.beta2.unwrap_or(base.beta2),
        ema: recipe.ema.unwrap_or(base.ema),
        clip: recipe.clip.unwrap_or(base.clip),
        kl_weight: recipe.kl_weight.unwrap_or(base.kl_weight),
        gradient_weight: recipe.gradient_weight.unwrap_or(base.gradient_weight),
        area_weight: recipe.area_weight.unwrap_or(base.area_weight),
        flip: recipe.flip.unwrap_or(base.flip),
        no_flip: match recipe.no_flip.is_empty() {
            true => base.no_flip,
            false => recipe.no_flip.clone(),
        },
        shift: recipe.shift.unwrap_or(base.shift),
        balance: recipe.balance.unwrap_or(base.balance),
        seed: recipe.seed.unwrap_or(base.seed),
    }
}
