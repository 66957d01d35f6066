//! Runs of fewer steps, which anything that skips work has to beat.

/// The number of steps, fewer than `steps`, whose MACs ratio is nearest to `macs_ratio`; none where that is all of them.
pub fn nearest_steps(steps: usize, macs_ratio: f64) -> Option<usize> {
    if macs_ratio.is_nan() || macs_ratio <= 1.0 {
        return None;
    }
    let off = |count: &usize| (steps as f64 / *count as f64 - macs_ratio).abs();
    let below = ((steps as f64 / macs_ratio) as usize).max(1);
    let nearest = [below, below + 1];
    let nearest = nearest
        .into_iter()
        .min_by(|a, b| off(a).total_cmp(&off(b)))?;
    (nearest < steps).then_some(nearest)
}

/// The numbers of steps that stand beside these MACs ratios, most first, without those that are `there` already.
pub fn fewer_steps(
    steps: usize,
    macs_ratios: impl IntoIterator<Item = f64>,
    there: &[usize],
) -> Vec<usize> {
    let nearest = macs_ratios.into_iter();
    let mut counts: Vec<usize> = nearest
        .filter_map(|ratio| nearest_steps(steps, ratio))
        .filter(|count| !there.contains(count))
        .collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts.dedup();
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_number_of_steps_is_by_ratio() {
        let cases = [
            (20, 2.0, Some(10)),
            (20, 1.98, Some(10)),
            (20, 1.0, None),
            (20, 0.5, None),
            (20, f64::NAN, None),
            // 20/19 is 1.053.
            (20, 1.01, None),
            (20, 1.03, Some(19)),
            // 20/3 is 6.67, 20/4 is 5: 5.8 is nearer to 5.
            (20, 5.8, Some(4)),
            (20, 1e9, Some(1)),
            (4, 1.33, Some(3)),
            (1, 2.0, None),
        ];
        for (steps, ratio, expected) in cases {
            assert_eq!(nearest_steps(steps, ratio), expected, "{steps}, {ratio}");
        }
    }

    #[test]
    fn each_number_of_steps_is_there_once() {
        let ratios = [1.0, 3.33, 2.0, 1.98, 1.33];
        assert_eq!(fewer_steps(20, ratios, &[]), [15, 10, 6]);
        assert_eq!(fewer_steps(20, ratios, &[10]), [15, 6]);
    }
}
