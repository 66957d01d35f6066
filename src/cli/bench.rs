//! `harmonica bench`

use std::time::Instant;

use comfy_table::Table;
use indicatif::ProgressBar;
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
    device::LaunchCount,
    metrics::{max_abs_error, median, peak_memory_bytes, reset_peak_memory},
    sampler::{Part, PartTotal, Request, Sampler, Totals},
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Schedules to time against the uncached run: files or policies
    #[arg(
        long,
        value_name = "A,B,…",
        value_delimiter = ',',
        default_value = "none,fora:2"
    )]
    schedules: Vec<String>,
    /// Images drawn together
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Timed runs of each schedule, in turn
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Add a row that computes the adaLN vectors at every step instead of ahead
    #[arg(long)]
    conditioning_each_step: bool,
    /// Use schedule files that were made for another model or run
    #[arg(long)]
    force: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// A schedule to time, and what was measured.
struct Row {
    name: String,
    sampler: Sampler,
    /// What a run does.
    totals: Totals,
    seconds: Vec<f64>,
    dispatches: u64,
    peak_host_bytes: Option<u64>,
    /// Largest difference to the first uncached run, of rows that reuse nothing.
    off: Option<f32>,
    parts: Vec<(Part, PartTotal)>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    for (flag, value) in [("--batch", args.batch), ("--runs", args.runs)] {
        if value == 0 || value > MAX_COUNT {
            return Err(CliError::Usage(format!(
                "{flag} is {value}, expected 1 to {MAX_COUNT}"
            )));
        }
    }
    let session = args.session.open(context)?;
    let seconds_load = context.started.elapsed().as_secs_f64();
    let Session {
        pipeline, settings, ..
    } = &session;
    let (engine, info) = (&pipeline.engine, &pipeline.info);
    let mut rows = rows(&args, &session)?;
    let request = Request {
        conditions: pipeline.prompts.in_turn(args.batch),
        seed: 0,
        first: 0,
        noise: None,
        batch: args.batch,
    };

    // Warming up twice, counting, measuring part by part, then the timed runs in turn.
    let steps: usize = rows.iter().map(|row| row.sampler.settings().steps).sum();
    let total = (args.runs + 3) * steps;
    let bar = progress(context, total as u64, "steps");
    let mut first_image = None;
    let mut reference: Option<Vec<f32>> = None;
    for row in &mut rows {
        let (images, totals) = timed(&row.sampler, &request, &bar, context)?.1;
        row.totals = totals;
        first_image.get_or_insert(context.started.elapsed().as_secs_f64());
        if totals.reused == 0 && row.sampler.settings() == settings {
            // Whatever the order of the work, the timing is of the same thing.
            let reference = reference.get_or_insert_with(|| images.clone());
            row.off = Some(max_abs_error(reference, &images));
        }
        let fresh_peak = reset_peak_memory();
        let launches = LaunchCount::start();
        timed(&row.sampler, &request, &bar, context)?;
        row.dispatches = launches.finish(engine);
        row.peak_host_bytes = peak_memory_bytes().filter(|_| fresh_peak);
        let (_, parts) = row.sampler.profile(request.clone())?;
        bar.inc(row.sampler.settings().steps as u64);
        row.parts = Part::ALL.map(|part| (part, parts.of(part))).to_vec();
    }
    for _ in 0..args.runs {
        for row in &mut rows {
            let seconds = timed(&row.sampler, &request, &bar, context)?.0;
            row.seconds.push(seconds);
        }
    }
    bar.finish_and_clear();

    let figures: Vec<Value> = rows
        .iter()
        .map(|row| figures(row, &rows[0], info, args.batch))
        .collect();
    let report = engine.report();
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name,
            "tokens": info.outline.graph.tokens(), "batch": args.batch, "steps": settings.steps,
            "guidance": settings.guidance.scale(), "cache_dtype": args.cache.cache_dtype.to_string(), "runs": args.runs,
            "seconds_load": seconds_load, "first_image_s": first_image, "rows": figures,
        }));
        return Ok(());
    }
    out!("{}", summary(&figures));
    out!("{}", parts_table(&rows));
    say_settings(context, &args, &session);
    context.say(format!(
        "first image {:.2} s after the start of the process, {seconds_load:.2} s of it to open the device and load the model",
        first_image.unwrap_or(f64::NAN)
    ));
    Ok(())
}

/// The uncached run first, then what was asked for.
fn rows(args: &Args, session: &Session) -> Result<Vec<Row>, CliError> {
    let sampler = |reuse| session.pipeline.sampler(session.settings, reuse);
    let row = |name: String, sampler: Sampler| Row {
        name,
        sampler: sampler.with_cache_dtype(args.cache.cache_dtype),
        totals: Totals::default(),
        seconds: Vec::new(),
        dispatches: 0,
        peak_host_bytes: None,
        off: None,
        parts: Vec::new(),
    };
    let mut rows = vec![row("none".into(), sampler(None)?)];
    if args.conditioning_each_step {
        let sampler = sampler(None)?.with_conditioning_bytes(0);
        rows.push(row("none, adaLN each step".into(), sampler));
    }
    for spec in args.schedules.iter().filter(|spec| *spec != "none") {
        let chosen = resolve(spec, args.force, &session.pipeline.info, &session.settings)?;
        let sampler = session
            .pipeline
            .sampler(chosen.settings, Some(chosen.reuse))?;
        rows.push(row(chosen.name, sampler));
    }
    Ok(rows)
}

