//! DiCache (arXiv 2508.17356): the first block is computed at every step, all others where the stream after it has changed
//! enough in sum; elsewhere what all blocks added at the last two computed steps is moved on. The first steps and the last are
//! computed.

use crate::{
    graph::Graph,
    schedule::{Probed, ScheduleError, Sum},
};

/// Share of the steps after the first that are computed before any reuse.
const FIRST: f64 = 0.2;

pub(super) fn probed(threshold: f64, steps: usize, graph: &Graph) -> Result<Probed, ScheduleError> {
    let warm_up = 1 + (FIRST * steps as f64) as usize;
    let probed = Probed::of_front_stream(steps, graph, Sum::plain(threshold))?;
    Ok(probed.with_warm_up(warm_up).with_last_computed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::SiteKind;

    #[test]
    fn a_fifth_of_the_steps_and_the_last_are_computed() {
        let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
        let graph = Graph::uniform(2, &pattern, [4, 8], 2).unwrap();
        for (steps, expected) in [(10, 3..9), (14, 3..13), (15, 4..14), (4, 1..3)] {
            let probed = probed(0.4, steps, &graph).unwrap();
            let decided = (0..steps).filter(|s| probed.decides(*s, 0));
            assert!(decided.eq(expected), "{steps}");
        }
    }
}
