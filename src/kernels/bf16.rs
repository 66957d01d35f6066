//! Matrices in bf16 on the CPU, and products with them.
//!
//! What is multiplied by such a matrix is rounded to bf16 as well, to the nearest, halves to the even one; sums are in f32.
//! Processors with units for that ([`super::units`]) take both as they are. On others both are widened, the matrix a few columns
//! at a time: their products differ by the order of sums alone (and subnormal numbers, which some units take for zeros), which a network's
//! further roundings spread to bf16's own error.
//!
//! A training keeps its numbers in f32 and rounds the factors of each product on their way, those of its gradients too.

#![expect(unsafe_code, reason = "tiles are written where they will lie")]

use std::{mem::MaybeUninit, sync::Arc};

use burn::backend::Dispatch;
use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
use rayon::prelude::*;

use super::{
    Place, Route,
    differentiable::{DifferentiableKernels, Factors},
    lanes::{GRAIN, for_rows, vectorised},
    on_cpu,
    product::{Matrix, product, product_cpu},
    quantised::{PanelKernels, product_by_panels},
    route,
    units::Unit,
};

/// Rows, and columns in f32, of a matrix unit's tile.
pub(super) const SIDE: usize = 16;
/// Numbers in bf16 of a row of a tile.
pub(super) const DEPTH: usize = 2 * SIDE;

/// A row of a tile, which is a line of the processor's cache.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([bf16; DEPTH]);

impl Line {
    const ZERO: Self = Self([bf16::ZERO; DEPTH]);
}

/// What a matrix unit holds in a register: of a left factor 32 numbers of each of 16 rows, a line a row; of a right one 32 numbers
/// of each of 16 columns, a line two numbers of every column. Each is the other of the matrix transposed, turned.
pub(super) type Tile = [Line; SIDE];

const ZERO: Tile = [Line::ZERO; SIDE];

/// Fills a tile of zeros of a left factor: up to 16 rows, in memory `width` numbers apart, 32 numbers of each from `first` on.
#[inline(always)]
fn left_tile(rows: &[f32], width: usize, first: usize, tile: &mut Tile) {
    for (line, row) in tile.iter_mut().zip(rows.chunks_exact(width)) {
        for (to, value) in line.0.iter_mut().zip(&row[first..width.min(first + DEPTH)]) {
            *to = rounded(*value);
        }
    }
}

/// The same of a right factor: up to 32 rows, 16 numbers of each from `first` on.
#[inline(always)]
fn right_tile(rows: &[f32], width: usize, first: usize, tile: &mut Tile) {
    let columns = first..width.min(first + SIDE);
    for (line, pair) in tile.iter_mut().zip(rows.chunks(2 * width)) {
        let (upper, lower) = pair.split_at(width);
        let upper = &upper[columns.clone()];
        let lower = lower
            .get(columns.clone())
            .unwrap_or(&[0.0; SIDE][..upper.len()]);
        let pairs = line.0.as_chunks_mut::<2>().0;
        for ((pair, upper), lower) in pairs.iter_mut().zip(upper).zip(lower) {
            *pair = [rounded(*upper), rounded(*lower)];
        }
    }
}

/// Rows of pairs to columns of pairs.
#[inline(always)]
fn turn(tile: &mut Tile) {
    for i in 0..SIDE {
        for j in 0..i {
            let of = |line: &Line, pair: usize| [line.0[2 * pair], line.0[2 * pair + 1]];
            let (below, above) = (of(&tile[i], j), of(&tile[j], i));
            tile[i].0[2 * j..][..2].copy_from_slice(&above);
            tile[j].0[2 * i..][..2].copy_from_slice(&below);
        }
    }
}

/// A factor of a product in bf16 as units read it.
#[derive(Debug)]
pub(super) struct Factor {
    /// `[sides / 16][depth / 32]`, both rounded up.
    tiles: Vec<Tile>,
    /// Rows of a left factor, columns of a right one.
    sides: usize,
    /// What is summed over: columns of a left factor, rows of a right one.
    depth: usize,
}

impl Factor {
    /// The left one.
    pub fn left(matrix: Matrix) -> Self {
        Self::of([matrix.rows(), matrix.columns()], matrix, true)
    }

    /// The right one.
    pub fn right(matrix: Matrix) -> Self {
        Self::of([matrix.columns(), matrix.rows()], matrix, false)
    }

