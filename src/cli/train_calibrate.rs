//! `harmonica train calibrate`

use std::{ops::ControlFlow, path::PathBuf, time::Instant};

use serde_json::json;

use super::{
    Context, again,
    error::CliError,
    options::{Session, SessionArgs, parse_seed, print_json},
    progress::progress,
};
use crate::{
    files::check_writable,
    pipeline::calibrated_run,
    policy::{CALIBRATIONS, Calibration},
    sampler::{BATCH_BYTES, batch_for, model_identity},
    schedule::ScheduleError,
    training::calibration::{CalibrationSettings, calibrate},
    words::counted,
};

/// Features of a batch that are held at a time: those of the step at hand and of three before it.
const FEATURES_HELD: u64 = 4;

const EXAMPLES: &str = "\
Examples:
  harmonica train calibrate --steps 20
  harmonica train calibrate --steps 50 --guidance 1.5 --draws 32
  harmonica sample --steps 20 --schedule smooth:0.18";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, next_help_heading = "Measuring", allow_negative_numbers = true)]
pub(super) struct Args {
    /// Folder that the measurements go to; policies look in the usual one alone
    #[arg(long, value_name = "DIR", default_value = CALIBRATIONS, help_heading = "Output")]
    out: PathBuf,
    /// Images that are measured
    #[arg(long, value_name = "N", default_value_t = 16)]
    draws: usize,
    /// Images in the network at a time [default: what fits in 1 GiB]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Seed of noise and conditions
    #[arg(long, default_value_t = 0, value_parser = parse_seed)]
    seed: u64,
    /// One JSON document on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    session: SessionArgs,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let Session {
        pipeline, settings, ..
    } = args.session.open(context)?;
    let (info, guided) = (&pipeline.info, settings.guidance.is_active());
    let name = Calibration::file_name(&model_identity(info), &calibrated_run(info, &settings)?);
    let path = args.out.join(name);
    check_writable(&path).map_err(|source| ScheduleError::Io {
        action: "write",
        path: path.clone(),
        source,
    })?;
    let started = Instant::now();
    let fitting = || batch_for(&info.outline, guided, BATCH_BYTES / FEATURES_HELD);
    let asked = CalibrationSettings {
        draws: args.draws,
        batch: args.batch.unwrap_or_else(fitting),
        seed: args.seed,
    };
    let total = args.draws * settings.steps;
    let bar = progress(context, total as u64, "image steps");
    let mut each = |images: usize| {
        bar.inc(images as u64);
        match context.check_interrupt() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let measured = calibrate(&pipeline, settings, asked, context.stop(), &mut each);
    bar.finish_and_clear();
    let calibration = measured?;
    context.something_is_at_stake();
    calibration.write(&path)?;
    let seconds = started.elapsed().as_secs_f64();
    let report = pipeline.engine.report();
    context.say(format!(
        "{}: measured over {} of {} in {seconds:.1} s on {} ({})",
        path.display(),
        counted(args.draws, "image"),
        counted(settings.steps, "step"),
        report.device,
        report.backend
    ));
    context.say(format!(
        "next: harmonica sample --steps {} --schedule smooth:0.18{} (or cem:{}, mag:0.06, tea:0.25)",
        settings.steps,
        again::same_run(&args.session),
        (settings.steps / 2).max(2)
    ));
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name, "steps": settings.steps,
            "draws": args.draws, "seconds": seconds, "file": path,
        }));
    }
    Ok(())
}
