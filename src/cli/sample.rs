//! `harmonica sample`

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::json;

use super::{
    Context,
    draw::draw_each,
    error::CliError,
    options::{CacheArgs, Session, SessionArgs, print_json, progress},
    schedules::ScheduleArgs,
};
use crate::{
    checkpoint::{self, CheckpointError, ModelInfo, StoredDtype, synonyms, write_safetensors},
    device::LaunchCount,
    files::check_writable,
    models::Condition,
    pipeline::Pipeline,
    report::{ReportError, Tile, columns_for, grid, image_from_values, write_png},
    sampler::{BATCH_BYTES, Request, batch_for},
    schedule::Reuse,
};

/// More images than a run keeps in memory.
pub(super) const MAX_COUNT: usize = 100_000;
/// Without `--classes` or `--count`, a model of many classes shows this many of them.
const DEFAULT_COUNT: usize = 46;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    schedule: ScheduleArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Classes to draw, by name or number, separated by commas [default: the first 46, in turn]
    #[arg(long, value_name = "A,B,…", value_delimiter = ',')]
    classes: Vec<String>,
    /// Number of images; classes repeat in turn [default: one a class, at most 46]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images at a time [default: what fits in 1 GiB, at most 16]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// A .png for one grid, anything else for a folder of single images
    #[arg(long, value_name = "FILE.png|DIR", default_value = "harmonica.png")]
    out: PathBuf,
    /// Starting noise: a safetensors file with `noise` [B,C,H,W] and, if it is to choose classes, `labels` [B]
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Also write the final images, as floats, as tensor `samples` [B,C,H,W]
    #[arg(long, value_name = "FILE")]
    save_tensors: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let Session {
        pipeline,
        settings,
        seconds_load,
    } = args.session.open(context)?;
    let (engine, info) = (&pipeline.engine, &pipeline.info);

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

    // A place that cannot be written is found out before the work, not after it.
    let single = is_png(&args.out);
    let first_file = if single {
        args.out.clone()
    } else {
        args.out.join("image.png")
    };
    for path in std::iter::once(&first_file).chain(&args.save_tensors) {
        check_writable(path).map_err(|source| ReportError::Io {
            path: path.clone(),
            source,
        })?;
    }

    let batch = args.batch.unwrap_or_else(|| {
        batch_for(&info.outline, settings.guidance.is_active(), BATCH_BYTES)
            .min(conditions.len().max(1))
    });
    let chosen = args.schedule.resolve(&pipeline, &settings, context)?;
    let settings = chosen.settings;
    let sampler = pipeline
        .sampler(settings, Some(chosen.reuse))?
        .with_cache_dtype(args.cache.cache_dtype);
    let request = Request {
        conditions: conditions.clone(),
        seed: args.seed,
        noise,
        batch,
    };
    let launches = LaunchCount::start();
    let steps = sampler.run(request)?;
    let bar = progress(
        context,
        (conditions.len() * settings.steps) as u64,
        "image steps",
    );
    let started = Instant::now();
    // Single pictures are written as they come; a grid or tensor file is whole or not there.
    let keep = single || args.save_tensors.is_some();
    let (mut values, mut written) = (Vec::new(), 0);
    let drawn = draw_each(
        steps,
        &bar,
        |images| images as u64,
        context,
        |first, x0| {
            if !single {
                written += write_singles(&args.out, first, &x0, &conditions, info)?;
            }
            if keep {
                values.extend(x0);
            }
            Ok(())
        },
    );
    if drawn.is_err() {
        bar.abandon();
        if written > 0 {
            context.say(format!(
                "{written} of {} images lie in {}",
                conditions.len(),
                args.out.display()
            ));
        }
    }
    let totals = drawn?;
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let dispatches = launches.finish(engine);

    if single {
        write_grid(&args.out, &values, &conditions, info)?;
    }
    if let Some(path) = &args.save_tensors {
        let [c, h, w] = info.outline.latents.shape();
        let shapes = [("samples".to_owned(), vec![conditions.len(), c, h, w])];
        let values = || Ok(std::mem::take(&mut values));
        write_safetensors(path, &shapes, None, StoredDtype::F32, values)?;
    }

    let report = engine.report();
    if !info.is_pixel_space() {
        context.say("this model draws latents; the picture is a rough preview of them (--save-tensors keeps the values)");
    }
    context.say(format!(
        "{}: {} images of {} in {:.1} s on {} ({}): {:.1} ms a step and image, {:.2} images/s",
        args.out.display(),
        conditions.len(),
        info.outline.name,
        seconds,
        report.device,
        report.backend,
        1000.0 * seconds / (conditions.len() * settings.steps) as f64,
        conditions.len() as f64 / seconds,
    ));
    context.say(format!(
        "schedule {}: CUR {:.1} %, MACs ratio {:.2}×, cache {:.1} MB",
        chosen.name,
        100.0 * totals.cur(),
        totals.macs_ratio(),
        totals.peak_cache_bytes as f64 / 1e6,
    ));
    if matches!(sampler.reuse(), Reuse::AtRunTime(_)) && totals.reused == 0 {
        context.say(format!(
            "warning: {} never reused anything; a higher threshold, or fewer steps of warm-up, may",
            chosen.name
        ));
    }
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name,
            "steps": settings.steps, "images": conditions.len(), "batch": batch,
            "seconds_load": seconds_load, "seconds_sampling": seconds,
            "schedule": chosen.name, "cur": totals.cur(), "macs_full": totals.macs_full, "macs": totals.macs,
            "peak_cache_bytes": totals.peak_cache_bytes, "cache_dtype": args.cache.cache_dtype.to_string(), "dispatches": dispatches, "out": args.out,
        }));
    }
    Ok(())
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

