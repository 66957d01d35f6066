//! Schedules side by side: what each costs in the picture and saves in work, whom each is held against, and what that says.

mod columns;
mod steps;
mod verdict;
mod warnings;

pub use columns::{About, Column};
pub use steps::{fewer_steps, nearest_steps};
pub use warnings::warnings;

use crate::{
    metrics::{mean_and_error, median},
    policy::Origin,
};

/// Two runs are as fast as each other where the MACs ratio of one is at least this part of the other's: steps come whole, so
/// equal ones are rare.
pub const SAME_SPEED: f64 = 0.95;

/// A schedule as it was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub schedule: String,
    /// What it is a case of: `fora`, `forecast`, `fewer steps`.
    pub policy: String,
    pub origin: Origin,
    /// `T` of its run.
    pub steps: usize,
    pub cur: f64,
    /// MACs of the uncached run over its own.
    pub macs_ratio: f64,
    /// Mean squared errors to the uncached images, one an image; all rows have the same images in the same order.
    pub errors: Vec<f64>,
    /// The same to the true solution; empty where there is none.
    pub true_errors: Vec<f64>,
    /// Mean over the images.
    pub ssim: f64,
    /// One a round.
    pub seconds: Vec<f64>,
    /// Seconds of the uncached run over its own, one a round: both ran right after each other.
    pub speedups: Vec<f64>,
    pub peak_cache_bytes: usize,
    /// What keeping every feature in f32 takes.
    pub all_features_bytes: usize,
    /// Of the process while this row ran, where the system tells.
    pub peak_host_bytes: Option<u64>,
    /// Kernel dispatches of a run, where they were counted.
    pub dispatches: Option<u64>,
    /// What whoever uses it should know.
    pub warnings: Vec<String>,
}

impl Row {
    /// Mean squared error.
    pub fn error(&self) -> Estimate {
        Estimate::of(&self.errors)
    }

    /// The middle of the rounds' speed-ups.
    pub fn speedup(&self) -> f64 {
        median(&self.speedups)
    }

    /// Speed-up over MACs ratio: how much of the theory arrives.
    pub fn efficiency(&self) -> f64 {
        self.speedup() / self.macs_ratio
    }

    /// Whether it is at least as fast as another, by its MACs.
    fn keeps_up_with(&self, other: &Row) -> bool {
        self.macs_ratio >= SAME_SPEED * other.macs_ratio
    }

    /// Its errors less those of another, image by image.
    fn less(&self, other: &Row) -> Estimate {
        let pairs = self.errors.iter().zip(&other.errors);
        let differences: Vec<f64> = pairs.map(|(own, other)| own - other).collect();
        Estimate::of(&differences)
    }
}

/// A mean over images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub mean: f64,
    /// Its standard error; one image has none.
    pub standard_error: Option<f64>,
}

impl Estimate {
    fn of(values: &[f64]) -> Self {
        let (mean, error) = mean_and_error(values);
        Self {
            mean,
            standard_error: (values.len() > 1).then_some(error),
        }
    }

    /// Whether it lies outside two standard errors of 0.
    pub fn is_certain(&self) -> bool {
        self.standard_error
            .is_some_and(|error| self.mean.abs() > 2.0 * error)
    }
}

/// Whom a row is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rival {
    /// Number of its row.
    pub row: usize,
    /// Errors of the row less those of the rival, over the same noise: below 0 where the row is better.
    pub difference: Estimate,
}

/// Rows, the uncached one first, with what they say of each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    rows: Vec<Row>,
    rivals: Vec<Option<Rival>>,
    on_front: Vec<bool>,
}

