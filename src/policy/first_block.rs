//! First Block Cache (ParaAttention, and diffusers' `FirstBlockCache`): the first block is computed at every step, all others
//! where it changed by more than the threshold.

use crate::{
    graph::Graph,
    schedule::{Probed, ScheduleError},
};

pub(super) fn probed(threshold: f64, steps: usize, graph: &Graph) -> Result<Probed, ScheduleError> {
    Probed::new(steps, graph, 1, 0, threshold)
}
