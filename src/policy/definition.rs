//! What a policy's file says of it, and what several of them need.

use std::{fmt, str::FromStr};

use super::{Calibration, Origin, PolicyError};
use crate::{
    graph::Graph,
    schedule::{Probed, Reuse, ScheduleError},
};

/// A policy, in a file of its own. What it displays is what it is made from again: `NAME[:ARGS]`.
pub(super) trait Definition: fmt::Display {
    /// What users read of it.
    fn summary() -> Summary
    where
        Self: Sized;

    /// Reads its arguments, which stand after the name and between colons.
    ///
    /// # Errors
    /// What was expected instead.
    fn parse(arguments: &[&str]) -> Result<Self, String>
    where
        Self: Sized;

    /// What a run reuses.
    ///
    /// # Errors
    /// [`PolicyError`] for arguments that do not fit the run.
    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError>;

    /// What comparisons call it, if not by its name alone.
    fn case(&self) -> Option<String> {
        None
    }

    /// What comparisons take its schedules for.
    fn origin(&self) -> Origin {
        Origin::Policy
    }
}

/// How a policy is written and what it does, for help and texts of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// What it is called, in files too.
    pub name: &'static str,
    /// What may stand after the name: `:N[:ORDER]`.
    pub arguments: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Whether what it reuses is known before the run, as a table.
    pub has_table: bool,
    /// Whether it is made from a calibration of model and run.
    pub needs_calibration: bool,
}

impl Summary {
    /// Of a policy that is known before the run.
    pub(super) const fn of_table(
        name: &'static str,
        arguments: &'static str,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            arguments,
            about,
            has_table: true,
            needs_calibration: false,
        }
    }

    /// Of a policy that decides step by step.
    pub(super) const fn at_run_time(
        name: &'static str,
        arguments: &'static str,
        about: &'static str,
    ) -> Self {
        Self {
            has_table: false,
            ..Self::of_table(name, arguments, about)
        }
    }

    /// The same of one that is made from a calibration.
    pub(super) const fn calibrated(self) -> Self {
        Self {
            needs_calibration: true,
            ..self
        }
    }

    /// What users write: `taylor:N[:ORDER]`.
    pub fn usage(&self) -> String {
        format!("{}{}", self.name, self.arguments)
    }
}

/// A run that a policy decides for.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub steps: usize,
    pub graph: &'a Graph,
    /// Where there is one.
    pub calibration: Option<&'a Calibration>,
}

impl<'a> Run<'a> {
    pub fn branches(&self) -> usize {
        self.graph.branches()
    }

    /// The calibration that `policy` needs.
    ///
    /// # Errors
    /// [`PolicyError::NotCalibrated`], [`PolicyError::OtherCalibration`].
    pub fn calibrated(&self, policy: &dyn fmt::Display) -> Result<&'a Calibration, PolicyError> {
        let Self {
            steps,
            graph,
            calibration,
        } = *self;
        match calibration {
            None => Err(PolicyError::NotCalibrated {
                policy: policy.to_string(),
                command: format!("harmonica train calibrate --steps {steps}"),
            }),
            Some(c) if c.run.steps != steps || c.model.graph != *graph => {
                Err(PolicyError::OtherCalibration {
                    reason: format!(
                        "it is of {} steps of {} branches, this run is of {steps} of {}",
                        c.run.steps,
                        c.model.graph.branches(),
                        graph.branches()
                    ),
                })
            }
            Some(c) => Ok(c),
        }
    }
}

/// That the arguments of `policy` do not fit the run.
pub(super) fn misfit(policy: &dyn fmt::Display, problem: String) -> PolicyError {
    PolicyError::Arguments {
        spec: policy.to_string(),
        problem,
    }
}

/// What decides, where the arguments of `policy` leave this network something to decide.
pub(super) fn at_run_time(
    policy: &dyn fmt::Display,
    probed: Result<Probed, ScheduleError>,
) -> Result<Reuse, PolicyError> {
    match probed {
        Err(ScheduleError::Shape { reason }) => Err(misfit(policy, reason)),
        probed => Ok(Reuse::AtRunTime(probed?)),
    }
}

/// The argument at a place, the usual one where it is left out; none for what cannot be read.
pub(super) fn argument_or<T: FromStr>(arguments: &[&str], place: usize, usual: T) -> Option<T> {
    let text = arguments.get(place);
    text.map_or(Some(usual), |text| text.parse().ok())
}

/// A threshold; none for what is no number above 0.
pub(super) fn above_zero(text: &str) -> Option<f64> {
    let number = text.parse::<f64>().ok()?;
    (number > 0.0 && number.is_finite()).then_some(number)
}

/// The threshold that is the one argument of the policy `name`.
///
/// # Errors
/// What was expected instead.
pub(super) fn lone_threshold(name: &str, arguments: &[&str]) -> Result<f64, String> {
    match arguments {
        [threshold] => above_zero(threshold)
            .ok_or_else(|| format!("expected {name}:THRESHOLD with a number above 0")),
        _ => Err(format!("expected {name}:THRESHOLD")),
    }
}

/// Whether a step is computed by a rule that wants the first two steps, and every `interval`-th after them.
pub(super) fn every_after_two(interval: usize) -> impl Fn(usize) -> bool {
    move |s| s < 2 || (s - 1).is_multiple_of(interval)
}
