//! What a user may name: a policy, or where a schedule lies.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::LazyLock,
};

use super::{Policy, PolicyError};
use crate::diffusion::Solver;

/// What there is, for whom names something else.
static EXPECTED: LazyLock<String> = LazyLock::new(|| {
    let policies: String = Policy::all()
        .map(|policy| format!("{}, ", policy.usage()))
        .collect();
    format!(
        "{policies}steps:K[:SOLVER], learned[:SPEED], or a *.schedule.json file, or folder of such files, that exists"
    )
});

/// What a user may name instead of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleChoice {
    Policy(Policy),
    /// A learned schedule that was made for these weights and this run.
    Learned {
        /// Its MACs ratio; none: the usual one, or the nearest to that.
        speed: Option<f64>,
        /// A folder of schedule files to choose from; none: those that come with the library.
        folder: Option<PathBuf>,
    },
    /// No reuse, and another number of steps, maybe of another solver.
    Steps {
        steps: usize,
        solver: Option<Solver>,
    },
    /// A *.schedule.json file.
    File(PathBuf),
}

impl ScheduleChoice {
    /// The learned schedule of the usual speed that comes with the library.
    pub const LEARNED: Self = Self::Learned {
        speed: None,
        folder: None,
    };

    /// The same at another speed, where it is a learned one.
    ///
    /// # Errors
    /// [`PolicyError::Arguments`] for a speed that is none, or where a speed means nothing.
    pub fn at_speed(self, speed: f64) -> Result<Self, PolicyError> {
        let refused = |problem: &str| {
            Err(PolicyError::Arguments {
                spec: format!("speed {speed}"),
                problem: problem.into(),
            })
        };
        match self {
            _ if !(speed >= 1.0 && speed.is_finite()) => {
                refused("expected a speed of at least 1, such as 2")
            }
            Self::Learned {
                speed: None,
                folder,
            } => Ok(Self::Learned {
                speed: Some(speed),
                folder,
            }),
            Self::Learned { .. } => refused("the schedule names another speed"),
            _ => refused("a speed chooses among learned schedules, not among policies or files"),
        }
    }
}

impl FromStr for ScheduleChoice {
    type Err = PolicyError;
    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        let path = Path::new(spec);
        let is_file = || path.extension().is_some_and(|e| e == "json") || path.is_file();
        let bad = |problem: &str| PolicyError::Arguments {
            spec: spec.into(),
            problem: problem.into(),
        };
        match spec.split_once(':') {
            None if spec == "learned" => return Ok(Self::LEARNED),
            Some(("learned", speed)) => {
                let speed = speed.parse();
                let speed = speed.map_err(|_| bad("expected learned:SPEED such as learned:2"))?;
                return Self::LEARNED.at_speed(speed);
            }
            Some(("steps", steps)) => {
                let (steps, solver) = match steps.split_once(':') {
                    Some((steps, solver)) => (steps, Some(solver.parse()?)),
                    None => (steps, None),
                };
                return match steps.parse() {
                    Ok(steps @ 1..) => Ok(Self::Steps { steps, solver }),
                    _ => Err(bad(
                        "expected steps:K[:SOLVER] with a whole number K of at least 1",
                    )),
                };
            }
            _ => {}
        }
        match spec.parse::<Policy>() {
            Ok(policy) => Ok(Self::Policy(policy)),
            Err(_) if path.is_dir() => Ok(Self::Learned {
                speed: None,
                folder: Some(path.into()),
            }),
            Err(_) if is_file() => Ok(Self::File(path.into())),
            Err(PolicyError::Unknown { name, .. }) => Err(PolicyError::Unknown {
                name,
                expected: &EXPECTED,
            }),
            Err(bad) => Err(bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_a_policy_before_it_is_a_file() {
        let choice = |spec: &str| spec.parse::<ScheduleChoice>();
        assert_eq!(
            choice("none").unwrap(),
            ScheduleChoice::Policy(Policy::NONE)
        );
        assert_eq!(choice("learned").unwrap(), ScheduleChoice::LEARNED);
        assert!(matches!(
            choice("learned:2.5"),
            Ok(ScheduleChoice::Learned {
                speed: Some(2.5),
                folder: None
            })
        ));
        let steps = |solver| ScheduleChoice::Steps { steps: 12, solver };
        assert_eq!(choice("steps:12").unwrap(), steps(None));
        assert_eq!(
            choice("steps:12:dpm++2m").unwrap(),
            steps(Some(Solver::Dpm2m))
        );
        assert!(choice("steps:12:heun").is_err());
        for bad in ["learned:0.5", "learned:x", "steps:0", "steps:x"] {
            assert!(
                matches!(choice(bad), Err(PolicyError::Arguments { .. })),
                "{bad}"
            );
        }
        assert_eq!(
            choice("a.schedule.json").unwrap(),
            ScheduleChoice::File("a.schedule.json".into())
        );
        assert!(matches!(
            choice("fora:0"),
            Err(PolicyError::Arguments { .. })
        ));
        let unknown = choice("nun").unwrap_err().to_string();
        assert!(
            unknown.ends_with(", random:CUR[:SEED], steps:K[:SOLVER], learned[:SPEED], or a *.schedule.json file, or folder of such files, that exists"),
            "{unknown}"
        );
    }
}
