//! From what a user names to what fits model and run.

use crate::{
    checkpoint::ModelInfo,
    policy::{Policy, PolicyError, ScheduleChoice},
    sampler::{Settings, model_identity, run_settings},
    schedule::{ModelIdentity, PolicyRecord, Reuse, ScheduleError, ScheduleFile, bundled_schedule},
};

/// What is reused, and where that came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    pub reuse: Reuse,
    /// For people: `none`, `fora:2`, a file's name.
    pub name: String,
    /// Why a schedule that was forced does not fit.
    pub misfit: Option<String>,
}

/// The schedule that a choice means for a model and run. `force`: a file that was made for another model or run, if its
/// table has the right size.
///
/// # Errors
/// [`PolicyError`]: a policy that cannot be made, a file that cannot be read, or that does not fit.
pub fn choose_schedule(
    choice: &ScheduleChoice,
    force: bool,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<Chosen, PolicyError> {
    let chosen = |reuse, name| Chosen {
        reuse,
        name,
        misfit: None,
    };
    let of_policy = |policy: &Policy| -> Result<Chosen, PolicyError> {
        let reuse = policy.reuse(settings.steps, &info.outline.graph)?;
        Ok(chosen(reuse, policy.to_string()))
    };
    let path = match choice {
        ScheduleChoice::Policy(policy) => return of_policy(policy),
        ScheduleChoice::Learned => {
            let run = run_settings(info, settings)?;
            return match bundled_schedule(&model_identity(info), &run) {
                Some(file) => Ok(chosen(file.schedule()?.into(), "the bundled router".into())),
                None => of_policy(&Policy::None),
            };
        }
        ScheduleChoice::File(path) => path,
    };
    let file = ScheduleFile::read(path)?;
    let (model, run) = (model_identity(info), run_settings(info, settings)?);
    let misfit = match file.check_fits(&model, &run) {
        Err(ScheduleError::Mismatch { reason }) if force => {
            file.check_shape(&model, &run)?;
            Some(reason)
        }
        checked => {
            checked?;
            None
        }
    };
    Ok(Chosen {
        misfit,
        ..chosen(file.schedule()?.into(), path.display().to_string())
    })
}

/// A schedule file for the table that a policy makes, whatever the weights.
///
/// # Errors
/// [`PolicyError`].
pub fn schedule_file(
    policy: &Policy,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<ScheduleFile, PolicyError> {
    let schedule = policy.schedule(settings.steps, &info.outline.graph)?;
    let record = PolicyRecord {
        name: policy.name().into(),
        parameters: Some(policy.to_string().into()),
    };
    let model = ModelIdentity {
        fingerprint: None,
        ..model_identity(info)
    };
    let run = run_settings(info, settings)?;
    Ok(ScheduleFile::of(&schedule, record, model, run))
}
