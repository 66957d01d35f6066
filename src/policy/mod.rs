//! Ways to choose what to reuse, one file each.
//!
//! A policy is named on the command line as `NAME[:ARGS]`; learned schedules come from files instead. Its file has its arguments,
//! how they are read and written, what users read of it, and what it reuses: a `Definition`. Here is the list of them.

mod broadcast;
mod calibration;
mod cem;
mod choice;
mod definition;
mod delta;
mod dicache;
mod dual_block;
mod easy;
mod error;
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
mod uncached;

pub use calibration::{
    CALIBRATION_FORMAT, CALIBRATIONS, Calibration, FEATURE_DISTANCE, STREAM_DISTANCE,
};
pub use choice::ScheduleChoice;
pub use definition::Summary;
pub use error::PolicyError;
pub use origin::Origin;

/// Forecasts for tables of one's own: the same table, what it reuses read as a policy of that name reads it.
pub mod forecasts {
    pub use super::{
        foca::forecast as foca, spectrum::forecast as spectrum, taylor::forecast as taylor,
    };
}

use std::{fmt, str::FromStr, sync::LazyLock};

use definition::{Definition, Run};

use crate::{
    graph::Graph,
    schedule::{Reuse, Schedule},
};

/// Makes of a list of files and the policies in them what knows all policies.
macro_rules! policies {
    ($($file:ident::$name:ident,)+) => {
        $(pub use $file::$name;)+

        /// A named policy with its arguments.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Policy {
            $(#[doc = concat!("As [`struct@", stringify!($name), "`] says.")] $name($name),)+
        }

        $(impl From<$name> for Policy {
            fn from(policy: $name) -> Self {
                Self::$name(policy)
            }
        })+

        /// All policies, in the order in which users read of them.
        const LISTED: &[Listed] = &[
            $(Listed {
                summary: $name::summary,
                parse: |arguments| $name::parse(arguments).map(Policy::$name),
            },)+
        ];

        impl Policy {
            fn definition(&self) -> &dyn Definition {
                match self {
                    $(Self::$name(policy) => policy,)+
                }
            }

            /// What users read of it.
            pub fn summary(&self) -> Summary {
                match self {
                    $(Self::$name(_) => $name::summary(),)+
                }
            }
        }
    };
}

policies! {
    uncached::Uncached,
    fora::Fora,
    taylor::Taylor,
    foca::Foca,
    spectrum::Spectrum,
    delta::Delta,
    broadcast::Broadcast,
    mask::Mask,
    smooth::Smooth,
    cem::Cem,
    mag::Mag,
    tea::Tea,
    first_block::FirstBlock,
    dual_block::DualBlock,
    dicache::Dicache,
    easy::Easy,
    random::Random,
}

/// A policy of the list.
struct Listed {
    summary: fn() -> Summary,
    parse: fn(&[&str]) -> Result<Policy, String>,
}

/// What there is, for whom names something else.
static EXPECTED: LazyLock<String> = LazyLock::new(|| {
    let usages: Vec<String> = Policy::all().map(|policy| policy.usage()).collect();
    match usages.split_last() {
        Some((last, before)) => format!("{}, or {last}", before.join(", ")),
        None => String::new(),
    }
});

impl Policy {
    /// The one that computes everything, `none`.
    pub const NONE: Self = Self::Uncached(Uncached);

    /// What users read of all policies.
    pub fn all() -> impl Iterator<Item = Summary> {
        LISTED.iter().map(|listed| (listed.summary)())
    }

    /// The policy's name without arguments.
    pub fn name(&self) -> &'static str {
        self.summary().name
    }

    /// What comparisons call it: its name, and an argument that makes it another policy.
    pub fn case(&self) -> String {
        let usual = || self.name().to_owned();
        self.definition().case().unwrap_or_else(usual)
    }

    /// What comparisons take its schedules for.
    pub fn origin(&self) -> Origin {
        self.definition().origin()
    }

    /// Whether it is made from a calibration of model and run.
    pub fn needs_calibration(&self) -> bool {
        self.summary().needs_calibration
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
        self.definition().reuse(&Run {
            steps,
            graph,
            calibration,
        })
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
}

