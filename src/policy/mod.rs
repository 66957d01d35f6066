//! Ways to choose what to reuse, one file each.
//!
//! A policy is named on the command line as `NAME[:ARGS]`; learned schedules come from files instead.

mod broadcast;
mod calibration;
mod cem;
mod delta;
mod dicache;
mod dual_block;
mod easy;
mod first_block;
mod foca;
mod fora;
mod mag;
mod mask;
mod origin;
mod random;
mod smooth;
mod spectrum;
mod taylor;
mod tea;

pub use broadcast::Intervals;
pub use calibration::{
    CALIBRATION_FORMAT, CALIBRATIONS, Calibration, FEATURE_DISTANCE, STREAM_DISTANCE,
};
pub use delta::Delta;
pub use dual_block::DualBlock;
pub use mask::Mask;
pub use origin::Origin;
pub use spectrum::Spectrum;

/// Forecasts for tables of one's own: the same table, what it reuses read as a policy of that name reads it.
pub mod forecasts {
    pub use super::{
        foca::forecast as foca, spectrum::forecast as spectrum, taylor::forecast as taylor,
    };
}

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{
    diffusion::{DiffusionError, Solver},
    graph::Graph,
    schedule::{Probed, Reuse, Schedule, ScheduleError},
};

/// What users may name, but for the random table.
macro_rules! policies {
    () => {
        "none, fora:N, taylor:N[:ORDER], foca:N, spectrum:N[:GROWTH[:BLEND]], delta:N[:CUTOFF[:BLOCKS]], pab[:SELF[:CROSS]], scm:BITS, smooth:ALPHA, cem:K, mag:THRESHOLD, tea:THRESHOLD, fb:THRESHOLD, db:FRONT:REAR:THRESHOLD, di:THRESHOLD, easy:THRESHOLD[:WARMUP]"
    };
}

/// A named policy with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// Compute everything.
    None,
    /// Reuse all branches but at every N-th step (FORA, arXiv 2407.01425).
    Fora { interval: usize },
    /// Compute every N-th step and forecast the others by a Taylor series of this order (TaylorSeer, arXiv 2503.06923).
    Taylor { interval: usize, order: usize },
    /// Compute every N-th step and forecast the others by Heun's rule (FoCa, arXiv 2508.16211).
    Foca { interval: usize },
    /// Run the network at intervals and forecast what it would leave by a Chebyshev series (Spectrum, arXiv 2603.01623).
    Spectrum(Spectrum),
    /// Reuse what rear blocks added in early steps, and what front blocks added in late ones (Δ-DiT, arXiv 2406.01125).
    Delta(Delta),
    /// A random table of a given CUR: the control that any clever policy must beat.
    Random { cur: f64, seed: u64 },
    /// Reuse all blocks but the first while that one changes little (First Block Cache); decided step by step.
    FirstBlock { threshold: f64 },
    /// Reuse the blocks in the middle while those in front change little (DBCache); decided step by step.
    DualBlock(DualBlock),
    /// Reuse blocks but the first, moved on, while the stream after that one changes little in sum (DiCache, arXiv 2508.17356);
    /// decided step by step.
    Dicache { threshold: f64 },
    /// Reuse the whole network while the state moves little in sum (EasyCache, arXiv 2507.02860); decided step by step.
    Easy { threshold: f64, warm_up: usize },
    /// Reuse all blocks while the first one's input changes little in sum, as calibrated (TeaCache, arXiv 2411.19108); decided step
    /// by step.
    Tea { threshold: f64 },
    /// Reuse all blocks while magnitudes are off by little, as calibrated (MagCache, arXiv 2506.09045).
    Mag { threshold: f64 },
    /// Reuse each kind of branch where its features changed little, as calibrated (SmoothCache, arXiv 2411.10510).
    Smooth { threshold: f64 },
    /// Run the network at so many steps, chosen by what changes between them, as calibrated (CEM, arXiv 2512.23258).
    Cem { count: usize },
    /// Compute whole steps by a row of bits (SCM).
    Mask(Mask),
    /// Compute each kind of attention at its own interval (PAB, arXiv 2408.12588).
    Broadcast(Intervals),
}

