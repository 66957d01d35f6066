//! `harmonica sample`

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::json;

use super::{
    Context,
    class_names::class_named,
    draw::draw_each,
    dry_run,
    error::CliError,
    measure::check_outputs,
    options::{CacheArgs, ModelArgs, Session, SessionArgs, parse_seed, print_json},
    pictures::{Out, Pictures},
    progress::progress,
    ranks::of_all,
    recipe::Recipe,
    schedules::ScheduleArgs,
};
use crate::{
    checkpoint::{self, CheckpointError, Kept, ModelInfo, StoredDtype, write_safetensors},
    device::LaunchCount,
    models::Condition,
    pipeline::{Decoder, Pipeline},
    ranks::RanksError,
    report::comparison::warnings,
    sampler::{BATCH_BYTES, Request, Settings, Totals},
    words::counted,
};

/// More images than a run keeps in memory.
pub(super) const MAX_COUNT: usize = 100_000;
/// Without `--classes` or `--count`, a model of many classes shows this many of them.
pub(super) const DEFAULT_COUNT: usize = 46;
/// Pixels of a file whose pictures were enlarged.
const MAX_PIXELS: usize = 1 << 26;

const EXAMPLES: &str = "\
Examples:
  harmonica sample                        a grid of emoji into harmonica.png
  harmonica sample --classes face-3d,animal-flat -n 8 -s 7 -o eight.webp
  harmonica sample --from harmonica.png --steps 50 -o finer.png
  harmonica sample --model facebook/DiT-XL-2-256 --classes 207 --steps 50";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, next_help_heading = "Pictures", allow_negative_numbers = true)]
