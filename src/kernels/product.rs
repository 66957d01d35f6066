//! The matrix product of a linear layer: by shaders in sampling on GPUs, on the CPU with a gradient of its own.
//!
//! burn's CPU backend runs the same `gemm`, but clears its output first and copies it once, both on one thread, which
//! takes as long as everything else between the products of a training.

#![expect(unsafe_code, reason = "gemm takes pointers")]

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor, module::linear};

use super::{
    Hardware, Place, Route,
    differentiable::{DifferentiableKernels, Factors},
    on_cpu, route,
    sampling::SamplingKernels,
    tiles,
};

/// `x·W` for `x` `[…, inputs]` and `W` `[inputs, outputs]`.
pub fn product<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let route = route(&[Place::of(&x), Place::of(&weight)]);
    let cpu = on_cpu(&x.device());
    let hardware = || Hardware::of_device(&x.device());
    if route == Route::Fast && !cpu && tiles::fits(hardware(), weight.dims()) {
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(<Dispatch as SamplingKernels>::tiled_product(x, weight));
    }
    if route == Route::Composed || !cpu {
        return linear(x, weight, None);
    }
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let product = <Dispatch as DifferentiableKernels>::product(x, weight, Factors::F32);
    Tensor::from_dispatch(product)
}

/// The same for `W` in f16: by the device's matrix units, where it has some for such a matrix, on numbers of `x` rounded to f16
/// and with sums in f32; otherwise in f32 throughout, on `W` widened.
pub fn half_product<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let hardware = Hardware::of_device(&x.device());
    if route(&[Place::of(&x)]) == Route::Fast && tiles::fits_matrix_units(hardware, weight.dims()) {
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(<Dispatch as SamplingKernels>::tiled_product(x, weight));
    }
    product(x, weight.cast(DType::F32))
}

/// A matrix as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    /// Numbers from a row to the next, and from a column to the next.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Of rows of `columns` numbers.
    pub fn new(values: &'a [f32], columns: usize) -> Self {
        let columns = columns.max(1);
        Self {
            values,
            shape: [values.len() / columns, columns],
            strides: [columns, 1],
        }
    }

    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    pub fn columns(&self) -> usize {
        self.shape[1]
    }

    /// The rows that lie in memory one after another, how wide they are, and whether they are the matrix's columns.
    pub(super) fn in_memory(&self) -> (&'a [f32], usize, bool) {
        let transposed = self.strides[0] < self.strides[1];
        (
            self.values,
            self.shape[usize::from(!transposed)],
            transposed,
        )
    }

    /// A matrix of other numbers that lies as this one does.
    pub(super) fn of_values(self, values: &[f32]) -> Matrix<'_> {
        assert_eq!(values.len(), self.values.len(), "numbers of a matrix");
        Matrix { values, ..self }
    }

    pub fn transposed(self) -> Self {
        let ([rows, columns], [row, column]) = (self.shape, self.strides);
        Self {
            shape: [columns, rows],
            strides: [column, row],
            ..self
        }
    }
}

/// The threads for a product.
fn parallelism(a: Matrix, b: Matrix) -> gemm::Parallelism {
    /// Multiplications that are worth the other threads.
    const WORTH_THREADS: usize = 1 << 22;
    match a.values.len() * b.columns() {
        0..WORTH_THREADS => gemm::Parallelism::None,
        _ => gemm::Parallelism::Rayon(0),
    }
}

/// `a·b`, row-major.
pub(crate) fn product_cpu(a: Matrix, b: Matrix) -> Vec<f32> {
    let (rows, columns) = (a.rows(), b.columns());
    let mut out = Vec::with_capacity(rows * columns);
    // SAFETY: `out` has room for all numbers of the product, which are written and not read.
    unsafe {
        multiply(out.as_mut_ptr(), columns, a, b, false, parallelism(a, b));
        out.set_len(rows * columns);
    }
    out
}

/// `out = a·b`, or `out += a·b` with `onto`, on this thread alone; row-major.
pub(crate) fn product_onto(out: &mut [f32], a: Matrix, b: Matrix, onto: bool) {
    let ([rows, _], [_, columns]) = (a.shape, b.shape);
    assert_eq!(out.len(), rows * columns, "size of a matrix product");
    // SAFETY: `out` holds all numbers of the product.
    unsafe {
        multiply(
            out.as_mut_ptr(),
            columns,
            a,
            b,
            onto,
            gemm::Parallelism::None,
        )
    }
}

/// Columns `first…` of `out`, which has `width` of them, `= a·b`; row-major.
pub(super) fn product_into_columns(
    out: &mut [f32],
    [first, width]: [usize; 2],
    a: Matrix,
    b: Matrix,
) {
    assert_eq!(out.len(), a.rows() * width, "size of a matrix product");
    assert!(
        first + b.columns() <= width,
        "columns {first}… of {width} for {} of a matrix product",
        b.columns()
    );
    if out.is_empty() {
        return;
    }
    // SAFETY: every row of `out` has room for `b`'s columns behind `first`; they are written and not read.
    unsafe {
        let out = out.as_mut_ptr().add(first);
        multiply(out, width, a, b, false, parallelism(a, b));
    }
}