/// A policy that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// An unknown name.
    #[error("unknown policy `{name}`: expected {expected}")]
    Unknown {
        name: String,
        expected: &'static str,
    },
    /// A table is needed, and the policy has none ahead of the run.
    #[error("policy `{policy}` decides while a run goes on and has no table")]
    NoTable { policy: String },
    /// Measurements are needed, and there are none.
    #[error(
        "policy `{policy}` needs a calibration of this model and run, and there is none in {CALIBRATIONS}: `{command}` makes it"
    )]
    NotCalibrated {
        policy: String,
        /// The command that measures.
        command: String,
    },
    /// A file that is no calibration.
    #[error("{} is no calibration: {problem}", path.display())]
    NoCalibration { path: PathBuf, problem: String },
    /// A calibration of something else.
    #[error("the calibration does not fit: {reason}")]
    OtherCalibration { reason: String },
    /// No learned schedule fits.
    #[error("there is no learned schedule{} for this model and run: {available}", .speed.map_or(String::new(), |x| format!(" of {x}×")))]
    NotLearned {
        /// The speed that was asked for.
        speed: Option<f64>,
        /// What there is instead.
        available: String,
    },
    /// Arguments out of range.
    #[error("policy `{spec}`: {problem}")]
    Arguments { spec: String, problem: String },
    /// The run itself.
    #[error(transparent)]
    Run(#[from] DiffusionError),
    /// The table itself.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

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
                expected: concat!(
                    policies!(),
                    ", random:CUR[:SEED], steps:K[:SOLVER], learned[:SPEED], or a *.schedule.json file, or folder of such files, that exists"
                ),
            }),
            Err(bad) => Err(bad),
        }
    }
}

impl Policy {
    /// Whether it is made from a calibration of model and run.
    pub fn needs_calibration(&self) -> bool {
        matches!(
            self,
            Self::Tea { .. } | Self::Mag { .. } | Self::Smooth { .. } | Self::Cem { .. }
        )
    }

    /// What a run of `steps` steps of a network reuses.
    ///
    /// # Errors
    /// [`PolicyError::Arguments`] where the run is too short for the arguments, [`PolicyError::Schedule`] where the network is;
    /// [`PolicyError::NotCalibrated`] for what needs a calibration.
    pub fn reuse(&self, steps: usize, graph: &Graph) -> Result<Reuse, PolicyError> {
        self.reuse_calibrated(steps, graph, None)
    }

    /// The same of policies that need a calibration too.
    ///
    /// # Errors
    /// As [`Self::reuse`], and [`PolicyError::OtherCalibration`].
    pub fn reuse_calibrated(
        &self,
        steps: usize,
        graph: &Graph,
        calibration: Option<&Calibration>,
    ) -> Result<Reuse, PolicyError> {
        let branches = graph.branches();
        let calibrated = || match calibration {
            None => Err(PolicyError::NotCalibrated {
                policy: self.to_string(),
                command: format!("harmonica train calibrate --steps {steps}"),
            }),
            Some(c) if c.run.steps != steps || c.model.graph != *graph => {
                Err(PolicyError::OtherCalibration {
                    reason: format!(
                        "it is of {} steps of {} branches, this run is of {steps} of {branches}",
                        c.run.steps,
                        c.model.graph.branches()
                    ),
                })
            }
            Some(c) => Ok(c),
        };
        Ok(match self {
            Self::None => Schedule::full(steps, branches)?.into(),
            Self::Fora { interval } => fora::schedule(*interval, steps, branches)?.into(),
            Self::Taylor { interval, order } => {
                taylor::schedule(*interval, *order, steps, branches)?.into()
            }
            Self::Foca { interval } => foca::schedule(*interval, steps, branches)?.into(),
            Self::Spectrum(arguments) => spectrum::schedule(arguments, steps, branches)?.into(),
            Self::Delta(arguments) => delta::schedule(arguments, steps, graph)?.into(),
            Self::Random { cur, seed } => random::schedule(*cur, *seed, steps, branches)?.into(),
            Self::FirstBlock { threshold } => {
                self.at_run_time(first_block::probed(*threshold, steps, graph))?
            }
            Self::DualBlock(arguments) => {
                self.at_run_time(dual_block::probed(arguments, steps, graph))?
            }
            Self::Dicache { threshold } => {
                self.at_run_time(dicache::probed(*threshold, steps, graph))?
            }
            Self::Easy { threshold, warm_up } => {
                self.at_run_time(easy::probed(*threshold, *warm_up, steps, graph))?
            }
            Self::Tea { threshold } => {
                Reuse::AtRunTime(tea::probed(*threshold, steps, graph, calibrated()?)?)
            }
            Self::Mag { threshold } => {
                mag::schedule(*threshold, steps, branches, calibrated()?)?.into()
            }
            Self::Smooth { threshold } => {
                smooth::schedule(*threshold, steps, graph, calibrated()?)?.into()
            }
            Self::Cem { count } => cem::schedule(*count, steps, branches, calibrated()?)?.into(),
            Self::Mask(mask) => mask::schedule(mask, steps, branches)?.into(),
            Self::Broadcast(intervals) => broadcast::schedule(*intervals, steps, graph)?.into(),
        })
    }

