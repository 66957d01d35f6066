//! `harmonica train dit`

mod options;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use serde_json::json;

use super::{
    Context, again,
    error::CliError,
    options::{DeviceArgs, DtypeArg, print_json},
    progress::progress,
    training_data::{self, LengthArgs, TrainingPictures, minutes, place_of_data},
};
use crate::{
    checkpoint::{LoadOptions, ModelSpec, StateDict, StoredDtype, load_state},
    device::{DeviceReport, Engine},
    metrics::peak_memory_bytes,
    models::vae::Vae,
    training::{
        TrainingError,
        network::{
            Dataset, Length, PretrainEvent, PretrainFolder, PretrainOptions, PretrainRun,
            PretrainSettings, PretrainStart, PretrainStep, SavedRun,
        },
    },
    words::counted,
};
use options::{NetworkArgs, RecipeArgs, settings};

/// Skipped pictures that are named; the rest is counted.
const NAMED: usize = 10;

/// Steps of a fresh network that draws more than noise.
const FEWEST_STEPS: u64 = 300;
/// Cells along a patch of the published sizes at most.
const LARGEST_PATCH: usize = 8;

/// Fewer pictures than these are learned by heart, which nobody should wait an hour for unasked.
const FEWEST: usize = 16;

const EXAMPLES: &str = "\
Examples:
  harmonica train dit --data pictures --minutes 60     a sub-folder a class
  harmonica train dit --data pictures --init bundled   few pictures, little time
  harmonica train dit --resume --minutes 90            goes on in dit/
  harmonica sample --model dit/model.safetensors";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(super) struct Args {
    /// Pictures: a folder with one sub-folder a class, an atlas (a folder with classes.json), a flat folder (no
    /// classes), or a .safetensors file with `latents` [N,C,H,W] and `labels` [N] [default with --resume: what the run began
    /// with]
    #[arg(
        long,
        value_name = "DIR|FILE",
        required_unless_present = "resume",
        help_heading = "Data"
    )]
    data: Option<PathBuf>,
    /// Learn latents of the pictures instead of pixels: the autoencoder that makes them (a diffusers folder, or a file of an
    /// AutoencoderKL or of TAESD); `sample --vae` takes the same one [default with --resume: what the run began with]
    #[arg(long, value_name = "FILE|DIR", help_heading = "Data")]
    vae: Option<PathBuf>,
    /// Gigabytes of pictures to keep in memory; more than that goes to a temporary file
    #[arg(long, value_name = "GB", default_value_t = 2.0, help_heading = "Data")]
    data_memory: f64,
    /// Folder of the run: model.safetensors, checkpoint.safetensors, train.jsonl, curve.png, samples.png; with --vae also
    /// latents.safetensors, what pictures were made into, so that it is done once
    #[arg(
        long,
        value_name = "DIR",
        default_value = "dit",
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
    /// Minutes between sample grids; 0 draws one at the end only
    #[arg(
        long,
        value_name = "MINUTES",
        default_value_t = 10.0,
        help_heading = "Output"
    )]
    sample_every: f64,
    /// Element type of model.safetensors [default: f32]
    #[arg(long, value_name = "f32|f16", value_enum, help_heading = "Output")]
    dtype: Option<DtypeArg>,
    /// Go on with the run in --out; of data, network, recipe and --dtype, what is not said again stays as it was
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

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let folder = PretrainFolder::new(&args.out);
    // A resumed run keeps the settings that this command does not name.
    let before = match folder.check(args.resume)? {
        true => Some(SavedRun::read(&folder.checkpoint())?),
        false => None,
    };
    let settings = settings(&args.length, &args.recipe, before.as_ref());
    settings.check()?;
    let save_every = minutes("save-every", args.save_every)?;
    let sample_every = minutes("sample-every", args.sample_every)?;

    let lay = before.as_ref().and_then(|saved| saved.data_path.as_deref());
    let place = place_of_data(args.data.as_deref(), lay, &args.out)?;
    if PretrainFolder::new(&place).checkpoint().exists() {
        return Err(CliError::Usage(format!(
            "{} is the folder of a training: expected pictures; `train dit --resume --out {}` goes on with it",
            place.display(),
            again::path(&place)
        )));
    }
    let engine = args.device.open(context)?;

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
    let vae = autoencoder(&args, before.as_ref(), &place, &engine)?;
    let factor = vae.as_ref().map_or(1, |vae| vae.config().factor());
    let before_config = before.as_ref().map(|saved| &saved.config);
    let known = init.as_ref().map(|state| &state.config).or(before_config);
    // A network of pixels that goes on with latents does not know the size of the pictures that they are made of.
    let channels = vae.as_ref().map(|vae| vae.config().latent_channels());
    let known = known.filter(|config| channels.is_none_or(|channels| channels == config.channels));
    let known = known.map(|config| config.input_size[0] * factor);
    let wanted = TrainingPictures {
        image_size: args.network.image_size.or(known),
        factor,
        patch: LARGEST_PATCH,
        memory: args.data_memory,
    };
    let data = wanted.read(&place, context)?;
    if data.len() < FEWEST && before.is_none() && args.length.length().is_none() {
        return Err(CliError::Usage(format!(
            "{} holds {}, which a network learns by heart: expected at least {FEWEST} for the usual hour; pass --minutes, --images or --steps to train on fewer",
            place.display(),
            counted(data.len(), "picture"),
        )));
    }
    let data = match &vae {
        Some(vae) => encoded(data, vae, &settings, &folder, context)?,
        None => data,
    };
    let start = match (init, &before) {
        (Some(state), _) => PretrainStart::From(Box::new(fitted(
            state,
            &data,
            args.network.patch,
            settings.seed,
            context,
        )?)),
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
            Some(dtype) => dtype.into(),
            None => before.map_or(StoredDtype::F32, |saved| saved.dtype),
        },
        vae,
    };
    context.something_is_at_stake();
    let mut run = PretrainRun::open(&data, start, options, engine.device())?
        .with_engine(&engine)
        .with_stop(context.stop());
    context.say(format!(
        "{} with {:.2} M weights; {} of {:?} in {}{}; {}",
        config.name(),
        config.parameters() as f64 / 1e6,
        counted(data.len(), "picture"),
        data.shape(),
        counted(data.classes(), "class"),
        match data.skipped().len() {
            0 => String::new(),
            skipped => format!(", {skipped} more could not be read"),
        },
        match settings.length {
            Length::Minutes(minutes) => format!("{minutes} min (--minutes)"),
            Length::Images(images) => counted(images, "training picture"),
            Length::Steps(steps) => counted(steps, "step"),
        },
    ));
    name_skipped(&data, context);
    let begun = run.learner().steps();
    train(&mut run, &settings, &args, context)?;
    if begun > 0 && run.learner().steps() == begun {
        context.say(format!(
            "the run in {} was at its end: a larger --minutes, --images or --steps goes on",
            args.out.display()
        ));
    }
    let drew_before = begun > 0 || args.network.init.is_some();
    if !drew_before && run.learner().steps() < FEWEST_STEPS {
        context.say(format!(
            "warning: after {} a network draws noise: shapes come within some thousand, an hour for a small one; --init bundled begins with one that draws",
            counted(run.learner().steps(), "step")
        ));
    }
    report(&run, &data, engine.report(), &args, context);
    Ok(())
}

