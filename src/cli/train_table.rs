//! `harmonica train router --table`: forecasts for tables that other policies make.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::{Value, json};

use super::{
    Context, again,
    error::CliError,
    options::{Session, print_json},
    progress::bar_or_lines,
    table::markdown_table,
};
use crate::{
    files::check_writable,
    metrics::psnr_from_mse,
    pipeline::{Chosen, Pipeline},
    sampler::Settings,
    schedule::{PolicyRecord, Reuse, Schedule, ScheduleError},
    training::{
        TrainingError,
        forecast::{Corrector, LadderSettings, images_for},
    },
    words::counted,
};

/// What the command says of it.
pub(super) struct Asked {
    pub out: PathBuf,
    /// What `--schedule` takes.
    pub tables: Vec<String>,
    pub settings: LadderSettings,
    pub json: bool,
}

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
    let mut tables = Vec::new();
    for spec in &asked.tables {
        let Chosen {
            reuse,
            settings: run,
            name,
            ..
        } = pipeline.choose(spec, &settings)?;
        let Reuse::Ahead(table) = reuse else {
            return Err(CliError::Usage(format!(
                "--table {spec} decides while a run goes on: there is no table to correct"
            )));
        };
        if run != settings {
            return Err(CliError::Usage(format!(
                "--table {spec} is another run, not a table of {}",
                counted(settings.steps, "step")
            )));
        }
        let path = asked
            .out
            .join(format!("corrected-{}.schedule.json", slug(&name)));
        check_writable(&path).map_err(|source| ScheduleError::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
        tables.push((name, table, path));
    }
    let (rows, validation) = corrected(&asked, tables, &pipeline, settings, context)?;
    if !context.ranks.leads() {
        return Ok(());
    }
    let seconds = started.elapsed().as_secs_f64();
    let report = pipeline.engine.report();
    if asked.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": pipeline.info.outline.name, "steps": settings.steps,
            "recipe": "table", "ranks": context.ranks.size(), "seconds": seconds, "schedules": rows,
        }));
        return Ok(());
    }
    let header = ["table", "MACs ratio", "MSE ×1000", "corrected", "PSNR dB"];
    let cells = rows.iter().map(|row| {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let thousand = |key: &str| format!("{:.2}", 1e3 * number(key));
        let corrected = format!("{} ± {}", thousand("mse"), thousand("mse_standard_error"));
        vec![
            row["table"].as_str().unwrap_or_default().to_owned(),
            format!("{:.2}", number("macs_ratio")),
            thousand("mse_as_it_was"),
            corrected,
            format!("{:.1}", psnr_from_mse(number("mse"))),
        ]
    });
    out!("{}", markdown_table(&header, cells));
    context.say(format!(
        "error to the uncached images over {} that nothing was fitted to; {seconds:.0} s on {} ({})",
        counted(validation, "draw"),
        report.device,
        report.backend
    ));
    if let Some(file) = rows.iter().find_map(|row| row["file"].as_str()) {
        context.say(format!(
            "next: harmonica sample --steps {} --schedule {}{again}",
            settings.steps,
            again::path(file.as_ref()),
        ));
    }
    Ok(())
}

/// A name, or that of a file, as part of a file's.
fn slug(name: &str) -> String {
    let file = Path::new(name).file_name().and_then(OsStr::to_str);
    let name = file.unwrap_or(name);
    let name = name.strip_suffix(".schedule.json").unwrap_or(name);
    let plain = |c: char| {
        if c.is_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    name.chars().map(plain).collect()
}

/// What became of each table, and the draws that they were judged on.
fn corrected(
    asked: &Asked,
    tables: Vec<(String, Schedule, PathBuf)>,
    pipeline: &Pipeline,
    settings: Settings,
    context: &Context,
) -> Result<(Vec<Value>, usize), CliError> {
    let info = &pipeline.info;
    let (graph, guided) = (&info.outline.graph, settings.guidance.is_active());
    let fits = tables
        .iter()
        .map(|(_, table, _)| images_for(table, guided, graph));
    let most = fits.min().unwrap_or(usize::MAX);
    let mut fitting = asked.settings.clone();
    fitting.draws = fitting.draws.min(most);
    fitting.validation = fitting.validation.min(most);
    if fitting != asked.settings {
        context.say(format!(
            "{} at most: the features of more do not fit in memory at once",
            counted(most, "draw")
        ));
    }
    let validation = fitting.validation;
    // Tables differ too much in what they cost for a guess at what is left.
    let template = "{bar:32} {pos}/{len} tables · {elapsed} {msg}";
    let bar = bar_or_lines(context, tables.len() as u64, template, |bar| {
        let (done, all) = (bar.position(), bar.length().unwrap_or_default());
        format!("{done}/{all} tables {}", bar.message())
    });
    bar.set_message(format!(
        "· drawing {}",
        counted(fitting.draws + validation, "uncached image")
    ));
    let mut corrector = Corrector::new(
        pipeline,
        settings,
        &fitting,
        context.stop(),
        context.ranks.clone(),
    )?;
    let mut rows = Vec::new();
    for (name, table, path) in tables {
        bar.set_message(format!("· {name}"));
        let found = corrector.correct(&table)?;
        let mut row = json!({
            "table": name, "macs_ratio": found.schedule.macs_ratio(graph),
            "mse_as_it_was": found.plain.mse, "mse": found.corrected.mse,
            "mse_standard_error": found.corrected.standard_error, "mse_median": found.corrected.median,
            "mse_max": found.corrected.worst,
        });
        match found.holds() {
            true => {
                let policy = PolicyRecord {
                    name: "corrected".into(),
                    parameters: Some(json!({ "table": name })),
                };
                let training = json!({
                    "draws": fitting.draws, "validation": validation, "seed": fitting.seed,
                });
                let (judged, schedule) = (&found.corrected, &found.schedule);
                let file = judged
                    .file(schedule, policy, training, validation, info, &settings)
                    .map_err(TrainingError::from)?;
                if context.ranks.leads() {
                    file.write(&path)?;
                }
                row["file"] = json!(path);
                bar.suspend(|| context.say(format!("{}: {name}, corrected", path.display())));
            }
            false => bar.suspend(|| {
                context.say(format!(
                    "{name}: nothing is written: it fares better as it is on draws that nothing was fitted to"
                ));
            }),
        }
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((rows, validation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_their_tables() {
        let slugs = ["fora:2", "taylor:2:1", "runs/router-cur0.5.schedule.json"].map(slug);
        assert_eq!(slugs, ["fora-2", "taylor-2-1", "router-cur0.5"]);
    }
}
