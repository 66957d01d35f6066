//! Steps Computation Masks (cache-dit): whole steps are computed or reused, by a row of bits or by one of the published rows.

use super::PolicyError;
use crate::schedule::Schedule;

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

/// A row of bits, or the name of a published one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask(String);

impl Mask {
    /// None: what is neither.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_named = PUBLISHED.iter().any(|(name, ..)| *name == text);
        let is_row = text.starts_with('1') && text.bytes().all(|bit| bit == b'0' || bit == b'1');
        (is_named || is_row).then(|| Self(text.into()))
    }

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
}

pub(super) fn schedule(
    mask: &Mask,
    steps: usize,
    branches: usize,
) -> Result<Schedule, PolicyError> {
    let Some(row) = mask.row(steps) else {
        return Err(PolicyError::Arguments {
            spec: format!("scm:{}", mask.text()),
            problem: format!(
                "a run of {steps} steps wants as many bits; slow, medium, fast and ultra are for 20 and 50 steps"
            ),
        });
    };
    let row = row.as_bytes();
    Ok(Schedule::from_rule(steps, branches, |s, _| row[s] == b'1')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_rows_are_for_their_steps() {
        for (name, of_20, of_50) in PUBLISHED {
            let mask = Mask::parse(name).unwrap();
            for (steps, row) in [(20, of_20), (50, of_50)] {
                let table = schedule(&mask, steps, 2).unwrap();
                let bits: String = (0..steps)
                    .map(|s| if table.computes(s, 1) { '1' } else { '0' })
                    .collect();
                assert_eq!(bits, row, "{name}");
            }
            assert!(schedule(&mask, 30, 2).is_err());
        }
        let own = Mask::parse("1101").unwrap();
        assert_eq!(
            schedule(&own, 4, 1).unwrap().to_rows(),
            ["#", "#", ".", "#"]
        );
        assert!(schedule(&own, 5, 1).is_err());
        for bad in ["", "0101", "12", "quick"] {
            assert_eq!(Mask::parse(bad), None, "{bad}");
        }
    }
}
