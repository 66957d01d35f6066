//! Schedules by name, as text, and as tables to click on.

use std::path::Path;

use serde::Serialize;
use wasm_bindgen::JsValue;

use super::{model::Loaded, settings, to_js, told};
use crate::{
    checkpoint::ModelInfo,
    pipeline::{Chosen, choose_schedule},
    plan::compile,
    policy::{Origin, ScheduleChoice},
    sampler::{Settings, model_identity, run_settings},
    schedule::{
        Forecast, Measured, ModelIdentity, PolicyRecord, Reuse, RunSettings, Schedule,
        ScheduleFile, bundled_schedules_of, learned_at, speed_of,
    },
};

/// A schedule that goes by a name.
#[derive(Debug, Clone)]
pub struct Known {
    pub name: String,
    pub file: ScheduleFile,
}

/// A schedule as a page sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    name: String,
    steps: usize,
    branches: usize,
    timesteps: Vec<usize>,
    computed: Vec<Vec<bool>>,
    network: Vec<bool>,
    cur: f64,
    macs: u64,
    macs_full: u64,
    macs_ratio: f64,
    cache_bytes: u64,
    text: String,
}

impl Table {
    /// That of a file; the name is its policy's.
    pub fn new((name, file): (String, ScheduleFile), info: &ModelInfo) -> Result<Self, JsValue> {
        let schedule = file.schedule().map_err(told)?;
        let figures = compile(&schedule, &info.outline.graph).accounting();
        let steps = 0..schedule.steps();
        Ok(Self {
            name,
            steps: schedule.steps(),
            branches: schedule.branches(),
            timesteps: file.run.timesteps.clone(),
            computed: steps.clone().map(|s| schedule.row(s).to_vec()).collect(),
            network: steps.map(|s| schedule.runs_network(s)).collect(),
            cur: schedule.cur(),
            macs: figures.macs,
            macs_full: figures.macs_full,
            macs_ratio: schedule.macs_ratio(&info.outline.graph),
            cache_bytes: figures.cache_bytes(),
            text: file.to_text(),
        })
    }

    /// As JavaScript has it.
    pub fn to_js(&self) -> Result<JsValue, JsValue> {
        to_js(self)
    }
}

/// Takes in the text of a file: it must be of this model.
pub fn add(loaded: &Loaded, text: &str) -> Result<(String, ScheduleFile), JsValue> {
    let file = parse(text)?;
    let model = model_identity(&loaded.info);
    file.check_fits(&model, &file.run).map_err(told)?;
    let mut known = loaded.known.borrow_mut();
    let name = match known.iter().find(|known| known.file == file) {
        Some(same) => same.name.clone(),
        None => {
            let name = name_of(&file, &known);
            known.push(Known {
                name: name.clone(),
                file: file.clone(),
            });
            name
        }
    };
    Ok((name, file))
}

/// What the library knows for a model.
pub fn learned_for(info: &ModelInfo) -> Vec<Known> {
    let mut known = Vec::new();
    for file in bundled_schedules_of(&model_identity(info)) {
        let name = name_of(&file, &known);
        known.push(Known { name, file });
    }
    known
}

/// A name that no other has: `forecast 2.00×`.
fn name_of(file: &ScheduleFile, known: &[Known]) -> String {
    let name = format!("{} {:.2}×", file.policy.name, speed_of(file));
    let run = format!("{name} of {} steps by {}", file.run.steps, file.run.solver);
    let is_free = |name: &String| known.iter().all(|known| known.name != *name);
    let numbered = (2..).map(|n| format!("{run} ({n})"));
    let mut names = [name, run.clone()].into_iter().chain(numbered);
    names.find(is_free).unwrap_or(run.clone())
}

/// Model and usual run, as schedules know them.
pub fn usual_run(loaded: &Loaded) -> Result<(ModelIdentity, RunSettings), JsValue> {
    identities(&loaded.info, &settings::usual_run(loaded))
}

fn parse(text: &str) -> Result<ScheduleFile, JsValue> {
    ScheduleFile::parse(text, Path::new("the schedule")).map_err(told)
}

