//! No reuse: all branches computed at every step.

use std::fmt;

use super::{
    Origin, PolicyError,
    definition::{Definition, Run, Summary},
};
use crate::schedule::{Reuse, Schedule};

/// Compute everything: `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uncached;

impl fmt::Display for Uncached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("none")
    }
}

impl Definition for Uncached {
    fn summary() -> Summary {
        Summary::of_table("none", "", "compute everything")
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        match arguments {
            [] => Ok(Self),
            _ => Err("`none` takes no arguments".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        Ok(Schedule::full(run.steps, run.branches())?.into())
    }

    fn origin(&self) -> Origin {
        Origin::Uncached
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_specs;

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(&["none"], &["none:1", "none:"]);
    }
}
