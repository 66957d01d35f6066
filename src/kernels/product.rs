//! The matrix product of a linear layer, on the CPU with a gradient of its own.
//!
//! burn's CPU backend runs the same `gemm`, but clears its output first and copies it once, both on one thread, which
//! takes as long as everything else between the products of a training.

#![expect(unsafe_code, reason = "gemm takes pointers")]

use burn::backend::Dispatch;
use burn::tensor::{Tensor, module::linear};

use super::{Place, Route, differentiable::DifferentiableKernels, on_cpu, route};

/// `x·W` for `x` `[…, inputs]` and `W` `[inputs, outputs]`.
pub fn product<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let route = route(&[Place::of(&x), Place::of(&weight)]);
    if route == Route::Composed || !on_cpu(&x.device()) {
        return linear(x, weight, None);
    }
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as DifferentiableKernels>::product(x, weight))
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