/// What makes latents of the pictures: what the command names, or what the run began with.
fn autoencoder(
    args: &Args,
    before: Option<&SavedRun>,
    place: &Path,
    engine: &Engine,
) -> Result<Option<Vae>, CliError> {
    if let Some(path) = &args.vae {
        return Ok(Some(Vae::open(path, engine.device())?));
    }
    let Some(before) = before else {
        return Ok(None);
    };
    match &before.vae_path {
        Some(path) => {
            let vae = Vae::open(Path::new(path), engine.device());
            let moved = |e| {
                CliError::Usage(format!(
                    "the autoencoder that the run in {} began with: {e}; pass --vae where it lies now",
                    args.out.display()
                ))
            };
            Ok(Some(vae.map_err(moved)?))
        }
        None if before.config.channels != 3 && place.is_dir() => Err(CliError::Usage(format!(
            "the run in {} learns latents of pictures, and does not say by which autoencoder: pass --vae",
            args.out.display()
        ))),
        None => Ok(None),
    }
}

/// A model's weights for this data, which may be of other classes, of another size or of other channels than the model's own.
fn fitted(
    state: StateDict,
    data: &Dataset,
    patch: Option<usize>,
    seed: u64,
    context: &Context,
) -> Result<StateDict, CliError> {
    let (classes, names) = (state.class_names.clone(), data.class_names());
    let (state, known) = state.for_classes(names, seed)?;
    if state.class_names != classes {
        context.say(format!(
            "--init knows {known} of {} by their names{}",
            counted(names.len(), "class"),
            match names.len() - known {
                0 => String::new(),
                others => format!("; {others} begin anew"),
            }
        ));
    }
    let (before, shape) = (state.config.clone(), data.shape());
    let patch = patch.unwrap_or(before.patch);
    if (before.image_shape(), before.patch) == (shape, patch) {
        return Ok(state);
    }
    let (state, begun) = state.for_pictures(shape, patch, seed)?;
    context.say(format!(
        "--init was trained on {:?} in patches of {}, this data is {shape:?} in patches of {patch}: {}",
        before.image_shape(),
        before.patch,
        match begun.is_empty() {
            true => "all of its weights are kept".into(),
            false => format!("{} begin anew, all else is kept", begun.join(", ")),
        }
    ));
    Ok(state)
}

