//! A random table with exactly the asked share of reuse.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::PolicyError;
use crate::schedule::Schedule;

pub(super) fn schedule(
    cur: f64,
    seed: u64,
    steps: usize,
    branches: usize,
) -> Result<Schedule, PolicyError> {
    let total = steps * branches;
    let reused = (cur * total as f64).round() as usize;
    let free = total.saturating_sub(branches);
    if reused > free {
        return Err(PolicyError::Arguments {
            spec: format!("random:{cur}:{seed}"),
            problem: format!(
                "step 0 computes everything, so {steps} steps reuse at most {:.1} % of all branches",
                100.0 * free as f64 / total.max(1) as f64
            ),
        });
    }
    let mut later = vec![true; free];
    later[..reused].fill(false);
    later.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut table = vec![true; total - free];
    table.append(&mut later);
    Ok(Schedule::new(steps, branches, table)?)
}
