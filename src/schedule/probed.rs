//! Reuse that is decided while a run goes on, by one number a step.

use std::ops::Range;

use super::{Schedule, ScheduleError};
use crate::graph::Graph;

/// A run that is judged step by step: what has changed says whether blocks, or the whole network, are computed or reused.
///
/// The first step of a run computes everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    steps: usize,
    branches: usize,
    probe: Probe,
    reused: Range<usize>,
    rule: Rule,
    warm_up: usize,
    computes_last: bool,
    most: Option<usize>,
}

/// What a step is judged by, `mean|now − before| / mean|before|`, and what stands in for what is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// What the blocks in front add to the stream, against what they added where the others were computed last. Those blocks are
    /// computed at every step; what the others added is added again.
    Front,
    /// The modulated tokens that enter the first block, against those of the step before. What all blocks added is added again.
    ModulatedInput,
    /// The stream after the blocks in front, against that of the step before. Those are computed at every step; what all blocks
    /// added at the last two computed steps is added again, from the older towards the newer and past it as far as the blocks
    /// in front went (DiCache).
    FrontStream,
    /// How far the output, judged by what it did at computed steps, followed the state: `k·mean|x − x before| / mean|v|` of
    /// the conditional half. The whole network is reused: its output is the state and what it was off it (EasyCache).
    Output,
}

/// When a step is computed.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// Where the change exceeds the threshold.
    Each(Threshold),
    /// Where changes since the last computed step come to the threshold in sum.
    Sum(Sum),
}

/// Changes that add up.
#[derive(Debug, Clone, PartialEq)]
pub struct Sum {
    pub threshold: f64,
    /// What a change counts: a polynomial of it, the highest power first.
    pub polynomial: Vec<f64>,
}

impl Sum {
    /// Of changes as they are.
    pub fn plain(threshold: f64) -> Self {
        Self {
            threshold,
            polynomial: vec![1.0, 0.0],
        }
    }
}

/// How a run has decided so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Decisions {
    /// Steps that reused, in a row, up to the last one.
    pub in_a_row: usize,
    /// Changes since the last computed step.
    pub sum: f64,
    /// Steps that were computed.
    pub computed: usize,
}

impl Decisions {
    /// After a step.
    pub fn note(&mut self, reused: bool) {
        if reused {
            self.in_a_row += 1;
        } else {
            (self.in_a_row, self.sum) = (0, 0.0);
            self.computed += 1;
        }
    }
}

impl Rule {
    /// Whether a step that changed by so much reuses. Damaged numbers do not, so that they show.
    pub fn reuses(&self, change: f32, decisions: &mut Decisions) -> bool {
        match self {
            Self::Each(threshold) => !threshold.is_exceeded_by(change),
            Self::Sum(Sum {
                threshold,
                polynomial,
            }) => {
                let x = f64::from(change);
                decisions.sum += polynomial.iter().fold(0.0, |sum, c| sum * x + c);
                decisions.sum < *threshold
            }
        }
    }
}

/// How much a step may change before it is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold(f64);

impl Threshold {
    /// Whether a change is larger. Damaged numbers are, so that they show.
    fn is_exceeded_by(self, change: f32) -> bool {
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
        let blocks = graph.blocks();
        if front == 0 || front.saturating_add(rear) >= blocks {
            return Err(ScheduleError::Shape {
                reason: format!(
                    "{front} blocks in front and {rear} at the rear of a network of {blocks}; expected at least 1 in front and 1 in between"
                ),
            });
        }
        let reused = sites_before(graph, front)..sites_before(graph, blocks - rear);
        let rule = Rule::Each(Threshold(threshold));
        Self::checked(steps, graph, Probe::Front, reused, rule)
    }

    /// Judged by the modulated tokens that enter the first block, for a run of `steps` steps of a network.
    ///
    /// # Errors
    /// [`ScheduleError::Size`] for no steps, [`ScheduleError::Number`] for a threshold that is no positive number or
    /// coefficients that are no numbers.
    pub fn of_modulated_input(
        steps: usize,
        graph: &Graph,
        sum: Sum,
    ) -> Result<Self, ScheduleError> {
        let reused = 0..graph.branches();
        Self::checked(steps, graph, Probe::ModulatedInput, reused, Rule::Sum(sum))
    }

    /// Judged by the stream after the first block.
    ///
    /// # Errors
    /// As [`Self::of_modulated_input`]; [`ScheduleError::Shape`] where there is no other block.
    pub fn of_front_stream(steps: usize, graph: &Graph, sum: Sum) -> Result<Self, ScheduleError> {
        if graph.blocks() < 2 {
            return Err(ScheduleError::Shape {
                reason: "a network of one block has nothing behind the first".into(),
            });
        }
        let reused = sites_before(graph, 1)..graph.branches();
        Self::checked(steps, graph, Probe::FrontStream, reused, Rule::Sum(sum))
    }

    /// Judged by state and output of the whole network.
    ///
    /// # Errors
    /// As [`Self::of_modulated_input`].
    pub fn of_output(steps: usize, graph: &Graph, sum: Sum) -> Result<Self, ScheduleError> {
        let reused = 0..graph.branches();
        Self::checked(steps, graph, Probe::Output, reused, Rule::Sum(sum))
    }

