//! `harmonica bench`

use std::path::PathBuf;

use comfy_table::Table;
use serde_json::{Map, Value, json};

use super::{
    Context,
    doctor::document_of,
    draw::draw,
    error::CliError,
    measure::{Entry, check_outputs, in_turn, json_rows, print_rows, say_warnings, write_text},
    options::{CacheArgs, Session, SessionArgs, print_json},
    progress::progress,
    sample::MAX_COUNT,
    table::markdown_table,
};
use crate::{
    device::LaunchCount,
    metrics::max_abs_error,
    report::comparison::{Comparison, Row},
    sampler::{Part, PartTotal, Request, Totals},
    words::counted,
};

const EXAMPLES: &str = "\
Examples:
  harmonica bench
  harmonica bench --device vulkan --schedules learned:2,fora:2 --batch 8
  harmonica bench --schedules learned:2 --runs 20 --csv times.csv
  harmonica bench --device vulkan --report my-gpu.json";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, next_help_heading = "Timing", allow_negative_numbers = true)]
pub(super) struct Args {
    /// Schedules to time against the uncached run: files, policies, or learned[:SPEED]
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
    /// Timed runs of each schedule, in turn, each of other noise
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Add a row that computes the adaLN vectors at every step instead of ahead
    #[arg(long)]
    conditioning_each_step: bool,
    /// Also write the rows as comma-separated values
    #[arg(long, value_name = "FILE.csv", help_heading = "Output")]
    csv: Option<PathBuf>,
    /// Also write the figures with the machine, its drivers and a check of every kernel, as one JSON document: what is worth
    /// sending from a device that the project has not seen
    #[arg(long, value_name = "FILE.json", help_heading = "Output")]
    report: Option<PathBuf>,
    /// Use schedule files that were made for another model or run
    #[arg(long)]
    force: bool,
    /// One JSON document on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// What one run of an entry does.
struct Profile {
    totals: Totals,
    dispatches: u64,
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
    let images = args.batch.saturating_mul(args.runs);
    if images > MAX_COUNT {
        return Err(CliError::Usage(format!(
            "--batch times --runs is {images}, expected at most {MAX_COUNT} images"
        )));
    }
    let session = args.session.open(context)?;
    let seconds_load = context.started.elapsed().as_secs_f64();
    let Session {
        pipeline, settings, ..
    } = &session;
    let (engine, info) = (&pipeline.engine, &pipeline.info);
    check_outputs(args.csv.iter().chain(&args.report))?;
    let entries = entries(&args, &session, context)?;
    let once = Request {
        conditions: pipeline.prompts.in_turn(args.batch),
        seed: 0,
        first: 0,
        noise: None,
        batch: args.batch,
    };

    // Warming up twice, counting, measuring part by part, then the timed runs in turn.
    let steps: usize = entries.iter().map(|e| e.sampler.settings().steps).sum();
    let total = (args.runs + 3) * args.batch * steps;
    let bar = progress(context, total as u64, "image steps");
    let advance = |images: usize| images as u64;
    let mut first_image = None;
    let mut reference: Option<Vec<f32>> = None;
    let mut profiles = Vec::new();
    for Entry { sampler, .. } in &entries {
        let (images, totals) = draw(sampler.run(once.clone())?, &bar, advance, context)?;
        first_image.get_or_insert(context.started.elapsed().as_secs_f64());
        let plain = totals.reused == 0 && sampler.settings() == settings;
        // Whatever the order of the work, the timing is of the same thing.
        let off = plain.then(|| {
            let reference = reference.get_or_insert_with(|| images.clone());
            max_abs_error(reference, &images)
        });
        let launches = LaunchCount::start();
        draw(sampler.run(once.clone())?, &bar, advance, context)?;
        let dispatches = launches.finish(engine);
        let (_, parts) = sampler.profile(once.clone())?;
        bar.inc((args.batch * sampler.settings().steps) as u64);
        profiles.push(Profile {
            totals,
            dispatches,
            off,
            parts: Part::ALL.map(|part| (part, parts.of(part))).to_vec(),
        });
    }
    let runs = Request {
        conditions: once
            .conditions
            .iter()
            .cycle()
            .take(images)
            .cloned()
            .collect(),
        ..once
    };
    let measured = in_turn(&entries, None, &runs, 0, pipeline, (&bar, context))?;
    bar.finish_and_clear();

