//! `harmonica train router` by forecasts: a schedule for every speed.

use std::{ops::ControlFlow, path::PathBuf, time::Instant};

use comfy_table::Table;
use serde_json::{Value, json};

use super::{
    Context, again,
    error::CliError,
    options::{Session, print_json},
    progress::progress,
    table::markdown_table,
    train_router::off_target,
};
use crate::{
    metrics::{peak_memory_bytes, psnr_from_mse},
    pipeline::Pipeline,
    sampler::{BATCH_BYTES, Settings, batch_for},
    training::{
        Budget, RunFolder,
        forecast::{
            LadderOptions, LadderRun, LadderSettings, Progress, RungSummary, USUAL_SPEEDS, steps_of,
        },
    },
    words::counted,
};

/// What the command says of such a run.
pub(super) struct Asked {
    pub out: PathBuf,
    /// None: the usual speeds.
    pub targets: Vec<Budget>,
    pub settings: LadderSettings,
    pub resume: bool,
    pub json: bool,
    /// What to say of how an interrupted run goes on.
    pub go_on: String,
}

/// `again`: flags that name model and run once more.
pub(super) fn run(
    asked: Asked,
    session: Session,
    again: &str,
    context: &Context,
) -> Result<(), CliError> {
    let Session {
        pipeline, settings, ..
    } = session;
    let started = Instant::now();
    let rows = make(&asked, &pipeline, settings, context)?;
    let seconds = started.elapsed().as_secs_f64();
    if !context.ranks.leads() {
        return Ok(());
    }
    let report = pipeline.engine.report();
    let peak = peak_memory_bytes();
    if asked.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": pipeline.info.outline.name, "steps": settings.steps,
            "recipe": "forecast", "ranks": context.ranks.size(), "seconds": seconds, "peak_memory_bytes": peak, "schedules": rows,
        }));
        return Ok(());
    }
    if rows.is_empty() {
        context.say(format!("{}: nothing was left to do", asked.out.display()));
        return Ok(());
    }
    out!("{}", table(&rows));
    let memory = peak.map_or(String::new(), |bytes| {
        format!(", peak memory {:.2} GB", bytes as f64 / 1e9)
    });
    context.say(format!(
        "error to the uncached images over {} that nothing was fitted to; {seconds:.0} s on {} ({}){memory}",
        counted(asked.settings.validation, "draw"),
        report.device,
        report.backend
    ));
    context.say(format!(
        "next: harmonica sample --steps {} --schedule {} --speed {:.2}{again}",
        settings.steps,
        again::path(&asked.out),
        rows[0]["macs_ratio"].as_f64().unwrap_or(2.0)
    ));
    Ok(())
}

