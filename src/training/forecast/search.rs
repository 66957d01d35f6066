//! What to compute, by moves that are judged by the error of the images they lead to ([`typical`]): first of whole steps, then of
//! parts of steps, from half of the branches down to single ones.
//!
//! A move is tried on few draws first, where most fail; what passes is fitted on all of them and kept if it holds there.
//! Several ranks have a first look at as many of the next moves at once; what is found is what one process finds.
//! Only the steps from the first that moved on are run again. What is found is fitted to other draws, and judged on draws
//! that neither search nor fit has seen, against even steps fitted alike.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::fit::typical;
use super::{
    computed::Computed,
    fit::{Draws, Fit},
    target::Allowance,
};
use crate::{graph::Graph, ranks::Ranks, training::run::TrainingError};

/// A move must lower the error by this share to be kept: less is chance.
const GAIN: f64 = 0.01;
/// Sweeps end when one has lowered the error by less than this share.
const LEAST_OF_SWEEP: f64 = 0.02;

/// Draws that a search looks at: few for a first look, many to believe it.
pub struct Search {
    pub glance: Draws,
    pub all: Draws,
    pub steps: usize,
    pub graph: Graph,
    /// Sweeps over moves of whole steps at most.
    pub sweeps: usize,
    /// The target that is searched for, from 0.
    pub rung: usize,
    /// Who searches together: each has a `glance` of its own, and all have the same; `all` are walked together.
    pub ranks: Ranks,
}

/// What a search is about to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// Whole steps.
    #[default]
    Steps,
    /// So many branches of a step.
    Parts(usize),
    Over,
}

/// Where a search stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The best so far.
    pub computed: Computed,
    /// The best with whole steps alone, once parts are searched.
    #[serde(default)]
    pub whole: Option<Computed>,
    #[serde(default)]
    stage: Stage,
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
            whole: None,
            stage: Stage::Steps,
            sweeps: 0,
            next: 0,
            tried: 0,
            before: None,
        }
    }

    /// The best with whole steps alone.
    pub fn best_whole(&self) -> &Computed {
        self.whole.as_ref().unwrap_or(&self.computed)
    }

    /// Whether nothing has been tried.
    pub(super) fn is_fresh(&self) -> bool {
        self.tried == 0 && self.stage == Stage::Steps
    }

    /// Where a search begins that need not look for whole steps, since this one has found them.
    pub(super) fn knowing_whole(&self) -> Option<Self> {
        let whole = self.whole.clone()?;
        Some(Self {
            sweeps: self.sweeps,
            ..Self::new(whole)
        })
    }

    /// Whether nothing is left to search.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether it knows of this.
    pub(super) fn has_tried(&self, tried: &Tried) -> bool {
        tried.number <= self.tried
    }

    fn moves(&self, steps: usize, branches: usize) -> Vec<(Computed, usize)> {
        match self.stage {
            Stage::Steps => self.computed.moves(steps),
            Stage::Parts(unit) => self.computed.part_moves(steps, branches, unit),
            Stage::Over => Vec::new(),
        }
    }

    /// Before the first sweep of a stage.
    fn entering(self, stage: Stage) -> Self {
        Self {
            stage,
            next: 0,
            before: None,
            ..self
        }
    }
}

/// A move that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Of the targets of the run, from 0.
    #[serde(default)]
    pub rung: usize,
    /// Whole steps that the search for it begins with.
    pub count: usize,
    /// Branches that moves of this sweep are about; none for whole steps.
    #[serde(default)]
    pub unit: Option<usize>,
    pub sweep: usize,
    /// Its number, from 1.
    pub number: usize,
    /// Moves that are left of the sweep.
    pub left: usize,
    /// Whether it was kept.
    pub kept: bool,
    /// The typical error of all draws at what is kept now.
    pub error: f64,
    /// What is kept now: a cell a step, `#` for whole ones, `+` for those in part.
    pub computed: String,
}