/// Says what could not be read.
fn name_skipped(data: &Dataset, context: &Context) {
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
        let event = match context.check_interrupt() {
            Ok(()) => run.next().transpose(),
            Err(_) => Err(TrainingError::Stopped),
        };
        if matches!(event, Err(TrainingError::Stopped)) {
            run.save()?;
            meter.bar.abandon();
            // A path that is no text is not remembered.
            let vae = args.vae.as_deref().filter(|path| path.to_str().is_none());
            let vae = vae.map_or(String::new(), |vae| format!(" --vae {}", again::path(vae)));
            context.say(format!(
                "stopped after {}, saved in {}; harmonica train dit --resume --out {}{vae} goes on",
                counted(run.learner().steps(), "step"),
                args.out.display(),
                again::path(&args.out),
            ));
            return Err(CliError::Interrupted);
        }
        match event? {
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
            "· {} · mse {:.4} · {:.1} images/s{memory}",
            counted(step.images, "picture"),
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
    let (seconds, images) = (run.seconds(), run.images());
    let rate = images as f64 / seconds.max(1e-9);
    let peak = peak_memory_bytes();
    let folder = run.folder();
    context.say(format!(
        "{}: {}, {} in {:.1} min on {} ({}), {rate:.1} images/s{}",
        folder.model().display(),
        counted(run.learner().steps(), "step"),
        counted(images, "picture"),
        seconds / 60.0,
        device.device,
        device.backend,
        peak.map_or(String::new(), |b| format!(
            ", peak memory {:.2} GB",
            b as f64 / 1e9
        )),
    ));
    let (steps, warmup) = (run.learner().steps(), run.learner().settings().warmup);
    if let Some(warmup) = warmup.filter(|warmup| *warmup > steps) {
        context.say(format!(
            "warning: the learning rate was still rising when the run ended: --warmup is {warmup}, the run had {}",
            counted(steps, "step")
        ));
    }
    context.say(format!(
        "draw with it: harmonica sample --model {}",
        again::path(&folder.model())
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

/// The pictures' latents, with a bar; those that the run keeps, where they are of the same pictures and autoencoder.
fn encoded(
    data: Dataset,
    vae: &Vae,
    settings: &PretrainSettings,
    folder: &PretrainFolder,
    context: &Context,
) -> Result<Dataset, CliError> {
    let bar = progress(context, data.len() as u64, "pictures encoded");
    let kept = folder.latents();
    let latents = data.encoded(vae, settings.flip, Some(&kept), &mut |done, _| {
        bar.set_position(done as u64);
        match context.check_interrupt() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    bar.finish_and_clear();
    training_data::read(latents)
}
