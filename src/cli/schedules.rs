//! `--schedule`: from a word on the command line to what fits the run.

use clap::Args;

use super::{Context, error::CliError};
use crate::{
    checkpoint::ModelInfo,
    pipeline::{Chosen, choose_schedule},
    policy::{Policy, PolicyError, ScheduleChoice},
    sampler::Settings,
};

#[derive(Args, Debug)]
pub(super) struct ScheduleArgs {
    /// What to reuse: a *.schedule.json file or a folder of them, none, fora:N (reuse all but every N-th step),
    /// random:CUR[:SEED], taylor:N[:ORDER] (forecast features instead), fb:THRESHOLD (all blocks but the first, while that one
    /// changes little), steps:K (fewer steps), or learned[:SPEED]: what was learned for this model and run [default: none; learned
    /// for the bundled model, where there is something]
    #[arg(long, value_name = "FILE|DIR|none|learned|POLICY[:ARGS]")]
    pub schedule: Option<String>,
    /// The learned schedule of this MACs ratio, of those in the --schedule folder or of those that come with the bundled model
    #[arg(long, value_name = "X")]
    pub speed: Option<f64>,
    /// Use a schedule file that was made for another model or run, if its table has the right size
    #[arg(long)]
    pub force: bool,
}

impl ScheduleArgs {
    pub fn resolve(
        &self,
        info: &ModelInfo,
        settings: &Settings,
        context: &Context,
    ) -> Result<Chosen, CliError> {
        let choice = match (&self.schedule, self.speed) {
            (Some(spec), None) => return resolve(spec, self.force, info, settings),
            (Some(spec), Some(speed)) => spec.parse::<ScheduleChoice>()?.at_speed(speed)?,
            (None, Some(speed)) => ScheduleChoice::LEARNED.at_speed(speed)?,
            // A model that was named is sampled as it is, even if its weights are the bundled ones.
            (None, None) if info.is_bundled() => ScheduleChoice::LEARNED,
            (None, None) => ScheduleChoice::Policy(Policy::None),
        };
        let named = self.schedule.is_some() || self.speed.is_some();
        match choose_schedule(&choice, self.force, info, settings) {
            Err(error @ PolicyError::NotLearned { .. }) if !named => {
                context.say(format!("everything is computed: {error}"));
                let none = ScheduleChoice::Policy(Policy::None);
                Ok(choose_schedule(&none, false, info, settings)?)
            }
            chosen => warned(chosen?, self.force),
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
    warned(
        choose_schedule(&spec.parse()?, force, info, settings)?,
        force,
    )
}

fn warned(chosen: Chosen, force: bool) -> Result<Chosen, CliError> {
    if let Some(reason) = &chosen.misfit {
        let how = if force { "--force: " } else { "" };
        eprintln!("warning: {how}the schedule does not fit: {reason}");
    }
    Ok(chosen)
}