    /// Of a matrix whose sides are its rows, or its columns.
    fn of([sides, depth]: [usize; 2], matrix: Matrix, by_rows: bool) -> Self {
        let (values, width, transposed) = matrix.in_memory();
        let lie_as_rows = by_rows != transposed;
        let deep = depth.div_ceil(DEPTH);
        let count = sides.div_ceil(SIDE) * deep;
        let mut tiles: Vec<Tile> = Vec::with_capacity(count);
        let write = |(i, tile): (usize, &mut MaybeUninit<Tile>)| {
            let tile = tile.write(ZERO);
            let (side, deep) = (i / deep, i % deep);
            vectorised(
                #[inline(always)]
                || {
                    if lie_as_rows {
                        let rows = part(values, width, side, SIDE);
                        left_tile(rows, width, deep * DEPTH, tile);
                    } else {
                        let rows = part(values, width, deep, DEPTH);
                        right_tile(rows, width, side * SIDE, tile);
                    }
                    if transposed {
                        turn(tile);
                    }
                },
            );
        };
        let places = &mut tiles.spare_capacity_mut()[..count];
        if count * SIDE * DEPTH <= GRAIN {
            places.iter_mut().enumerate().for_each(write);
        } else {
            let places = places.par_iter_mut().enumerate();
            places.with_min_len(GRAIN / (SIDE * DEPTH)).for_each(write);
        }
        // SAFETY: so many were written.
        unsafe { tiles.set_len(count) };
        Self {
            tiles,
            sides,
            depth,
        }
    }

    /// Rows of a left factor, columns of a right one.
    pub fn sides(&self) -> usize {
        self.sides
    }

    /// What is summed over.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The tiles of 16 sides.
    pub fn strip(&self, strip: usize) -> &[Tile] {
        let deep = self.depth.div_ceil(DEPTH);
        &self.tiles[strip * deep..][..deep]
    }
}

/// Rows `strip·tall…` of rows of `width` numbers, `tall` of them or as many as there are.
fn part(values: &[f32], width: usize, strip: usize, tall: usize) -> &[f32] {
    let first = strip * tall * width;
    &values[first..values.len().min(first + tall * width)]
}

/// A matrix in bf16 as products read it, shared by its copies.
#[derive(Debug, Clone)]
pub struct Bf16Matrix(Arc<Factor>);

impl Bf16Matrix {
    /// Of `values` `[inputs, outputs]`.
    pub fn of(values: &[f32], shape: [usize; 2]) -> Self {
        let [inputs, outputs] = shape;
        assert_eq!(values.len(), inputs * outputs, "numbers of a matrix");
        // Rows without numbers cannot be counted.
        Self(Arc::new(Factor {
            depth: inputs,
            sides: outputs,
            ..Factor::right(Matrix::new(values, outputs))
        }))
    }

    /// What a matrix `[inputs, outputs]` takes.
    pub fn bytes_of([inputs, outputs]: [usize; 2]) -> u64 {
        let tiles = inputs.div_ceil(DEPTH) * outputs.div_ceil(SIDE);
        (tiles * size_of::<Tile>()) as u64
    }

    /// What it takes.
    pub fn bytes(&self) -> u64 {
        Self::bytes_of(self.shape())
    }

    /// `[inputs, outputs]`
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.0.depth(), self.0.sides()]
    }

    /// Columns `first..first + width` in f32, row-major, where `first` is a multiple of 16.
    fn widen(&self, first: usize, width: usize, out: &mut [f32]) {
        for_rows(
            out,
            width,
            #[inline(always)]
            |row, out| {
                let (pair, of_pair) = (row / 2, row % 2);
                for (strip, out) in out.chunks_mut(SIDE).enumerate() {
                    let tile = &self.0.strip(first / SIDE + strip)[pair / SIDE];
                    let pairs = tile[pair % SIDE].0.as_chunks::<2>().0;
                    for (out, pair) in out.iter_mut().zip(pairs) {
                        *out = pair[of_pair].to_f32();
                    }
                }
            },
        );
    }

    /// The matrix in f32 on a device, `[inputs, outputs]`.
    fn widened(&self, device: &Device) -> Tensor<2> {
        let shape = self.shape();
        let mut wide = vec![0.0; shape[0] * shape[1]];
        if !wide.is_empty() {
            self.widen(0, shape[1], &mut wide);
        }
        Tensor::from_data(TensorData::new(wide, shape), device)
    }
}

/// As [`bf16::from_f32`], without branches, so that it vectorises: half the time of a product's rounding.
#[inline(always)]
pub(super) fn rounded(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x0040_0000;
    let bits = if value.is_nan() { quiet } else { nearest };
    bf16::from_bits((bits >> 16) as u16)
}

/// `x·W` for `x` `[…, inputs]` and a matrix `[inputs, outputs]`: of `x` rounded to bf16 in sampling on the CPU, otherwise in f32
/// on the matrix widened.
pub fn bf16_product<const D: usize>(x: Tensor<D>, matrix: &Bf16Matrix) -> Tensor<D> {
    let device = x.device();
    if route(&[Place::of(&x)]) != Route::Fast || !on_cpu(&device) {
        return product(x, matrix.widened(&device.inner()));
    }
    let x = x.into_dispatch();
    Tensor::from_dispatch(<Dispatch as PanelKernels>::bf16_product(x, matrix.clone()))
}

