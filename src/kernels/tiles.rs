//! The matrix products of sampling on GPUs, in tiles: `shaders/product.wgsl`, and `shaders/matrix_product.wgsl` for devices with
//! matrix units. burn's own product, without its autotuning, takes two to eight times as long on the GPU they were measured on.

use burn::backend::wgpu::{CubeTensor, into_contiguous};
use burn::tensor::DType;

use super::{
    hardware::Hardware,
    wgsl::{self, Info, Shader},
};

/// What a workgroup makes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    tall: u32,
    wide: u32,
    /// How much of the depth at a time.
    deep: u32,
    /// A thread's rows and quads of columns, or a subgroup's rows and columns of fragments.
    own: [u32; 2],
    /// Of how many tiles a product must consist to be cut so: fewer would leave much of a large GPU idle.
    enough: usize,
}

const fn tile([tall, wide, deep]: [u32; 3], own: [u32; 2], enough: usize) -> Tile {
    Tile {
        tall,
        wide,
        deep,
        own,
        enough,
    }
}

/// A shader of products. Its tiles go from the largest, which read least, to the smallest, of which there are most; sizes and
/// bounds are those that were fastest on an H100, of the products of DiT-XL/2, DiT-S/2 and the bundled model.
struct Form {
    name: &'static str,
    source: &'static str,
    tiles: &'static [Tile],
    threads: fn(Tile) -> u32,
    /// Whether it makes whole tiles alone.
    whole: bool,
}

const IN_F32: Form = Form {
    name: "product",
    source: include_str!("../../shaders/product.wgsl"),
    tiles: &[
        tile([64, 64, 16], [8, 2], 128),
        tile([32, 64, 32], [4, 1], 128),
        tile([32, 32, 32], [2, 1], 64),
        tile([16, 32, 32], [2, 1], 0),
    ],
    threads: |tile| tile.tall * tile.wide / (4 * tile.own[0] * tile.own[1]),
    whole: false,
};
const BY_MATRIX_UNITS: Form = Form {
    name: "matrix_product",
    source: include_str!("../../shaders/matrix_product.wgsl"),
    tiles: &[
        tile([64, 128, 32], [2, 4], 200),
        tile([32, 64, 64], [1, 2], 96),
        tile([32, 32, 64], [1, 1], 0),
    ],
    // Subgroups of 32, fragments of 16×16.
    threads: |tile| 32 * tile.tall * tile.wide / (16 * 16 * tile.own[0] * tile.own[1]),
    whole: true,
};

impl Form {
    /// What completes its text for a tile.
    fn constants(&self, tile: Tile) -> Vec<(&'static str, u32)> {
        vec![
            ("tall", tile.tall),
            ("wide", tile.wide),
            ("deep", tile.deep),
            ("own_rows", tile.own[0]),
            ("own_columns", tile.own[1]),
            ("threads", (self.threads)(tile)),
        ]
    }
}

/// What completes the text of the shader of products of this name, for each of its tiles.
#[doc(hidden)]
pub fn constants_of_products(name: &str) -> Vec<Vec<(&'static str, u32)>> {
    let form = [IN_F32, BY_MATRIX_UNITS]
        .into_iter()
        .find(|form| form.name == name);
    form.iter()
        .flat_map(|form| form.tiles.iter().map(|tile| form.constants(*tile)))
        .collect()
}

impl Tile {
    fn groups(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.tall as usize) * columns.div_ceil(self.wide as usize)
    }

    /// The largest of which there are enough, else the smallest.
    fn of(tiles: &[Tile], [rows, columns]: [usize; 2]) -> Option<Tile> {
        let plenty = |tile: &&Tile| tile.groups(rows, columns) >= tile.enough;
        tiles.iter().find(plenty).or(tiles.last()).copied()
    }

    /// Whether matrix units can make `[depth, columns]` of it without a rest.
    fn divides(self, [depth, columns]: [usize; 2]) -> bool {
        depth.is_multiple_of(self.deep as usize) && columns.is_multiple_of(self.wide as usize)
    }
}

/// Whether the shader makes a product with a matrix `[depth, columns]`; otherwise burn does. On a processor's few threads, where
/// barriers cost much, burn's takes half the time.
pub(super) fn fits(hardware: Hardware, [depth, columns]: [usize; 2]) -> bool {
    !hardware.software
        && depth.is_multiple_of(4)
        && columns.is_multiple_of(4)
        && depth * columns > 0
}

/// Whether a device's matrix units take a matrix `[depth, columns]` in f16 as it is.
pub(super) fn fits_matrix_units(hardware: Hardware, matrix: [usize; 2]) -> bool {
    hardware.matrix_units
        && BY_MATRIX_UNITS
            .tiles
            .iter()
            .any(|tile| tile.divides(matrix))
}

/// `x·w` for `x` `[…, depth]` and `w` `[depth, columns]`, of which [`fits`], or for an f16 one [`fits_matrix_units`], holds.
pub(super) fn product_wgsl(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
    let mut shape = x.meta.shape().clone();
    let last = shape.num_dims() - 1;
    let (depth, columns) = (shape[last], weight.meta.shape()[1]);
    shape[last] = columns;
    let rows = shape.num_elements() / columns.max(1);
    let form = match weight.dtype {
        DType::F16 => BY_MATRIX_UNITS,
        _ => IN_F32,
    };
    let takes = |tile: &&Tile| !form.whole || tile.divides([depth, columns]);
    let tiles: Vec<Tile> = form.tiles.iter().filter(takes).copied().collect();
    let tile = match Tile::of(&tiles, [rows, columns]) {
        Some(tile) if rows > 0 => tile,
        _ => return wgsl::empty(&x, shape),
    };
    let written = match form.whole {
        true => rows.next_multiple_of(tile.tall as usize),
        false => rows,
    };
    let out = wgsl::empty_within(&x, shape, written * columns);
    let threads = (form.threads)(tile);
    let shader = Shader {
        name: form.name,
        source: form.source,
        constants: form.constants(tile),
    };
    let groups = tile.groups(rows, columns);
    let across = columns.div_ceil(tile.wide as usize);
    let info = Info::of(&[rows, depth, columns, across, groups]);
    wgsl::launch(shader, threads, groups, &[&x, &weight, &out], info);
    out
}
