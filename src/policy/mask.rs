//! Steps Computation Masks (cache-dit): whole steps are computed or reused, by a row of bits or by one of the published rows.

use std::fmt;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, misfit},
};
use crate::schedule::{Reuse, Schedule};

/// Published rows, `1` computes: name, 20 steps, 50 steps.
const PUBLISHED: [(&str, &str, &str); 4] = [
    (
        "slow",
        "11111111011100111001",
        "11111111111111111111110011111000111110001110001101",
    ),
    (
        "medium",
        "11111101100011000101",
        "11111111111111110011100000111000001110000011100001",
    ),
    (
        "fast",
        "11111101000000000001",
        "11111111111001100000110000000110000000001100000001",
    ),
    (
        "ultra",
        "11110000000000000001",
        "11111110001100000000011000000000001100000000000001",
    ),
];

/// Compute whole steps by a row of bits, or by a published one that is named: `scm:BITS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask(String);

impl Mask {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.0
    }

    fn row(&self, steps: usize) -> Option<&str> {
        let published = PUBLISHED.iter().find(|(name, ..)| *name == self.0);
        let row = match (published, steps) {
            (None, _) => self.0.as_str(),
            (Some((_, of_20, _)), 20) => *of_20,
            (Some((_, _, of_50)), 50) => *of_50,
            _ => return None,
        };
        (row.len() == steps).then_some(row)
    }

    fn schedule(&self, steps: usize, branches: usize) -> Result<Schedule, PolicyError> {
        let Some(row) = self.row(steps) else {
            return Err(misfit(
                self,
                format!(
                    "a run of {steps} steps wants as many bits; slow, medium, fast and ultra are for 20 and 50 steps"
                ),
            ));
        };
        let row = row.as_bytes();
        Ok(Schedule::from_rule(steps, branches, |s, _| row[s] == b'1')?)
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scm:{}", self.0)
    }
}

impl Definition for Mask {
    fn summary() -> Summary {
        Summary::of_table("scm", ":BITS", "compute whole steps by a row of bits")
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let [text] = arguments else {
            return Err("expected scm:BITS".into());
        };
        let is_named = PUBLISHED.iter().any(|(name, ..)| name == text);
        let is_row = text.starts_with('1') && text.bytes().all(|bit| bit == b'0' || bit == b'1');
        match is_named || is_row {
            true => Ok(Self((*text).into())),
            false => Err("expected scm:BITS, a 1 for each step that computes and a 0 for each that does not, the first a 1, or scm:slow, scm:medium, scm:fast or scm:ultra".into()),
        }
    }

    fn reuse(&self, run: &Run<'_>) -> Result<Reuse, PolicyError> {
        Ok(self.schedule(run.steps, run.branches())?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_specs;
    use super::*;

    #[test]
    fn published_rows_are_for_their_steps() {
        for (name, of_20, of_50) in PUBLISHED {
            let mask = Mask::parse(&[name]).unwrap();
            for (steps, row) in [(20, of_20), (50, of_50)] {
                let table = mask.schedule(steps, 2).unwrap();
                let bits: String = (0..steps)
                    .map(|s| if table.computes(s, 1) { '1' } else { '0' })
                    .collect();
                assert_eq!(bits, row, "{name}");
            }
            assert!(mask.schedule(30, 2).is_err());
        }
        let own = Mask::parse(&["1101"]).unwrap();
        let table = own.schedule(4, 1).unwrap();
        assert_eq!(table.to_rows(), ["#", "#", ".", "#"]);
        assert!(own.schedule(5, 1).is_err());
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(
            &["scm:1101", "scm:fast"],
            &[
                "scm",
                "scm:",
                "scm:0101",
                "scm:12",
                "scm:quick",
                "scm:11:01",
            ],
        );
    }
}