/// `x·W` for `x` `[…, inputs]` and `W` `[inputs, outputs]` in f32 on the CPU, both rounded to bf16 on their way, with sums in f32; the
/// same is done for its gradients.
pub(crate) fn rounded_product<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    assert!(on_cpu(&x.device()), "factors are rounded on the CPU alone");
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let product = <Dispatch as DifferentiableKernels>::product(x, weight, Factors::Bf16);
    Tensor::from_dispatch(product)
}

/// `a·b`, row-major, of both rounded to bf16 and with sums in f32.
pub(super) fn rounded_product_cpu(a: Matrix, b: Matrix) -> Vec<f32> {
    match Unit::here() {
        Some(unit) => factors_by(unit, a, b),
        None => widened_factors(a, b),
    }
}

/// The same by a unit that is there.
fn factors_by(unit: Unit, a: Matrix, b: Matrix) -> Vec<f32> {
    let (left, right) = rayon::join(|| Factor::left(a), || Factor::right(b));
    unit.product(&left, &right)
}

/// The same without one.
fn widened_factors(a: Matrix, b: Matrix) -> Vec<f32> {
    let [of_a, of_b] = [a, b].map(|matrix| {
        let (values, width, _) = matrix.in_memory();
        rounded_and_widened(values, width)
    });
    product_cpu(a.of_values(&of_a), b.of_values(&of_b))
}

/// `x·W`, row-major, for rows of as many numbers as the matrix has.
pub(super) fn bf16_product_cpu(x: &[f32], matrix: &Bf16Matrix) -> Vec<f32> {
    match Unit::here() {
        Some(unit) => product_by(unit, x, matrix),
        None => widened_product(x, matrix),
    }
}

/// The same by a unit that is there.
fn product_by(unit: Unit, x: &[f32], matrix: &Bf16Matrix) -> Vec<f32> {
    let [inputs, _] = matrix.shape();
    if inputs == 0 {
        // So many rows of no numbers cannot be told.
        return Vec::new();
    }
    unit.product(&Factor::left(Matrix::new(x, inputs)), &matrix.0)
}

/// The same without one.
fn widened_product(x: &[f32], matrix: &Bf16Matrix) -> Vec<f32> {
    let [inputs, outputs] = matrix.shape();
    let x = rounded_and_widened(x, inputs);
    let x = Matrix::new(&x, inputs);
    let mut out = vec![0.0; x.rows() * outputs];
    product_by_panels(x, outputs, &mut out, |first, width, panel| {
        matrix.widen(first, width, panel);
    });
    out
}

