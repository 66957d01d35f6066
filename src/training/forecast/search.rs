//! Which steps to compute: moves of single steps, each judged by the error of the images it leads to ([`typical`]).
//!
//! A move is tried on few draws first, where most fail; what passes is fitted on all of them and kept if it holds there.
//! Only the steps from the first that moved on are run again. What is found is judged on draws that neither fit nor search
//! has seen, against even steps fitted alike.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::fit::typical;
use super::fit::{Draws, Fit};
use crate::{schedule::Schedule, training::run::TrainingError};

/// How far a step moves at most.
const FARTHEST: usize = 2;
/// A move must lower the error by this share to be kept: less is chance.
const GAIN: f64 = 0.01;
/// Sweeps end when one has lowered the error by less than this share.
const LEAST_OF_SWEEP: f64 = 0.02;

/// The steps that run the network, in order; the first is always 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Computed(Vec<usize>);

impl Computed {
    /// `count` of `steps` steps, as even as can be.
    pub fn even(count: usize, steps: usize) -> Self {
        let count = count.clamp(1, steps.max(1));
        Self((0..count).map(|i| i * steps / count).collect())
    }

    /// The steps.
    pub fn steps(&self) -> &[usize] {
        &self.0
    }

    /// Whether they can be those of a run: step 0 and others after it, in order.
    pub fn is_of(&self, steps: usize) -> bool {
        let ordered = self.0.windows(2).all(|pair| pair[0] < pair[1]);
        ordered && self.0.first() == Some(&0) && self.0.last().is_some_and(|last| *last < steps)
    }

    /// Whether they are as many.
    pub(super) fn counts(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
    }

    /// As a table whose other steps are skipped, and those steps.
    ///
    /// # Errors
    /// None that steps of the run can meet.
    pub fn table(
        &self,
        steps: usize,
        branches: usize,
    ) -> Result<(Schedule, Vec<usize>), TrainingError> {
        let table = Schedule::from_rule(steps, branches, |s, _| self.0.contains(&s))?;
        let skipped = (0..steps).filter(|s| !self.0.contains(s)).collect();
        Ok((table, skipped))
    }

    /// The runs that differ in one step which is computed at a neighbour's place, those that change late first, and the first
    /// step that each changes.
    fn moves(&self, steps: usize) -> Vec<(Self, usize)> {
        let mut moves = Vec::new();
        for place in (1..self.0.len()).rev() {
            let from = self.0[place];
            for distance in 1..=FARTHEST {
                let later = Some(from + distance).filter(|to| *to < steps);
                let earlier = from.checked_sub(distance).filter(|to| *to > 0);
                for to in later.into_iter().chain(earlier) {
                    if !self.0.contains(&to) {
                        let mut moved = self.0.clone();
                        moved[place] = to;
                        moved.sort_unstable();
                        moves.push((Self(moved), from.min(to)));
                    }
                }
            }
        }
        moves
    }

    /// As in a table's rows.
    pub fn row(&self, steps: usize) -> String {
        let cell = |s| if self.0.contains(&s) { '#' } else { '.' };
        (0..steps).map(cell).collect()
    }
}

/// Draws that a search looks at: few for a first look, many to believe it.
pub struct Search {
    pub glance: Draws,
    pub all: Draws,
    pub steps: usize,
    pub branches: usize,
}

/// Where a search stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The best so far.
    pub computed: Computed,
    /// Sweeps that are done.
    pub sweeps: usize,
    /// The move of this sweep that comes next.
    next: usize,
    /// Moves that were tried in all sweeps.
    tried: usize,
    /// The error that this sweep began with.
    before: Option<f64>,
}

impl Place {
    /// Before the first sweep.
    pub fn new(computed: Computed) -> Self {
        Self {
            computed,
            sweeps: 0,
            next: 0,
            tried: 0,
            before: None,
        }
    }

    /// Whether it knows of this.
    pub(super) fn has_tried(&self, tried: &Tried) -> bool {
        tried.number <= self.tried
    }
}

