//! `harmonica schedule show|make|import|diff`

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::{
    Context,
    error::CliError,
    options::{ModelArgs, RunArgs, print_json},
};
use crate::{
    checkpoint::{ModelInfo, ReleasedRouter, model_info},
    diffusion::Weights,
    graph::SiteKind,
    pipeline::chosen_file,
    plan::compile,
    policy::{Policy, ScheduleChoice},
    report::draw_schedule,
    sampler::{Settings, model_identity, run_settings},
    schedule::{Measured, PolicyRecord, ReleasedKind, Schedule, ScheduleFile, router_from_release},
    words::counted,
};

const EXAMPLES: &str = "\
Examples:
  harmonica schedule show learned:2
  harmonica schedule make fora:2 --steps 50 --out fora.schedule.json
  harmonica schedule diff learned:2 fora:2
  harmonica schedule import router.pt --model dit-xl.pt --out l2c.schedule.json";

const SHOW_EXAMPLES: &str = "\
Examples:
  harmonica schedule show learned:2    what comes with the bundled model
  harmonica schedule show fora:3 --steps 12 --plan
  harmonica schedule show router/router-speedup2.schedule.json --png heat.png";

const MAKE_EXAMPLES: &str = "\
Examples:
  harmonica schedule make fora:2 --steps 50 --out fora.schedule.json
  harmonica schedule make delta:2 --model dit-xl.pt --out delta.schedule.json
  harmonica schedule make learned:2 --out learned.schedule.json";

const IMPORT_EXAMPLES: &str = "\
Examples:
  harmonica schedule import router.pt --model dit-xl.pt --out l2c.schedule.json
  harmonica schedule import router.pt --tau 0.2 --out other.schedule.json";