/// One whole run: seconds until its images are here, the images, and what was done.
fn timed(
    sampler: &Sampler,
    request: &Request,
    bar: &ProgressBar,
    context: &Context,
) -> Result<(f64, (Vec<f32>, Totals)), CliError> {
    let started = Instant::now();
    let drawn = draw(sampler.run(request.clone())?, bar, |_| 1, context)?;
    Ok((started.elapsed().as_secs_f64(), drawn))
}

fn figures(row: &Row, uncached: &Row, info: &ModelInfo, batch: usize) -> Value {
    let plan = row.sampler.plan().accounting();
    let macs_ratio = uncached.totals.macs as f64 / row.totals.macs as f64;
    // Runs that stood next to each other in time are compared with each other.
    let ratios: Vec<f64> = uncached
        .seconds
        .iter()
        .zip(&row.seconds)
        .map(|(uncached, own)| uncached / own)
        .collect();
    let range = |values: &[f64]| {
        let fold = |f: fn(f64, f64) -> f64, start| values.iter().copied().fold(start, f);
        (fold(f64::min, f64::INFINITY), fold(f64::max, 0.0))
    };
    let ((min, max), (speedup_min, speedup_max)) = (range(&row.seconds), range(&ratios));
    let speedup = median(&ratios);
    let copies = row.sampler.copies() * batch;
    let features = 4 * copies * info.outline.graph.tokens() * info.outline.graph.width();
    let cache_bytes = row.sampler.cache_bytes(batch);
    let parts: serde_json::Map<String, Value> = row
        .parts
        .iter()
        .map(|(part, total)| (part.name().into(), json!(total)))
        .collect();
    json!({
        "schedule": row.name, "cur": row.totals.cur(), "macs_ratio": macs_ratio,
        "median_s": median(&row.seconds), "min_s": min, "max_s": max,
        "speedup": speedup, "speedup_min": speedup_min, "speedup_max": speedup_max, "efficiency": speedup / macs_ratio,
        "dispatches_per_run": row.dispatches,
        "peak_cache_bytes": cache_bytes, "peak_host_bytes": row.peak_host_bytes,
        "all_features_bytes": info.outline.graph.branches() * features,
        "max_abs_error_uncached": row.off, "adaln_bytes_read": row.sampler.adaln_bytes_read(batch),
        "plan": {
            "macs": row.totals.macs, "macs_full": row.totals.macs_full,
            "computed": row.totals.computed / copies as u64, "reused": row.totals.reused / copies as u64, "spans": plan.spans, "slots": plan.slots,
            "cache_bytes_written": cache_bytes / plan.slots.max(1) * plan.writes,
            "cache_bytes_read": cache_bytes / plan.slots.max(1) * plan.reads,
        },
        "parts": parts,
    })
}

fn summary(rows: &[Value]) -> Table {
    let header = [
        "schedule",
        "CUR %",
        "MACs ratio",
        "median s (min–max)",
        "speed-up (min–max)",
        "efficiency",
        "dispatches",
        "cache MB",
        "of all features",
    ];
    let cells = rows.iter().map(|row| {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        vec![
            row["schedule"].as_str().unwrap_or_default().to_owned(),
            format!("{:.1}", 100.0 * number("cur")),
            format!("{:.3}", number("macs_ratio")),
            format!(
                "{:.3} ({:.3}–{:.3})",
                number("median_s"),
                number("min_s"),
                number("max_s")
            ),
            format!(
                "{:.3} ({:.3}–{:.3})",
                number("speedup"),
                number("speedup_min"),
                number("speedup_max")
            ),
            format!("{:.3}", number("efficiency")),
            row["dispatches_per_run"].to_string(),
            format!("{:.2}", number("peak_cache_bytes") / 1e6),
            format!(
                "{:.0} %",
                100.0 * number("peak_cache_bytes") / number("all_features_bytes")
            ),
        ]
    });
    markdown_table(&header, cells)
}

/// Milliseconds and dispatches of each part of a run.
fn parts_table(rows: &[Row]) -> Table {
    let mut header = vec!["ms (dispatches) by part"];
    // A network has not every kind of branch.
    let ran = |i: usize| rows.iter().any(|row| row.parts[i].1.count > 0);
    let shown: Vec<usize> = (0..Part::ALL.len()).filter(|i| ran(*i)).collect();
    header.extend(shown.iter().map(|i| Part::ALL[*i].name()));
    let cells = rows.iter().map(|row| {
        let part = |i: &usize| {
            let (_, total) = &row.parts[*i];
            format!("{:.1} ({})", 1e3 * total.seconds, total.dispatches)
        };
        let mut cells = vec![row.name.clone()];
        cells.extend(shown.iter().map(part));
        cells
    });
    markdown_table(&header, cells)
}

fn say_settings(context: &Context, args: &Args, session: &Session) {
    let Session {
        pipeline, settings, ..
    } = session;
    let (engine, info) = (&pipeline.engine, &pipeline.info);
    let full = (settings.steps as u64 * info.outline.graph.full_step_macs()) as f64;
    context.say(format!(
        "{}, {} tokens, batch {}, {} steps, guidance {}, {:.2} GMACs an image and half; {} timed runs in turn on {} ({})",
        info.outline.name,
        info.outline.graph.tokens(),
        args.batch,
        settings.steps,
        settings.guidance.scale(),
        full / 1e9,
        args.runs,
        engine.report().device,
        engine.report().backend,
    ));
}