/// A move that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Steps that the run computes.
    pub count: usize,
    pub sweep: usize,
    /// Its number, from 1.
    pub number: usize,
    /// Moves that are left of the sweep.
    pub left: usize,
    /// Whether it was kept.
    pub kept: bool,
    /// The typical error of all draws at what is kept now.
    pub error: f64,
    /// What is kept now: a cell a step, `#` for those that are computed.
    pub computed: String,
}

impl Search {
    /// The fit of a run on all draws.
    ///
    /// # Errors
    /// [`TrainingError`] of the device.
    pub fn fitted(&mut self, computed: &Computed) -> Result<Fit, TrainingError> {
        let (table, skipped) = computed.table(self.steps, self.branches)?;
        self.all.fit(&table, &skipped, None)
    }

    /// What is left of a sweep over all moves; `tell` hears of each that was tried, and breaks off. Returns whether another sweep
    /// is worth it, or nothing where it was broken off: going on from `place` ends where the undisturbed sweep does.
    ///
    /// # Errors
    /// [`TrainingError`] of the device.
    pub fn sweep(
        &mut self,
        place: &mut Place,
        tell: &mut dyn FnMut(&Place, Tried) -> ControlFlow<()>,
    ) -> Result<Option<bool>, TrainingError> {
        let (steps, branches) = (self.steps, self.branches);
        let (table, skipped) = place.computed.table(steps, branches)?;
        let mut best = self.fitted(&place.computed)?;
        let mut glimpse = self.glance.fit(&table, &skipped, None)?;
        let before = *place.before.get_or_insert(best.typical());
        let mut moves = place.computed.moves(steps);
        while place.next < moves.len() {
            let (moved, from) = moves[place.next].clone();
            place.next += 1;
            place.tried = place.tried.saturating_add(1);
            let (table, skipped) = moved.table(steps, branches)?;
            let glanced = self.glance.fit(&table, &skipped, Some((&glimpse, from)))?;
            let mut kept = false;
            if glanced.typical() < glimpse.typical() * (1.0 - GAIN) {
                let fit = self.all.fit(&table, &skipped, Some((&best, from)))?;
                if fit.typical() < best.typical() * (1.0 - GAIN) {
                    (best, glimpse, kept) = (fit, glanced, true);
                    place.computed = moved;
                    // What is left of the sweep goes on from here: moves of the steps before.
                    moves = place.computed.moves(steps);
                    place.next = moves
                        .iter()
                        .position(|(_, first)| *first < from)
                        .unwrap_or(moves.len());
                }
            }
            let tried = Tried {
                count: place.computed.steps().len(),
                sweep: place.sweeps,
                number: place.tried,
                left: moves.len() - place.next,
                kept,
                error: best.typical(),
                computed: place.computed.row(steps),
            };
            if tell(place, tried).is_break() {
                return Ok(None);
            }
        }
        *place = Place {
            computed: place.computed.clone(),
            sweeps: place.sweeps + 1,
            next: 0,
            tried: place.tried,
            before: None,
        };
        Ok(Some(best.typical() < before * (1.0 - LEAST_OF_SWEEP)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_steps_begin_at_the_first() {
        assert_eq!(Computed::even(5, 10).steps(), [0, 2, 4, 6, 8]);
        assert_eq!(Computed::even(3, 4).row(4), "###.");
        assert_eq!(Computed::even(0, 4).steps(), [0]);
        assert!(Computed::even(7, 20).is_of(20) && !Computed::even(7, 20).is_of(17));
    }

    #[test]
    fn a_move_changes_one_step_and_never_the_first() {
        let moves = Computed(vec![0, 2, 4]).moves(6);
        let rows: Vec<(String, usize)> = moves
            .iter()
            .map(|(moved, from)| (moved.row(6), *from))
            .collect();
        for (row, from) in [("#.##..", 3), ("##..#.", 1), ("#..##.", 2)] {
            assert!(rows.contains(&(row.into(), from)), "{rows:?}");
        }
        assert!(
            moves
                .iter()
                .all(|(moved, _)| moved.is_of(6) && moved.0.len() == 3)
        );
        // Those that change late come first, so that little is run again.
        assert_eq!(rows[0], ("#.#..#".into(), 4));
    }
}
