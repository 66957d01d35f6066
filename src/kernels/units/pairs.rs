//! Vectors of processors with AVX-512's part for bf16 (AMD from Zen 4 on, Intel's servers): an instruction (`VDPBF16PS`) adds two
//! products in bf16 to each of 16 sums in f32. It takes subnormal numbers for zeros.

#![expect(
    unsafe_code,
    reason = "what the processor can do is asked for at run time"
)]

use std::{
    arch::x86_64::{
        __cpuid, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    },
    mem::transmute,
    ops::Range,
};

use super::Grid;
use crate::kernels::bf16::{DEPTH, Factor, Line, SIDE, Tile};

/// Strips of columns at a time.
pub(super) const STRIPS: usize = 3;
/// Rows at a time. With three strips their sums take 24 of 32 registers.
const ROWS: usize = 8;
/// Numbers of a line that are read at a time.
const PAIRS: usize = DEPTH / 2;

/// Whether the processor has them.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// Whether they are faster than vectors in f32: AMD's are. Those of Intel's servers multiply pairs at half the pace of single
/// numbers, and have matrix units.
pub(super) fn is_worth_it() -> bool {
    #[allow(unused_unsafe, reason = "safe in some versions of the compiler")]
    // SAFETY: every x86-64 processor has CPUID.
    let vendor = unsafe { __cpuid(0) };
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"AuthenticAMD"
}

/// These strips of rows by these strips of columns.
///
/// # Safety
/// [`is_there`]. There is room for the product in the grid, and nobody else uses this part of it.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(grid: &Grid, down: Range<usize>, across: Range<usize>) {
    const { assert!(STRIPS == 3, "the cases below") };
    let mut right = across.start;
    while right < across.end {
        let strips = STRIPS.min(across.end - right);
        // SAFETY: as the caller says.
        unsafe {
            match strips {
                1 => multiply_strips::<1>(grid, down.clone(), right),
                2 => multiply_strips::<2>(grid, down.clone(), right),
                _ => multiply_strips::<STRIPS>(grid, down.clone(), right),
            }
        }
        right += strips;
    }
}

/// These strips of rows by `N` strips of columns from `right` on.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_strips<const N: usize>(grid: &Grid, down: Range<usize>, right: usize) {
    let mut edge = [0.0; ROWS * STRIPS * SIDE];
    let b = std::array::from_fn(|i| grid.right.strip(right + i));
    let rows = Factor::sides(grid.left);
    for left in down {
        let a = grid.left.strip(left);
        for first in (0..SIDE).step_by(ROWS) {
            let row = left * SIDE + first;
            if row >= rows {
                break;
            }
            // SAFETY: as the caller says; the block begins within the product, and is written whole.
            unsafe {
                grid.write(
                    [row, right * SIDE],
                    [ROWS, N * SIDE],
                    &mut edge,
                    |out, stride| block::<N>(a, first, b, out, stride),
                );
            }
        }
    }
}

/// Eight rows from `first` on of a strip by `N` strips of columns, at `out`, from row to row `stride` numbers apart.
///
/// # Safety
/// [`is_there`], and there is room at `out`.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn block<const N: usize>(
    a: &[Tile],
    first: usize,
    b: [&[Tile]; N],
    out: *mut f32,
    stride: usize,
) {
    assert!(
        first + ROWS <= SIDE && b.iter().all(|tiles| tiles.len() == a.len()),
        "rows and depths of a product of tiles"
    );
    let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
    for (deep, tile) in a.iter().enumerate() {
        let rows = tile[first..].as_ptr().cast::<i32>();
        let lines = b.map(|tiles| tiles[deep].as_ptr());
        for pair in 0..PAIRS {
            // SAFETY: a tile of a right factor has a line a pair, which is as large and lies as a register is.
            let lines = lines.map(|tile| unsafe { line(tile.add(pair)) });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a tile of a left factor has a line a row, of so many pairs.
                let of_row = unsafe { rows.add(row * PAIRS + pair).read() };
                // SAFETY: both are 32 numbers in bf16.
                let of_row: __m512bh =
                    unsafe { transmute::<__m512i, _>(_mm512_set1_epi32(of_row)) };
                for (sum, line) in sums.iter_mut().zip(lines) {
                    *sum = _mm512_dpbf16_ps(*sum, of_row, line);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (strip, sum) in sums.iter().enumerate() {
            // SAFETY: there is room for all rows and strips.
            unsafe { _mm512_storeu_ps(out.add(row * stride + strip * SIDE), *sum) };
        }
    }
}

/// A line in a register.
///
/// # Safety
/// [`is_there`], and `line` can be read.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn line(line: *const Line) -> __m512bh {
    // SAFETY: as the caller says; lines are aligned. Both are 32 numbers in bf16.
    unsafe { transmute::<__m512i, _>(_mm512_load_si512(line.cast())) }
}
