//! The matrix units of x86 processors (AMX): eight registers of 16 × 64 bytes, products of two of them in bf16 added to a third
//! in f32.
//!
//! Rust has no stable intrinsics for them, so the loop over a depth is written in their instructions (Intel's Software
//! Developer's Manual, volume 2: `TILELOADD`, `TDPBF16PS`, `TILESTORED`). Elsewhere than on Linux for x86-64 there are none.

use super::bf16::Bf16Matrix;

/// Whether the processor has them and the system lets this process use them.
pub(super) fn is_there() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        on_linux::is_there()
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    {
        false
    }
}

/// `x·W`, row-major, of `x` rounded to bf16 and with sums in f32, for rows of as many numbers as the matrix has; `None` without
/// matrix units.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(unused_variables, reason = "nothing multiplies them")
)]
pub(super) fn product(x: &[f32], matrix: &Bf16Matrix) -> Option<Vec<f32>> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        is_there().then(|| on_linux::product(x, matrix))
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    {
        None
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod on_linux {
    #![expect(
        unsafe_code,
        reason = "matrix units are reached by their instructions alone, and threads write parts of one product"
    )]

    use std::{
        arch::{asm, x86_64::__cpuid_count},
        ops::Range,
        sync::LazyLock,
    };

    use rayon::prelude::*;

    use crate::kernels::{
        bf16::{Bf16Matrix, DEPTH, Line, SIDE, rounded},
        lanes::GRAIN,
    };

    /// Asks processor and system, once a process.
    pub fn is_there() -> bool {
        static GRANTED: LazyLock<bool> = LazyLock::new(|| exist() && request());
        *GRANTED
    }

    /// See [`super::product`]; by matrix units that are there.
    pub fn product(x: &[f32], matrix: &Bf16Matrix) -> Vec<f32> {
        /// Multiplications that are worth the other threads.
        const WORTH_THREADS: usize = 1 << 24;
        /// Tiles of rows that a task takes: in bf16 they stay in the cache while the matrix goes by.
        const TALL: usize = 8;
        let [inputs, columns] = matrix.shape();
        let x = &Rows::of(x, inputs);
        let count = x.rows * columns;
        if count == 0 || inputs == 0 {
            return vec![0.0; count];
        }
        let mut out: Vec<f32> = Vec::with_capacity(count);
        let grid = Grid {
            x,
            matrix,
            out: out.as_mut_ptr(),
        };
        let (down, across) = (x.rows.div_ceil(SIDE), columns.div_ceil(SIDE));
        if count * inputs < WORTH_THREADS {
            // SAFETY: `out` has room for the product, and nobody else writes there.
            unsafe { grid.multiply(0..down, 0..across) };
        } else {
            let tall = down.div_ceil(TALL);
            let wide = (4 * rayon::current_num_threads()).div_ceil(tall);
            // Of an even number of panels, since they are multiplied two by two.
            let wide = across.div_ceil(wide).next_multiple_of(2);
            let tasks = tall * across.div_ceil(wide);
            (0..tasks).into_par_iter().for_each(|task| {
                let (row, column) = (task % tall * TALL, task / tall * wide);
                let rows = row..down.min(row + TALL);
                // SAFETY: as above; every task writes numbers of its own.
                unsafe { grid.multiply(rows, column..across.min(column + wide)) };
            });
        }
        // SAFETY: all tiles, and with them all numbers of the product, were written.
        unsafe { out.set_len(count) };
        out
    }

    /// Rows in bf16 as matrix units read them.
    struct Rows {
        /// `[rows / 16][depth / 32][16]` lines, both sizes rounded up: 32 numbers of a row.
        lines: Vec<Line>,
        rows: usize,
        depth: usize,
    }

    impl Rows {
        /// Of rows of `depth` numbers each, row-major.
        fn of(values: &[f32], depth: usize) -> Self {
            let rows = values.len() / depth.max(1);
            let of_tile = Bf16Matrix::lines_of(depth);
            let mut lines = vec![Line::ZERO; of_tile * rows.div_ceil(SIDE)];
            let tile = |(lines, values): (&mut [Line], &[f32])| {
                pulp::Arch::new().dispatch(|| round_tile(values, depth, lines));
            };
            let (of_tile, of_rows) = (of_tile.max(1), (SIDE * depth).max(1));
            if values.len() <= GRAIN {
                let tiles = lines.chunks_mut(of_tile).zip(values.chunks(of_rows));
                tiles.for_each(tile);
            } else {
                let tiles = lines
                    .par_chunks_mut(of_tile)
                    .zip(values.par_chunks(of_rows));
                tiles.with_min_len(GRAIN.div_ceil(of_rows)).for_each(tile);
            }
            Self { lines, rows, depth }
        }

        /// 16 rows.
        fn tile(&self, tile: usize) -> &[Line] {
            let lines = Bf16Matrix::lines_of(self.depth);
            &self.lines[tile * lines..][..lines]
        }
    }

    /// Up to 16 rows.
    #[inline(always)]
    fn round_tile(values: &[f32], depth: usize, lines: &mut [Line]) {
        for (row, values) in values.chunks_exact(depth).enumerate() {
            let lines = lines.iter_mut().skip(row).step_by(SIDE);
            let (whole, rest) = values.as_chunks::<DEPTH>();
            for (line, values) in lines.zip(whole.iter().map(|v| &v[..]).chain([rest])) {
                for (to, value) in line.0.iter_mut().zip(values) {
                    *to = rounded(*value);
                }
            }
        }
    }

    /// Whether the processor has them, with products in bf16: CPUID leaf 7, EDX.
    fn exist() -> bool {
        const BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        #[allow(unused_unsafe, reason = "safe in some versions of the compiler")]
        // SAFETY: every x86-64 processor has CPUID.
        let leaf = |leaf: u32| unsafe { __cpuid_count(leaf, 0) };
        leaf(0).eax >= 7 && leaf(7).edx & (BF16 | TILES) == BF16 | TILES
    }

    /// Asks the system for them; they are kept from a process that does not, since they make its threads' states larger.
    fn request() -> bool {
        /// `ARCH_REQ_XCOMP_PERM`
        const REQUEST: libc::c_long = 0x1023;
        /// `XFEATURE_XTILEDATA`
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: this call takes two numbers and touches no memory. Systems that do not know it or refuse say so.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
    }

    /// How the registers are laid out: all eight as 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Layout {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    const LAYOUT: Layout = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut register = 0;
        while register < 8 {
            row_bytes[register] = size_of::<Line>() as u16;
            rows[register] = SIDE as u8;
            register += 1;
        }
        Layout {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes,
            rows,
        }
    };

    /// A product whose parts are written by several threads.
    struct Grid<'a> {
        x: &'a Rows,
        matrix: &'a Bf16Matrix,
        /// `[x.rows(), columns]`
        out: *mut f32,
    }

    // SAFETY: threads write distinct numbers of `out`, as `multiply` asks, and read the rest.
    unsafe impl Sync for Grid<'_> {}

    impl Grid<'_> {
        /// These tiles of rows by these panels of columns, four tiles of the product at a time.
        ///
        /// # Safety
        /// The processor has matrix units which the system grants. There is room for the product at `out`, and nobody else
        /// uses this part of it.
        unsafe fn multiply(&self, tiles: Range<usize>, panels: Range<usize>) {
            let (rows, columns) = (self.x.rows, self.matrix.shape()[1]);
            // SAFETY: the layout is one that all these units have; it is that of this thread alone.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &LAYOUT, options(nostack, readonly)) };
            let mut edge = [0.0; 4 * SIDE * SIDE];
            for panel in panels.clone().step_by(2) {
                // Where there is no second one the first is multiplied twice, and the copy falls beyond the edge.
                let second = (panel + 1).min(panels.end - 1);
                let b = [panel, second].map(|panel| self.matrix.panel(panel));
                for tile in tiles.clone().step_by(2) {
                    let second = (tile + 1).min(tiles.end - 1);
                    let a = [tile, second].map(|tile| self.x.tile(tile));
                    let (row, column) = (tile * SIDE, panel * SIDE);
                    let height = (2 * SIDE).min(rows - row);
                    let width = (2 * SIDE).min(columns - column);
                    // SAFETY: all rows and columns of this part lie within the product.
                    let out = unsafe { self.out.add(row * columns + column) };
                    if [height, width] == [2 * SIDE; 2] {
                        // SAFETY: as the caller says; none of the four tiles crosses the edge.
                        unsafe { four_tiles(a, b, out, columns) };
                        continue;
                    }
                    // SAFETY: as the caller says; `edge` holds four tiles.
                    unsafe { four_tiles(a, b, edge.as_mut_ptr(), 2 * SIDE) };
                    for (i, from) in edge.chunks_exact(2 * SIDE).take(height).enumerate() {
                        // SAFETY: these columns of the row lie within the product, and `edge` lies elsewhere.
                        unsafe {
                            from.as_ptr()
                                .copy_to_nonoverlapping(out.add(i * columns), width)
                        };
                    }
                }
            }
            // SAFETY: no register is used any more.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }

    /// 32 × 32 numbers of a product at `out`, from row to row `stride` numbers apart: two tiles of 16 rows by two panels of 16
    /// columns.
    ///
    /// # Safety
    /// This thread's matrix units have [`LAYOUT`], and there is room at `out`.
    #[inline(always)]
    unsafe fn four_tiles(a: [&[Line]; 2], b: [&[Line]; 2], out: *mut f32, stride: usize) {
        let length = a[0].len();
        let all = [a[0], a[1], b[0], b[1]];
        assert!(
            length > 0 && all.iter().all(|lines| lines.len() == length),
            "depths of a product of tiles"
        );
        let below = SIDE * stride;
        // SAFETY: the loop reads 16 lines of each operand a turn, `length` in all, of which `Rows` and `Bf16Matrix` have
        // multiples of 16. It writes 16 rows of 16 numbers at four places, for which the caller has room.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {line}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {line}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {turns}",
                "jnz 2b",
                "tilestored [{c0} + {stride}], tmm0",
                "tilestored [{c1} + {stride}], tmm1",
                "tilestored [{c2} + {stride}], tmm2",
                "tilestored [{c3} + {stride}], tmm3",
                a0 = inout(reg) a[0].as_ptr() => _,
                a1 = inout(reg) a[1].as_ptr() => _,
                b0 = inout(reg) b[0].as_ptr() => _,
                b1 = inout(reg) b[1].as_ptr() => _,
                turns = inout(reg) length / SIDE => _,
                line = in(reg) size_of::<Line>(),
                stride = in(reg) stride * size_of::<f32>(),
                c0 = in(reg) out,
                c1 = in(reg) out.add(SIDE),
                c2 = in(reg) out.add(below),
                c3 = in(reg) out.add(below + SIDE),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
