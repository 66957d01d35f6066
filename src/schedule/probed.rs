//! Reuse that is decided while a run goes on, by one number a step.

use std::ops::Range;

use super::{Schedule, ScheduleError};
use crate::graph::Graph;

/// A run whose middle blocks are computed or reused as the first ones say.
///
/// The `front` is computed at every step, and what it adds to the stream is compared with what it added when the middle was
/// computed last: `r = mean|R − R_c| / mean|R_c|`. The middle is computed where `r` exceeds the threshold; elsewhere
/// what it added then is added again. The first step of a run computes everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    steps: usize,
    branches: usize,
    middle: Range<usize>,
    threshold: Threshold,
    warm_up: usize,
    most: Option<usize>,
}

/// How much the front may change before the middle is computed anew.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold(f64);

impl Threshold {
    /// Whether a change is larger. Damaged numbers are, so that they show.
    pub fn is_exceeded_by(self, change: f32) -> bool {
        f64::from(change) > self.0 || change.is_nan()
    }
}

impl Probed {
    /// `front` and `rear` blocks that every step computes, for a run of `steps` steps of a network.
    ///
    /// # Errors
    /// [`ScheduleError::Size`] for no steps, [`ScheduleError::Number`] for a threshold that is no positive number,
    /// [`ScheduleError::Shape`] where front and rear leave nothing to reuse or the front is empty.
    pub fn new(
        steps: usize,
        graph: &Graph,
        front: usize,
        rear: usize,
        threshold: f64,
    ) -> Result<Self, ScheduleError> {
        let (blocks, branches) = (graph.blocks(), graph.branches());
        if steps == 0 {
            return Err(ScheduleError::Size {
                steps,
                branches,
                expected: 0,
                found: 0,
            });
        }
        if !(threshold > 0.0 && threshold.is_finite()) {
            return Err(ScheduleError::Number {
                what: "threshold",
                value: threshold,
                expected: "a number above 0",
            });
        }
        if front == 0 || front.saturating_add(rear) >= blocks {
            return Err(ScheduleError::Shape {
                reason: format!(
                    "{front} blocks in front and {rear} at the rear of a network of {blocks}; expected at least 1 in front and 1 in between"
                ),
            });
        }
        let sites_before = |block: usize| graph.sites().partition_point(|site| site.block < block);
        Ok(Self {
            steps,
            branches,
            middle: sites_before(front)..sites_before(blocks - rear),
            threshold: Threshold(threshold),
            warm_up: 1,
            most: None,
        })
    }

    /// Computes the first steps of the run, whatever changed.
    pub fn with_warm_up(self, warm_up: usize) -> Self {
        Self { warm_up, ..self }
    }

    /// Reuses at most so often in a row.
    pub fn with_most(self, most: Option<usize>) -> Self {
        Self { most, ..self }
    }

    /// `T`
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// `N`
    pub fn branches(&self) -> usize {
        self.branches
    }

    /// The branches that a step may reuse; those before them are the front.
    pub fn middle(&self) -> Range<usize> {
        self.middle.clone()
    }

    /// Steps of the run that are computed whatever changed.
    pub fn warm_up(&self) -> usize {
        self.warm_up
    }

    /// Reuses in a row at most.
    pub fn most(&self) -> Option<usize> {
        self.most
    }

    /// What the front's change is held against.
    pub fn threshold(&self) -> Threshold {
        self.threshold
    }
}

/// What a run reuses.
#[derive(Debug, Clone, PartialEq)]
pub enum Reuse {
    /// Known before the run.
    Ahead(Schedule),
    /// Decided step by step.
    AtRunTime(Probed),
}

impl Reuse {
    /// `T`
    pub fn steps(&self) -> usize {
        match self {
            Self::Ahead(schedule) => schedule.steps(),
            Self::AtRunTime(probed) => probed.steps(),
        }
    }

    /// `N`
    pub fn branches(&self) -> usize {
        match self {
            Self::Ahead(schedule) => schedule.branches(),
            Self::AtRunTime(probed) => probed.branches(),
        }
    }

    /// The table, where there is one.
    pub fn table(&self) -> Option<&Schedule> {
        match self {
            Self::Ahead(schedule) => Some(schedule),
            Self::AtRunTime(_) => None,
        }
    }
}

impl From<Schedule> for Reuse {
    fn from(schedule: Schedule) -> Self {
        Self::Ahead(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::SiteKind;

    #[test]
    fn the_middle_is_what_front_and_rear_leave() {
        let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
        let graph = Graph::uniform(6, &pattern, [4, 8], 2).unwrap();
        let probed = |front, rear, threshold| Probed::new(4, &graph, front, rear, threshold);
        assert_eq!(probed(1, 0, 0.1).unwrap().middle(), 2..12);
        assert_eq!(probed(2, 3, 0.1).unwrap().middle(), 4..6);
        for (front, rear) in [(0, 0), (6, 0), (3, 3), (usize::MAX, 1)] {
            assert!(matches!(
                probed(front, rear, 0.1),
                Err(ScheduleError::Shape { .. })
            ));
        }
        for threshold in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(probed(1, 0, threshold).is_err(), "{threshold}");
        }
        let rule = probed(1, 0, 0.5).unwrap().threshold();
        assert_eq!(
            [0.5, 0.51, f32::NAN].map(|change| rule.is_exceeded_by(change)),
            [false, true, true]
        );
    }
}