impl FromStr for Policy {
    type Err = PolicyError;
    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        let mut parts = spec.split(':');
        let name = parts.next().unwrap_or_default();
        let arguments: Vec<&str> = parts.collect();
        let named = |listed: &&Listed| (listed.summary)().name == name;
        let Some(listed) = LISTED.iter().find(named) else {
            return Err(PolicyError::Unknown {
                name: spec.into(),
                expected: &EXPECTED,
            });
        };
        (listed.parse)(&arguments).map_err(|problem| PolicyError::Arguments {
            spec: spec.into(),
            problem,
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.definition().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    pub(super) use crate::graph::of_blocks as graph;

    /// That some specs say themselves again, and the arguments of others are refused.
    #[track_caller]
    pub(super) fn assert_specs(good: &[&str], bad: &[&str]) {
        for spec in good {
            assert_eq!(spec.parse::<Policy>().unwrap().to_string(), *spec);
        }
        for spec in bad {
            match spec.parse::<Policy>() {
                Err(PolicyError::Arguments { spec: refused, .. }) => assert_eq!(refused, *spec),
                other => panic!("{spec}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_users_read_names_every_policy_once() {
        let names: BTreeSet<_> = Policy::all().map(|policy| policy.name).collect();
        assert_eq!(names.len(), LISTED.len());
        let unknown = "teacache:0.1".parse::<Policy>().unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "unknown policy `teacache:0.1`: expected none, fora:N, taylor:N[:ORDER], foca:N, spectrum:N[:GROWTH[:BLEND]], delta:N[:CUTOFF[:BLOCKS]], pab[:SELF[:CROSS]], scm:BITS, smooth:ALPHA, cem:K, mag:THRESHOLD, tea:THRESHOLD, fb:THRESHOLD, db:FRONT:REAR:THRESHOLD, di:THRESHOLD, easy:THRESHOLD[:WARMUP], or random:CUR[:SEED]"
        );
    }

    #[test]
    fn a_policy_that_decides_at_run_time_has_no_table() {
        let first_block = Policy::from(FirstBlock { threshold: 0.1 });
        assert!(!first_block.summary().has_table);
        let reuse = first_block.reuse(4, &graph(2)).unwrap();
        assert!(matches!(reuse, Reuse::AtRunTime(_)));
        assert!(matches!(
            first_block.schedule(4, &graph(2)),
            Err(PolicyError::NoTable { .. })
        ));
        // A network of one block has nothing behind the first.
        assert!(matches!(
            first_block.reuse(4, &graph(1)),
            Err(PolicyError::Arguments { .. })
        ));
    }

    #[test]
    fn what_was_not_measured_is_refused() {
        let calibration = calibration::example(&graph(2), 6);
        for spec in ["smooth:0.1", "cem:3", "mag:0.06", "tea:0.1"] {
            let policy: Policy = spec.parse().unwrap();
            assert!(policy.needs_calibration());
            let found = policy.reuse(6, &graph(2)).unwrap_err().to_string();
            let expected = format!(
                "policy `{spec}` needs a calibration of this model and run, and there is none in harmonica-calibrations: `harmonica train calibrate --steps 6` makes it"
            );
            assert_eq!(found, expected);
            let with =
                |steps, blocks| policy.reuse_calibrated(steps, &graph(blocks), Some(&calibration));
            assert!(with(6, 2).is_ok(), "{spec}");
            for (steps, blocks) in [(5, 2), (6, 1)] {
                assert!(matches!(
                    with(steps, blocks),
                    Err(PolicyError::OtherCalibration { .. })
                ));
            }
        }
    }
}
