//! Matrices in bf16 on the CPU, and products with them.
//!
//! What is multiplied by such a matrix is rounded to bf16 as well, to the nearest, halves to the even one; sums are in f32.
//! Processors with matrix units ([`super::amx`]) take both as they are. On others both are widened, the matrix a few columns at
//! a time: their products differ by the order of sums alone, which a network's further roundings spread to bf16's own error.

use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
use rayon::prelude::*;

use super::{
    Place, Route, amx,
    lanes::for_rows,
    on_cpu,
    product::{Matrix, product},
    quantised::{PanelKernels, product_by_panels},
    route,
};

/// Rows, and columns in f32, of a matrix unit's tile.
pub(super) const SIDE: usize = 16;
/// Numbers in bf16 of a row of a tile.
pub(super) const DEPTH: usize = 2 * SIDE;

/// A row of a tile, which is a line of the processor's cache.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [bf16; DEPTH]);

impl Line {
    pub const ZERO: Self = Self([bf16::ZERO; DEPTH]);
}

/// A matrix in bf16 as products read it, shared by its copies.
#[derive(Debug, Clone)]
pub struct Bf16Matrix {
    /// `[outputs / 16][inputs / 32][16]` lines, both sizes rounded up: the numbers of two rows in 16 columns, pair by pair.
    lines: Arc<Vec<Line>>,
    shape: [usize; 2],
}

impl Bf16Matrix {
    /// Of `values` `[inputs, outputs]`.
    pub fn of(values: &[f32], shape: [usize; 2]) -> Self {
        let [inputs, outputs] = shape;
        assert_eq!(values.len(), inputs * outputs, "numbers of a matrix");
        let panel = Self::lines_of(inputs);
        let mut lines = vec![Line::ZERO; panel * outputs.div_ceil(SIDE)];
        let panels = lines.par_chunks_mut(panel.max(1)).enumerate();
        panels.for_each(|(panel, lines)| {
            let columns = panel * SIDE..outputs.min((panel + 1) * SIDE);
            for (row, values) in values.chunks_exact(outputs).enumerate() {
                let pairs = lines[row / 2].0.as_chunks_mut::<2>().0;
                for (pair, value) in pairs.iter_mut().zip(&values[columns.clone()]) {
                    pair[row % 2] = bf16::from_f32(*value);
                }
            }
        });
        Self {
            lines: Arc::new(lines),
            shape,
        }
    }

    /// What a matrix `[inputs, outputs]` takes.
    pub fn bytes_of([inputs, outputs]: [usize; 2]) -> u64 {
        let lines = Self::lines_of(inputs) * outputs.div_ceil(SIDE);
        (lines * size_of::<Line>()) as u64
    }

    /// What it takes.
    pub fn bytes(&self) -> u64 {
        Self::bytes_of(self.shape)
    }

    /// `[inputs, outputs]`
    pub(super) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Of a panel of 16 columns, or of a tile of 16 rows of so many numbers.
    pub(super) fn lines_of(inputs: usize) -> usize {
        inputs.div_ceil(DEPTH) * SIDE
    }

    /// 16 columns.
    pub(super) fn panel(&self, panel: usize) -> &[Line] {
        let lines = Self::lines_of(self.shape[0]);
        &self.lines[panel * lines..][..lines]
    }

    /// Columns `first..first + width` in f32, row-major, where `first` is a multiple of 16.
    fn widen(&self, first: usize, width: usize, out: &mut [f32]) {
        for_rows(out, width, |row, rows| {
            for (i, out) in rows.chunks_exact_mut(width).enumerate() {
                let (pair, of_pair) = ((row + i) / 2, (row + i) % 2);
                for (panel, out) in out.chunks_mut(SIDE).enumerate() {
                    let line = &self.panel(first / SIDE + panel)[pair];
                    for (out, pair) in out.iter_mut().zip(line.0.as_chunks::<2>().0) {
                        *out = pair[of_pair].to_f32();
                    }
                }
            }
        });
    }

    /// The matrix in f32 on a device, `[inputs, outputs]`.
    fn widened(&self, device: &Device) -> Tensor<2> {
        let mut wide = vec![0.0; self.shape[0] * self.shape[1]];
        if !wide.is_empty() {
            self.widen(0, self.shape[1], &mut wide);
        }
        Tensor::from_data(TensorData::new(wide, self.shape), device)
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

/// `x·W`, row-major, for rows of as many numbers as the matrix has.
pub(super) fn bf16_product_cpu(x: &[f32], matrix: &Bf16Matrix) -> Vec<f32> {
    amx::product(x, matrix).unwrap_or_else(|| widened_product(x, matrix))
}

/// The same without matrix units.
fn widened_product(x: &[f32], matrix: &Bf16Matrix) -> Vec<f32> {
    let [inputs, outputs] = matrix.shape;
    let mut x = x.to_vec();
    for_rows(&mut x, inputs.max(1), |_, rows| {
        for value in rows {
            *value = rounded(*value).to_f32();
        }
    });
    let x = Matrix::new(&x, inputs);
    let mut out = vec![0.0; x.rows() * outputs];
    product_by_panels(x, outputs, &mut out, |first, width, panel| {
        matrix.widen(first, width, panel);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    type Way = (&'static str, fn(&[f32], &Bf16Matrix) -> Vec<f32>);

    /// Every way in which this processor makes a product.
    fn ways() -> Vec<Way> {
        let widened: Way = ("widened", widened_product);
        let by_units: Way = ("matrix units", |x, matrix| {
            amx::product(x, matrix).expect("they were there")
        });
        if amx::is_there() {
            return vec![widened, by_units];
        }
        println!("this processor has no matrix units: matrices are widened alone");
        vec![widened]
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
            for (way, product) in ways() {
                let found = product(&x, &matrix);
                assert_eq!(found.len(), rows * outputs);
                for (i, found) in found.iter().enumerate() {
                    let (row, column) = (i / outputs, i % outputs);
                    let term = |k: usize| x_wide[row * inputs + k] * weight[k * outputs + column];
                    let expected: f64 = (0..inputs).map(term).sum();
                    let size: f64 = (0..inputs).map(|k| term(k).abs()).sum();
                    let off = (f64::from(*found) - expected).abs();
                    assert!(
                        off <= 1e-6 * size,
                        "{way}, {rows}·{inputs}·{outputs} at {row}, {column}: {found} for {expected}"
                    );
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
            for (way, product) in ways() {
                let found = product(&wave(rows * inputs, 0.7), &matrix);
                assert!(found.is_empty(), "{way}");
            }
        }
    }

    #[test]
    fn what_is_no_number_shows_in_its_row_alone() {
        let mut x = wave(40 * 70, 0.7);
        x[5 * 70 + 3] = f32::NAN;
        x[33 * 70 + 69] = f32::INFINITY;
        let matrix = Bf16Matrix::of(&wave(70 * 50, 1.3), [70, 50]);
        for (way, product) in ways() {
            for (row, found) in product(&x, &matrix).chunks_exact(50).enumerate() {
                let finite = found.iter().all(|v| v.is_finite());
                assert_eq!(finite, ![5, 33].contains(&row), "{way}, row {row}");
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
