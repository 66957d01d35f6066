//! The matrix units of x86 processors (AMX): eight registers of 16 × 64 bytes, products of two of them in bf16 added to a third
//! in f32.
//!
//! Rust has no stable intrinsics for them, so the loop over a depth is written in their instructions (Intel's Software
//! Developer's Manual, volume 2: `TILELOADD`, `TDPBF16PS`, `TILESTORED`). Here they are asked for as Linux wants it.

#![expect(
    unsafe_code,
    reason = "matrix units are reached by their instructions alone"
)]

use std::{
    arch::{asm, x86_64::__cpuid_count},
    ops::Range,
    sync::LazyLock,
};

use super::Grid;
use crate::kernels::bf16::{Line, SIDE, Tile};

/// Asks processor and system, once a process.
pub(super) fn is_there() -> bool {
    static GRANTED: LazyLock<bool> = LazyLock::new(|| exist() && request());
    *GRANTED
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

/// These strips of rows by these strips of columns, four tiles of the product at a time.
///
/// # Safety
/// The processor has matrix units which the system grants. There is room for the product in the grid, and nobody else uses this
/// part of it.
pub(super) unsafe fn multiply(grid: &Grid, down: Range<usize>, across: Range<usize>) {
    // SAFETY: the layout is one that all these units have; it is that of this thread alone.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &LAYOUT, options(nostack, readonly)) };
    let mut edge = [0.0; 4 * SIDE * SIDE];
    for right in across.clone().step_by(2) {
        // Where there is no second one the first is multiplied twice, and the copy falls beyond the edge.
        let second = (right + 1).min(across.end - 1);
        let b = [right, second].map(|strip| grid.right.strip(strip));
        for left in down.clone().step_by(2) {
            let second = (left + 1).min(down.end - 1);
            let a = [left, second].map(|strip| grid.left.strip(strip));
            // SAFETY: as the caller says; the four tiles begin within the product.
            unsafe {
                grid.write(
                    [left * SIDE, right * SIDE],
                    [2 * SIDE; 2],
                    &mut edge,
                    #[inline(always)]
                    |out, stride| four_tiles(a, b, out, stride),
                );
            }
        }
    }
    // SAFETY: no register is used any more.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
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
