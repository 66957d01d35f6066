//! `--schedule`: from a word on the command line to a table that fits the run.

use clap::Args;

use super::error::CliError;
use crate::{
    checkpoint::ModelInfo,
    policy::{Policy, ScheduleChoice},
    sampler::{Settings, model_identity, model_shape, run_settings},
    schedule::{Measured, ModelIdentity, PolicyRecord, Schedule, ScheduleFile, bundled_schedule},
};

#[derive(Args, Debug)]
pub(super) struct ScheduleArgs {
    /// What to reuse: a *.schedule.json file, none, fora:N (reuse all but every N-th step), random:CUR[:SEED], or learned:
    /// the bundled router that fits model and run, and none where there is none [default: none; learned for the bundled
    /// model]
    #[arg(long, value_name = "FILE|none|learned|POLICY[:ARGS]")]
    pub schedule: Option<String>,
    /// Use a schedule file that was made for another model or run, if its table has the right size
    #[arg(long)]
    pub force: bool,
}

/// A table and where it came from.
pub(super) struct Chosen {
    pub schedule: Schedule,
    /// For people: `none`, `fora:2`, a file's name.
    pub name: String,
}

impl ScheduleArgs {
    pub fn resolve(&self, info: &ModelInfo, settings: &Settings) -> Result<Chosen, CliError> {
        match &self.schedule {
            Some(spec) => resolve(spec, self.force, info, settings),
            // A model that was named is sampled as it is, even if its weights are the bundled ones.
            None if info.is_bundled() => learned_or_none(info, settings),
            None => from_policy(&Policy::None, info, settings),
        }
    }
}

/// One schedule by file name or policy.
pub(super) fn resolve(
    spec: &str,
    force: bool,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<Chosen, CliError> {
    let path = match spec.parse()? {
        ScheduleChoice::Policy(policy) => return from_policy(&policy, info, settings),
        ScheduleChoice::Learned => return learned_or_none(info, settings),
        ScheduleChoice::File(path) => path,
    };
    let file = ScheduleFile::read(&path)?;
    let (model, run) = (model_identity(info), run_settings(info, settings)?);
    match file.check_fits(&model, &run) {
        Ok(()) => {}
        Err(reason) if force => {
            file.check_shape(&model, &run)?;
            eprintln!("warning: --force: {reason}");
        }
        Err(reason) => return Err(reason.into()),
    }
    Ok(Chosen {
        schedule: file.schedule()?,
        name: spec.to_owned(),
    })
}

/// The bundled router that fits, or no reuse.
fn learned_or_none(info: &ModelInfo, settings: &Settings) -> Result<Chosen, CliError> {
    match bundled_schedule(&model_identity(info), &run_settings(info, settings)?) {
        Some(file) => Ok(Chosen {
            schedule: file.schedule()?,
            name: "the bundled router".into(),
        }),
        None => from_policy(&Policy::None, info, settings),
    }
}

fn from_policy(policy: &Policy, info: &ModelInfo, settings: &Settings) -> Result<Chosen, CliError> {
    Ok(Chosen {
        schedule: policy.schedule(settings.steps, 2 * info.config.blocks)?,
        name: policy.to_string(),
    })
}

/// A schedule file for a table that a policy made.
pub(super) fn policy_file(
    policy: &Policy,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<ScheduleFile, CliError> {
    let Chosen { schedule, name } = from_policy(policy, info, settings)?;
    Ok(ScheduleFile {
        format: 1,
        policy: PolicyRecord {
            name: policy.name().into(),
            parameters: Some(name.into()),
        },
        model: ModelIdentity {
            fingerprint: None,
            ..model_identity(info)
        },
        run: run_settings(info, settings)?,
        threshold: None,
        compute: schedule.to_rows(),
        logits: None,
        lambda: None,
        training: None,
        measured: Some(Measured::of(&schedule, &model_shape(&info.config))),
    })
}
