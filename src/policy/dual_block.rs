//! DBCache (cache-dit): the first `front` blocks are computed at every step, and the last `rear`; those in between where the
//! first changed by more than the threshold, in the first steps, and after so many reuses in a row.

use crate::{
    graph::Graph,
    schedule::{Probed, ScheduleError},
};

/// Steps that are computed before any reuse, as cache-dit has it.
pub(super) const WARM_UP: usize = 8;

/// The arguments of `db:FRONT:REAR:THRESHOLD[:WARMUP[:MOST]]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DualBlock {
    pub front: usize,
    pub rear: usize,
    pub threshold: f64,
    /// Steps at the beginning that are computed.
    pub warm_up: usize,
    /// Reuses in a row at most.
    pub most: Option<usize>,
}

pub(super) fn probed(
    arguments: &DualBlock,
    steps: usize,
    graph: &Graph,
) -> Result<Probed, ScheduleError> {
    let DualBlock {
        front,
        rear,
        threshold,
        warm_up,
        most,
    } = *arguments;
    let probed = Probed::new(steps, graph, front, rear, threshold)?;
    Ok(probed.with_warm_up(warm_up).with_most(most))
}
