//! A random table with exactly the asked share of reuse.

use std::fmt;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    PolicyError,
    definition::{Definition, Run, Summary, argument_or, misfit},
};
use crate::schedule::{Reuse, Schedule};

/// A random table of a given CUR, the control that any clever policy must beat: `random:CUR[:SEED]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Random {
    /// The share of all branches that is reused.
    pub cur: f64,
    pub seed: u64,
}

impl Random {
    fn schedule(&self, steps: usize, branches: usize) -> Result<Schedule, PolicyError> {
        let total = steps * branches;
        let reused = (self.cur * total as f64).round() as usize;
        let free = total.saturating_sub(branches);
        if reused > free {
            return Err(misfit(
                self,
                format!(
                    "step 0 computes everything, so {steps} steps reuse at most {:.1} % of all branches",
                    100.0 * free as f64 / total.max(1) as f64
                ),
            ));
        }
        let mut later = vec![true; free];
        later[..reused].fill(false);
        later.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        let mut table = vec![true; total - free];
        table.append(&mut later);
        Ok(Schedule::new(steps, branches, table)?)
    }
}

impl fmt::Display for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "random:{}:{}", self.cur, self.seed)
    }
}

impl Definition for Random {
    fn summary() -> Summary {
        Summary::of_table(
            "random",
            ":CUR[:SEED]",
            "reuse a random share of the branches",
        )
    }

    fn parse(arguments: &[&str]) -> Result<Self, String> {
        match arguments {
            [cur] | [cur, _] => match (cur.parse::<f64>(), argument_or(arguments, 1, 0)) {
                (Ok(cur), Some(seed)) if (0.0..1.0).contains(&cur) => Ok(Self { cur, seed }),
                _ => Err(
                    "expected random:CUR[:SEED] with CUR of at least 0 and below 1, SEED a whole number"
                        .into(),
                ),
            },
            _ => Err("expected random:CUR[:SEED]".into()),
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
    fn random_hits_its_cur_and_repeats() {
        let table = |cur, seed, steps| Random { cur, seed }.schedule(steps, 24);
        let random = table(0.375, 3, 20).unwrap();
        assert_eq!((random.cur() * 480.0).round(), 180.0);
        assert_eq!(random, table(0.375, 3, 20).unwrap());
        assert_ne!(random, table(0.375, 4, 20).unwrap());
        assert!(table(0.9, 0, 2).is_err());
    }

    #[test]
    fn specs_are_read_and_written() {
        assert_specs(
            &["random:0.25:7"],
            &[
                "random",
                "random:1",
                "random:nan",
                "random:0.5:x",
                "random:0.5:1:1",
            ],
        );
    }
}