pub(super) struct Args {
    /// Classes to draw, by name or number, separated by commas [default: the first 46, in turn]
    #[arg(long, value_name = "A,B,…", value_delimiter = ',')]
    pub(super) classes: Vec<String>,
    /// Number of images; classes repeat in turn [default: one a class, at most 46]
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) count: Option<usize>,
    /// Seed of the noise
    #[arg(short, long, default_value_t = 0, value_parser = parse_seed)]
    seed: u64,
    /// Number of the first image: image N draws the N-th noise of the seed
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "noise")]
    first: u64,
    /// Images at a time [default: what fits in 1 GiB, at most 16]
    #[arg(long, value_name = "N")]
    pub(super) batch: Option<usize>,
    /// A .png, .jpg or .webp for the picture, or for a labelled grid of several; - for a PNG on stdout; anything else is a folder
    /// of single pictures
    #[arg(
        short,
        long,
        value_name = "FILE|DIR|-",
        default_value = "harmonica.png",
        help_heading = "Output"
    )]
    out: PathBuf,
    /// A labelled grid, even of one picture
    #[arg(long, help_heading = "Output")]
    grid: bool,
    /// Show every pixel as a square of N×N [default: 1; in a grid, what makes small pictures 96 pixels wide]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32), help_heading = "Output")]
    enlarge: Option<u32>,
    /// Draw a PNG again that this command wrote: model, seed, class and settings are the picture's where no flag says otherwise
    #[arg(long, value_name = "FILE.png")]
    pub(super) from: Option<PathBuf>,
    /// Say what the run would take on the device, part by part, and draw nothing; no weight is read
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Starting noise: a safetensors file with `noise` [B,C,H,W] and, if it is to choose classes, `labels` [B]
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Also write the final images, as floats, as tensor `samples` [B,C,H,W]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    save_tensors: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) schedule: ScheduleArgs,
    #[command(flatten)]
    pub(super) session: SessionArgs,
    #[command(flatten)]
    pub(super) cache: CacheArgs,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.dry_run {
        return dry_run::run(&args, context);
    }
    let out = Out::of(&args.out, args.grid, args.json)?;
    let Session {
        pipeline,
        settings,
        seconds_load,
    } = args.session.open_drawing(context)?;
    let (engine, info) = (&pipeline.engine, &pipeline.info);

    if let Some(picture) = &args.from {
        let drawn_by = Recipe::read(picture)?.fingerprint;
        if drawn_by != info.fingerprint.to_string() {
            context.say(format!(
                "warning: weights {drawn_by} drew {}, these are {}: expect another picture",
                picture.display(),
                info.fingerprint
            ));
        }
    }

    let given = args
        .noise
        .as_deref()
        .map(|path| read_noise(path, info))
        .transpose()?;
    let (noise, conditions) = match given {
        Some((noise, labels)) => {
            let count = noise.len() / info.outline.latents.shape().iter().product::<usize>();
            if args.count.is_some_and(|c| c != count) {
                return Err(CliError::Usage(format!(
                    "--count contradicts --noise, which holds {count} images"
                )));
            }
            let labels = match labels {
                Some(_) if !args.classes.is_empty() => {
                    return Err(CliError::Usage(
                        "--classes contradicts the labels in the --noise file".into(),
                    ));
                }
                Some(labels) => Condition::classes(&labels),
                None => choose(&args.classes, Some(count), &pipeline)?,
            };
            (Some(noise), labels)
        }
        None => (None, choose(&args.classes, args.count, &pipeline)?),
    };

    if let Some(left_out) = left_out(&args.classes, conditions.len()) {
        context.say(left_out);
    }
    let size = pipeline.decoder.picture_size(info.outline.latents.shape());
    let in_a_file = match out {
        Out::Folder(_) => 1,
        _ => conditions.len(),
    };
    check_enlarged(args.enlarge, size, in_a_file)?;
    // A place that cannot be written is found out before the work, not after it.
    check_outputs(out.first().iter().chain(&args.save_tensors))?;

    let chosen = args.schedule.resolve(&pipeline, &settings, context)?;
    let recipe = recipe(&args, &pipeline, &settings, &chosen.name, conditions.len());
    let settings = chosen.settings;
    let sampler = pipeline
        .sampler(settings, Some(chosen.reuse))?
        .with_cache_dtype(args.cache.cache_dtype)
        .with_stop(context.stop());
    let ranks = &context.ranks;
    let fitting = || {
        sampler
            .batch_within(BATCH_BYTES)
            .min(conditions.len().div_ceil(ranks.size()).max(1))
    };
    let batch = args.batch.unwrap_or_else(fitting);
    let own = ranks.share(conditions.len(), batch);
    let numbers = info.outline.latents.numbers();
    let request = Request {
        conditions: conditions[own.clone()].to_vec(),
        seed: args.seed,
        first: args.first.wrapping_add(own.start as u64),
        noise: noise.map(|mut noise| {
            noise.truncate(own.end * numbers);
            noise.split_off(own.start * numbers)
        }),
        batch,
    };
    let launches = LaunchCount::start();
    let steps = match own.is_empty() {
        true => None,
        false => Some(sampler.run(request)?),
    };
    let bar = progress(context, (own.len() * settings.steps) as u64, "image steps");
    let started = Instant::now();
    let mut pictures = Pictures {
        out: &out,
        decoder: &pipeline.decoder,
        enlarge: args.enlarge,
        info,
        conditions: &conditions,
        recipe,
        waiting: Vec::new(),
        files: Vec::new(),
        seconds: 0.0,
    };
    let mut values = Vec::new();
    let take = |first, x0: Vec<f32>| {
        pictures.take(own.start + first, &x0, context)?;
        if args.save_tensors.is_some() {
            values.extend(x0);
        }
        Ok(())
    };
    let drawn = match steps {
        Some(steps) => draw_each(steps, &bar, |images| images as u64, context, take),
        None => Ok(Totals::default()),
    };
    let of_own = |totals: Totals| -> Result<_, RanksError> {
        let seconds = started.elapsed().as_secs_f64();
        let dispatches = ranks.sum(vec![launches.finish(engine)])?[0];
        Ok((of_all(totals, ranks)?, dispatches, seconds))
    };
    let drawn = drawn.and_then(|totals| Ok(of_own(totals)?));
    let (totals, dispatches, seconds) = match drawn {
        Ok(drawn) => drawn,
        Err(error) => {
            bar.abandon();
            keep_finished(&mut pictures, &args, context)?;
            return Err(error);
        }
    };
    bar.finish_and_clear();
    let seconds_decoding = pictures.seconds;
    let seconds = seconds - seconds_decoding;

    pictures.gather(ranks)?;
    let mut values = ranks.gather_numbers(values)?;
    if !ranks.leads() {
        return Ok(());
    }
    pictures.finish(args.grid)?;
    let files = std::mem::take(&mut pictures.files);
    if let Some(path) = &args.save_tensors {
        let [c, h, w] = info.outline.latents.shape();
        let shapes = [("samples".to_owned(), vec![conditions.len(), c, h, w])];
        let values = || Ok(std::mem::take(&mut values));
        write_safetensors(path, &shapes, None, StoredDtype::F32, values)?;
    }

    let report = engine.report();
    if !info.is_pixel_space() && matches!(pipeline.decoder, Decoder::Direct) {
        context.say("this model draws latents; the picture is a rough preview of them (--vae makes the real one, --save-tensors keeps the values)");
    }
    let [width, height] = size;
    context.say(format!(
        "{}: {} of {width}×{height} by {} in {:.1} s on {} ({}): {:.1} ms a step and image, {:.2} images/s",
        args.out.display(),
        counted(conditions.len(), "image"),
        info.outline.name,
        seconds,
        report.device,
        report.backend,
        1000.0 * seconds / (conditions.len() * settings.steps) as f64,
        conditions.len() as f64 / seconds,
    ));
    context.say(format!(
        "schedule {}: {:.1} % of branches reused (CUR), {:.2} times fewer multiplications (MACs ratio), cache {:.1} MB",
        chosen.name,
        100.0 * totals.cur(),
        totals.macs_ratio(),
        totals.peak_cache_bytes as f64 / 1e6,
    ));
    if matches!(pipeline.decoder, Decoder::Vae(..)) {
        context.say(format!(
            "decoded in {seconds_decoding:.1} s: {:.2} s an image",
            seconds_decoding / conditions.len() as f64
        ));
    }
    let resident = &info.resident;
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    if resident.host_bytes > 0 {
        context.say(format!(
            "weights: {} on the device, {} on the host; {} sent",
            gigabytes(resident.device_bytes),
            gigabytes(resident.host_bytes),
            gigabytes(resident.sent_bytes()),
        ));
    }
    for warning in warnings(
        &chosen.name,
        chosen.origin,
        sampler.reuse(),
        totals.reused,
        None,
    ) {
        context.say(format!("warning: {warning}"));
    }
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name,
            "fingerprint": info.fingerprint.to_string(), "seed": args.seed, "first": args.first,
            "solver": settings.solver.to_string(), "guidance": settings.guidance.scale(),
            "steps": settings.steps, "images": conditions.len(), "batch": batch, "ranks": ranks.size(),
            "seconds_load": seconds_load, "seconds_sampling": seconds, "seconds_decoding": seconds_decoding,
            "schedule": chosen.name, "cur": totals.cur(), "macs_full": totals.macs_full, "macs": totals.macs,
            "peak_cache_bytes": totals.peak_cache_bytes, "cache_dtype": args.cache.cache_dtype.to_string(), "dispatches": dispatches, "out": args.out,
            "files": files, "weights": resident.kept, "weights_device_bytes": resident.device_bytes, "weights_host_bytes": resident.host_bytes,
            "sent_bytes": resident.sent_bytes(),
        }));
    }
    Ok(())
}