fn class_named(name: &str, info: &ModelInfo) -> Result<usize, CliError> {
    let problem = match info.classes_by_name(name)[..] {
        [class] => return Ok(class),
        [] => unknown_class(name, info),
        ref classes => {
            let each = |class: &usize| format!("{class} ({})", info.class_names[*class]);
            let each: Vec<_> = classes.iter().map(each).collect();
            format!(
                "`{name}` names several classes: {}; pass a number",
                each.join(", ")
            )
        }
    };
    Err(CliError::Usage(problem))
}

/// More names than these are not listed in a message.
const MOST_LISTED: usize = 64;
/// Similarity, from 0 to 1, from which a name may have been meant.
const NEAR: f64 = 0.7;

fn unknown_class(name: &str, info: &ModelInfo) -> String {
    let known = match info.classes() {
        None => "the model draws texts, not classes".into(),
        Some(classes) if info.class_names.is_empty() => {
            format!("the model has classes 0 to {}", classes - 1)
        }
        Some(classes) => {
            let near = nearest_names(name, &info.class_names);
            let last = classes - 1;
            if !near.is_empty() {
                format!("did you mean {}?", near.join(" or "))
            } else if info.class_names.len() <= MOST_LISTED {
                format!(
                    "the model has 0 to {last} or {}",
                    info.class_names.join(", ")
                )
            } else {
                format!(
                    "the model has 0 to {last}, and names that `harmonica inspect --classes` lists"
                )
            }
        }
    };
    format!("unknown class `{name}`: {known}")
}

/// The names most like one, at most three, the nearest first.
fn nearest_names(name: &str, class_names: &[String]) -> Vec<String> {
    let name = name.trim().to_lowercase();
    let names = class_names.iter().flat_map(|names| synonyms(names));
    let mut near: Vec<(f64, &str)> = names
        .map(|other| {
            let likeness = strsim::normalized_damerau_levenshtein(&name, &other.to_lowercase());
            (likeness, other)
        })
        .filter(|(likeness, _)| *likeness >= NEAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.dedup_by_key(|(_, other)| *other);
    let quoted = near.iter().map(|(_, other)| format!("`{other}`"));
    quoted.take(3).collect()
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

/// What image number `i` is called.
fn name_of(condition: &Condition, i: usize, info: &ModelInfo) -> String {
    match condition.class() {
        Some(label) => info.class_name(label),
        None => format!("text-{i}"),
    }
}

fn is_png(out: &Path) -> bool {
    out.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("png"))
}

fn write_grid(
    out: &Path,
    values: &[f32],
    conditions: &[Condition],
    info: &ModelInfo,
) -> Result<(), CliError> {
    let shape = info.outline.latents.shape();
    let tiles: Vec<_> = values
        .chunks(shape.iter().product())
        .zip(conditions)
        .enumerate()
        .map(|(i, (image, condition))| Tile {
            image: image_from_values(image, shape),
            label: name_of(condition, i, info),
        })
        .collect();
    Ok(write_png(&grid(&tiles, columns_for(tiles.len())), out)?)
}

/// Images `first..` of a run into a folder; returns how many.
fn write_singles(
    out: &Path,
    first: usize,
    values: &[f32],
    conditions: &[Condition],
    info: &ModelInfo,
) -> Result<usize, CliError> {
    let shape = info.outline.latents.shape();
    let images = values.chunks(shape.iter().product());
    let count = images.len();
    for (i, (values, condition)) in images.zip(&conditions[first..]).enumerate() {
        let name: String = name_of(condition, first + i, info)
            .chars()
            .map(|c| {
                if c.is_alphanumeric() || c == '-' {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let path = out.join(format!("{:05}-{name}.png", first + i));
        write_png(&image_from_values(values, shape), &path)?;
    }
    Ok(count)
}