/// Rows of `width` numbers, rounded to bf16.
fn rounded_and_widened(values: &[f32], width: usize) -> Vec<f32> {
    let mut values = values.to_vec();
    for_rows(
        &mut values,
        width.max(1),
        #[inline(always)]
        |_, row| {
            for value in row {
                *value = rounded(*value).to_f32();
            }
        },
    );
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way in which this processor makes a product: widened, or by one of its units.
    fn ways() -> Vec<Option<Unit>> {
        let units: Vec<_> = Unit::all().collect();
        println!("units for bf16 here: {units:?}");
        [None]
            .into_iter()
            .chain(units.into_iter().map(Some))
            .collect()
    }

    fn multiplied(way: Option<Unit>, x: &[f32], matrix: &Bf16Matrix) -> Vec<f32> {
        match way {
            None => widened_product(x, matrix),
            Some(unit) => product_by(unit, x, matrix),
        }
    }

    fn wave(count: usize, by: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * by).sin()).collect()
    }

    #[test]
    fn products_are_those_of_rounded_numbers_whatever_their_sizes() {
        let wide = |values: &[f32]| -> Vec<f64> {
            let wide = |v: &f32| bf16::from_f32(*v).to_f64();
            values.iter().map(wide).collect()
        };
        // A number; about a tile; about a task; several panels of the widened matrix; enough for threads.
        for [rows, inputs, outputs] in [
            [1, 1, 1],
            [3, 5, 7],
            [16, 32, 16],
            [17, 33, 17],
            [15, 31, 47],
            [32, 64, 32],
            [33, 65, 33],
            [1, 200, 48],
            [130, 70, 129],
            [6, 4100, 300],
            [300, 257, 331],
        ] {
            let (x, weight) = (wave(rows * inputs, 0.7), wave(inputs * outputs, 1.3));
            let matrix = Bf16Matrix::of(&weight, [inputs, outputs]);
            let (x_wide, weight) = (wide(&x), wide(&weight));
            for way in ways() {
                let found = multiplied(way, &x, &matrix);
                assert_eq!(found.len(), rows * outputs);
                for (i, found) in found.iter().enumerate() {
                    let (row, column) = (i / outputs, i % outputs);
                    let term = |k: usize| x_wide[row * inputs + k] * weight[k * outputs + column];
                    let expected: f64 = (0..inputs).map(term).sum();
                    let size: f64 = (0..inputs).map(|k| term(k).abs()).sum();
                    let off = (f64::from(*found) - expected).abs();
                    assert!(
                        off <= 1e-6 * size,
                        "{way:?}, {rows}·{inputs}·{outputs} at {row}, {column}: {found} for {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn factors_are_rounded_however_they_lie_in_memory() {
        for [rows, depth, columns] in [
            [1, 1, 1],
            [1, 40, 3],
            [40, 1, 3],
            [3, 40, 1],
            [16, 32, 16],
            [17, 33, 17],
            [31, 47, 33],
            [130, 70, 129],
            [70, 4100, 65],
        ] {
            let (a, b) = (wave(rows * depth, 0.7), wave(depth * columns, 1.3));
            let narrow = |values: &[f32]| -> Vec<f32> {
                let narrow = |v: &f32| bf16::from_f32(*v).to_f32();
                values.iter().map(narrow).collect()
            };
            let turned = |values: &[f32], width: usize| -> Vec<f32> {
                let column = |c: usize| values.iter().skip(c).step_by(width).copied();
                (0..width).flat_map(column).collect()
            };
            let (narrow_a, narrow_b) = (narrow(&a), narrow(&b));
            let of_rounded = product_cpu(
                Matrix::new(&narrow_a, depth),
                Matrix::new(&narrow_b, columns),
            );
            let (a_turned, b_turned) = (turned(&a, depth), turned(&b, columns));
            let left = [
                Matrix::new(&a, depth),
                Matrix::new(&a_turned, rows).transposed(),
            ];
            let right = [
                Matrix::new(&b, columns),
                Matrix::new(&b_turned, depth).transposed(),
            ];
            for (i, (a, b)) in left.iter().flat_map(|a| right.map(|b| (*a, b))).enumerate() {
                for way in ways() {
                    let found = match way {
                        None => widened_factors(a, b),
                        Some(unit) => factors_by(unit, a, b),
                    };
                    assert_eq!(found.len(), rows * columns);
                    for (found, expected) in found.iter().zip(&of_rounded) {
                        // Of `depth` products below 1 in another order.
                        let within = 1e-7 * (depth as f32).max(10.0);
                        assert!(
                            (found - expected).abs() <= within,
                            "{way:?}, {rows}·{depth}·{columns}, case {i}: {found} for {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_are_rounded_as_half_rounds_them() {
        // Every upper half of a number, with lower halves about the middle.
        let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        for bits in (0..=0xffff_u32).flat_map(|upper| lower.map(|lower| upper << 16 | lower)) {
            let value = f32::from_bits(bits);
            let (found, expected) = (rounded(value), bf16::from_f32(value));
            assert_eq!(found.to_bits(), expected.to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn products_of_nothing_are_empty() {
        for [rows, inputs, outputs] in [[0, 5, 3], [2, 5, 0]] {
            let matrix = Bf16Matrix::of(&wave(inputs * outputs, 1.3), [inputs, outputs]);
            for way in ways() {
                let found = multiplied(way, &wave(rows * inputs, 0.7), &matrix);
                assert!(found.is_empty(), "{way:?}");
            }
        }
    }

    #[test]
    fn what_is_no_number_shows_in_its_row_alone() {
        let mut x = wave(40 * 70, 0.7);
        x[5 * 70 + 3] = f32::NAN;
        x[33 * 70 + 69] = f32::INFINITY;
        let matrix = Bf16Matrix::of(&wave(70 * 50, 1.3), [70, 50]);
        for way in ways() {
            let found = multiplied(way, &x, &matrix);
            for (row, found) in found.chunks_exact(50).enumerate() {
                let finite = found.iter().all(|v| v.is_finite());
                assert_eq!(finite, ![5, 33].contains(&row), "{way:?}, row {row}");
            }
        }
    }

    #[test]
    fn a_matrix_takes_two_bytes_a_number_and_widens_to_what_it_was_rounded_to() {
        assert_eq!(Bf16Matrix::bytes_of([192, 576]), 2 * 192 * 576);
        for shape in [[1, 1], [3, 5], [33, 17], [64, 48]] {
            let values = wave(shape[0] * shape[1], 1.7);
            let matrix = Bf16Matrix::of(&values, shape);
            let padded = shape[0].next_multiple_of(32) * shape[1].next_multiple_of(16);
            assert_eq!(matrix.bytes(), 2 * padded as u64);
            let wide = matrix.widened(&Device::flex()).try_into_data().unwrap();
            let rounded: Vec<f32> = values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
            assert_eq!(wide.try_into_vec::<f32>().unwrap(), rounded);
        }
    }
}