    context.something_is_at_stake();
    let rows = measured.into_iter().zip(&profiles);
    let rows = rows.map(|(measured, profile)| Row {
        dispatches: Some(profile.dispatches),
        ..measured.row
    });
    let comparison = Comparison::of(rows.collect());
    if let Some(path) = &args.csv {
        write_text(path, &comparison.csv(), context)?;
    }
    say_warnings(&comparison, context);
    let report = engine.report();
    let mut rows = json_rows(&comparison, info.resident.kept);
    for ((row, entry), profile) in rows.iter_mut().zip(&entries).zip(&profiles) {
        add_profile(row, entry, profile, args.batch);
    }
    let document = json!({
        "device": report.device, "backend": report.backend, "model": info.outline.name,
        "tokens": info.outline.graph.tokens(), "batch": args.batch, "steps": settings.steps,
        "guidance": settings.guidance.scale(), "cache_dtype": args.cache.cache_dtype.to_string(), "runs": args.runs,
        "seconds_load": seconds_load, "first_image_s": first_image, "rows": rows,
    });
    if let Some(path) = &args.report {
        let whole = json!({ "machine": document_of(engine), "bench": document });
        write_text(path, &format!("{whole:#}\n"), context)?;
    }
    if args.json {
        print_json(&document);
        return Ok(());
    }
    print_rows(&comparison);
    out!("{}", parts_table(&entries, &profiles));
    say_settings(context, &args, &session);
    context.say(format!(
        "first image {:.2} s after the start of the process, {seconds_load:.2} s of it to open the device and load the model",
        first_image.unwrap_or(f64::NAN)
    ));
    Ok(())
}

/// The uncached run first, then what was asked for.
fn entries(args: &Args, session: &Session, context: &Context) -> Result<Vec<Entry>, CliError> {
    let dtype = args.cache.cache_dtype;
    let uncached = Entry::uncached(session, dtype, context)?;
    let mut entries = vec![uncached];
    if args.conditioning_each_step {
        let uncached = Entry::uncached(session, dtype, context)?;
        entries.push(Entry {
            name: "none, adaLN each step".into(),
            sampler: uncached.sampler.with_conditioning_bytes(0),
            ..uncached
        });
    }
    for spec in args.schedules.iter().filter(|spec| *spec != "none") {
        entries.push(Entry::of(spec, args.force, session, dtype, context)?);
    }
    Ok(entries)
}

/// Adds to a row what one run does, from the plan and part by part.
fn add_profile(row: &mut Value, entry: &Entry, profile: &Profile, batch: usize) {
    let sampler = &entry.sampler;
    let plan = sampler.plan().accounting();
    let copies = sampler.copies() as u64;
    let slot = sampler.cache_bytes(batch) / plan.slots.max(1);
    let totals = profile.totals;
    let parts: Map<String, Value> = profile
        .parts
        .iter()
        .map(|(part, total)| (part.name().into(), json!(total)))
        .collect();
    row["max_abs_error_uncached"] = json!(profile.off);
    row["adaln_bytes_read"] = json!(sampler.adaln_bytes_read(batch));
    row["plan"] = json!({
        "macs": totals.macs, "macs_full": totals.macs_full,
        "computed": totals.computed / copies, "reused": totals.reused / copies, "spans": plan.spans, "slots": plan.slots,
        "cache_bytes_written": slot * plan.writes, "cache_bytes_read": slot * plan.reads,
    });
    row["parts"] = parts.into();
}

/// Milliseconds and dispatches of each part of a run.
fn parts_table(entries: &[Entry], profiles: &[Profile]) -> Table {
    let dispatched = profiles.iter().any(|profile| profile.dispatches > 0);
    let mut header = vec![match dispatched {
        true => "ms (dispatches) by part",
        false => "ms by part",
    }];
    // A network has not every kind of branch.
    let ran = |i: usize| profiles.iter().any(|profile| profile.parts[i].1.count > 0);
    let shown: Vec<usize> = (0..Part::ALL.len()).filter(|i| ran(*i)).collect();
    header.extend(shown.iter().map(|i| Part::ALL[*i].name()));
    let cells = entries.iter().zip(profiles).map(|(entry, profile)| {
        let part = |i: &usize| {
            let (_, total) = &profile.parts[*i];
            match total.count {
                0 => "–".into(),
                _ if dispatched => format!("{:.1} ({})", 1e3 * total.seconds, total.dispatches),
                _ => format!("{:.1}", 1e3 * total.seconds),
            }
        };
        let mut cells = vec![entry.name.clone()];
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
        "{}, weights in {}, {} tokens, batch {}, {}, guidance {}, {:.2} GMACs an image and half; {} in turn on {} ({})",
        info.outline.name,
        info.resident.kept,
        info.outline.graph.tokens(),
        args.batch,
        counted(settings.steps, "step"),
        settings.guidance.scale(),
        full / 1e9,
        counted(args.runs, "timed run"),
        engine.report().device,
        engine.report().backend,
    ));
}
