//! `harmonica compare`

use std::path::PathBuf;

use serde_json::json;

use super::{
    Context,
    draw::draw,
    error::CliError,
    film::{IMAGES, film_row},
    measure::{
        Entry, Measured, check_outputs, in_turn, json_rows, print_rows, say_warnings, write_text,
    },
    options::{CacheArgs, Session, SessionArgs, parse_seed, print_json},
    pictures::name_of,
    progress::progress,
    sample::MAX_COUNT,
};
use crate::{
    pipeline::Decoder,
    policy::Origin,
    report::{
        FrontPoint, Page, Pictured,
        comparison::{Comparison, fewer_steps},
        draw_film, draw_front, page,
    },
    sampler::{BATCH_BYTES, Request},
    words::counted,
};

/// More pictures of each row than a page can show.
const MAX_PICTURES: usize = 64;
/// Where a comparison has the images for it, it has so many rounds: one says nothing of how speeds vary.
const ROUNDS: usize = 3;

const EXAMPLES: &str = "\
Examples:
  harmonica compare --schedules learned:2,fora:2,taylor:3
  harmonica compare --schedules learned:2 --count 256 --html page.html
  harmonica compare --steps 50 --schedules router,fora:2 --csv rows.csv";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, next_help_heading = "Comparison", allow_negative_numbers = true)]
