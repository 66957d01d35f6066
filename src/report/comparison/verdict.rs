//! What a comparison says, in words.

use super::{Comparison, Row};
use crate::policy::Origin;

impl Comparison {
    /// What it says, a line each: who has the smallest error at each speed, then, for every run of fewer steps that
    /// something else stands beside, which of both is better there.
    pub fn verdict(&self) -> Vec<String> {
        let mut front: Vec<&Row> = (0..self.rows.len())
            .filter(|row| self.on_front[*row] && self.rows[*row].origin != Origin::Uncached)
            .map(|row| &self.rows[row])
            .collect();
        front.sort_by(|a, b| a.macs_ratio.total_cmp(&b.macs_ratio));
        let places: Vec<String> = front
            .iter()
            .map(|row| format!("{} ({:.2}×)", row.schedule, row.macs_ratio))
            .collect();
        let mut lines = Vec::new();
        if !places.is_empty() {
            lines.push(format!(
                "smallest error at each speed: {}",
                places.join(", ")
            ));
        }
        lines.extend(
            self.duels()
                .into_iter()
                .map(|(fewer, own)| duel(own, fewer)),
        );
        lines
    }

    /// Runs of fewer steps, and the best of what stands beside each, fastest last.
    fn duels(&self) -> Vec<(&Row, &Row)> {
        let mut fewer: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| row.origin == Origin::FewerSteps && row.macs_ratio > 1.0)
            .collect();
        let order = |a: &&Row, b: &&Row| {
            let errors = || a.error().mean.total_cmp(&b.error().mean);
            a.macs_ratio.total_cmp(&b.macs_ratio).then_with(errors)
        };
        fewer.sort_by(order);
        // Of two solvers at one speed the better stands for both.
        fewer.dedup_by(|worse, better| worse.macs_ratio == better.macs_ratio);
        let beside = |row: &Row| {
            let nearest = fewer
                .iter()
                .min_by(|a, b| off(a, row).total_cmp(&off(b, row)));
            nearest.copied()
        };
        let skips = |row: &&Row| {
            matches!(row.origin, Origin::Policy | Origin::Learned) && row.macs_ratio > 1.0
        };
        let skipping: Vec<&Row> = self.rows.iter().filter(skips).collect();
        // What is as fast goes before what is better and slower.
        let best = |steps: &Row| {
            let here = skipping.iter().copied();
            here.filter(|row| beside(row).is_some_and(|nearest| std::ptr::eq(nearest, steps)))
                .min_by(|a, b| {
                    let slow = |row: &Row| !row.keeps_up_with(steps);
                    let errors = || a.error().mean.total_cmp(&b.error().mean);
                    slow(a).cmp(&slow(b)).then_with(errors)
                })
        };
        let pairs = fewer.iter();
        pairs
            .filter_map(|steps| Some((*steps, best(steps)?)))
            .collect()
    }
}

/// How far apart two rows are in speed.
fn off(a: &Row, b: &Row) -> f64 {
    (a.macs_ratio / b.macs_ratio).ln().abs()
}

/// Which of both is better, where that can be said.
fn duel(own: &Row, fewer: &Row) -> String {
    let difference = own.less(fewer);
    let (better, worse, wins) = match difference.mean < 0.0 {
        true => (own, fewer, "reuse beats fewer steps"),
        false => (fewer, own, "fewer steps beat reuse"),
    };
    let [small, large] = [better, worse].map(|row| row.error().mean);
    let within = match difference.standard_error {
        None => "of one image, which proves nothing".into(),
        Some(error) => format!(
            "± {}, {} two standard errors",
            thousandths(error),
            if difference.is_certain() {
                "outside"
            } else {
                "within"
            }
        ),
    };
    let apart = format!(
        "MSE × 1000 {} and {}, difference {} {within}",
        thousandths(small),
        thousandths(large),
        thousandths(difference.mean.abs()),
    );
    let speed = fewer.macs_ratio;
    let (first, second) = (&better.schedule, &worse.schedule);
    if !better.keeps_up_with(worse) {
        return format!(
            "at {speed:.2}× there is no telling: {first} ({:.2}×) has the smaller error, {second} ({:.2}×) does less work ({apart})",
            better.macs_ratio, worse.macs_ratio
        );
    }
    if !difference.is_certain() {
        return format!(
            "at {speed:.2}× reuse and fewer steps cannot be told apart: {first} and {second} ({apart})"
        );
    }
    let factor = match small > 0.0 {
        true => format!("{:.1} times less error than", large / small),
        false => "no error, unlike".into(),
    };
    format!("at {speed:.2}× {wins}: {first} has {factor} {second} ({apart})")
}

/// A mean squared error times 1000.
pub(super) fn thousandths(error: f64) -> String {
    let value = 1e3 * error;
    match value.abs() {
        0.0 => "0".into(),
        ..0.1 => format!("{value:.4}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{row, rows},
        *,
    };

    #[test]
    fn the_verdict_names_the_best_at_each_speed_and_whether_fewer_steps_are_beaten() {
        let said = Comparison::of(rows()).verdict();
        assert_eq!(
            said,
            [
                "smallest error at each speed: taylor:2 (1.80×), learned:2 (2.00×), fb:0.5 (3.00×)",
                "at 2.00× reuse beats fewer steps: learned:2 has 2.5 times less error than steps:10 (MSE × 1000 2.00 and 5.00, difference 3.00 ± 0.41, outside two standard errors)",
            ]
        );
    }

    #[test]
    fn a_duel_is_decided_by_speed_then_by_two_standard_errors() {
        use Origin::{FewerSteps, Learned, Policy};
        let steps = row("steps:10", FewerSteps, 2.0, &[0.004, 0.005, 0.006, 0.005]);
        let against = |origin, ratio, errors: &[f64]| {
            let own = row("own", origin, ratio, errors);
            duel(&own, &steps)
        };
        let exact = against(Learned, 2.0, &[0.0; 4]);
        assert!(
            exact.contains("own has no error, unlike steps:10"),
            "{exact}"
        );
        let faster = against(Learned, 1.8, &[0.001; 4]);
        assert!(
            faster.starts_with("at 2.00× there is no telling"),
            "{faster}"
        );
        let lost = against(Policy, 1.98, &[0.01, 0.03, 0.02, 0.02]);
        assert!(
            lost.starts_with(
                "at 2.00× fewer steps beat reuse: steps:10 has 4.0 times less error than own"
            ),
            "{lost}"
        );
        // More work for more error is beaten whatever the speeds.
        let slower = against(Policy, 1.7, &[0.01, 0.03, 0.02, 0.02]);
        assert!(slower.contains("fewer steps beat reuse"), "{slower}");
        let close = against(Policy, 2.0, &[0.001, 0.009, 0.002, 0.009]);
        assert!(
            close.contains("cannot be told apart") && close.contains("within"),
            "{close}"
        );
        let mut one = steps.clone();
        one.errors.truncate(1);
        let single = duel(&row("own", Policy, 2.0, &[0.001]), &one);
        assert!(single.contains("proves nothing"), "{single}");
    }

    #[test]
    fn small_errors_keep_their_digits() {
        let cases = [
            (0.0, "0"),
            (0.00149, "1.49"),
            (0.0000021, "0.0021"),
            (-0.2, "-200.00"),
        ];
        for (error, text) in cases {
            assert_eq!(thousandths(error), text);
        }
    }
}
