//! EasyCache (arXiv 2507.02860): the whole network's output is reused, as what it was off the state, while the state has moved
//! little in sum since, by the rate at which the output followed it before; the first steps and the last are computed.

use crate::{
    graph::Graph,
    schedule::{Probed, ScheduleError, Sum},
};

/// Steps that are computed before any reuse, as published for 50.
pub(super) const WARM_UP: usize = 10;

pub(super) fn probed(
    threshold: f64,
    warm_up: usize,
    steps: usize,
    graph: &Graph,
) -> Result<Probed, ScheduleError> {
    let probed = Probed::of_output(steps, graph, Sum::plain(threshold))?;
    Ok(probed.with_warm_up(warm_up).with_last_computed())
}
