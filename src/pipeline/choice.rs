//! From what a user names to what fits model and run.

use std::{collections::BTreeSet, path::Path};

use crate::{
    checkpoint::{ModelInfo, ModelSpec},
    diffusion::{DiffusionError, Solver},
    policy::{CALIBRATIONS, Calibration, Origin, Policy, PolicyError, ScheduleChoice},
    sampler::{Settings, model_identity, run_settings},
    schedule::{
        ModelIdentity, PolicyRecord, Reuse, RunSettings, Schedule, ScheduleError, ScheduleFile,
        bundled_schedules_of, learned_at, speed_of,
    },
};

/// What is reused, and where that came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    pub reuse: Reuse,
    /// The run: the one that was asked for, but for the steps and their solver where that is what was chosen.
    pub settings: Settings,
    /// For people: `none`, `fora:2`, a file's name.
    pub name: String,
    /// What it is a case of: `fora`, `forecast`, `harmonica`, `fewer steps`.
    pub policy: String,
    pub origin: Origin,
    /// Why a schedule that was forced does not fit, or in what it was made for something else.
    pub misfit: Option<String>,
}

impl Chosen {
    /// The table of a file, for a run that it fits but for the `misfit`.
    ///
    /// # Errors
    /// [`ScheduleError`] for a table that is none.
    pub fn of_file(
        file: &ScheduleFile,
        name: String,
        misfit: Option<String>,
        settings: &Settings,
    ) -> Result<Self, ScheduleError> {
        Ok(Self {
            reuse: file.schedule()?.into(),
            settings: *settings,
            name,
            policy: file.policy.name.clone(),
            origin: match file.is_learned() {
                true => Origin::Learned,
                false => Origin::Policy,
            },
            misfit,
        })
    }
}