/// What a page means: the text of a file, a name of those it brought, a policy, `learned[:SPEED]`.
pub fn choose(loaded: &Loaded, text: &str, settings: &Settings) -> Result<Chosen, JsValue> {
    let (info, known) = (&loaded.info, loaded.known.borrow());
    if text.trim_start().starts_with('{') {
        return of_file("edited".into(), &parse(text)?, info, settings);
    }
    if let Some(known) = known.iter().find(|known| known.name == text) {
        return of_file(known.name.clone(), &known.file, info, settings);
    }
    let choice: ScheduleChoice = text.parse().map_err(told)?;
    match choice {
        ScheduleChoice::Learned {
            speed,
            folder: None,
        } => {
            let (model, run) = identities(info, settings)?;
            let fitting = known.iter().map(|known| &known.file);
            let fitting: Vec<ScheduleFile> = fitting
                .filter(|file| file.is_learned() && file.check_fits(&model, &run).is_ok())
                .cloned()
                .collect();
            let file = learned_at(&fitting, speed).ok_or_else(|| {
                let speeds = fitting.iter().map(|file| format!("{:.2}×", speed_of(file)));
                let speeds: Vec<String> = speeds.collect();
                told(format_args!(
                    "no learned schedule of that speed is known for this model and run (there are {}): add its file, or train one",
                    if speeds.is_empty() { "none".to_owned() } else { speeds.join(", ") }
                ))
            })?;
            let name = format!("learned:{:.2}", speed_of(file));
            of_file(name, file, info, settings)
        }
        ScheduleChoice::File(_) | ScheduleChoice::Learned { .. } => Err(told(format_args!(
            "there is no schedule `{text}`: expected none, a policy such as fora:2, learned or learned:SPEED, the name of a schedule that was added, or the text of a schedule file"
        ))),
        choice => choose_schedule(&choice, false, info, settings).map_err(told),
    }
}

fn identities(
    info: &ModelInfo,
    settings: &Settings,
) -> Result<(ModelIdentity, RunSettings), JsValue> {
    let run = run_settings(info, settings).map_err(told)?;
    Ok((model_identity(info), run))
}

fn of_file(
    name: String,
    file: &ScheduleFile,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<Chosen, JsValue> {
    let (model, run) = identities(info, settings)?;
    file.check_fits(&model, &run).map_err(told)?;
    Chosen::of_file(file, name, None, settings).map_err(told)
}

/// A file of what was chosen, and its name.
pub fn file_of(
    chosen: Chosen,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<(String, ScheduleFile), JsValue> {
    let Reuse::Ahead(schedule) = chosen.reuse else {
        return Err(told(format_args!(
            "{} decides while it runs, so there is no table of it",
            chosen.name
        )));
    };
    if chosen.settings.steps != settings.steps {
        return Err(told(format_args!(
            "{} is a run of {} steps, not a schedule for {}",
            chosen.name, chosen.settings.steps, settings.steps
        )));
    }
    let (model, run) = identities(info, settings)?;
    let policy = PolicyRecord {
        name: chosen.policy,
        parameters: Some(chosen.name.clone().into()),
    };
    let file = ScheduleFile {
        measured: Some(Measured::of(&schedule, &info.outline.graph)),
        ..ScheduleFile::of(&schedule, policy, model, run)
    };
    Ok((chosen.name, file))
}

/// The schedule with a cell `[step, branch]` the other way round.
pub fn toggled(chosen: Chosen, [step, branch]: [usize; 2]) -> Result<Chosen, JsValue> {
    let Reuse::Ahead(schedule) = &chosen.reuse else {
        return Err(told(format_args!(
            "{} decides while it runs, so there is no cell to change",
            chosen.name
        )));
    };
    let (steps, branches) = (schedule.steps(), schedule.branches());
    if step >= steps || branch >= branches {
        return Err(told(format_args!(
            "there is no cell of step {step} and branch {branch}: the table has {steps} steps and {branches} branches"
        )));
    }
    if step == 0 {
        return Err(told(
            "step 0 computes everything: nothing comes before it that could be reused",
        ));
    }
    let was_skipped = !schedule.runs_network(step);
    let edited = Schedule::from_rule(steps, branches, |s, n| match (s == step, was_skipped) {
        (true, true) => true,
        (true, false) if n == branch => !schedule.computes(s, n),
        _ => schedule.computes(s, n),
    });
    // A forecast of features weighs those of certain steps, too.
    let edited = edited.and_then(|edited| {
        edited.with_reads(|s, n| match n == branch || was_skipped {
            true => Vec::new(),
            false => schedule.weights(s, n).to_vec(),
        })
    });
    let mut forecast: Forecast = schedule.forecast().clone();
    if was_skipped {
        forecast.skipped.retain(|s| *s != step);
        forecast.estimates.retain(|s, _| *s < step);
    }
    let edited = edited.and_then(|edited| edited.with_forecast(forecast));
    Ok(Chosen {
        reuse: edited.map_err(told)?.into(),
        name: "edited".into(),
        policy: "edited".into(),
        origin: Origin::Policy,
        ..chosen
    })
}