    fn checked(
        steps: usize,
        graph: &Graph,
        probe: Probe,
        reused: Range<usize>,
        rule: Rule,
    ) -> Result<Self, ScheduleError> {
        let branches = graph.branches();
        if steps == 0 {
            return Err(ScheduleError::Size {
                steps,
                branches,
                expected: 0,
                found: 0,
            });
        }
        let (threshold, polynomial) = match &rule {
            Rule::Each(Threshold(threshold)) => (*threshold, &[][..]),
            Rule::Sum(sum) => (sum.threshold, &sum.polynomial[..]),
        };
        if !(threshold > 0.0 && threshold.is_finite()) {
            return Err(ScheduleError::Number {
                what: "threshold",
                value: threshold,
                expected: "a number above 0",
            });
        }
        if let Some(bad) = polynomial.iter().find(|c| !c.is_finite()) {
            return Err(ScheduleError::Number {
                what: "coefficient",
                value: *bad,
                expected: "a finite number",
            });
        }
        Ok(Self {
            steps,
            branches,
            probe,
            reused,
            rule,
            warm_up: 1,
            computes_last: false,
            most: None,
        })
    }

    /// Computes the first steps of the run, whatever changed.
    pub fn with_warm_up(self, warm_up: usize) -> Self {
        Self { warm_up, ..self }
    }

    /// Computes the last step of the run, whatever changed.
    pub fn with_last_computed(self) -> Self {
        Self {
            computes_last: true,
            ..self
        }
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

    /// What a step is judged by.
    pub fn probe(&self) -> Probe {
        self.probe
    }

    /// The branches that a step may reuse; those before them are the front.
    pub fn reused(&self) -> Range<usize> {
        self.reused.clone()
    }

    /// Multiply-accumulates that a step which reuses saves, for one image and half.
    pub fn saved_macs(&self, graph: &Graph) -> u64 {
        match self.probe {
            Probe::Output => graph.full_step_macs(),
            _ => {
                let sites = &graph.sites()[self.reused()];
                sites.iter().map(|site| site.macs).sum()
            }
        }
    }

    /// Whether step `s` of a run that begins at step `first` with an empty cache is decided, or computed whatever changed.
    pub fn decides(&self, s: usize, first: usize) -> bool {
        let is_last = self.computes_last && s + 1 == self.steps;
        s > first && s >= self.warm_up && !is_last
    }

    /// Reuses in a row at most.
    pub fn most(&self) -> Option<usize> {
        self.most
    }

    /// When a step is computed.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

/// Branches of the blocks before `block`.
fn sites_before(graph: &Graph, block: usize) -> usize {
    graph.sites().partition_point(|site| site.block < block)
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
    use crate::graph::of_blocks;

    #[test]
    fn the_middle_is_what_front_and_rear_leave() {
        let graph = of_blocks(6);
        let probed = |front, rear, threshold| Probed::new(4, &graph, front, rear, threshold);
        assert_eq!(probed(1, 0, 0.1).unwrap().reused(), 2..12);
        assert_eq!(probed(2, 3, 0.1).unwrap().reused(), 4..6);
        for (front, rear) in [(0, 0), (6, 0), (3, 3), (usize::MAX, 1)] {
            assert!(matches!(
                probed(front, rear, 0.1),
                Err(ScheduleError::Shape { .. })
            ));
        }
        for threshold in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(probed(1, 0, threshold).is_err(), "{threshold}");
        }
        let rule = probed(1, 0, 0.5).unwrap().rule().clone();
        assert_eq!(
            [0.5, 0.51, f32::NAN].map(|change| rule.reuses(change, &mut Decisions::default())),
            [true, false, false]
        );
    }

    #[test]
    fn changes_add_up_until_a_step_is_computed() {
        let rule = Rule::Sum(Sum {
            threshold: 1.0,
            polynomial: vec![2.0, 0.0, 0.25],
        });
        let mut decisions = Decisions::default();
        let mut step = |change: f32| {
            let reuses = rule.reuses(change, &mut decisions);
            decisions.note(reuses);
            (reuses, decisions)
        };
        let decided = |in_a_row, sum, computed| Decisions {
            in_a_row,
            sum,
            computed,
        };
        // 2·x² + 1/4
        assert_eq!(step(0.25), (true, decided(1, 0.375, 0)));
        assert_eq!(step(0.5), (false, decided(0, 0.0, 1)), "1.125 in sum");
        assert_eq!(step(0.0), (true, decided(1, 0.25, 1)));
        assert_eq!(step(f32::NAN), (false, decided(0, 0.0, 2)));
        assert_eq!(step(0.0), (true, decided(1, 0.25, 2)));
    }

    #[test]
    fn first_and_last_steps_are_not_decided() {
        let graph = of_blocks(2);
        let probed = Probed::of_front_stream(6, &graph, Sum::plain(0.1)).unwrap();
        assert_eq!((probed.reused(), probed.saved_macs(&graph)), (2..4, 8));
        let probed = probed.with_warm_up(2).with_last_computed();
        let decided = |first| {
            (0..6)
                .filter(|s| probed.decides(*s, first))
                .collect::<Vec<_>>()
        };
        assert_eq!((decided(0), decided(3)), (vec![2, 3, 4], vec![4]));
        let whole = Probed::of_output(6, &graph, Sum::plain(0.1)).unwrap();
        assert_eq!(whole.saved_macs(&graph), 18);
        let one = of_blocks(1);
        assert!(Probed::of_front_stream(6, &one, Sum::plain(0.1)).is_err());
        assert!(Probed::of_output(0, &graph, Sum::plain(0.1)).is_err());
        assert!(Probed::of_output(6, &graph, Sum::plain(0.0)).is_err());
        let damaged = Sum {
            threshold: 1.0,
            polynomial: vec![f64::NAN],
        };
        assert!(Probed::of_modulated_input(6, &graph, damaged).is_err());
    }
}