/// # Safety
/// There is room for `b`'s columns at each of `a`'s rows, which lie `stride` numbers apart from `out` on; with `onto`, numbers
/// lie there.
unsafe fn multiply(
    out: *mut f32,
    stride: usize,
    a: Matrix,
    b: Matrix,
    onto: bool,
    parallelism: gemm::Parallelism,
) {
    let ([rows, depth], [also_depth, columns]) = (a.shape, b.shape);
    assert_eq!(depth, also_depth, "inner sizes of a matrix product");
    // SAFETY: both matrices lie within their slices by construction (`rows·columns` numbers in either order), `out` as the
    // caller says; `gemm` writes every number of the product, and reads it with `onto` alone.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            out,
            1,
            stride as isize,
            onto,
            a.values.as_ptr(),
            a.strides[1] as isize,
            a.strides[0] as isize,
            b.values.as_ptr(),
            b.strides[1] as isize,
            b.strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_add_up() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 2.0]);
        let mut out = vec![f32::NAN; 4];
        let of = |values| Matrix::new(values, 2);
        product_onto(&mut out, of(&a), of(&b), false);
        assert_eq!(out, [1.0, 4.0, 3.0, 8.0]);
        product_onto(&mut out, of(&a), of(&b), true);
        assert_eq!(out, [2.0, 8.0, 6.0, 16.0]);
    }

    #[test]
    fn every_number_of_a_product_is_written_and_none_beyond() {
        const CANARY: f32 = -7.5;
        let counts = [0, 1, 2, 3, 5, 17];
        // Small whole numbers, whose products are exact in any order, at addresses of no particular alignment.
        let numbers: Vec<f32> = (0..17 * 17 + 3)
            .map(|i| (i * 7 % 11) as f32 - 5.0)
            .collect();
        let mut whole = vec![CANARY; 17 * 17 + 8];
        for case in 0..counts.len().pow(3) * 4 {
            let [rows, depth, columns] = [4, 24, 144].map(|by| counts[case / by % 6]);
            let (a_turned, b_turned) = (case & 1 > 0, case & 2 > 0);
            let of = |start: usize, count: usize| &numbers[start..start + count];
            let (a, b) = (of(1, rows * depth), of(3, depth * columns));
            let matrix = |values, [rows, columns]: [usize; 2], turned| Matrix {
                values,
                shape: [rows, columns],
                strides: if turned { [1, rows] } else { [columns, 1] },
            };
            let (a, b) = (
                matrix(a, [rows, depth], a_turned),
                matrix(b, [depth, columns], b_turned),
            );
            let at = |m: &Matrix, i: usize, j: usize| m.values[i * m.strides[0] + j * m.strides[1]];
            let expected: Vec<f32> = (0..rows * columns)
                .map(|i| {
                    let term = |k| at(&a, i / columns, k) * at(&b, k, i % columns);
                    (0..depth).map(term).sum()
                })
                .collect();
            assert_eq!(product_cpu(a, b), expected, "{rows} {depth} {columns}");
            let place = 1 + case % 5..1 + case % 5 + rows * columns;
            // What lay there is not read where it is to be replaced.
            whole[place.clone()].fill(f32::NAN);
            product_onto(&mut whole[place.clone()], a, b, false);
            assert_eq!(whole[place.clone()], expected, "{rows} {depth} {columns}");
            product_onto(&mut whole[place.clone()], a, b, true);
            let twice: Vec<f32> = expected.iter().map(|v| 2.0 * v).collect();
            assert_eq!(whole[place.clone()], twice, "{rows} {depth} {columns}");
            whole[place].fill(CANARY);
            assert!(
                whole.iter().all(|v| *v == CANARY),
                "{rows} {depth} {columns}"
            );
        }
    }

    #[test]
    fn products_are_sums_in_any_order_of_memory() {
        for [rows, depth, columns] in [[1, 1, 1], [3, 5, 7], [64, 192, 33], [130, 70, 129]] {
            let wave = |count: usize, by: f32| -> Vec<f32> {
                (0..count).map(|i| (i as f32 * by).sin()).collect()
            };
            let (a, b) = (wave(rows * depth, 0.7), wave(depth * columns, 1.3));
            let turned = |values: &[f32], width: usize| -> Vec<f32> {
                let column = |c: usize| values.iter().skip(c).step_by(width).copied();
                (0..width).flat_map(column).collect()
            };
            let (a_turned, b_turned) = (turned(&a, depth), turned(&b, columns));
            let forms = [
                product_cpu(Matrix::new(&a, depth), Matrix::new(&b, columns)),
                product_cpu(
                    Matrix::new(&a_turned, rows).transposed(),
                    Matrix::new(&b_turned, depth).transposed(),
                ),
            ];
            for found in forms {
                assert_eq!(found.len(), rows * columns);
                for (i, found) in found.iter().enumerate() {
                    let (row, column) = (i / columns, i % columns);
                    let term = |k: usize| {
                        f64::from(a[row * depth + k]) * f64::from(b[k * columns + column])
                    };
                    let expected: f64 = (0..depth).map(term).sum();
                    assert!((f64::from(*found) - expected).abs() < 1e-5);
                }
            }
        }
    }
}