impl Comparison {
    /// Holds rows against each other.
    ///
    /// A learned schedule is held against the best of what was not learned and is at least as fast ([`SAME_SPEED`]); anything
    /// else against the best learned schedule that is at least as fast or, where there is none, the best other row that is.
    /// The best is the one of the smallest mean error on these very images, which favours it.
    ///
    /// A row is on the front where no row of at least its MACs ratio has a smaller error, nor one of its error a higher
    /// ratio.
    pub fn of(rows: Vec<Row>) -> Self {
        let numbers = 0..rows.len();
        Self {
            rivals: numbers.clone().map(|row| rival(&rows, row)).collect(),
            on_front: numbers.map(|row| is_on_front(&rows, row)).collect(),
            rows,
        }
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whom row number `row` is held against.
    pub fn rival(&self, row: usize) -> Option<Rival> {
        self.rivals[row]
    }

    /// Whether row number `row` is on the Pareto front of error against MACs ratio.
    pub fn is_on_front(&self, row: usize) -> bool {
        self.on_front[row]
    }
}

fn rival(rows: &[Row], number: usize) -> Option<Rival> {
    let row = &rows[number];
    if row.origin == Origin::Uncached {
        return None;
    }
    let best = |learned: bool| {
        let others = (0..rows.len()).filter(|other| {
            let rival = &rows[*other];
            *other != number
                && rival.origin != Origin::Uncached
                && (rival.origin == Origin::Learned) == learned
                && rival.keeps_up_with(row)
        });
        others.min_by(|a, b| rows[*a].error().mean.total_cmp(&rows[*b].error().mean))
    };
    let rival = match row.origin {
        Origin::Learned => best(false),
        _ => best(true).or_else(|| best(false)),
    }?;
    Some(Rival {
        row: rival,
        difference: row.less(&rows[rival]),
    })
}

fn is_on_front(rows: &[Row], number: usize) -> bool {
    let (ratio, error) = (rows[number].macs_ratio, rows[number].error().mean);
    !rows.iter().any(|other| {
        let (its_ratio, its_error) = (other.macs_ratio, other.error().mean);
        its_ratio >= ratio && its_error <= error && (its_ratio > ratio || its_error < error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of this place, whose errors have that mean.
    pub(super) fn row(schedule: &str, origin: Origin, macs_ratio: f64, errors: &[f64]) -> Row {
        Row {
            schedule: schedule.into(),
            policy: schedule.split(':').next().unwrap_or_default().into(),
            origin,
            steps: 20,
            cur: 0.5,
            macs_ratio,
            errors: errors.to_vec(),
            true_errors: Vec::new(),
            ssim: 0.9,
            seconds: vec![2.0, 1.0, 4.0],
            speedups: vec![1.5, 2.0, 1.75],
            peak_cache_bytes: 1_000_000,
            all_features_bytes: 4_000_000,
            peak_host_bytes: None,
            dispatches: None,
            warnings: Vec::new(),
        }
    }

    pub(super) fn rows() -> Vec<Row> {
        use Origin::{FewerSteps, Learned, Policy, Uncached};
        vec![
            row("none", Uncached, 1.0, &[0.0; 4]),
            row("learned:2", Learned, 2.0, &[0.001, 0.002, 0.002, 0.003]),
            row("fora:2", Policy, 1.98, &[0.010, 0.030, 0.020, 0.020]),
            row("taylor:2", Policy, 1.8, &[0.001, 0.001, 0.001, 0.001]),
            row("fb:0.5", Policy, 3.0, &[0.5, 0.4, 0.6, 0.5]),
            row("steps:10", FewerSteps, 2.0, &[0.004, 0.005, 0.006, 0.005]),
        ]
    }

    #[test]
    fn a_row_is_held_against_the_best_that_is_as_fast() {
        let of = Comparison::of(rows());
        assert_eq!(of.rival(0), None);
        // TaylorSeer has a smaller error, and does more work.
        let learned = of.rival(1).unwrap();
        assert_eq!(learned.row, 5);
        assert!((learned.difference.mean + 0.003).abs() < 1e-12);
        // −3, −3, −4 and −2 thousandths: of a pair each, not of two samples.
        let error = learned.difference.standard_error.unwrap();
        assert!((error - (1e-6_f64 / 6.0).sqrt()).abs() < 1e-12, "{error}");
        assert!(learned.difference.is_certain());
        // What was not learned is held against what was, if that is as fast.
        assert_eq!(of.rival(2).unwrap().row, 1);
        assert_eq!(of.rival(5).unwrap().row, 1);
        assert!(of.rival(2).unwrap().difference.mean > 0.0);
        assert_eq!(of.rival(4), None);
        let mut without = rows();
        without.remove(1);
        let of = Comparison::of(without);
        assert_eq!(of.rival(1).unwrap().row, 4);
    }

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let of = Comparison::of(rows());
        let on_front: Vec<bool> = (0..6).map(|row| of.is_on_front(row)).collect();
        assert_eq!(on_front, [true, true, false, true, true, false]);
        // Rows of one place are there together.
        let mut twice = rows();
        twice.push(twice[1].clone());
        let of = Comparison::of(twice);
        assert!(of.is_on_front(1) && of.is_on_front(6));
    }

    #[test]
    fn one_image_proves_nothing() {
        let estimate = Estimate::of(&[0.5]);
        assert_eq!((estimate.mean, estimate.standard_error), (0.5, None));
        assert!(!estimate.is_certain());
        assert!(!Estimate::of(&[0.0, 0.0]).is_certain());
        assert!(Estimate::of(&[1.0, 1.0]).is_certain());
        assert!(!Estimate::of(&[-1.0, 2.0]).is_certain());
    }
}
