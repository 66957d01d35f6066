//! What a run computes: some steps whole, some in part, the others not at all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{policy::forecasts, schedule::Schedule, training::run::TrainingError};

/// How far a whole step moves at most.
const FARTHEST: usize = 2;

/// The steps of a run that compute all branches, and those that compute some or none of them. Other steps run no network.
///
/// What a step in part does not compute is forecast from its features by a line through the last two ([`forecasts::taylor`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Computed {
    /// In order; the first is always 0.
    whole: Vec<usize>,
    /// The row of each step in part: the branches that it computes.
    parts: BTreeMap<usize, Vec<bool>>,
}

/// As files hold it: a list of steps where all are whole.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Steps(Vec<usize>),
    Rows {
        whole: Vec<usize>,
        /// Step and row, `#` for a branch that is computed.
        parts: Vec<(usize, String)>,
    },
}

impl From<Computed> for Written {
    fn from(computed: Computed) -> Self {
        let Computed { whole, parts } = computed;
        match parts.is_empty() {
            true => Self::Steps(whole),
            false => Self::Rows {
                whole,
                parts: parts.into_iter().map(|(s, row)| (s, cells(&row))).collect(),
            },
        }
    }
}

impl TryFrom<Written> for Computed {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let (whole, rows) = match written {
            Written::Steps(whole) => (whole, Vec::new()),
            Written::Rows { whole, parts } => (whole, parts),
        };
        let row = |(s, text): (usize, String)| match text.bytes().all(|b| b == b'#' || b == b'.') {
            true => Ok((s, text.bytes().map(|b| b == b'#').collect())),
            false => Err(format!(
                "step {s} is `{text}`, expected only # (compute) and . (forecast)"
            )),
        };
        let parts = rows.into_iter().map(row).collect::<Result<_, _>>()?;
        Ok(Self { whole, parts })
    }
}

fn cells(row: &[bool]) -> String {
    row.iter().map(|c| if *c { '#' } else { '.' }).collect()
}

/// Which end of the branches that are not computed a step in part takes more of.
#[derive(Clone, Copy)]
enum End {
    Front,
    Rear,
}

/// `row` with `unit` more branches computed, those at an end; none where there are not as many.
fn grown(row: &[bool], unit: usize, end: End) -> Option<Vec<bool>> {
    changed(row, unit, end, false)
}

/// `row` with `unit` fewer branches computed.
fn shrunk(row: &[bool], unit: usize, end: End) -> Option<Vec<bool>> {
    changed(row, unit, end, true)
}

fn changed(row: &[bool], unit: usize, end: End, from: bool) -> Option<Vec<bool>> {
    let mut row = row.to_vec();
    let mut places: Vec<usize> = (0..row.len()).filter(|n| row[*n] == from).collect();
    if matches!(end, End::Rear) {
        places.reverse();
    }
    for place in places.get(..unit)? {
        row[*place] = !from;
    }
    Some(row)
}

impl Computed {
    /// `count` of `steps` steps, whole and as even as can be.
    pub fn even(count: usize, steps: usize) -> Self {
        let count = count.clamp(1, steps.max(1));
        Self::whole((0..count).map(|i| i * steps / count).collect())
    }

    fn whole(steps: Vec<usize>) -> Self {
        Self {
            whole: steps,
            parts: BTreeMap::new(),
        }
    }

    /// The steps that compute all branches.
    pub fn steps(&self) -> &[usize] {
        &self.whole
    }

    /// The steps that compute some branches, or none and yet run the network: the branches that each computes.
    pub fn parts(&self) -> &BTreeMap<usize, Vec<bool>> {
        &self.parts
    }

    /// Whether they can be those of a run: step 0 and others after it, in order, and rows of so many branches between them.
    pub fn is_of(&self, steps: usize, branches: usize) -> bool {
        let ordered = self.whole.windows(2).all(|pair| pair[0] < pair[1]);
        let part = |(s, row): (&usize, &Vec<bool>)| {
            *s < steps && row.len() == branches && !self.whole.contains(s)
        };
        ordered
            && self.whole.first() == Some(&0)
            && self.whole.last().is_some_and(|last| *last < steps)
            && self.parts.iter().all(part)
    }

    /// As a table, and the steps that run no network.
    ///
    /// # Errors
    /// None that steps of the run can meet.
    pub fn table(
        &self,
        steps: usize,
        branches: usize,
    ) -> Result<(Schedule, Vec<usize>), TrainingError> {
        let in_part = |s: usize, n: usize| self.parts.get(&s).is_some_and(|row| row[n]);
        let table = Schedule::from_rule(steps, branches, |s, n| {
            self.whole.contains(&s) || in_part(s, n)
        })?;
        let skipped = (0..steps).filter(|s| !self.runs(*s)).collect();
        if self.parts.is_empty() {
            return Ok((table, skipped));
        }
        let lines = forecasts::taylor(table.clone(), 1)?;
        let table = table.with_reads(|s, n| match self.runs(s) {
            true => lines.weights(s, n).to_vec(),
            false => Vec::new(),
        })?;
        Ok((table, skipped))
    }

