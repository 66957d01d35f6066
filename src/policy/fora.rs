//! FORA (arXiv 2407.01425): all branches computed at every N-th step, reused in between.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary},
};
use crate::schedule::{Reuse, Schedule};

/// Reuse all branches but at every N-th step: `fora:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fora {
    /// Steps from one that computes everything to the next.
    pub interval: usize,
}

impl fmt::Display for Fora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fora:{}", self.interval)
    }
}

impl Definition for Fora {
    fn summary() -> Summary {
        Summary::of_table("fora", ":N", "reuse all but every N-th step")
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        match arguments {
            [interval] => match interval.parse() {
                Ok(interval @ 1..) => Ok(Self { interval }),
                _ => Err("expected fora:N with a whole number N of at least 1".into()),
            },
            _ => Err("expected fora:N".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        let computes = |s: usize, _| s.is_multiple_of(self.interval);
        Ok(Schedule::from_rule(run.steps, run.branches(), computes)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Policy,
        tests::{assert_specs, graph},
    };
    use super::*;

    #[test]
    fn fora_2_reuses_every_other_step() {
        let policy = Policy::from(Fora { interval: 2 });
        let table = policy.schedule(4, &graph(1)).unwrap();
        assert_eq!(table.to_rows(), ["##", "..", "##", ".."]);
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["fora:2"], &["fora", "fora:0", "fora:x", "fora:2:2"]);
    }
}
