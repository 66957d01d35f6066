//! Steps that make their clean image from earlier ones, with the network or without it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Schedule, ScheduleError};
use crate::diffusion::{Weights, solvers::PREDICTIONS};

/// Predictions that a forecast may weigh.
pub const FORECAST_DEPTH: usize = PREDICTIONS;

/// Whether weights are numbers in single precision, in which they are used.
fn is_finite(estimate: &Weights) -> bool {
    let finite = |weight: f64| (weight as f32).is_finite();
    finite(estimate.state) && estimate.predictions.iter().all(|w| finite(*w))
}

/// What the steps of a run take for the clean image (`X̂` of [`crate::diffusion::Step`]), and those that have nothing else: `H_0` is the
/// prediction of the network that is newest at a step, its own where it runs the network.
///
/// A step without the network computes no branch and reads no feature: it is forecast whole.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forecast {
    /// What steps take for the clean image, where it is not the newest prediction as it is.
    pub estimates: BTreeMap<usize, Weights>,
    /// Steps that run no network.
    pub skipped: Vec<usize>,
}

impl Forecast {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.estimates.is_empty() && self.skipped.is_empty()
    }

    /// Whether step `s` runs the network.
    pub fn runs_network(&self, s: usize) -> bool {
        !self.skipped.contains(&s)
    }

    /// Whether a table can have it.
    pub(super) fn check(&self, table: &Schedule) -> Result<(), ScheduleError> {
        let refused = |step: usize, problem: String| Err(ScheduleError::Forecast { step, problem });
        for &s in &self.skipped {
            if s == 0 || s >= table.steps() {
                return refused(
                    s,
                    format!(
                        "runs no network, expected a step of 1 to {}",
                        table.steps().saturating_sub(1)
                    ),
                );
            }
            if table.row(s).iter().any(|computes| *computes) {
                return refused(s, "computes branches and yet runs no network".into());
            }
        }
        for (&s, estimate) in &self.estimates {
            let made = (0..table.steps().min(s + 1))
                .filter(|s| self.runs_network(*s))
                .count();
            if s >= table.steps() || !is_finite(estimate) || estimate.depth() > made {
                return refused(
                    s,
                    format!(
                        "weighs {:?} and the state by {}, expected finite numbers for at most {made} predictions of a run of {} steps",
                        estimate.predictions,
                        estimate.state,
                        table.steps()
                    ),
                );
            }
        }
        Ok(())
    }
}

/// The forecast as a file writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastRecord {
    /// A row a step: weights of the newest predictions, then of the state; empty for the newest prediction as it is.
    estimates: Vec<Vec<f64>>,
    /// Steps that run no network.
    without_network: Vec<usize>,
}

/// That of a schedule; nothing where it forecasts nothing.
pub(super) fn of(schedule: &Schedule) -> Option<ForecastRecord> {
    let forecast = schedule.forecast();
    let row = |s: usize| match forecast.estimates.get(&s) {
        None => Vec::new(),
        Some(Weights { state, predictions }) => {
            predictions.iter().chain([state]).copied().collect()
        }
    };
    (!forecast.is_empty()).then(|| ForecastRecord {
        estimates: (0..schedule.steps()).map(row).collect(),
        without_network: forecast.skipped.clone(),
    })
}

/// `table` with the forecast of a file.
pub(super) fn apply(table: Schedule, record: &ForecastRecord) -> Result<Schedule, ScheduleError> {
    let bad = |step: usize, problem: String| ScheduleError::Forecast { step, problem };
    if record.estimates.len() != table.steps() {
        return Err(bad(
            record.estimates.len(),
            format!(
                "ends the rows of estimates, expected one for each of {} steps",
                table.steps()
            ),
        ));
    }
    let mut estimates = BTreeMap::new();
    for (s, row) in record.estimates.iter().enumerate() {
        match row[..] {
            [] => {}
            [a, b, c, state] => {
                let predictions = [a, b, c];
                estimates.insert(s, Weights { state, predictions });
            }
            _ => {
                let problem = format!(
                    "has {} weights, expected {FORECAST_DEPTH} of predictions and one of the state",
                    row.len()
                );
                return Err(bad(s, problem));
            }
        }
    }
    let mut skipped = record.without_network.clone();
    skipped.sort_unstable();
    skipped.dedup();
    table.with_forecast(Forecast { estimates, skipped })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_other() -> Schedule {
        Schedule::from_rule(5, 2, |s, _| s % 2 == 0).unwrap()
    }

    fn forecast(s: usize, predictions: [f64; 3], skipped: &[usize]) -> Forecast {
        let estimate = Weights {
            state: 0.25,
            predictions,
        };
        Forecast {
            estimates: [(s, estimate)].into(),
            skipped: skipped.to_vec(),
        }
    }

    #[test]
    fn a_forecast_weighs_what_was_predicted() {
        let made = |f: Forecast| every_other().with_forecast(f);
        // At step 1 there is one prediction, at step 3 there are two, at step 4 three.
        assert!(made(forecast(1, [1.0, 0.0, 0.0], &[1, 3])).is_ok());
        assert!(made(forecast(1, [1.0, 0.5, 0.0], &[1, 3])).is_err());
        assert!(made(forecast(3, [1.0, 0.5, 0.0], &[1, 3])).is_ok());
        assert!(made(forecast(4, [1.0, 0.5, -0.5], &[1, 3])).is_ok());
        assert!(made(forecast(5, [1.0, 0.0, 0.0], &[])).is_err());
        assert!(made(forecast(1, [f64::NAN, 0.0, 0.0], &[1])).is_err());
        // A step that computes runs the network; the first has nothing before it.
        for skipped in [0, 2, 5] {
            assert!(matches!(
                made(forecast(1, [1.0, 0.0, 0.0], &[skipped])),
                Err(ScheduleError::Forecast { step, .. }) if step == skipped
            ));
        }
    }

    #[test]
    fn files_hold_a_row_a_step() {
        assert_eq!(of(&every_other()), None);
        let table = every_other()
            .with_forecast(forecast(3, [1.5, -0.5, 0.0], &[1, 3]))
            .unwrap();
        let record = of(&table).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            r#"{"estimates":[[],[],[],[1.5,-0.5,0.0,0.25],[]],"without_network":[1,3]}"#
        );
        assert_eq!(apply(every_other(), &record).unwrap(), table);
        for bad in [
            r#"{"estimates":[[],[],[],[]],"without_network":[]}"#,
            r#"{"estimates":[[],[1],[],[],[]],"without_network":[]}"#,
            r#"{"estimates":[[],[],[],[],[]],"without_network":[2]}"#,
        ] {
            let record = serde_json::from_str(bad).unwrap();
            assert!(apply(every_other(), &record).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_step_without_the_network_costs_nothing_and_reads_nothing() {
        let skipping = every_other()
            .with_forecast(forecast(1, [1.0, 0.0, 0.0], &[1, 3]))
            .unwrap();
        assert_eq!(skipping.cur(), 0.4);
        assert!(!skipping.is_reused_after(0, 0) && every_other().is_reused_after(0, 0));
        // A run that begins where nothing is computed computes at the next step that runs the network.
        let resumed = skipping.resumed_at(1).unwrap();
        assert_eq!(resumed.to_rows(), every_other().to_rows());
        assert_eq!(resumed.forecast(), skipping.forecast());
    }
}
