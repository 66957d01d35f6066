//! Which features live how long, and where.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use super::Slot;
use crate::schedule::Schedule;

/// A feature's life: computed at one step, read at later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveRange {
    /// The branch.
    pub branch: usize,
    /// The step that computes it.
    pub written: usize,
    /// The last step that reads it.
    pub last_read: usize,
}

impl LiveRange {
    /// Its first moment in a run of `branches` moments a step.
    pub fn start(&self, branches: usize) -> usize {
        self.written * branches + self.branch
    }

    /// The moment of its last read; its slot is free for whatever is written after that.
    pub fn end(&self, branches: usize) -> usize {
        self.last_read * branches + self.branch
    }
}

/// The features that are read at all, by the moment of their writing.
pub fn live_ranges(schedule: &Schedule) -> Vec<LiveRange> {
    let mut ranges: Vec<LiveRange> = Vec::new();
    for branch in 0..schedule.branches() {
        // Steps that computed the branch, oldest first, and where each feature is read last.
        let mut computed: Vec<(usize, Option<usize>)> = Vec::new();
        for s in 0..schedule.steps() {
            if !schedule.runs_network(s) {
                continue;
            }
            if schedule.computes(s, branch) {
                computed.push((s, None));
                continue;
            }
            let read = schedule.weights(s, branch).len();
            for (_, last_read) in computed.iter_mut().rev().take(read) {
                *last_read = Some(s);
            }
        }
        ranges.extend(computed.into_iter().filter_map(|(written, last_read)| {
            let last_read = last_read?;
            Some(LiveRange {
                branch,
                written,
                last_read,
            })
        }));
    }
    ranges.sort_by_key(|range| range.start(schedule.branches()));
    ranges
}

/// Slots by linear scan: the smallest free one at every start, of a run of `branches` moments a step. Ranges are sorted by start,
/// so the number of slots is the deepest overlap.
pub(super) fn assign_slots(
    ranges: &[LiveRange],
    branches: usize,
) -> (HashMap<(usize, usize), Slot>, usize) {
    let mut slot_of = HashMap::with_capacity(ranges.len());
    let mut busy: BinaryHeap<Reverse<(usize, Slot)>> = BinaryHeap::new();
    let mut free: BinaryHeap<Reverse<Slot>> = BinaryHeap::new();
    let mut slots = 0;
    for range in ranges {
        while let Some(Reverse((end, slot))) = busy.peek().copied() {
            if end > range.start(branches) {
                break;
            }
            busy.pop();
            free.push(Reverse(slot));
        }
        let slot = match free.pop() {
            Some(Reverse(slot)) => slot,
            None => {
                slots += 1;
                slots - 1
            }
        };
        busy.push(Reverse((range.end(branches), slot)));
        slot_of.insert((range.written, range.branch), slot);
    }
    (slot_of, slots)
}
