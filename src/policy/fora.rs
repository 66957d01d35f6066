//! FORA (arXiv 2407.01425): all branches computed at every N-th step, reused in between.

use crate::schedule::{Schedule, ScheduleError};

pub(super) fn schedule(
    interval: usize,
    steps: usize,
    branches: usize,
) -> Result<Schedule, ScheduleError> {
    Schedule::from_rule(steps, branches, |s, _| s.is_multiple_of(interval))
}
