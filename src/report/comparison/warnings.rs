//! What whoever uses a schedule should know.

use crate::{policy::Origin, schedule::Reuse};

/// What is wrong with a schedule that ran, `reused` branch evaluations long. (What is no number has ended the run before.)
///
/// - It never engaged: something was to be reused, and nothing was.
/// - It ruins the picture: its images lie further from the uncached ones than half of the way from those to their mean
///   image, which shows nothing of any of them. Distances are root mean squares. `errors`: the mean squared error and the
///   uncached images' variance ([`crate::metrics::Spread`]), where the uncached images are known.
pub fn warnings(
    name: &str,
    origin: Origin,
    reuse: &Reuse,
    reused: u64,
    errors: Option<(f64, f64)>,
) -> Vec<String> {
    let mut found = Vec::new();
    if matches!(origin, Origin::Policy | Origin::Learned) && reused == 0 {
        let advice = match reuse {
            Reuse::AtRunTime(_) => "a higher threshold, or fewer steps of warm-up, may",
            Reuse::Ahead(_) => "its table computes everything",
        };
        found.push(format!("{name} never reused anything; {advice}"));
    }
    if let Some((error, variance)) = errors
        && error > 0.25 * variance
        && error > 0.0
    {
        let way = (error / variance).sqrt();
        found.push(match way {
            ..1.0 => format!(
                "{name} ruins the picture: its images lie {:.0} % of the way from the uncached ones to their mean image",
                100.0 * way
            ),
            _ => format!(
                "{name} ruins the picture: its images lie further from the uncached ones than their mean image does"
            ),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Graph, SiteKind},
        schedule::{Probed, Schedule},
    };

    #[test]
    fn a_schedule_that_does_nothing_is_told_and_a_plain_run_is_not() {
        let graph = Graph::uniform(3, &[(SiteKind::Mlp, 5)], [4, 8], 2).unwrap();
        let probed = Reuse::AtRunTime(Probed::new(3, &graph, 1, 0, 0.1).unwrap());
        let table: Reuse = Schedule::full(3, 3).unwrap().into();
        let of = |origin, reuse, reused| warnings("it", origin, reuse, reused, None);
        assert!(of(Origin::Policy, &probed, 0)[0].contains("higher threshold"));
        assert!(of(Origin::Learned, &table, 0)[0].contains("computes everything"));
        assert!(of(Origin::Policy, &probed, 1).is_empty());
        assert!(of(Origin::Uncached, &table, 0).is_empty());
        assert!(of(Origin::FewerSteps, &table, 0).is_empty());
    }

    #[test]
    fn a_ruined_picture_is_nearer_to_the_mean_image_than_to_its_own() {
        let table: Reuse = Schedule::full(3, 3).unwrap().into();
        let of = |errors| warnings("it", Origin::FewerSteps, &table, 0, Some(errors));
        assert!(of((0.09, 0.4)).is_empty());
        assert!(of((0.0, 0.0)).is_empty());
        assert!(of((0.2, 0.4))[0].contains("71 % of the way"));
        assert!(of((0.5, 0.4))[0].contains("further"));
        assert!(of((0.5, 0.0))[0].contains("further"));
    }
}