    /// Whether step `s` runs the network.
    fn runs(&self, s: usize) -> bool {
        self.whole.contains(&s) || self.parts.contains_key(&s)
    }

    /// The runs that differ in one whole step, which is computed at a neighbour's place where nothing is, those that change late
    /// first, and the first step that each changes.
    pub(super) fn moves(&self, steps: usize) -> Vec<(Self, usize)> {
        let mut moves = Vec::new();
        for place in (1..self.whole.len()).rev() {
            let from = self.whole[place];
            for distance in 1..=FARTHEST {
                let later = Some(from + distance).filter(|to| *to < steps);
                let earlier = from.checked_sub(distance).filter(|to| *to > 0);
                for to in later.into_iter().chain(earlier) {
                    if !self.runs(to) {
                        let mut moved = self.clone();
                        moved.whole[place] = to;
                        moved.whole.sort_unstable();
                        moves.push((moved, from.min(to)));
                    }
                }
            }
        }
        moves
    }

    /// The runs that differ in `unit` branches of a step, or in that a step forecasts features instead of nothing, and the first
    /// step that each changes. With half of the branches or more, that all idle steps forecast features comes first; then come
    /// those that change late.
    ///
    /// A step that is not whole computes as many branches more, at the rear or the front of those that it does not compute; those at
    /// the rear it may take from a neighbour, half of the branches or more even from a whole one.
    pub(super) fn part_moves(
        &self,
        steps: usize,
        branches: usize,
        unit: usize,
    ) -> Vec<(Self, usize)> {
        let mut moves = Vec::new();
        let idle: Vec<usize> = (1..steps).filter(|s| !self.runs(*s)).collect();
        let from_halves = 2 * unit >= branches;
        let all = idle.first().filter(|_| from_halves).map(|first| {
            let mut all = self.clone();
            let rows = idle.iter().map(|s| (*s, vec![false; branches]));
            all.parts.extend(rows);
            (all, *first)
        });
        for s in (1..steps).rev().filter(|s| !self.whole.contains(s)) {
            let row = self.parts.get(&s);
            let with = |row: Option<Vec<bool>>| {
                let mut moved = self.clone();
                match row {
                    None => drop(moved.parts.remove(&s)),
                    // All of them are a whole step.
                    Some(row) if row.iter().all(|computes| *computes) => {
                        moved.parts.remove(&s);
                        moved.whole.push(s);
                        moved.whole.sort_unstable();
                    }
                    Some(row) => drop(moved.parts.insert(s, row)),
                }
                moved
            };
            let nothing = vec![false; branches];
            match row {
                None => moves.push((with(Some(nothing.clone())), s)),
                Some(_) => moves.push((with(None), s)),
            }
            let row = row.unwrap_or(&nothing);
            for end in [End::Rear, End::Front] {
                let Some(grown) = grown(row, unit, end) else {
                    continue;
                };
                let more = with(Some(grown));
                let first = moves.len();
                moves.push((more.clone(), s));
                // Rear branches say most about a step's output: they are taken, and front ones given.
                if matches!(end, End::Rear) {
                    for d in self.givers(s, steps, from_halves) {
                        if let Some(less) = more.giving(d, branches, unit) {
                            moves.push((less, s.min(d)));
                        }
                    }
                }
                // An empty row looks the same from both ends only where all of it is taken.
                if moves[..first].iter().any(|(known, _)| *known == more) {
                    moves.truncate(first);
                }
            }
        }
        moves.sort_by_key(|(_, from)| std::cmp::Reverse(*from));
        all.into_iter().chain(moves).collect()
    }