impl Search {
    /// What is left of a stage's sweep over its moves within the allowance, and on to the next sweep or stage; `tell` hears of each
    /// move that was tried, and breaks off. Returns whether it came to the end of the sweep: where not, going on from `place` ends
    /// where the undisturbed sweep does.
    ///
    /// # Errors
    /// [`TrainingError`] of the device.
    pub fn sweep(
        &mut self,
        place: &mut Place,
        allowed: &Allowance,
        tell: &mut dyn FnMut(&Place, Tried) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        let branches = self.graph.branches();
        let over = match place.stage {
            Stage::Steps => place.sweeps >= self.sweeps,
            Stage::Parts(_) => false,
            Stage::Over => return Ok(true),
        };
        let gained = match over {
            true => false,
            false => match self.swept(place, allowed, tell)? {
                Some(gained) => gained,
                None => return Ok(false),
            },
        };
        let halves = branches.div_ceil(2);
        let next = match place.stage {
            Stage::Steps if gained => Stage::Steps,
            Stage::Steps if !allowed.parts() => Stage::Over,
            Stage::Steps => Stage::Parts(halves),
            // Smaller units are worth it while larger ones were; at first there may be no work left for halves.
            Stage::Parts(unit) if unit > 1 && (gained || unit == halves) => Stage::Parts(unit / 2),
            Stage::Parts(_) | Stage::Over => Stage::Over,
        };
        if place.stage == Stage::Steps && next != Stage::Steps {
            place.whole = Some(place.computed.clone());
        }
        *place = place.clone().entering(next);
        Ok(true)
    }

    /// Whether a sweep has lowered the error by so much that another is worth it; nothing where it was broken off.
    fn swept(
        &mut self,
        place: &mut Place,
        allowed: &Allowance,
        tell: &mut dyn FnMut(&Place, Tried) -> ControlFlow<()>,
    ) -> Result<Option<bool>, TrainingError> {
        let (steps, branches) = (self.steps, self.graph.branches());
        let moves_from = |place: &Place| -> Result<Vec<_>, TrainingError> {
            let mut moves = Vec::new();
            for (moved, from) in place.moves(steps, branches) {
                let (table, skipped) = moved.table(steps, branches)?;
                if place.stage == Stage::Steps || allowed.allows(&table, &skipped, &self.graph)? {
                    moves.push((moved, from, table, skipped));
                }
            }
            Ok(moves)
        };
        let (table, skipped) = place.computed.table(steps, branches)?;
        let mut moves = moves_from(place)?;
        let mut best = self.all.fit(&table, &skipped, None)?;
        let mut glimpse = self.glance.fit(&table, &skipped, None)?;
        let before = *place.before.get_or_insert(best.typical());
        while place.next < moves.len() {
            // Each rank has a look at one of the next moves: most change nothing.
            let at_once = self.ranks.size().min(moves.len() - place.next);
            let mut looked = match moves.get(place.next + self.ranks.rank()) {
                None => None,
                Some((_, from, table, skipped)) => {
                    Some(self.glance.fit(table, skipped, Some((&glimpse, *from)))?)
                }
            };
            let own = looked.as_ref().map_or(f64::INFINITY, Fit::typical);
            let seen = self.ranks.gather_numbers(vec![[own, glimpse.typical()]])?;
            // Ranks whose processors round differently go by what the first sees.
            let promising = seen[0][1] * (1.0 - GAIN);
            for (rank, [seen, _]) in seen.into_iter().take(at_once).enumerate() {
                let (moved, from, table, skipped) = moves[place.next].clone();
                place.next += 1;
                place.tried = place.tried.saturating_add(1);
                let mut kept = false;
                if seen < promising {
                    let fit = self.all.fit(&table, &skipped, Some((&best, from)))?;
                    if fit.typical() < best.typical() * (1.0 - GAIN) {
                        let own = looked.take().filter(|_| rank == self.ranks.rank());
                        glimpse = match own {
                            Some(own) => own,
                            None => self.glance.fit(&table, &skipped, Some((&glimpse, from)))?,
                        };
                        (best, kept) = (fit, true);
                        place.computed = moved;
                        // What is left of the sweep goes on from here: moves of the steps before.
                        moves = moves_from(place)?;
                        place.next = moves
                            .iter()
                            .position(|(_, first, ..)| *first < from)
                            .unwrap_or(moves.len());
                    }
                }
                let tried = Tried {
                    rung: self.rung,
                    count: place.best_whole().steps().len(),
                    unit: match place.stage {
                        Stage::Parts(unit) => Some(unit),
                        _ => None,
                    },
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
                if kept {
                    break;
                }
            }
        }
        place.sweeps = place.sweeps.saturating_add(1);
        place.next = 0;
        place.before = None;
        Ok(Some(best.typical() < before * (1.0 - LEAST_OF_SWEEP)))
    }
}
