//! `--schedule`: from a word on the command line to what fits the run.

use std::path::PathBuf;

use clap::Args;

use super::{
    Context,
    error::CliError,
    train_ladder::{self, Asked},
};
use crate::{
    checkpoint::ModelInfo,
    pipeline::{Chosen, Pipeline, choose_schedule},
    policy::{Policy, PolicyError, ScheduleChoice, Summary},
    sampler::{Settings, run_settings},
    training::{Budget, forecast::LadderSettings},
};

#[derive(Args, Debug)]
#[command(next_help_heading = "Reuse")]
pub(super) struct ScheduleArgs {
    #[arg(long, value_name = "FILE|DIR|none|learned|POLICY[:ARGS]", help = choices())]
    pub schedule: Option<String>,
    /// The learned schedule of this MACs ratio, of those in the --schedule folder, or of those that come with the bundled model or lie
    /// in `schedules` beside another; 1 computes everything [default: 2 where learned schedules are used]
    #[arg(long, value_name = "X")]
    pub speed: Option<f64>,
    /// Where there is no learned schedule of --speed, fit one first, to even steps (a few minutes for small models): into
    /// harmonica-ladders/, where the next run with --learn finds it. `harmonica train router` searches for better steps
    #[arg(long, requires = "speed", conflicts_with = "schedule")]
    pub learn: bool,
    /// Use a schedule file that was made for another model or run, if its table has the right size
    #[arg(long)]
    pub force: bool,
}

/// What `--schedule` takes.
fn choices() -> String {
    let described = |policy: Summary| {
        let Summary { about, .. } = policy;
        let from = match policy.needs_calibration {
            true => ", by what `harmonica train calibrate` measured",
            false => "",
        };
        format!("{} ({about}{from}); ", policy.usage())
    };
    let policies: String = Policy::all().map(described).collect();
    format!(
        "What to reuse: a *.schedule.json file or a folder of them; learned[:SPEED], what was learned for this model and run; {policies}steps:K[:SOLVER] (fewer steps) [default: none; learned for the bundled model, where there is something]"
    )
}

impl ScheduleArgs {
    /// What they mean for a model of which no weight need be there: nothing is fitted.
    pub fn planned(
        &self,
        info: &ModelInfo,
        settings: &Settings,
        context: &Context,
    ) -> Result<Chosen, CliError> {
        let choice = match (&self.schedule, self.speed) {
            (Some(spec), None) => spec.parse()?,
            (Some(spec), Some(speed)) => spec.parse::<ScheduleChoice>()?.at_speed(speed)?,
            (None, Some(1.0)) => ScheduleChoice::Policy(Policy::NONE),
            (None, Some(speed)) => ScheduleChoice::LEARNED.at_speed(speed)?,
            // A model that was named is sampled as it is, even if its weights are the bundled ones.
            (None, None) if info.is_bundled() => ScheduleChoice::LEARNED,
            (None, None) => ScheduleChoice::Policy(Policy::NONE),
        };
        let named = self.schedule.is_some() || self.speed.is_some();
        match choose_schedule(&choice, self.force, info, settings) {
            Err(error @ PolicyError::NotLearned { .. }) if !named => {
                context.say(format!("everything is computed: {error}"));
                let none = ScheduleChoice::Policy(Policy::NONE);
                Ok(choose_schedule(&none, false, info, settings)?)
            }
            chosen => warned(chosen?, self.force),
        }
    }

    /// The same, fitted now where that was asked for.
    pub fn resolve(
        &self,
        pipeline: &Pipeline,
        settings: &Settings,
        context: &Context,
    ) -> Result<Chosen, CliError> {
        match self.planned(&pipeline.info, settings, context) {
            Err(CliError::Policy(PolicyError::NotLearned {
                speed: Some(speed), ..
            })) if self.learn => learned(speed, pipeline, settings, context),
            chosen => chosen,
        }
    }
}

/// The schedule of this speed that was fitted on the way before, or is now.
fn learned(
    speed: f64,
    pipeline: &Pipeline,
    settings: &Settings,
    context: &Context,
) -> Result<Chosen, CliError> {
    let folder = learned_in(pipeline, settings)?;
    let choice = ScheduleChoice::Learned {
        speed: Some(speed),
        folder: Some(folder.clone()),
    };
    let find = || choose_schedule(&choice, false, &pipeline.info, settings);
    if folder.is_dir() {
        match find() {
            Err(PolicyError::NotLearned { .. }) => {}
            known => return warned(known?, false),
        }
    }
    context.say(format!(
        "fitting a schedule of {speed}× into {}",
        folder.display()
    ));
    let asked = Asked {
        resume: folder.join("ladder.json").exists(),
        out: folder,
        targets: vec![Budget::TargetSpeedup(speed)],
        settings: LadderSettings {
            sweeps: 0,
            ..LadderSettings::default()
        },
        json: false,
        go_on: "the same command goes on".into(),
    };
    train_ladder::make(&asked, pipeline, *settings, context)?;
    warned(find()?, false)
}

/// Where schedules that were fitted on the way lie, a folder for all that a fit depends on.
fn learned_in(pipeline: &Pipeline, settings: &Settings) -> Result<PathBuf, CliError> {
    let info = &pipeline.info;
    let run = run_settings(info, settings)?;
    let what = serde_json::json!([
        info.fingerprint.to_string(),
        run,
        settings.clip_x0,
        pipeline.prompts.identity(),
    ]);
    let hash = blake3::hash(what.to_string().as_bytes()).to_hex();
    let solver = settings.solver.to_string().replace([':', '+'], "");
    let name = format!("{solver}{}-{}", settings.steps, &hash[..8]);
    Ok(PathBuf::from("harmonica-ladders").join(name))
}

/// One schedule by file name or policy.
pub(super) fn resolve(
    spec: &str,
    force: bool,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<Chosen, CliError> {
    warned(
        choose_schedule(&spec.parse()?, force, info, settings)?,
        force,
    )
}

fn warned(chosen: Chosen, force: bool) -> Result<Chosen, CliError> {
    if let Some(reason) = &chosen.misfit {
        match force {
            true => eprintln!("warning: --force: the schedule does not fit: {reason}"),
            false => eprintln!("warning: the schedule is used as it is: {reason}"),
        }
    }
    Ok(chosen)
}
