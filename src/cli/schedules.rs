//! `--schedule`: from a word on the command line to a table that fits the run.

use clap::Args;

use super::error::CliError;
use crate::{
    checkpoint::ModelInfo,
    pipeline::{Chosen, choose_schedule},
    policy::{Policy, ScheduleChoice},
    sampler::Settings,
};

#[derive(Args, Debug)]
pub(super) struct ScheduleArgs {
    /// What to reuse: a *.schedule.json file, none, fora:N (reuse all but every N-th step), random:CUR[:SEED], taylor:N[:ORDER]
    /// (forecast them instead), fb:THRESHOLD (all blocks but the first, while that one changes little), or learned: the bundled router that fits model and run, and none where there is none
    /// [default: none; learned for the bundled model]
    #[arg(long, value_name = "FILE|none|learned|POLICY[:ARGS]")]
    pub schedule: Option<String>,
    /// Use a schedule file that was made for another model or run, if its table has the right size
    #[arg(long)]
    pub force: bool,
}

impl ScheduleArgs {
    pub fn resolve(&self, info: &ModelInfo, settings: &Settings) -> Result<Chosen, CliError> {
        let choice = match &self.schedule {
            Some(spec) => return resolve(spec, self.force, info, settings),
            // A model that was named is sampled as it is, even if its weights are the bundled ones.
            None if info.is_bundled() => ScheduleChoice::Learned,
            None => ScheduleChoice::Policy(Policy::None),
        };
        Ok(choose_schedule(&choice, false, info, settings)?)
    }
}

/// One schedule by file name or policy.
pub(super) fn resolve(
    spec: &str,
    force: bool,
    info: &ModelInfo,
    settings: &Settings,
) -> Result<Chosen, CliError> {
    let chosen = choose_schedule(&spec.parse()?, force, info, settings)?;
    if let Some(reason) = &chosen.misfit {
        eprintln!("warning: --force: the schedule does not fit: {reason}");
    }
    Ok(chosen)
}
