//! `harmonica compare`

use std::time::Instant;

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
    metrics::{mean_and_error, median, mse, psnr_from_mse, ssim},
    sampler::{BATCH_BYTES, Request, Settings, batch_for},
    schedule::Reuse,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Schedules to compare with the uncached run: files, policies, learned[:SPEED], or steps:K (no reuse, K steps)
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', required = true)]
    schedules: Vec<String>,
    /// Images, of all classes in turn
    #[arg(long, default_value_t = 64)]
    count: usize,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
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

    let (mut full, mut uncached_seconds) = (None, None);
    let shape = info.outline.latents.shape();
    let conditions = pipeline.prompts.in_turn(args.count);
    let total: usize = entries.iter().map(|e| e.settings.steps * args.count).sum();
    let bar = progress(context, total as u64, "image steps");
    let mut reference: Vec<f32> = Vec::new();
    let mut rows: Vec<Value> = Vec::new();
    for entry in &entries {
        let started = Instant::now();
        let sampler = pipeline
            .sampler(entry.settings, Some(entry.reuse.clone()))?
            .with_cache_dtype(args.cache.cache_dtype);
        let guided = entry.settings.guidance.is_active();
        let request = Request {
            conditions: conditions.clone(),
            seed: args.seed,
            noise: None,
            batch: batch_for(&info.outline, guided, BATCH_BYTES).min(conditions.len()),
        };
        let run = sampler.run(request)?;
        let (images, totals) = draw(run, &bar, |images| images as u64, context)?;
        let seconds = started.elapsed().as_secs_f64();
        if reference.is_empty() {
            reference.clone_from(&images);
        }
        let size = images.len() / conditions.len();
        let errors: Vec<f64> = images
            .chunks(size)
            .zip(reference.chunks(size))
            .map(|(a, b)| mse(a, b))
            .collect();
        let likeness: Vec<f64> = images
            .chunks(size)
            .zip(reference.chunks(size))
            .map(|(a, b)| ssim(a, b, shape))
            .collect();
        let (mean, error) = mean_and_error(&errors);
        rows.push(json!({
            "schedule": entry.name, "steps": entry.settings.steps, "cur": totals.cur(),
            "macs_ratio": full.get_or_insert(totals.macs).to_owned() as f64 / totals.macs as f64, "mse": mean, "mse_standard_error": error,
            "mse_median": median(&errors), "mse_max": errors.iter().copied().fold(0.0, f64::max),
            "psnr": psnr_from_mse(mean), "ssim": mean_and_error(&likeness).0,
            "seconds": seconds, "speedup": uncached_seconds.get_or_insert(seconds).to_owned() / seconds,
            "peak_cache_bytes": totals.peak_cache_bytes,
        }));
    }
    bar.finish_and_clear();
    let report = engine.report();
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name, "images": args.count,
            "seed": args.seed, "steps": settings.steps, "guidance": settings.guidance.scale(), "cache_dtype": args.cache.cache_dtype.to_string(),
            "rows": rows,
        }));
        return Ok(());
    }
    out!("{}", table(&rows));
    context.say(format!(
        "error to the uncached {}-step images over {} images (mean ± standard error), {} on {}",
        settings.steps, args.count, info.outline.name, report.device
    ));
    Ok(())
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
        settings: chosen.settings,
        reuse: chosen.reuse,
    })
}

fn table(rows: &[Value]) -> Table {
    let header = [
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
    let cells = rows.iter().map(|row| {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let thousand = |key: &str| format!("{:.2}", 1e3 * number(key));
        let exact = number("mse") == 0.0;
        let unless_exact = |text: String| if exact { "–".into() } else { text };
        vec![
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
        ]
    });
    markdown_table(&header, cells)
}
