//! The matrix units of x86 processors (AMX): eight registers of 16 × 64 bytes, products of two of them in bf16 added to a third
//! in f32.
//!
//! Rust has no stable intrinsics for them, so the loop over a depth is written in their instructions (Intel's Software
//! Developer's Manual, volume 2: `TILELOADD`, `TDPBF16PS`, `TILESTORED`). Elsewhere than on Linux for x86-64 there are none.

use super::bf16::Factor;

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

/// The product of a left and a right factor of the same depth, row-major, with sums in f32.
///
/// # Panics
/// Without matrix units: who calls has asked whether they are there.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(unused_variables, reason = "nothing multiplies them")
)]
pub(super) fn product(left: &Factor, right: &Factor) -> Vec<f32> {
    assert!(is_there(), "no matrix units");
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        on_linux::product(left, right)
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    {
        unreachable!("there are none")
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

    use crate::kernels::bf16::{Factor, Line, SIDE, Tile};

    /// Asks processor and system, once a process.
    pub fn is_there() -> bool {
        static GRANTED: LazyLock<bool> = LazyLock::new(|| exist() && request());
        *GRANTED
    }

    /// See [`super::product`]; by matrix units that are there.
    pub fn product(left: &Factor, right: &Factor) -> Vec<f32> {
        /// Multiplications that are worth the other threads.
        const WORTH_THREADS: usize = 1 << 24;
        /// Strips of the left factor that a task takes: they stay in the cache while the right one goes by.
        const TALL: usize = 8;
        let [rows, columns] = [left, right].map(Factor::sides);
        let depth = left.depth();
        assert_eq!(depth, right.depth(), "inner sizes of a matrix product");
        let count = rows * columns;
        if count == 0 || depth == 0 {
            return vec![0.0; count];
        }
        let mut out: Vec<f32> = Vec::with_capacity(count);
        let grid = Grid {
            left,
            right,
            out: out.as_mut_ptr(),
        };
        let (down, across) = (rows.div_ceil(SIDE), columns.div_ceil(SIDE));
        if count * depth < WORTH_THREADS {
            // SAFETY: `out` has room for the product, and nobody else writes there.
            unsafe { grid.multiply(0..down, 0..across) };
        } else {
            let tall = down.div_ceil(TALL);
            let wide = (4 * rayon::current_num_threads()).div_ceil(tall);
            // An even number of strips, since they are multiplied two by two.
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
        left: &'a Factor,
        right: &'a Factor,
        /// `[left.sides(), right.sides()]`
        out: *mut f32,
    }

    // SAFETY: threads write distinct numbers of `out`, as `multiply` asks, and read the rest.
    unsafe impl Sync for Grid<'_> {}

    impl Grid<'_> {
        /// These strips of rows by these strips of columns, four tiles of the product at a time.
        ///
        /// # Safety
        /// The processor has matrix units which the system grants. There is room for the product at `out`, and nobody else
        /// uses this part of it.
        unsafe fn multiply(&self, down: Range<usize>, across: Range<usize>) {
            let [rows, columns] = [self.left, self.right].map(Factor::sides);
            // SAFETY: the layout is one that all these units have; it is that of this thread alone.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &LAYOUT, options(nostack, readonly)) };
            let mut edge = [0.0; 4 * SIDE * SIDE];
            for right in across.clone().step_by(2) {
                // Where there is no second one the first is multiplied twice, and the copy falls beyond the edge.
                let second = (right + 1).min(across.end - 1);
                let b = [right, second].map(|strip| self.right.strip(strip));
                for left in down.clone().step_by(2) {
                    let second = (left + 1).min(down.end - 1);
                    let a = [left, second].map(|strip| self.left.strip(strip));
                    let (row, column) = (left * SIDE, right * SIDE);
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
    unsafe fn four_tiles(a: [&[Tile]; 2], b: [&[Tile]; 2], out: *mut f32, stride: usize) {
        let turns = a[0].len();
        let all = [a[0], a[1], b[0], b[1]];
        assert!(
            turns > 0 && all.iter().all(|tiles| tiles.len() == turns),
            "depths of a product of tiles"
        );
        let below = SIDE * stride;
        // SAFETY: the loop reads a tile of each operand a turn. It writes 16 rows of 16 numbers at four places, for which the
        // caller has room.
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
                "add {a0}, {tile}",
                "add {a1}, {tile}",
                "add {b0}, {tile}",
                "add {b1}, {tile}",
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
                turns = inout(reg) turns => _,
                line = in(reg) size_of::<Line>(),
                tile = const size_of::<Tile>(),
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