    /// The nearest steps before and after `s` that may give branches away: those in part, and whole ones too where `whole` says so.
    fn givers(&self, s: usize, steps: usize, whole: bool) -> Vec<usize> {
        let some = |row: &Vec<bool>| row.contains(&true);
        let in_part = |d: &usize| self.parts.get(d).is_some_and(some);
        let of_whole = |d: &usize| whole && self.whole.contains(d);
        let before = |gives: &dyn Fn(&usize) -> bool| (1..s).rev().find(gives);
        let after = |gives: &dyn Fn(&usize) -> bool| (s + 1..steps).find(gives);
        [
            before(&in_part),
            after(&in_part),
            before(&of_whole),
            after(&of_whole),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// With `unit` branches fewer at step `d`.
    fn giving(&self, d: usize, branches: usize, unit: usize) -> Option<Self> {
        let whole = vec![true; branches];
        let row = self.parts.get(&d).unwrap_or(&whole);
        let less = shrunk(row, unit, End::Front)?;
        let mut moved = self.clone();
        moved.whole.retain(|s| *s != d);
        moved.parts.insert(d, less);
        Some(moved)
    }

    /// A cell a step: `#` for whole ones, `+` for those in part.
    pub fn row(&self, steps: usize) -> String {
        let cell = |s| match (self.whole.contains(&s), self.parts.contains_key(&s)) {
            (true, _) => '#',
            (_, true) => '+',
            _ => '.',
        };
        (0..steps).map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_parts(whole: &[usize], parts: &[(usize, &str)]) -> Computed {
        let row = |text: &str| text.bytes().map(|b| b == b'#').collect();
        Computed {
            whole: whole.to_vec(),
            parts: parts.iter().map(|(s, text)| (*s, row(text))).collect(),
        }
    }

    #[test]
    fn even_steps_begin_at_the_first() {
        assert_eq!(Computed::even(5, 10).steps(), [0, 2, 4, 6, 8]);
        assert_eq!(Computed::even(3, 4).row(4), "###.");
        assert_eq!(Computed::even(0, 4).steps(), [0]);
        assert!(Computed::even(7, 20).is_of(20, 4) && !Computed::even(7, 20).is_of(17, 4));
    }

    #[test]
    fn a_move_changes_one_step_and_never_the_first() {
        let moves = Computed::whole(vec![0, 2, 4]).moves(6);
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
                .all(|(moved, _)| moved.is_of(6, 4) && moved.whole.len() == 3)
        );
        // Those that change late come first, so that little is run again.
        assert_eq!(rows[0], ("#.#..#".into(), 4));
    }

    #[test]
    fn files_hold_steps_or_rows() {
        let text = |computed: &Computed| serde_json::to_string(computed).unwrap();
        let read = |text: &str| serde_json::from_str::<Computed>(text);
        let even = Computed::even(2, 4);
        assert_eq!(text(&even), "[0,2]");
        let parts = with_parts(&[0, 2], &[(1, "....")]);
        let written = r#"{"whole":[0,2],"parts":[[1,"...."]]}"#;
        assert_eq!(text(&parts), written);
        for computed in [even, parts] {
            assert_eq!(read(&text(&computed)).unwrap(), computed);
        }
        assert!(read(&written.replace("....", "..x.")).is_err());
        let of = |computed: &Computed| computed.is_of(4, 4);
        assert!(of(&with_parts(&[0, 2], &[(3, "...#")])));
        assert!(!of(&with_parts(&[0, 2], &[(2, "...#")])));
        assert!(!of(&with_parts(&[0, 2], &[(3, "..#")])));
        assert!(!of(&with_parts(&[0, 2], &[(4, "...#")])));
    }

    #[test]
    fn steps_in_part_forecast_what_they_do_not_compute() {
        let (table, skipped) = with_parts(&[0, 2, 4], &[(3, "..##"), (5, "....")])
            .table(7, 4)
            .unwrap();
        assert_eq!(skipped, [1, 6]);
        let rows = ["####", "....", "####", "..##", "####", "....", "...."];
        assert_eq!(table.to_rows(), rows);
        assert_eq!(table.weights(3, 0), [1.5, -0.5]);
        // The rear branches have a feature of step 3.
        assert_eq!(table.weights(5, 0), [1.5, -0.5]);
        assert_eq!(table.weights(5, 3), [2.0, -1.0]);
        // A step without the network reads nothing.
        assert_eq!(table.weights(6, 0), [1.0]);
    }

    #[test]
    fn a_unit_is_computed_at_another_step_or_beside_what_is() {
        let start = with_parts(&[0, 2], &[(3, "..##")]);
        let moves = start.part_moves(4, 4, 2);
        let found = |computed: &Computed, from: usize| moves.contains(&(computed.clone(), from));
        // All idle steps at once, one that computes more, a whole one that computes less, and a step that is whole at last.
        assert!(found(&with_parts(&[0, 2], &[(1, "...."), (3, "..##")]), 1));
        assert!(found(&with_parts(&[0, 2], &[(1, "##.."), (3, "..##")]), 1));
        assert!(found(
            &with_parts(&[0], &[(1, "..##"), (2, "..##"), (3, "..##")]),
            1
        ));
        assert!(found(&with_parts(&[0, 2, 3], &[]), 3));
        assert!(found(&with_parts(&[0, 2], &[(1, "..##"), (3, "....")]), 1));
        assert!(found(&with_parts(&[0, 2], &[]), 3));
        for (moved, from) in &moves {
            assert!(moved.is_of(4, 4) && *moved != start, "{moved:?}");
            let same = |s: usize| moved.row(4).as_bytes()[s] == start.row(4).as_bytes()[s];
            assert!((0..*from).all(same), "{moved:?} from {from}");
        }
        assert_eq!(moves[0].0.row(4), "#+#+");
        assert!(moves[1..].windows(2).all(|pair| pair[0].1 >= pair[1].1));
        // Single branches are not taken from whole steps.
        let single = start.part_moves(4, 4, 1);
        assert!(single.iter().all(|(moved, _)| moved.whole == [0, 2]));
        assert!(single.contains(&(with_parts(&[0, 2], &[(1, "...#"), (3, "...#")]), 1)));
    }
}