const DIFF_EXAMPLES: &str = "\
Examples:
  harmonica schedule diff learned:2 fora:2
  harmonica schedule diff router/router.schedule.json learned:2";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Draw a schedule in the terminal, and as a PNG heat map
    #[command(after_help = SHOW_EXAMPLES, allow_negative_numbers = true)]
    Show {
        /// A *.schedule.json file; or learned[:SPEED], or a policy such as fora:2, as --schedule takes them, for this model and run
        #[arg(value_name = "FILE|learned|POLICY[:ARGS]")]
        file: String,
        /// Print the compiled work: a line a step, `→ s3` stores a feature, `[… ← s3]` is a span of reuse
        #[arg(long, help_heading = "Output")]
        plan: bool,
        /// Also draw it as a picture
        #[arg(long, value_name = "FILE.png", help_heading = "Output")]
        png: Option<PathBuf>,
        /// One JSON document on stdout
        #[arg(long, help_heading = "Output")]
        json: bool,
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    #[command(about = makeable(), after_help = MAKE_EXAMPLES, allow_negative_numbers = true)]
    Make {
        /// The policy, or learned[:SPEED]
        policy: String,
        /// The file to write
        #[arg(long, value_name = "FILE", help_heading = "Output")]
        out: PathBuf,
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Turn a released router checkpoint (HarmoniCa's or Learning-to-Cache's) into a schedule
    #[command(after_help = IMPORT_EXAMPLES, allow_negative_numbers = true)]
    Import {
        /// The router's .pt
        file: PathBuf,
        /// Threshold: compute where the score is above it
        #[arg(long, default_value_t = 0.1)]
        tau: f64,
        /// harmonica or learning-to-cache [default: told apart by the pinned row of the noisiest step]
        #[arg(long, value_name = "KIND")]
        kind: Option<ReleasedKind>,
        /// The file to write
        #[arg(long, value_name = "FILE", help_heading = "Output")]
        out: PathBuf,
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Show where two schedules differ
    #[command(after_help = DIFF_EXAMPLES, allow_negative_numbers = true)]
    Diff {
        /// A *.schedule.json file; or learned[:SPEED], or a policy, for this model and run
        #[arg(value_name = "FILE|learned|POLICY[:ARGS]")]
        a: String,
        /// Another
        #[arg(value_name = "FILE|learned|POLICY[:ARGS]")]
        b: String,
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        run: RunArgs,
    },
}

/// What `make` does, and of which policies.
fn makeable() -> String {
    let policies = Policy::all().filter(|policy| policy.has_table);
    let usages: Vec<String> = policies.map(|policy| policy.usage()).collect();
    format!(
        "Write the schedule of a policy that is known before the run: {}",
        usages.join(", ")
    ) + "; or what was learned: learned[:SPEED]"
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        Command::Show {
            file,
            plan,
            png,
            json,
            model,
            run,
        } => {
            let file = named(&file, &model, &run, context)?;
            show(&file, png.as_deref(), json.then_some(plan), context)?;
            if plan && !json {
                show_plan(&file)?;
            }
            Ok(())
        }
        Command::Make {
            policy,
            model,
            run,
            out,
        } => {
            if let ScheduleChoice::File(path) = policy.parse()? {
                return Err(CliError::Usage(format!(
                    "{} is a schedule file already; expected a policy, or learned[:SPEED]",
                    path.display()
                )));
            }
            write(&named(&policy, &model, &run, context)?, &out, context)
        }
        Command::Import {
            file,
            model,
            mut run,
            tau,
            kind,
            out,
        } => {
            let released = ReleasedRouter::read(&file)?;
            let steps = released.rows.len();
            if run.steps.is_some_and(|asked| asked != steps) {
                return Err(CliError::Usage(format!(
                    "--steps contradicts the router, which has {steps}"
                )));
            }
            run.steps = Some(steps);
            let (info, settings) = model_and_run(&model, &run, context)?;
            let kind = kind.unwrap_or_else(|| {
                let guess = ReleasedKind::guess(&released.rows);
                context.say(format!(
                    "taken for a {} router by its form (--kind says otherwise)",
                    guess.policy_name()
                ));
                guess
            });
            let file = imported(&released, kind, tau, &info, &settings)?;
            write(&file, &out, context)
        }
        Command::Diff { a, b, model, run } => {
            let file = |spec: &str| named(spec, &model, &run, context);
            diff([&a, &b], &file(&a)?, &file(&b)?)
        }
    }
}

/// A schedule by what names it anywhere: a file, or a policy or what was learned, for a model and run.
fn named(
    spec: &str,
    model: &ModelArgs,
    run: &RunArgs,
    context: &Context,
) -> Result<ScheduleFile, CliError> {
    let choice: ScheduleChoice = spec.parse()?;
    if let ScheduleChoice::File(path) = &choice {
        return Ok(ScheduleFile::read(path)?);
    }
    let (info, settings) = model_and_run(model, run, context)?;
    Ok(chosen_file(&choice, &info, &settings)?)
}

fn model_and_run(
    model: &ModelArgs,
    run: &RunArgs,
    context: &Context,
) -> Result<(ModelInfo, Settings), CliError> {
    let info = model_info(&model.spec()?, model.load_options(context)?)?;
    let settings = run.settings(&info)?;
    Ok((info, settings))
}

fn write(file: &ScheduleFile, out: &Path, context: &Context) -> Result<(), CliError> {
    file.write(out)?;
    let measured = file.measured.clone().unwrap_or_default();
    context.say(format!(
        "{}: {} for {}, CUR {:.1} %, MACs ratio {:.2}×",
        out.display(),
        file.policy.name,
        counted(file.run.steps, "step"),
        100.0 * measured.cur,
        measured.macs_ratio
    ));
    Ok(())
}

fn imported(
    released: &ReleasedRouter,
    kind: ReleasedKind,
    tau: f64,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<ScheduleFile, CliError> {
    let branches = info.outline.graph.branches();
    let found = released.rows.first().map_or(0, Vec::len);
    if found != branches {
        return Err(CliError::Usage(format!(
            "the router is for {found} branches ({} blocks), the model has {branches}",
            found / 2
        )));
    }
    let schedule = kind.schedule(&released.rows, tau)?;
    let router = router_from_release(&released.rows)?;
    // Logits that do not make the table by themselves are left out.
    let explained = router.threshold(tau)? == schedule;
    let rows = (0..router.steps())
        .map(|s| router.row(s).to_vec())
        .collect();
    let policy = PolicyRecord {
        name: kind.policy_name().into(),
        parameters: Some(json!({ "imported": true, "threshold": tau })),
    };
    let run = run_settings(info, settings)?;
    Ok(ScheduleFile {
        threshold: explained.then_some(tau),
        logits: explained.then_some(rows),
        ..ScheduleFile::of(&schedule, policy, model_identity(info), run)
    })
}

/// `as_json`: as one document, with or without the plan.
pub(super) fn show(
    file: &ScheduleFile,
    png: Option<&Path>,
    as_json: Option<bool>,
    context: &Context,
) -> Result<(), CliError> {
    let schedule = file.schedule()?;
    let graph = &file.model.graph;
    let ratio = schedule.macs_ratio(graph);
    if let Some(png) = png {
        draw_schedule(file, None, png)?;
        context.say(format!("drew {}", png.display()));
    }
    if let Some(plan) = as_json {
        let mut document = json!({
            "policy": file.policy, "model": file.model, "run": file.run, "cur": schedule.cur(), "macs_ratio": ratio,
            "compute": file.compute, "forecast": file.forecast,
        });
        if plan {
            let text = compile(&schedule, graph).to_string();
            document["plan"] = text.lines().collect();
        }
        print_json(&document);
        return Ok(());
    }
    out!(
        "{} for {} of {}, {} of {}{}",
        file.policy.name,
        file.model.family,
        counted(file.model.graph.blocks(), "block"),
        counted(file.run.steps, "step"),
        file.run.solver,
        file.run
            .guidance
            .as_ref()
            .map_or(String::new(), |g| format!(
                ", guidance {} over channels {}",
                g.scale, g.channels
            )),
    );
    out!(
        "CUR {:.1} %, MACs ratio {ratio:.2}×",
        100.0 * schedule.cur()
    );
    if let Some(Measured {
        mse: Some(mse),
        psnr: Some(psnr),
        images: Some(images),
        ..
    }) = &file.measured
    {
        out!(
            "measured against the uncached run over {}: MSE {mse:.2e}, PSNR {psnr:.1} dB",
            counted(*images, "image")
        );
    }
    out!("{}", picture(file, &schedule));
    Ok(())
}

/// The ops of every step and their exact figures, for one image.
fn show_plan(file: &ScheduleFile) -> Result<(), CliError> {
    let plan = compile(&file.schedule()?, &file.model.graph);
    let figures = plan.accounting();
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    out!("\n{plan}");
    out!(
        "{} computed, {} reused in {} spans; cache: {} slots of {:.2} MB, {:.1} MB written, {:.1} MB read an image",
        figures.computed,
        figures.reused,
        figures.spans,
        figures.slots,
        megabytes(figures.feature_bytes),
        megabytes(figures.bytes_written()),
        megabytes(figures.bytes_read()),
    );
    Ok(())
}

/// `█` compute, `·` reuse, `∿` forecast of features; a column a kind of branch. Steps that run no network are blank.
fn picture(file: &ScheduleFile, schedule: &Schedule) -> String {
    let graph = &file.model.graph;
    let kinds = graph.kinds();
    let of_kind = |kind: SiteKind| {
        let sites = graph.sites().iter().enumerate();
        sites
            .filter(move |(_, site)| site.kind == kind)
            .map(|(n, _)| n)
    };
    let mut out = "step    t".to_owned();
    for kind in &kinds {
        let width = of_kind(*kind).count();
        out.push_str(&format!("  {:width$}", kind.name()));
    }
    out.push_str("  computed");
    if file.lambda.is_some() {
        out.push_str("    lambda");
    }
    for s in 0..schedule.steps() {
        out.push_str(&format!("\n{s:>4} {:>4}", file.run.timesteps[s]));
        for kind in &kinds {
            let cell = |n: usize| match schedule.computes(s, n) {
                true => '█',
                false if !schedule.runs_network(s) => ' ',
                false if schedule.weights(s, n).len() > 1 => '∿',
                false => '·',
            };
            let cells: String = of_kind(*kind).map(cell).collect();
            let width = kind.name().chars().count();
            out.push_str(&format!("  {cells:width$}"));
        }
        let computed = schedule.row(s).iter().filter(|computes| **computes).count();
        out.push_str(&format!("  {computed:>4}/{}", schedule.branches()));
        if let Some(estimate) = schedule.forecast().estimates.get(&s) {
            out.push_str(&format!("  {}", estimate_text(estimate)));
        }
        if let Some(lambda) = &file.lambda {
            out.push_str(&format!("  {:.2e}", lambda[s]));
        }
    }
    out
}

/// What a step takes for the clean image: `1.54·H0 - 0.08·H1 - 0.05·x`.
fn estimate_text(estimate: &Weights) -> String {
    let predictions = estimate.predictions.iter().enumerate();
    let mut terms: Vec<(f64, String)> = predictions
        .map(|(j, weight)| (*weight, format!("H{j}")))
        .collect();
    terms.push((estimate.state, "x".into()));
    let mut text = String::new();
    for (weight, name) in terms.into_iter().filter(|(weight, _)| *weight != 0.0) {
        let sign = match (text.is_empty(), weight < 0.0) {
            (true, false) => "",
            (true, true) => "-",
            (false, false) => " + ",
            (false, true) => " - ",
        };
        text.push_str(&format!("{sign}{:.3}·{name}", weight.abs()));
    }
    text
}

fn diff([a, b]: [&str; 2], left: &ScheduleFile, right: &ScheduleFile) -> Result<(), CliError> {
    let (x, y) = (left.schedule()?, right.schedule()?);
    if (x.steps(), x.branches()) != (y.steps(), y.branches()) {
        return Err(CliError::Usage(format!(
            "cannot compare {} steps × {} branches with {} × {}",
            x.steps(),
            x.branches(),
            y.steps(),
            y.branches()
        )));
    }
    out!(
        "{a}: CUR {:.1} %    {b}: CUR {:.1} %",
        100.0 * x.cur(),
        100.0 * y.cur()
    );
    let (mut differing, mut other_weights) = (0, 0);
    for s in 0..x.steps() {
        let row: String = x
            .row(s)
            .iter()
            .zip(y.row(s))
            .map(|(x, y)| match (x, y) {
                (true, false) => '-',
                (false, true) => '+',
                (true, true) => '#',
                (false, false) => '.',
            })
            .collect();
        let count = row.chars().filter(|c| "+-".contains(*c)).count();
        differing += count;
        let (f, g) = (x.forecast(), y.forecast());
        let forecasts_differ = f.estimates.get(&s) != g.estimates.get(&s)
            || x.runs_network(s) != y.runs_network(s)
            || (x.joint() != y.joint() && !x.reused_together(s).is_empty())
            || (0..x.branches()).any(|n| x.weights(s, n) != y.weights(s, n));
        other_weights += usize::from(forecasts_differ);
        let mark = if forecasts_differ { "  ~" } else { "" };
        out!("{s:>4}  {row}  {count}{mark}");
    }
    out!(
        "{differing} of {} differ (- computed only in the first, + only in the second)",
        x.steps() * x.branches()
    );
    if other_weights > 0 {
        out!("{other_weights} of {} steps weigh otherwise (~)", x.steps());
    }
    Ok(())
}