    /// What decides, where the arguments leave this network something to decide.
    fn at_run_time(&self, probed: Result<Probed, ScheduleError>) -> Result<Reuse, PolicyError> {
        match probed {
            Err(ScheduleError::Shape { reason }) => Err(PolicyError::Arguments {
                spec: self.to_string(),
                problem: reason,
            }),
            probed => Ok(Reuse::AtRunTime(probed?)),
        }
    }

    /// The table of a policy that has one.
    ///
    /// # Errors
    /// As [`Self::reuse`], and [`PolicyError::NoTable`].
    pub fn schedule(&self, steps: usize, graph: &Graph) -> Result<Schedule, PolicyError> {
        self.table(self.reuse(steps, graph)?)
    }

    /// The table of what it reuses, where there is one.
    ///
    /// # Errors
    /// [`PolicyError::NoTable`].
    pub fn table(&self, reuse: Reuse) -> Result<Schedule, PolicyError> {
        match reuse {
            Reuse::Ahead(schedule) => Ok(schedule),
            Reuse::AtRunTime(_) => Err(PolicyError::NoTable {
                policy: self.to_string(),
            }),
        }
    }

    /// The policy's name without arguments.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fora { .. } => "fora",
            Self::Taylor { .. } => "taylor",
            Self::Foca { .. } => "foca",
            Self::Spectrum(_) => "spectrum",
            Self::Delta(_) => "delta",
            Self::Random { .. } => "random",
            Self::FirstBlock { .. } => "fb",
            Self::DualBlock(_) => "db",
            Self::Dicache { .. } => "di",
            Self::Easy { .. } => "easy",
            Self::Tea { .. } => "tea",
            Self::Mag { .. } => "mag",
            Self::Smooth { .. } => "smooth",
            Self::Cem { .. } => "cem",
            Self::Mask(_) => "scm",
            Self::Broadcast(_) => "pab",
        }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;
    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        let bad = |problem: &str| PolicyError::Arguments {
            spec: spec.into(),
            problem: problem.into(),
        };
        let mut parts = spec.split(':');
        let name = parts.next().unwrap_or_default();
        let arguments: Vec<&str> = parts.collect();
        match (name, arguments.as_slice()) {
            ("none", []) => Ok(Self::None),
            ("none", _) => Err(bad("`none` takes no arguments")),
            ("fora", [interval]) => match interval.parse() {
                Ok(interval) if interval >= 1 => Ok(Self::Fora { interval }),
                _ => Err(bad("expected fora:N with a whole number N of at least 1")),
            },
            ("fora", _) => Err(bad("expected fora:N")),
            ("taylor", [interval]) | ("taylor", [interval, _]) => {
                let order = arguments.get(1).map_or(Ok(1), |order| order.parse());
                match (interval.parse(), order) {
                    (Ok(interval @ 1..), Ok(order @ 0..=4)) => Ok(Self::Taylor { interval, order }),
                    _ => Err(bad(
                        "expected taylor:N[:ORDER] with a whole number N of at least 1 and an ORDER of 0 to 4",
                    )),
                }
            }
            ("taylor", _) => Err(bad("expected taylor:N[:ORDER]")),
            ("foca", [interval]) => match interval.parse() {
                Ok(interval @ 1..) => Ok(Self::Foca { interval }),
                _ => Err(bad("expected foca:N with a whole number N of at least 1")),
            },
            ("foca", _) => Err(bad("expected foca:N")),
            ("spectrum", arguments) => Spectrum::parse(arguments)
                .map(Self::Spectrum)
                .ok_or_else(|| bad(Spectrum::EXPECTED)),
            ("delta", arguments) => Delta::parse(arguments)
                .map(Self::Delta)
                .ok_or_else(|| bad(Delta::EXPECTED)),
            ("random", [cur]) | ("random", [cur, _]) => {
                let seed = arguments.get(1).map_or(Ok(0), |s| s.parse());
                match (cur.parse::<f64>(), seed) {
                    (Ok(cur), Ok(seed)) if (0.0..1.0).contains(&cur) => {
                        Ok(Self::Random { cur, seed })
                    }
                    _ => Err(bad(
                        "expected random:CUR[:SEED] with CUR of at least 0 and below 1, SEED a whole number",
                    )),
                }
            }
            ("random", _) => Err(bad("expected random:CUR[:SEED]")),
            ("fb" | "di" | "tea" | "mag" | "smooth", [threshold]) => {
                let threshold = above_zero(threshold)
                    .ok_or_else(|| bad(&format!("expected {name}:THRESHOLD with a number above 0")))?;
                Ok(match name {
                    "fb" => Self::FirstBlock { threshold },
                    "di" => Self::Dicache { threshold },
                    "tea" => Self::Tea { threshold },
                    "mag" => Self::Mag { threshold },
                    _ => Self::Smooth { threshold },
                })
            }
            ("fb" | "di" | "tea" | "mag" | "smooth", _) => {
                Err(bad(&format!("expected {name}:THRESHOLD")))
            }
            ("easy", [threshold, more @ ..]) if more.len() <= 1 => {
                let warm_up = more.first().map_or(Ok(easy::WARM_UP), |w| w.parse());
                match (above_zero(threshold), warm_up) {
                    (Some(threshold), Ok(warm_up)) => Ok(Self::Easy { threshold, warm_up }),
                    _ => Err(bad(
                        "expected easy:THRESHOLD[:WARMUP] with a number above 0 and the steps that are computed first",
                    )),
                }
            }
            ("easy", _) => Err(bad("expected easy:THRESHOLD[:WARMUP]")),
            ("cem", [count]) => match count.parse() {
                Ok(count @ 2..) => Ok(Self::Cem { count }),
                _ => Err(bad("expected cem:K with a whole number K of at least 2")),
            },
            ("cem", _) => Err(bad("expected cem:K")),
            ("db", [front, rear, threshold, more @ ..]) if more.len() <= 2 => {
                let expected = "expected db:FRONT:REAR:THRESHOLD[:WARMUP[:MOST]]: blocks computed in front and at the rear, a threshold above 0, steps computed first, and reuses in a row at most";
                let count = |text: &str| text.parse::<usize>().map_err(|_| bad(expected));
                let threshold = threshold.parse::<f64>().map_err(|_| bad(expected))?;
                if !(threshold > 0.0 && threshold.is_finite()) {
                    return Err(bad(expected));
                }
                Ok(Self::DualBlock(DualBlock {
                    front: count(front)?,
                    rear: count(rear)?,
                    threshold,
                    warm_up: more.first().map_or(Ok(dual_block::WARM_UP), |w| count(w))?,
                    most: more.get(1).map(|most| count(most)).transpose()?,
                }))
            }
            ("db", _) => Err(bad("expected db:FRONT:REAR:THRESHOLD[:WARMUP[:MOST]]")),
            ("scm", [mask]) => Mask::parse(mask).map(Self::Mask).ok_or_else(|| {
                bad("expected scm:BITS, a 1 for each step that computes and a 0 for each that does not, the first a 1, or scm:slow, scm:medium, scm:fast or scm:ultra")
            }),
            ("scm", _) => Err(bad("expected scm:BITS")),
            ("pab", intervals) if intervals.len() <= 2 => {
                let interval = |place: usize, usual: usize| match intervals.get(place) {
                    None => Ok(usual),
                    Some(text) => match text.parse() {
                        Ok(interval @ 1..) => Ok(interval),
                        _ => Err(bad("expected pab[:SELF[:CROSS]] with whole numbers of at least 1")),
                    },
                };
                Ok(Self::Broadcast(Intervals {
                    own: interval(0, 2)?,
                    cross: interval(1, 6)?,
                }))
            }
            ("pab", _) => Err(bad("expected pab[:SELF[:CROSS]]")),
            _ => Err(PolicyError::Unknown {
                name: spec.into(),
                expected: concat!(policies!(), ", or random:CUR[:SEED]"),
            }),
        }
    }
}