/// After a run that broke off: pictures that were finished are not lost.
fn keep_finished(pictures: &mut Pictures, args: &Args, context: &Context) -> Result<(), CliError> {
    // Of a grid the first rank's images are the beginning.
    if !context.ranks.leads() {
        return Ok(());
    }
    let finished = pictures.waiting.len() + pictures.files.len();
    if finished == 0 {
        return Ok(());
    }
    pictures.finish(args.grid)?;
    context.say(format!(
        "{finished} of {} {} in {}",
        counted(pictures.conditions.len(), "image"),
        if finished == 1 { "lies" } else { "lie" },
        args.out.display()
    ));
    Ok(())
}

/// How to draw this run again; none where its noise came from a file.
fn recipe(
    args: &Args,
    pipeline: &Pipeline,
    settings: &Settings,
    chosen: &str,
    count: usize,
) -> Option<Recipe> {
    let (format, version) = Recipe::here();
    let model: &ModelArgs = &args.session.model;
    let named = args.schedule.schedule.is_some() || args.schedule.speed.is_some();
    let given = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let kept = pipeline.info.resident.kept;
    let switch = if settings.clip_x0 { "on" } else { "off" };
    let recipe = Recipe {
        format,
        version,
        model: model.model.clone(),
        fingerprint: pipeline.info.fingerprint.to_string(),
        classes: Vec::new(),
        prompts: Vec::new(),
        negative_prompt: model.text.negative_prompt.clone(),
        text_encoder: given(&model.text.text_encoder),
        texts: given(&model.texts),
        seed: args.seed,
        first: args.first,
        count,
        steps: settings.steps,
        spacing: settings.spacing.to_string(),
        solver: settings.solver.to_string(),
        guidance: settings.guidance.scale(),
        guidance_channels: settings.guidance.channels().to_string(),
        clip_x0: switch.into(),
        cache_dtype: args.cache.cache_dtype.to_string(),
        variant: model.variant.clone(),
        dtype: matches!(kept, Kept::F16 | Kept::Bf16).then(|| kept.to_string()),
        quant: (kept == Kept::Q8).then(|| kept.to_string()),
        schedule: match named {
            true => args.schedule.schedule.clone(),
            // What it came to without a flag.
            false if chosen == "none" => Some("none".into()),
            false => Some("learned".into()),
        },
        speed: args.schedule.speed,
        heads: model.heads,
        input_size: (model.input_size.or(model.text.size))
            .map(|_| pipeline.info.outline.latents.size)
            .map(|[height, width]| format!("{height}x{width}")),
        vae: model.vae.clone(),
        vae_tile: model.vae_tile.map(|tiling| tiling.to_string()),
        enlarge: args.enlarge,
    };
    args.noise.is_none().then_some(recipe)
}

