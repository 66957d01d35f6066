//! `harmonica compare`

use std::{path::PathBuf, time::Instant};

use comfy_table::Table;
use serde_json::{Value, json};

use super::{
    Context,
    draw::draw,
    error::CliError,
    options::{CacheArgs, Session, SessionArgs, print_json, progress},
    sample::MAX_COUNT,
    schedules::resolve,
    table::markdown_table,
};
use crate::{
    checkpoint::ModelInfo,
    files::check_writable,
    metrics::{mean_and_error, median, mse, psnr_from_mse, ssim},
    models::Condition,
    report::{FrontPoint, ReportError, draw_front},
    sampler::{BATCH_BYTES, Request, Settings, Totals},
    schedule::Reuse,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Schedules to compare with the uncached run: files, policies, learned[:SPEED], or steps:K[:SOLVER] (no reuse, K steps)
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', required = true)]
    schedules: Vec<String>,
    /// Images, of all classes in turn
    #[arg(long, default_value_t = 64)]
    count: usize,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Also the error to the uncached run of so many steps, which stands for the true solution
    #[arg(long, value_name = "K")]
    truth: Option<usize>,
    /// Also draw error against saved work, a line a policy
    #[arg(long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
    /// Use schedule files that were made for another model or run
    #[arg(long)]
    force: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// Something to compare: settings and a table.
struct Entry {
    name: String,
    policy: String,
    settings: Settings,
    reuse: Reuse,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.count == 0 {
        return Err(CliError::Usage(
            "--count is 0, expected at least 1 image".into(),
        ));
    }
    if args.count > MAX_COUNT {
        return Err(CliError::Usage(format!(
            "--count is {}, expected at most {MAX_COUNT} images",
            args.count
        )));
    }
    let Session {
        pipeline, settings, ..
    } = args.session.open(context)?;
    let (engine, info) = (&pipeline.engine, &pipeline.info);
    let mut entries = vec![entry("none", args.force, info, &settings)?];
    for spec in &args.schedules {
        entries.push(entry(spec, args.force, info, &settings)?);
    }

    let truth = args.truth.map(|steps| format!("steps:{steps}"));
    let truth = truth
        .map(|spec| entry(&spec, args.force, info, &settings))
        .transpose()?;
    if let Some(path) = &args.plot {
        let unwritable = |source| ReportError::Io {
            path: path.clone(),
            source,
        };
        check_writable(path).map_err(unwritable)?;
    }
    let conditions = pipeline.prompts.in_turn(args.count);
    let all = entries.iter().chain(&truth);
    let total: usize = all.map(|e| e.settings.steps * args.count).sum::<usize>() + settings.steps;
    let bar = progress(context, total as u64, "image steps");
    let drawn = |entry: &Entry, conditions: &[Condition]| -> Result<Drawn, CliError> {
        let started = Instant::now();
        let sampler = pipeline
            .sampler(entry.settings, Some(entry.reuse.clone()))?
            .with_cache_dtype(args.cache.cache_dtype);
        let run = sampler.run(Request {
            conditions: conditions.to_vec(),
            seed: args.seed,
            noise: None,
            batch: sampler.batch_within(BATCH_BYTES).min(conditions.len()),
        })?;
        let (images, totals) = draw(run, &bar, |images| images as u64, context)?;
        Ok(Drawn {
            images,
            totals,
            seconds: started.elapsed().as_secs_f64(),
        })
    };
    // The first run on a device compiles what all others find.
    drawn(&entries[0], &conditions[..1])?;
    let uncached = drawn(&entries[0], &conditions)?;
    let truth = truth.as_ref().map(|truth| drawn(truth, &conditions));
    let truth = truth.transpose()?;
    let mut rows: Vec<Value> = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let own = match number {
            0 => None,
            _ => Some(drawn(entry, &conditions)?),
        };
        let shape = info.outline.latents.shape();
        let found = own.as_ref().unwrap_or(&uncached);
        let mut row = figures(entry, found, &uncached, shape);
        if let Some(truth) = &truth {
            let (mean, error) = mean_and_error(&errors(found, truth, shape));
            row["mse_true"] = mean.into();
            row["mse_true_standard_error"] = error.into();
        }
        rows.push(row);
    }
    bar.finish_and_clear();
    let report = engine.report();
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name, "images": args.count,
            "seed": args.seed, "steps": settings.steps, "guidance": settings.guidance.scale(), "cache_dtype": args.cache.cache_dtype.to_string(),
            "rows": rows,
        }));
        return draw_plot(&args, &rows, context);
    }
    out!("{}", table(&rows));
    context.say(format!(
        "error to the uncached {}-step images over {} images (mean ± standard error), {} on {}",
        settings.steps, args.count, info.outline.name, report.device
    ));
    draw_plot(&args, &rows, context)
}