/// A threshold; none for what is no number above 0.
fn above_zero(text: &str) -> Option<f64> {
    let number = text.parse::<f64>().ok()?;
    (number > 0.0 && number.is_finite()).then_some(number)
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Fora { interval } => write!(f, "fora:{interval}"),
            Self::Taylor { interval, order } => write!(f, "taylor:{interval}:{order}"),
            Self::Foca { interval } => write!(f, "foca:{interval}"),
            Self::Spectrum(arguments) => write!(f, "{arguments}"),
            Self::Delta(arguments) => write!(f, "{arguments}"),
            Self::Random { cur, seed } => write!(f, "random:{cur}:{seed}"),
            Self::FirstBlock { threshold } => write!(f, "fb:{threshold}"),
            Self::DualBlock(DualBlock {
                front,
                rear,
                threshold,
                warm_up,
                most,
            }) => {
                write!(f, "db:{front}:{rear}:{threshold}:{warm_up}")?;
                most.map_or(Ok(()), |most| write!(f, ":{most}"))
            }
            Self::Dicache { threshold } => write!(f, "di:{threshold}"),
            Self::Easy { threshold, warm_up } => write!(f, "easy:{threshold}:{warm_up}"),
            Self::Tea { threshold } => write!(f, "tea:{threshold}"),
            Self::Mag { threshold } => write!(f, "mag:{threshold}"),
            Self::Smooth { threshold } => write!(f, "smooth:{threshold}"),
            Self::Cem { count } => write!(f, "cem:{count}"),
            Self::Mask(mask) => write!(f, "scm:{}", mask.text()),
            Self::Broadcast(Intervals { own, cross }) => write!(f, "pab:{own}:{cross}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::SiteKind;

    fn graph(branches: usize) -> Graph {
        let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
        Graph::uniform(branches / 2, &pattern, [4, 8], 2).unwrap()
    }

    #[test]
    fn a_choice_is_a_policy_before_it_is_a_file() {
        let choice = |spec: &str| spec.parse::<ScheduleChoice>();
        assert_eq!(
            choice("none").unwrap(),
            ScheduleChoice::Policy(Policy::None)
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
        assert!(matches!(choice("nun"), Err(PolicyError::Unknown { .. })));
    }

    #[test]
    fn specs_round_trip_and_bad_ones_are_refused() {
        for spec in [
            "none",
            "fora:2",
            "taylor:4:2",
            "random:0.25:7",
            "fb:0.05",
            "db:2:1:0.08:8",
            "db:1:0:0.5:3:2",
            "scm:1101",
            "scm:fast",
            "pab:2:6",
            "di:0.4",
            "easy:0.05:10",
            "tea:0.25",
            "mag:0.06",
            "smooth:0.18",
            "cem:10",
            "foca:3",
            "spectrum:2:0.75:1",
            "delta:2",
            "delta:2:8",
            "delta:2:8:3",
        ] {
            assert_eq!(spec.parse::<Policy>().unwrap().to_string(), spec);
        }
        for spec in [
            "fora",
            "fora:0",
            "fora:x",
            "random",
            "random:1",
            "random:nan",
            "none:1",
            "taylor:0",
            "taylor:2:9",
            "teacache:0.1",
            "fb",
            "fb:0",
            "fb:nan",
            "db:1:0",
            "db:1:0:0",
            "db:1:0:0.1:x",
            "scm:011",
            "pab:0",
            "pab:2:6:3",
            "di",
            "di:0",
            "easy",
            "easy:-1",
            "easy:0.05:x",
            "easy:0.05:1:1",
            "tea:0",
            "tea:inf",
            "mag",
            "mag:nan",
            "smooth:0:1",
            "cem",
            "cem:1",
            "foca",
            "foca:0",
            "spectrum",
            "spectrum:0",
            "spectrum:2:-1",
            "spectrum:2:0:1.5",
            "spectrum:2:0:nan",
            "spectrum:2:0:1:1",
            "delta",
            "delta:0",
            "delta:2:x",
            "delta:2:8:0",
            "delta:2:8:3:1",
        ] {
            assert!(spec.parse::<Policy>().is_err(), "{spec}");
        }
    }

    #[test]
    fn fora_2_reuses_every_other_step() {
        let table = Policy::Fora { interval: 2 }.schedule(4, &graph(2)).unwrap();
        assert_eq!(table.to_rows(), ["##", "..", "##", ".."]);
    }

    #[test]
    fn a_policy_that_decides_at_run_time_has_no_table() {
        let first_block = Policy::FirstBlock { threshold: 0.1 };
        let reuse = first_block.reuse(4, &graph(4)).unwrap();
        assert!(matches!(reuse, Reuse::AtRunTime(_)));
        assert!(matches!(
            first_block.schedule(4, &graph(4)),
            Err(PolicyError::NoTable { .. })
        ));
        // A network of one block has nothing behind the first.
        assert!(first_block.reuse(4, &graph(2)).is_err());
    }

    #[test]
    fn what_was_not_measured_is_refused() {
        let calibration = calibration::example(&graph(4), 6);
        for spec in ["smooth:0.1", "cem:3", "mag:0.06", "tea:0.1"] {
            let policy: Policy = spec.parse().unwrap();
            assert!(policy.needs_calibration());
            let found = policy.reuse(6, &graph(4)).unwrap_err().to_string();
            let expected = format!(
                "policy `{spec}` needs a calibration of this model and run, and there is none in harmonica-calibrations: `harmonica train calibrate --steps 6` makes it"
            );
            assert_eq!(found, expected);
            let with = |steps, branches| {
                policy.reuse_calibrated(steps, &graph(branches), Some(&calibration))
            };
            assert!(with(6, 4).is_ok(), "{spec}");
            for (steps, branches) in [(5, 4), (6, 2)] {
                assert!(matches!(
                    with(steps, branches),
                    Err(PolicyError::OtherCalibration { .. })
                ));
            }
        }
    }

    #[test]
    fn random_hits_its_cur_and_repeats() {
        let random = Policy::Random {
            cur: 0.375,
            seed: 3,
        };
        let table = random.schedule(20, &graph(24)).unwrap();
        assert_eq!((table.cur() * 480.0).round(), 180.0);
        assert_eq!(table, random.schedule(20, &graph(24)).unwrap());
        assert_ne!(
            table,
            Policy::Random {
                cur: 0.375,
                seed: 4
            }
            .schedule(20, &graph(24))
            .unwrap()
        );
        assert!(
            Policy::Random { cur: 0.9, seed: 0 }
                .schedule(2, &graph(4))
                .is_err()
        );
    }
}