/// What every image is to show.
fn choose(
    classes: &[String],
    count: Option<usize>,
    pipeline: &Pipeline,
) -> Result<Vec<Condition>, CliError> {
    let (info, pool) = (&pipeline.info, &pipeline.prompts.pool);
    let chosen: Vec<Condition> = if classes.is_empty() {
        let first = count.unwrap_or(DEFAULT_COUNT).clamp(1, pool.len().max(1));
        pipeline.prompts.in_turn(first)
    } else {
        let by_name = |name: &String| class_named(name, info).map(Condition::Class);
        classes.iter().map(by_name).collect::<Result<_, _>>()?
    };
    let count = count.unwrap_or(chosen.len());
    if count > MAX_COUNT {
        return Err(CliError::Usage(format!(
            "--count is {count}, expected at most {MAX_COUNT} images a run"
        )));
    }
    if count == 0 {
        return Err(CliError::Usage(
            "--count is 0, expected at least 1 image".into(),
        ));
    }
    Ok(chosen.into_iter().cycle().take(count).collect())
}

/// Whether pictures of `size` that are enlarged, so many in a file, can be written.
fn check_enlarged(enlarge: Option<u32>, size: [usize; 2], count: usize) -> Result<(), CliError> {
    let times = enlarge.unwrap_or(1);
    let [width, height] = size.map(|side| side * times as usize);
    match times > 1 && (width * height).saturating_mul(count) > MAX_PIXELS {
        true => Err(CliError::Usage(format!(
            "--enlarge {times} makes {} of {width}×{height} in one file, expected at most {} million pixels in all",
            counted(count, "picture"),
            MAX_PIXELS / 1_000_000
        ))),
        false => Ok(()),
    }
}

/// What `--classes` names and `--count` leaves no picture for.
fn left_out(classes: &[String], count: usize) -> Option<String> {
    let rest = classes.get(count..).filter(|rest| !rest.is_empty())?;
    Some(format!(
        "warning: --count {count} leaves out {} of the {} classes: {}",
        rest.len(),
        classes.len(),
        rest.join(", ")
    ))
}

type Noise = (Vec<f32>, Option<Vec<usize>>);

/// `noise` and `labels` of a file, checked against the model.
fn read_noise(path: &Path, info: &ModelInfo) -> Result<Noise, CliError> {
    let settings = |problem: String| CheckpointError::Settings {
        path: path.into(),
        problem,
    };
    let mut source = checkpoint::open(path)?;
    let shape = source
        .get("noise")
        .map(|e| e.shape.clone())
        .ok_or_else(|| settings("expected a tensor `noise` [B,C,H,W]".into()))?;
    let image = info.outline.latents.shape();
    if shape.len() != 4 || shape[1..] != image || shape[0] == 0 {
        return Err(settings(format!(
            "its `noise` is {shape:?}, expected [B, {}, {}, {}]",
            image[0], image[1], image[2]
        ))
        .into());
    }
    let noise = source.read_f32("noise")?;
    let labels = match source.get("labels").map(|e| e.shape.clone()) {
        None => None,
        Some(found) if found != [shape[0]] => {
            return Err(settings(format!(
                "its `labels` is {found:?}, expected [{}]",
                shape[0]
            ))
            .into());
        }
        Some(_) => {
            let classes = info
                .classes()
                .ok_or_else(|| settings("it holds `labels`, but the model draws texts".into()))?;
            let label = |y: i64| {
                usize::try_from(y)
                    .ok()
                    .filter(|y| *y <= classes)
                    .ok_or_else(|| settings(format!("label {y} is no class of 0 to {classes}")))
            };
            Some(
                source
                    .read_i64("labels")?
                    .into_iter()
                    .map(label)
                    .collect::<Result<Vec<_>, _>>()?,
            )
        }
    };
    Ok((noise, labels))
}