/// The schedule that a choice means for a model and run. `force`: a file that was made for another model or run, if its
/// table has the right size.
///
/// # Errors
/// [`PolicyError`]: a policy that cannot be made, a file that cannot be read, or that does not fit; no learned schedule.
pub fn choose_schedule(
    choice: &ScheduleChoice,
    force: bool,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<Chosen, PolicyError> {
    // A table has a row a step: how many there may be is known before it is made.
    settings.trajectory()?;
    let chosen = |reuse, name, policy: &str, origin| Chosen {
        reuse,
        settings: *settings,
        name,
        policy: policy.into(),
        origin,
        misfit: None,
    };
    match choice {
        ScheduleChoice::Policy(policy) => {
            let reuse = reuse_of(policy, info, settings)?;
            let (name, case_of) = (policy.to_string(), policy.case());
            Ok(chosen(reuse, name, &case_of, policy.origin()))
        }
        ScheduleChoice::Steps { steps, solver } => {
            let settings = in_steps(settings, *steps, *solver);
            settings.trajectory()?;
            let table = Schedule::full(*steps, info.outline.graph.branches())?;
            let (name, case_of) = match solver {
                None => (format!("steps:{steps}"), "fewer steps".into()),
                Some(solver) => (
                    format!("steps:{steps}:{solver}"),
                    format!("fewer steps of {solver}"),
                ),
            };
            Ok(Chosen {
                settings,
                ..chosen(table.into(), name, &case_of, Origin::FewerSteps)
            })
        }
        ScheduleChoice::Learned { speed, folder } => {
            let run = run_settings(info, settings)?;
            let file = learned_file(*speed, folder.as_deref(), info, &run)?;
            let name = match folder {
                Some(folder) => format!("{} at {:.2}×", folder.display(), speed_of(&file)),
                None => format!("learned:{:.2}", speed_of(&file)),
            };
            let misfit = made_otherwise(&file, &run, settings);
            Ok(Chosen::of_file(&file, name, misfit, settings)?)
        }
        ScheduleChoice::File(path) => {
            let file = ScheduleFile::read(path)?;
            let (model, run) = (model_identity(info), run_settings(info, settings)?);
            let misfit = match file.check_fits(&model, &run) {
                Err(ScheduleError::Mismatch { reason }) if force => {
                    file.check_shape(&model, &run)?;
                    Some(reason)
                }
                checked => {
                    checked?;
                    made_otherwise(&file, &run, settings)
                }
            };
            let name = path.display().to_string();
            Ok(Chosen::of_file(&file, name, misfit, settings)?)
        }
    }
}

/// The schedule that a choice means, as a file: read, found among the learned ones, or made for a model and run.
///
/// # Errors
/// [`PolicyError`]; [`PolicyError::NoTable`] for policies that decide while a run goes on.
pub fn chosen_file(
    choice: &ScheduleChoice,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<ScheduleFile, PolicyError> {
    match choice {
        ScheduleChoice::File(path) => Ok(ScheduleFile::read(path)?),
        ScheduleChoice::Policy(policy) => schedule_file(policy, info, settings),
        ScheduleChoice::Learned { speed, folder } => {
            let run = run_settings(info, settings)?;
            learned_file(*speed, folder.as_deref(), info, &run)
        }
        ScheduleChoice::Steps { steps, solver } => {
            schedule_file(&Policy::NONE, info, &in_steps(settings, *steps, *solver))
        }
    }
}

/// The same run in another number of steps, by another solver where one is named.
fn in_steps(settings: &Settings, steps: usize, solver: Option<Solver>) -> Settings {
    Settings {
        steps,
        solver: solver.unwrap_or(settings.solver),
        ..*settings
    }
}

/// The folder beside a model's weights that learned schedules of it may lie in.
const SCHEDULES: &str = "schedules";

/// The learned schedule of a speed, or of the usual one, of those in a folder, or in the library and beside the model.
fn learned_file(
    speed: Option<f64>,
    folder: Option<&Path>,
    info: &ModelInfo,
    run: &RunSettings,
) -> Result<ScheduleFile, PolicyError> {
    let model = model_identity(info);
    let all = match folder {
        None => known_schedules(info, &model)?,
        Some(folder) => schedules_in(folder)?,
    };
    let fits = |file: &ScheduleFile| file.check_fits(&model, run).is_ok();
    let (files, others): (Vec<_>, Vec<_>) = all.into_iter().partition(fits);
    learned_at(&files, speed)
        .cloned()
        .ok_or_else(|| PolicyError::NotLearned {
            speed,
            available: match folder {
                None => listed(&files, "the library", &other_runs(&others)),
                Some(folder) => listed(&files, &folder.display().to_string(), ""),
            },
        })
}

/// All schedules that were learned for a model, whatever the run: those in the library, and those beside the model.
fn known_schedules(
    info: &ModelInfo,
    model: &ModelIdentity,
) -> Result<Vec<ScheduleFile>, PolicyError> {
    let mut files = bundled_schedules_of(model);
    if let Some(own) = info.folder_with(SCHEDULES) {
        files.extend(schedules_in(&own.join(SCHEDULES))?);
        files.retain(|file| file.check_fits(model, &file.run).is_ok());
    }
    Ok(files)
}

/// What lies in a folder.
fn schedules_in(folder: &Path) -> Result<Vec<ScheduleFile>, PolicyError> {
    let unreadable = |source| ScheduleError::Io {
        action: "read",
        path: folder.into(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.to_string_lossy().ends_with(".schedule.json") {
            paths.push(path);
        }
    }
    paths.sort();
    let files = paths.iter().map(|path| ScheduleFile::read(path));
    Ok(files.collect::<Result<Vec<_>, _>>()?)
}

/// For which runs there are schedules of a model.
fn other_runs(files: &[ScheduleFile]) -> String {
    let of = |file: &ScheduleFile| (file.run.solver.clone(), file.run.steps);
    let runs: BTreeSet<_> = files.iter().filter(|f| f.is_learned()).map(of).collect();
    let runs: Vec<_> = runs
        .into_iter()
        .map(|(solver, steps)| format!("--steps {steps} --solver {solver}"))
        .collect();
    match runs.is_empty() {
        true => String::new(),
        false => format!("; for this model there are some for {}", runs.join(", ")),
    }
}

/// What speeds there are in a place; where there are none, that, and `others`.
fn listed(files: &[ScheduleFile], place: &str, others: &str) -> String {
    if files.is_empty() {
        return format!("{place} has none that was made for it{others}");
    }
    let mut speeds: Vec<f64> = files.iter().map(speed_of).collect();
    speeds.sort_by(f64::total_cmp);
    let speeds: Vec<String> = speeds.iter().map(|speed| format!("{speed:.2}×")).collect();
    format!("{place} has {}", speeds.join(", "))
}

/// In what a schedule that fits was made otherwise: it works, and was judged elsewhere.
fn made_otherwise(file: &ScheduleFile, run: &RunSettings, settings: &Settings) -> Option<String> {
    let scale = |run: &RunSettings| run.guidance.as_ref().map(|guidance| guidance.scale);
    if let (Some(made), Some(here)) = (scale(&file.run), scale(run))
        && made != here
    {
        return Some(format!(
            "it was made for guidance {made}, this run has {here}"
        ));
    }
    let clipped = |clip: bool| if clip { "clipped" } else { "unclipped" };
    let made = file.run.clip_x0?;
    (made != settings.clip_x0).then(|| {
        format!(
            "it was made for {} images, this run's are {}",
            clipped(made),
            clipped(settings.clip_x0)
        )
    })
}

/// What a policy reuses, by the calibration of model and run where it needs one.
fn reuse_of(policy: &Policy, info: &ModelInfo, settings: &Settings) -> Result<Reuse, PolicyError> {
    let calibration = match policy.needs_calibration() {
        true => Some(calibration_for(policy, info, settings)?),
        false => None,
    };
    policy.reuse_calibrated(settings.steps, &info.outline.graph, calibration.as_ref())
}

/// The calibration of this model and run that lies in [`CALIBRATIONS`].
fn calibration_for(
    policy: &Policy,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<Calibration, PolicyError> {
    let (model, run) = (model_identity(info), calibrated_run(info, settings)?);
    let found = Calibration::find(Path::new(CALIBRATIONS), &model, &run)?;
    found.ok_or_else(|| PolicyError::NotCalibrated {
        policy: policy.to_string(),
        command: calibrate_command(info, settings),
    })
}

/// What a calibration says of its run: all that it depends on.
///
/// # Errors
/// [`DiffusionError::Steps`].
pub fn calibrated_run(
    info: &ModelInfo,
    settings: &Settings,
) -> Result<RunSettings, DiffusionError> {
    Ok(RunSettings {
        clip_x0: Some(settings.clip_x0),
        ..run_settings(info, settings)?
    })
}

/// The command that measures this model and run.
fn calibrate_command(info: &ModelInfo, settings: &Settings) -> String {
    let mut command = "harmonica train calibrate --model ".to_owned();
    match &info.source {
        ModelSpec::Path(path) => {
            let [height, width] = info.outline.latents.size;
            command.push_str(&format!("{path:?} --input-size {height}x{width}"));
            if let Some(heads) = info.architecture.to_json()["heads"].as_u64() {
                command.push_str(&format!(" --heads {heads}"));
            }
        }
        named => command.push_str(&named.to_string()),
    }
    let guidance = settings.guidance;
    command.push_str(&format!(
        " --steps {} --spacing {} --solver {} --guidance {} --guidance-channels {} --clip-x0 {}",
        settings.steps,
        settings.spacing,
        settings.solver,
        guidance.scale(),
        guidance.channels(),
        if settings.clip_x0 { "on" } else { "off" },
    ));
    if info.classes().is_none() && !info.is_random() {
        command.push_str(" --prompt TEXT");
    }
    command
}

/// A schedule file for the table that a policy makes, whatever the weights but for what was calibrated.
///
/// # Errors
/// [`PolicyError`].
pub fn schedule_file(
    policy: &Policy,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<ScheduleFile, PolicyError> {
    let schedule = policy.table(reuse_of(policy, info, settings)?)?;
    let record = PolicyRecord {
        name: policy.name().into(),
        parameters: Some(policy.to_string().into()),
    };
    let mut model = model_identity(info);
    if !policy.needs_calibration() {
        model.fingerprint = None;
    }
    let run = run_settings(info, settings)?;
    Ok(ScheduleFile::of(&schedule, record, model, run))
}