pub(super) struct Args {
    /// Schedules to compare with the uncached run: files, policies, learned[:SPEED], or steps:K[:SOLVER] (no reuse, K steps)
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', required = true)]
    schedules: Vec<String>,
    /// Only what --schedules names: do not add, for each MACs ratio, the run of fewer steps (steps:K) nearest to it
    #[arg(long)]
    no_fewer_steps: bool,
    /// Images, of all classes in turn
    #[arg(long, default_value_t = 64)]
    count: usize,
    /// Seed of the noise
    #[arg(long, default_value_t = 0, value_parser = parse_seed)]
    seed: u64,
    /// Also the error to the uncached run of so many steps, which stands for the true solution
    #[arg(long, value_name = "K")]
    truth: Option<usize>,
    /// Also draw error against saved work, a line a policy
    #[arg(long, value_name = "FILE.png", help_heading = "Output")]
    plot: Option<PathBuf>,
    /// Also draw a moving picture (APNG): the first six images of the uncached run and of --schedules, each as far as equal work
    /// takes it
    #[arg(long, value_name = "FILE.png", help_heading = "Output")]
    film: Option<PathBuf>,
    /// Also write the rows as comma-separated values
    #[arg(long, value_name = "FILE.csv", help_heading = "Output")]
    csv: Option<PathBuf>,
    /// Also write a page to open in a browser: the table, the plot, pictures and schedules, in one file
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Pictures of each schedule on the page, at most 64; those of more than 256 pixels a side are scaled down
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        requires = "html",
        help_heading = "Output"
    )]
    pictures: usize,
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

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    check(&args)?;
    let mut session = args.session.open(context)?;
    if args.html.is_some() {
        session.pipeline = args.session.model.with_decoder(session.pipeline)?;
    }
    let Session {
        pipeline, settings, ..
    } = &session;
    let (report, info) = (pipeline.engine.report(), &pipeline.info);
    let dtype = args.cache.cache_dtype;
    let entry = |spec: &str| Entry::of(spec, args.force, &session, dtype, context);
    let mut entries = vec![Entry::uncached(&session, dtype, context)?];
    for spec in &args.schedules {
        entries.push(entry(spec)?);
    }
    // Those of the MACs ratios `ratios`.
    let fewer = |ratios: &[f64], entries: &[Entry]| -> Result<Vec<Entry>, CliError> {
        if args.no_fewer_steps {
            return Ok(Vec::new());
        }
        let there = entries
            .iter()
            .filter_map(|e| e.fewer_steps(settings.solver));
        let there: Vec<usize> = there.collect();
        let counts = fewer_steps(settings.steps, ratios.iter().copied(), &there);
        let specs = counts.into_iter().map(|count| format!("steps:{count}"));
        specs.map(|spec| entry(&spec)).collect()
    };
    let full = entries[0].macs();
    let ahead: Vec<f64> = entries
        .iter()
        .map(|entry| full as f64 / entry.macs().max(1) as f64)
        .collect();
    entries.extend(fewer(&ahead, &entries)?);
    let truth = args.truth.map(|steps| entry(&format!("steps:{steps}")));
    let truth = truth.transpose()?;
    let outputs = [&args.plot, &args.film, &args.csv, &args.html];
    check_outputs(outputs.into_iter().flatten())?;

    let conditions = pipeline.prompts.in_turn(args.count);
    let fitting = entries
        .iter()
        .map(|entry| entry.sampler.batch_within(BATCH_BYTES));
    let ranks = &context.ranks;
    let rounds = ROUNDS * ranks.size();
    let batch = fitting.min().unwrap_or(1).min(args.count.div_ceil(rounds));
    let all = Request {
        conditions,
        seed: args.seed,
        first: 0,
        noise: None,
        batch,
    };
    let own = ranks.share(args.count, batch);
    let request = Request {
        conditions: all.conditions[own.clone()].to_vec(),
        first: own.start as u64,
        ..all.clone()
    };
    let pictures = match args.html {
        Some(_) => args.pictures.min(args.count),
        None => 0,
    };
    let steps = |entries: &[Entry]| -> usize {
        let each = entries.iter().map(|entry| entry.sampler.settings().steps);
        each.sum()
    };
    let count = own.len();
    let length = steps(&entries) * (count + 1) + steps(truth.as_slice()) * count;
    let bar = progress(context, length as u64, "image steps");
    let advance = |images: usize| images as u64;
    let truth = match &truth {
        Some(truth) if count > 0 => {
            let run = truth.sampler.run(request.clone())?;
            Some(draw(run, &bar, advance, context)?.0)
        }
        _ => None,
    };
    let measure = |entries: &[Entry]| -> Result<Vec<Measured>, CliError> {
        // One image of each before any is timed: what is compiled on the way is compiled then.
        let one = Request {
            conditions: request.conditions[..count.min(1)].to_vec(),
            batch: 1,
            ..request.clone()
        };
        let progress = (&bar, context);
        in_turn(entries, None, &one, 0, pipeline, progress)?;
        let truth = truth.as_deref();
        in_turn(entries, truth, &request, pictures, pipeline, progress)
    };
    let mut measured = measure(&entries)?;
    // What runs that decide as they go on have saved is known only now.
    let ratios: Vec<f64> = measured.iter().map(|m| m.row.macs_ratio).collect();
    let late = fewer(&ratios, &entries)?;
    if !late.is_empty() {
        let mut again = vec![Entry::uncached(&session, dtype, context)?];
        again.extend(late);
        bar.inc_length((steps(&again) * (count + 1)) as u64);
        measured.extend(measure(&again)?.into_iter().skip(1));
    }
    if !ranks.leads() {
        return Ok(());
    }
    // Runs that nobody times.
    let filmed = match args.film {
        Some(_) => &entries[..=args.schedules.len()],
        None => &[],
    };
    bar.inc_length((steps(filmed) * args.count.min(IMAGES)) as u64);
    let film = filmed.iter();
    let film = film.map(|entry| film_row(entry, &all, pipeline, (&bar, context)));
    let film = film.collect::<Result<Vec<_>, _>>()?;
    bar.finish_and_clear();

    let shape = info.outline.latents.shape();
    let decoder = &pipeline.decoder;
    let mut go_on = || context.check_interrupt().is_ok();
    let (mut rows, mut pictured) = (Vec::new(), Vec::new());
    for Measured { row, map, pictures } in measured {
        let pictures = pictures.chunks(shape.iter().product());
        let pictures = pictures.map(|image| decoder.picture(image, shape, &mut go_on));
        let pictures = pictures.collect::<Result<_, _>>()?;
        rows.push(row);
        pictured.push(Pictured { map, pictures });
    }
    context.something_is_at_stake();
    let comparison = Comparison::of(rows);
    let verdict = comparison.verdict();
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name, "images": args.count, "batch": batch, "ranks": ranks.size(),
            "seed": args.seed, "steps": settings.steps, "solver": settings.solver.to_string(),
            "guidance": settings.guidance.scale(), "cache_dtype": dtype.to_string(),
            "rows": json_rows(&comparison, info.resident.kept), "verdict": verdict,
        }));
    } else {
        print_rows(&comparison);
        context.say(format!(
            "error to the uncached {}-step images over {} (mean ± standard error, MSE × 1000; against a rival: image by image, over the same noise), {} in turn, {} on {}",
            settings.steps,
            counted(args.count, "image"),
            counted(args.count.div_ceil(batch), "round"),
            info.outline.name,
            report.device
        ));
    }
    say_warnings(&comparison, context);
    verdict.iter().for_each(|line| context.say(line));
    if let Some(path) = &args.plot {
        draw_front(&points(&comparison), path)?;
        context.say(format!("drew {}", path.display()));
    }
    if let Some(path) = &args.film {
        draw_film(&film, path)?;
        context.say(format!("drew {}", path.display()));
    }
    if let Some(path) = &args.csv {
        write_text(path, &comparison.csv(), context)?;
    }
    if let Some(path) = &args.html {
        let facts = [
            ("model", info.outline.name.clone()),
            ("steps", settings.steps.to_string()),
            ("solver", settings.solver.to_string()),
            ("guidance", settings.guidance.scale().to_string()),
            ("images", args.count.to_string()),
            ("seed", args.seed.to_string()),
            ("batch", batch.to_string()),
            ("weights", info.resident.kept.to_string()),
            ("cache", dtype.to_string()),
            ("device", format!("{} ({})", report.device, report.backend)),
        ];
        let shown = all.conditions.iter().take(pictures).enumerate();
        let captions: Vec<String> = shown.map(|(i, shown)| name_of(shown, i, info)).collect();
        let html = page(
            &Page {
                comparison: &comparison,
                rows: &pictured,
                captions: &captions,
                facts: &facts,
                graph: &info.outline.graph,
                is_preview: !info.is_pixel_space() && matches!(decoder, Decoder::Direct),
            },
            path,
        )?;
        write_text(path, &html, context)?;
    }
    Ok(())
}

fn check(args: &Args) -> Result<(), CliError> {
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
    if args.pictures > MAX_PICTURES {
        return Err(CliError::Usage(format!(
            "--pictures is {}, expected at most {MAX_PICTURES}",
            args.pictures
        )));
    }
    Ok(())
}

/// Rows as points; schedules of one policy belong together.
fn points(comparison: &Comparison) -> Vec<FrontPoint> {
    let rows = comparison.rows().iter().enumerate();
    rows.filter(|(_, row)| row.origin != Origin::Uncached)
        .map(|(number, row)| FrontPoint {
            policy: row.policy.clone(),
            macs_ratio: row.macs_ratio,
            mse: row.error().mean,
            on_front: comparison.is_on_front(number),
        })
        .collect()
}
