//! What processors have for products in bf16, and whole products by it.
//!
//! Both kinds read the same factors: matrix units tile by tile, vectors line by line. Elsewhere than on x86-64 there are none.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "threads write parts of one product")
)]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod pairs;

use std::sync::LazyLock;

use super::bf16::Factor;

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Matrix units (AMX): products of tiles.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles,
    /// Vectors of 32 numbers (AVX-512's `BF16` part): sums of products of pairs.
    #[cfg(target_arch = "x86_64")]
    Pairs,
}

impl Unit {
    /// All that the processor has and the system lets this process use.
    pub fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let known = [
            #[cfg(target_os = "linux")]
            (Self::Tiles, amx::is_there()),
            (Self::Pairs, pairs::is_there()),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let known: [(Self, bool); 0] = [];
        known
            .into_iter()
            .filter_map(|(unit, is_there)| is_there.then_some(unit))
    }

    /// The fastest of them, where one is faster than products in f32.
    pub fn here() -> Option<Self> {
        static FASTEST: LazyLock<Option<Unit>> =
            LazyLock::new(|| Unit::all().find(|unit| unit.is_worth_it()));
        *FASTEST
    }

    /// Whether it multiplies faster than the processor does in f32.
    fn is_worth_it(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Tiles => true,
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => pairs::is_worth_it(),
        }
    }

    /// The product of a left and a right factor of the same depth, row-major, with sums in f32.
    ///
    /// # Panics
    /// If the processor has no such unit.
    pub fn product(self, left: &Factor, right: &Factor) -> Vec<f32> {
        assert!(Self::all().any(|unit| unit == self), "no {self:?}");
        #[cfg(target_arch = "x86_64")]
        {
            on_x86::product(self, left, right)
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (left, right);
            match self {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod on_x86 {
    use std::ops::Range;

    use rayon::prelude::*;

    #[cfg(target_os = "linux")]
    use super::amx;
    use super::{Unit, pairs};
    use crate::kernels::bf16::{Factor, SIDE};

    /// See [`Unit::product`]; by a unit that is there.
    pub(super) fn product(unit: Unit, left: &Factor, right: &Factor) -> Vec<f32> {
        /// Strips of the left factor that a task takes: they stay in the cache while the right one goes by.
        const TALL: usize = 8;
        let [rows, columns] = [left, right].map(Factor::sides);
        let depth = left.depth();
        assert_eq!(depth, right.depth(), "inner sizes of a matrix product");
        let count = rows * columns;
        if count == 0 || depth == 0 {
            return vec![0.0; count];
        }
        // Multiplications that are worth the other threads; and the strips that are multiplied at a time.
        let (worth_threads, at_a_time) = match unit {
            #[cfg(target_os = "linux")]
            Unit::Tiles => (1 << 24, 2),
            Unit::Pairs => (1 << 22, pairs::STRIPS),
        };
        let mut out: Vec<f32> = Vec::with_capacity(count);
        let grid = Grid {
            left,
            right,
            out: out.as_mut_ptr(),
        };
        let multiply = |down: Range<usize>, across: Range<usize>| {
            // SAFETY: the unit is there. `out` has room for the product, and every part is written by one thread.
            unsafe {
                match unit {
                    #[cfg(target_os = "linux")]
                    Unit::Tiles => amx::multiply(&grid, down, across),
                    Unit::Pairs => pairs::multiply(&grid, down, across),
                }
            }
        };
        let (down, across) = (rows.div_ceil(SIDE), columns.div_ceil(SIDE));
        if count * depth < worth_threads {
            multiply(0..down, 0..across);
        } else {
            let tall = down.div_ceil(TALL);
            let wide = (4 * rayon::current_num_threads()).div_ceil(tall);
            let wide = across.div_ceil(wide).next_multiple_of(at_a_time);
            let tasks = tall * across.div_ceil(wide);
            (0..tasks).into_par_iter().for_each(|task| {
                let (row, column) = (task % tall * TALL, task / tall * wide);
                let rows = row..down.min(row + TALL);
                multiply(rows, column..across.min(column + wide));
            });
        }
        // SAFETY: all tiles, and with them all numbers of the product, were written.
        unsafe { out.set_len(count) };
        out
    }

    /// A product whose parts are written by several threads.
    pub(super) struct Grid<'a> {
        pub left: &'a Factor,
        pub right: &'a Factor,
        /// `[left.sides(), right.sides()]`
        out: *mut f32,
    }

    // SAFETY: threads write distinct numbers of `out`, as `write` asks, and read the rest.
    unsafe impl Sync for Grid<'_> {}

    impl Grid<'_> {
        /// Writes a block of `[height, width]` numbers whose first is at `row` and `column`, those of them that lie within the
        /// product: `block` does it, given a place and the distance from row to row there.
        ///
        /// # Safety
        /// The block begins within the product, there is room for that at `out`, and nobody else uses this part of it. `block`
        /// writes `[height, width]` numbers, and `edge` has room for them.
        #[inline(always)]
        pub unsafe fn write(
            &self,
            [row, column]: [usize; 2],
            [height, width]: [usize; 2],
            edge: &mut [f32],
            block: impl Fn(*mut f32, usize),
        ) {
            let [rows, columns] = [self.left, self.right].map(Factor::sides);
            let within = [height.min(rows - row), width.min(columns - column)];
            // SAFETY: the block begins within the product.
            let out = unsafe { self.out.add(row * columns + column) };
            if within == [height, width] {
                return block(out, columns);
            }
            debug_assert!(edge.len() >= height * width, "room for a block");
            block(edge.as_mut_ptr(), width);
            for (i, from) in edge.chunks_exact(width).take(within[0]).enumerate() {
                // SAFETY: these columns of the row lie within the product, and `edge` lies elsewhere.
                unsafe {
                    from.as_ptr()
                        .copy_to_nonoverlapping(out.add(i * columns), within[1]);
                };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
use on_x86::Grid;

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn tiles_go_first_and_pairs_are_taken_on_amd() {
        let there: Vec<Unit> = Unit::all().collect();
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let expected = match there.first() {
            Some(Unit::Tiles) => Some(Unit::Tiles),
            Some(Unit::Pairs) if processor.contains("AuthenticAMD") => Some(Unit::Pairs),
            _ => None,
        };
        assert_eq!(Unit::here(), expected);
        let says = |flag: &str| processor.split_whitespace().any(|word| word == flag);
        assert_eq!(there.contains(&Unit::Pairs), says("avx512_bf16"));
    }
}
