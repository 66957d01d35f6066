//! Loops that the compiler turns into vector code.

use rayon::prelude::*;

/// Numbers a thread takes at a time: enough to be worth a hand-over, small enough to balance.
pub(super) const GRAIN: usize = 16 * 1024;

/// Rows of this width that a thread takes at a time.
pub(super) fn rows_of(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// Runs `work` compiled for the widest vectors of the processor at hand.
///
/// Only what is inlined here is compiled so: closures that `work` calls, and functions of more than a few instructions, are marked
/// `#[inline(always)]`. A loop does not see that what a closure has captured stays as it is while it writes: numbers go through
/// functions of rows, or zipped slices, and what is captured is copied to a variable first.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnMut() -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnMut() -> R> pulp::WithSimd for Work<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
            // By reference: by value it would be called by way of a function that nothing inlines.
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Work(work))
}

/// Runs `work` on every row of `out`: `work(row, numbers)`. It is [`vectorised`].
pub(super) fn for_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    for_pieces(
        out,
        width,
        #[inline(always)]
        |first, rows| {
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                work(first + i, row);
            }
        },
    );
}

/// The same on the rows that a thread takes at a time: `work(first_row, rows)`.
pub(super) fn for_pieces(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_of(width);
    let run = |(chunk, rows_out): (usize, &mut [f32])| {
        vectorised(
            #[inline(always)]
            || work(chunk * rows, rows_out),
        );
    };
    if out.len() <= GRAIN {
        out.chunks_mut((rows * width).max(1))
            .enumerate()
            .for_each(run);
    } else {
        out.par_chunks_mut(rows * width).enumerate().for_each(run);
    }
}

/// Runs `work`, [`vectorised`], on pieces of `out`, each of which sums up `count` numbers: `work(piece, numbers, sums)`. Gives all
/// sums, `[pieces, count]`.
pub(super) fn sums_of_pieces(
    out: &mut [f32],
    piece: usize,
    count: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut sums = vec![0.0; out.len().div_ceil(piece.max(1)) * count];
    out.par_chunks_mut(piece.max(1))
        .zip(sums.par_chunks_mut(count.max(1)))
        .enumerate()
        .for_each(|(piece, (out, sums))| {
            vectorised(
                #[inline(always)]
                || work(piece, out, sums),
            );
        });
    sums
}

/// The same where each piece sums up two rows of `width` numbers: `work(piece, numbers, sums, other sums)`. Gives `[pieces, width]` of
/// each.
pub(super) fn two_sums_of_pieces(
    out: &mut [f32],
    piece: usize,
    width: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32], &mut [f32]) + Sync,
) -> [Vec<f32>; 2] {
    let sums = sums_of_pieces(
        out,
        piece,
        2 * width,
        #[inline(always)]
        |piece, out, sums| {
            let (sums, others) = sums.split_at_mut(width);
            work(piece, out, sums, others);
        },
    );
    let halves = sums
        .chunks_exact(2 * width)
        .map(|sums| sums.split_at(width));
    let (sums, others): (Vec<_>, Vec<_>) = halves.unzip();
    [sums.concat(), others.concat()]
}

/// The sum of all rows, which does not depend on the number of threads.
pub(super) fn column_sums(rows: &[f32], width: usize) -> Vec<f32> {
    let pieces = rows.par_chunks(rows_of(width) * width.max(1));
    let parts: Vec<_> = pieces
        .map(|rows| {
            vectorised(
                #[inline(always)]
                || added_up(rows, width),
            )
        })
        .collect();
    added_up(&parts.concat(), width)
}

#[inline(always)]
fn added_up(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    for row in rows.chunks_exact(width.max(1)) {
        add(&mut sums, row);
    }
    sums
}

/// `sums[i] += row[i]`
#[inline(always)]
pub(super) fn add(sums: &mut [f32], row: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        *sum += value;
    }
}

/// Sum of what `of` makes of the numbers at each place of rows of one length: in 16 lanes, so that it vectorises.
#[inline(always)]
pub(super) fn sum<const N: usize>(rows: [&[f32]; N], of: impl Fn([f32; N]) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    let blocks = rows.map(|row| row.as_chunks::<LANES>().0);
    let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    for block in 0..count {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += of(blocks.map(
                #[inline(always)]
                |blocks| blocks[block][lane],
            ));
        }
    }
    let rest = rows.map(|row| &row[count * LANES..]);
    let length = rest.iter().map(|rest| rest.len()).min().unwrap_or(0);
    for (at, sum) in lanes[..length].iter_mut().enumerate() {
        *sum += of(rest.map(
            #[inline(always)]
            |rest| rest[at],
        ));
    }
    lanes.iter().sum()
}

/// `e^x` to about 1e-7 relative, by range reduction and a polynomial; no calls, no branches.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer and leaves it in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_single_precision() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(relative < 3e-7, "exp({x}) is off by {relative}");
        }
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite());
    }
}