/// Makes the schedules and says so; what became of each, as JSON.
pub(super) fn make(
    asked: &Asked,
    pipeline: &Pipeline,
    settings: Settings,
    context: &Context,
) -> Result<Vec<Value>, CliError> {
    let (engine, info) = (&pipeline.engine, &pipeline.info);
    // Speeds that a run of few steps cannot tell apart are one.
    let usual = || {
        let mut targets = USUAL_SPEEDS.map(Budget::TargetSpeedup).to_vec();
        targets.dedup_by_key(|target| steps_of(*target, settings.steps));
        targets
    };
    let options = LadderOptions {
        folder: RunFolder::new(&asked.out),
        settings: asked.settings.clone(),
        targets: match asked.targets.is_empty() {
            // A resumed run knows its own.
            true if asked.resume => Vec::new(),
            true => usual(),
            false => asked.targets.clone(),
        },
        prompts: pipeline.prompts.clone(),
        batch: batch_for(&info.outline, settings.guidance.is_active(), BATCH_BYTES),
        resume: asked.resume,
        stop: context.stop(),
        ranks: context.ranks.clone(),
    };
    context.something_is_at_stake();
    let mut run = LadderRun::open(&pipeline.model, info, settings, options)?.with_engine(engine);
    let mut bar = progress(context, 0, "uncached images");
    let mut rows: Vec<Value> = Vec::new();
    let mut each = |told: Progress| {
        match told {
            Progress::Reference { drawn, images } => {
                bar.set_length(images as u64);
                bar.set_position(drawn as u64);
                if drawn == images {
                    bar.finish_and_clear();
                    bar = progress(context, 0, "moves");
                }
            }
            Progress::Tried(tried) => {
                bar.inc(1);
                bar.set_length(bar.position() + tried.left as u64);
                let about = match tried.unit {
                    None => format!("sweep {}", tried.sweep + 1),
                    Some(1) => "branch by branch".into(),
                    Some(unit) => format!("by {unit} branches"),
                };
                bar.set_message(format!(
                    "· {} of {} steps, {about} · error {:.3e} · {}",
                    tried.count, settings.steps, tried.error, tried.computed
                ));
            }
            Progress::Cramped { slots, wanted } => bar.suspend(|| {
                context.say(format!(
                    "steps in part may keep {} of {wanted}: more do not fit in memory for {} at once",
                    counted(slots, "feature"),
                    counted(asked.settings.draws, "draw"),
                ));
            }),
            Progress::Rung {
                target,
                path,
                summary,
                macs_ratio,
            } => {
                let RungSummary {
                    computed,
                    judged,
                    even,
                    parts,
                    searched,
                } = &summary;
                let mut note = match searched {
                    false if asked.settings.sweeps > 0 => {
                        ", even: no others held on draws that the search had not seen".to_owned()
                    }
                    _ => String::new(),
                };
                let in_part = computed.parts().len();
                if let Some(parts) = parts.filter(|_| in_part == 0) {
                    let gain = 100.0 * (1.0 - parts.typical / judged.typical);
                    note += &format!("; steps in part were not worth their features ({gain:+.1} % off the error there)");
                }
                let count = computed.steps().len();
                let beside = match in_part {
                    0 => String::new(),
                    count => format!(" and {count} in part"),
                };
                let said = format!(
                    "{}: {count} of {}{beside}, {macs_ratio:.2}×{note}",
                    path.display(),
                    counted(settings.steps, "step"),
                );
                let off = off_target(target, 1.0 - 1.0 / macs_ratio, macs_ratio);
                let off = off.filter(|_| asked.targets.contains(&target));
                bar.suspend(|| {
                    context.say(said);
                    if let Some(off) = off {
                        context.say(format!(
                            "warning: {:.1} % off its target: a run of {} comes no nearer without falling short of it",
                            100.0 * off,
                            counted(settings.steps, "step"),
                        ));
                    }
                });
                rows.push(json!({
                    "file": path, "macs_ratio": macs_ratio, "cur": 1.0 - 1.0 / macs_ratio,
                    "steps_computed": computed.steps(), "steps_in_part": in_part, "searched": searched,
                    "mse": judged.mse, "mse_standard_error": judged.standard_error, "mse_median": judged.median,
                    "mse_max": judged.worst, "mse_even": even.mse,
                }));
            }
        }
        match context.check_interrupt() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    if !run.work(&mut each)? {
        bar.abandon();
        context.say(format!(
            "stopped, saved in {}; {}",
            asked.out.display(),
            asked.go_on
        ));
        return Err(CliError::Interrupted);
    }
    bar.finish_and_clear();
    Ok(rows)
}

fn table(rows: &[Value]) -> Table {
    let header = [
        "MACs ratio",
        "MSE ×1000",
        "median",
        "worst",
        "PSNR dB",
        "even steps",
    ];
    let cells = rows.iter().map(|row| {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let thousand = |key: &str| format!("{:.2}", 1e3 * number(key));
        vec![
            format!("{:.2}", number("macs_ratio")),
            format!("{} ± {}", thousand("mse"), thousand("mse_standard_error")),
            thousand("mse_median"),
            thousand("mse_max"),
            format!("{:.1}", psnr_from_mse(number("mse"))),
            thousand("mse_even"),
        ]
    });
    markdown_table(&header, cells)
}