fn draw_plot(args: &Args, rows: &[Value], context: &Context) -> Result<(), CliError> {
    if let Some(path) = &args.plot {
        draw_front(&points(rows), path)?;
        context.say(format!("drew {}", path.display()));
    }
    Ok(())
}

/// Rows as points; schedules of one policy belong together.
fn points(rows: &[Value]) -> Vec<FrontPoint> {
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    rows.iter()
        .skip(1)
        .map(|row| FrontPoint {
            policy: row["policy"].as_str().unwrap_or_default().into(),
            macs_ratio: number(row, "macs_ratio"),
            mse: number(row, "mse"),
        })
        .collect()
}

/// What a run made.
struct Drawn {
    images: Vec<f32>,
    totals: Totals,
    seconds: f64,
}

/// Mean squared errors, one an image.
fn errors(found: &Drawn, expected: &Drawn, shape: [usize; 3]) -> Vec<f64> {
    let size = shape.iter().product();
    let images = found.images.chunks(size).zip(expected.images.chunks(size));
    images.map(|(a, b)| mse(a, b)).collect()
}

fn figures(entry: &Entry, found: &Drawn, uncached: &Drawn, shape: [usize; 3]) -> Value {
    let errors = errors(found, uncached, shape);
    let (mean, error) = mean_and_error(&errors);
    let size = shape.iter().product();
    let images = found.images.chunks(size).zip(uncached.images.chunks(size));
    let likeness: Vec<f64> = images.map(|(a, b)| ssim(a, b, shape)).collect();
    let Totals {
        macs,
        peak_cache_bytes,
        ..
    } = found.totals;
    json!({
        "schedule": entry.name, "policy": entry.policy, "steps": entry.settings.steps, "cur": found.totals.cur(),
        "macs_ratio": uncached.totals.macs as f64 / macs as f64, "mse": mean, "mse_standard_error": error,
        "mse_median": median(&errors), "mse_max": errors.iter().copied().fold(0.0, f64::max),
        "psnr": psnr_from_mse(mean), "ssim": mean_and_error(&likeness).0,
        "seconds": found.seconds, "speedup": uncached.seconds / found.seconds,
        "peak_cache_bytes": peak_cache_bytes,
    })
}

fn entry(
    spec: &str,
    force: bool,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<Entry, CliError> {
    let chosen = resolve(spec, force, info, settings)?;
    Ok(Entry {
        name: chosen.name,
        policy: chosen.policy,
        settings: chosen.settings,
        reuse: chosen.reuse,
    })
}

fn table(rows: &[Value]) -> Table {
    let with_truth = rows.iter().any(|row| !row["mse_true"].is_null());
    let mut header = vec![
        "schedule",
        "steps",
        "CUR %",
        "MACs ratio",
        "MSE ×1000",
        "median",
        "worst",
        "PSNR dB",
        "SSIM",
        "speed-up",
        "cache MB",
    ];
    if with_truth {
        header.push("to the true solution");
    }
    let cells = rows.iter().map(|row| {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let thousand = |key: &str| format!("{:.2}", 1e3 * number(key));
        let exact = number("mse") == 0.0;
        let unless_exact = |text: String| if exact { "–".into() } else { text };
        let mut cells = vec![
            row["schedule"].as_str().unwrap_or_default().to_owned(),
            row["steps"].to_string(),
            format!("{:.1}", 100.0 * number("cur")),
            format!("{:.2}", number("macs_ratio")),
            match exact {
                true => "0".into(),
                false => format!("{} ± {}", thousand("mse"), thousand("mse_standard_error")),
            },
            unless_exact(thousand("mse_median")),
            unless_exact(thousand("mse_max")),
            unless_exact(format!("{:.2}", number("psnr"))),
            format!("{:.4}", number("ssim")),
            format!("{:.2}", number("speedup")),
            format!("{:.1}", number("peak_cache_bytes") / 1e6),
        ];
        if with_truth {
            let [mean, error] = ["mse_true", "mse_true_standard_error"].map(thousand);
            cells.push(format!("{mean} ± {error}"));
        }
        cells
    });
    markdown_table(&header, cells)
}
