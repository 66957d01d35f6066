//! Convolutions of side 3: a matrix product over patches, a few rows of them at a time.

use burn::backend::Dispatch;
use burn::tensor::{Tensor, s};
use rayon::prelude::*;

use super::PictureKernels;
use crate::kernels::{
    Matrix, Place, Route,
    lanes::add,
    on_cpu,
    product::{product, product_onto},
    route,
};

/// Cells of a convolution's window along a side.
const SIDE: usize = 3;
/// Cells of it.
const CELLS: usize = SIDE * SIDE;
/// Numbers of the patches that a device lays out at a time.
pub(crate) const PATCH_NUMBERS: usize = 1 << 24;
/// Output cells whose patches a thread of the CPU lays out at a time: they stay in its cache.
const STRIP_CELLS: usize = 256;

/// Where a convolution of side 3 looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Cells from a window to the next: 1 or 2.
    pub stride: usize,
    /// Rows of zeros above and columns at the left: 0 or 1.
    pub before: usize,
    /// Rows of zeros below and columns at the right: 0 or 1.
    pub after: usize,
}

impl Window {
    /// One that keeps the size.
    pub const SAME: Self = Self {
        stride: 1,
        before: 1,
        after: 1,
    };

    /// Sides of what comes out of a picture of these.
    fn out(&self, sides: [usize; 2]) -> [usize; 2] {
        sides.map(|side| (side + self.before + self.after).saturating_sub(SIDE) / self.stride + 1)
    }
}

/// The convolution of `x` `[B, H, W, inputs]` with `weight` `[9·inputs, outputs]`, whose rows are ordered by row and column of
/// the window, then by input.
pub fn convolution(x: Tensor<4>, weight: Tensor<2>, window: Window) -> Tensor<4> {
    let route = route(&[Place::of(&x), Place::of(&weight)]);
    if route != Route::Composed && on_cpu(&x.device()) {
        let [_, h, w, _] = x.dims();
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        let out = <Dispatch as PictureKernels>::convolution(x, weight, window, [h, w]);
        return Tensor::from_dispatch(out);
    }
    over_patches(padded(x, window), weight, window.stride)
}

/// Over every patch of a padded picture, rows at a time, so that patches take bounded memory.
fn over_patches(x: Tensor<4>, weight: Tensor<2>, stride: usize) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let [_, outputs] = weight.dims();
    let [rows, columns] = [h, w].map(|side| (side - SIDE) / stride + 1);
    let row_numbers = b * columns * CELLS * c;
    let at_a_time = (PATCH_NUMBERS / row_numbers.max(1)).clamp(1, rows);
    let mut pieces = Vec::new();
    for first in (0..rows).step_by(at_a_time) {
        let count = at_a_time.min(rows - first);
        let mut cells = Vec::with_capacity(CELLS);
        for down in 0..SIDE {
            for across in 0..SIDE {
                let top = first * stride + down;
                let bottom = top + (count - 1) * stride + 1;
                let right = across + (columns - 1) * stride + 1;
                let step = stride as isize;
                let cell = s![.., top..bottom;step, across..right;step, ..];
                cells.push(x.clone().slice(cell));
            }
        }
        let patches = Tensor::cat(cells, 3).reshape([b * count * columns, CELLS * c]);
        let out = product(patches, weight.clone());
        pieces.push(out.reshape([b, count, columns, outputs]));
    }
    match pieces.len() {
        1 => pieces.remove(0),
        _ => Tensor::cat(pieces, 1),
    }
}

/// Zeros around it.
fn padded(x: Tensor<4>, window: Window) -> Tensor<4> {
    let Window { before, after, .. } = window;
    let [b, h, w, c] = x.dims();
    let shape = [b, h + before + after, w + before + after, c];
    let inside = s![.., before..before + h, before..before + w, ..];
    Tensor::zeros(shape, &x.device()).slice_assign(inside, x)
}

/// A picture `[H, W, C]`, seen through a window.
#[derive(Clone, Copy)]
struct View<'a> {
    values: &'a [f32],
    size: [usize; 2],
    channels: usize,
    window: Window,
}

impl View<'_> {
    /// The part of a window's row that lies within the picture, for output column `column`: its first cell and those before
    /// `end` in the picture, and how many cells of the window lie left of it.
    fn columns(&self, column: usize) -> (usize, usize, usize) {
        let left = column * self.window.stride;
        let first = left.saturating_sub(self.window.before);
        let end = (left + SIDE - self.window.before).min(self.size[1]);
        (first, end, (first + self.window.before) - left)
    }

    /// The row of the picture that row `down` of the window lies on, for output row `row`.
    fn row(&self, row: usize, down: usize) -> Option<usize> {
        (row * self.window.stride + down)
            .checked_sub(self.window.before)
            .filter(|y| *y < self.size[0])
    }

    /// The patches of output rows `first..first + rows` of `columns` cells each, `[rows·columns, 9·C]`, into `patches`, which is as
    /// long as these rows or longer.
    fn patches<'p>(
        &self,
        [first, rows]: [usize; 2],
        columns: usize,
        patches: &'p mut Vec<f32>,
    ) -> &'p [f32] {
        let (c, width) = (self.channels, self.size[1]);
        let numbers = rows * columns * CELLS * c;
        if patches.len() < numbers {
            patches.resize(numbers, 0.0);
        }
        let patches = &mut patches[..numbers];
        let in_row = SIDE * c;
        for (row, patches) in patches.chunks_exact_mut(columns * CELLS * c).enumerate() {
            for down in 0..SIDE {
                let line = self.row(first + row, down);
                let line = line.map(|y| &self.values[y * width * c..][..width * c]);
                for (column, patch) in patches.chunks_exact_mut(CELLS * c).enumerate() {
                    let patch = &mut patch[down * in_row..][..in_row];
                    let Some(line) = line else {
                        patch.fill(0.0);
                        continue;
                    };
                    let (from, end, skipped) = self.columns(column);
                    let cells = &line[from * c..end * c];
                    let (before, rest) = patch.split_at_mut(skipped * c);
                    let (inside, after) = rest.split_at_mut(cells.len());
                    before.fill(0.0);
                    inside.copy_from_slice(cells);
                    after.fill(0.0);
                }
            }
        }
        patches
    }
}

/// Rows whose patches are laid out at a time.
fn strip_rows(columns: usize) -> usize {
    (STRIP_CELLS / columns.max(1)).max(1)
}

pub(super) fn convolution_cpu(
    x: &[f32],
    [b, h, w, c]: [usize; 4],
    weight: &[f32],
    window: Window,
) -> (Vec<f32>, [usize; 4]) {
    let outputs = weight.len() / (CELLS * c).max(1);
    let [rows, columns] = window.out([h, w]);
    let at_a_time = strip_rows(columns);
    let mut out = vec![0.0; b * rows * columns * outputs];
    let images = out.par_chunks_mut((rows * columns * outputs).max(1));
    images
        .zip(x.par_chunks((h * w * c).max(1)))
        .flat_map(|(out, values)| {
            let view = View {
                values,
                size: [h, w],
                channels: c,
                window,
            };
            let strips = out.par_chunks_mut(at_a_time * columns * outputs);
            strips
                .enumerate()
                .map(move |(strip, out)| (view, strip, out))
        })
        .for_each_init(Vec::new, |patches, (view, strip, out)| {
            let count = out.len() / (columns * outputs);
            let patches = view.patches([strip * at_a_time, count], columns, patches);
            product_onto(
                out,
                Matrix::new(patches, CELLS * c),
                Matrix::new(weight, outputs),
                false,
            );
        });
    (out, [b, rows, columns, outputs])
}

pub(super) fn gradient_x_cpu(
    weight: &[f32],
    grad: &[f32],
    [b, rows, columns, outputs]: [usize; 4],
    window: Window,
    [h, w]: [usize; 2],
) -> (Vec<f32>, [usize; 4]) {
    let c = weight.len() / (CELLS * outputs).max(1);
    if window.stride == 1 {
        // The same as a convolution with the window turned round.
        let mut turned = vec![0.0; weight.len()];
        for (cell, filter) in weight.chunks_exact(c * outputs).enumerate() {
            let turned = &mut turned[(CELLS - 1 - cell) * c * outputs..][..c * outputs];
            for (input, values) in filter.chunks_exact(outputs).enumerate() {
                for (output, value) in values.iter().enumerate() {
                    turned[output * c + input] = *value;
                }
            }
        }
        let window = Window {
            stride: 1,
            before: SIDE - 1 - window.before,
            after: SIDE - 1 - window.after,
        };
        return convolution_cpu(grad, [b, rows, columns, outputs], &turned, window);
    }
    let at_a_time = strip_rows(columns);
    let mut out = vec![0.0; b * h * w * c];
    let grads = grad.par_chunks((rows * columns * outputs).max(1));
    out.par_chunks_mut((h * w * c).max(1))
        .zip(grads)
        .for_each_init(Vec::new, |patches, (out, grad)| {
            let view = View {
                values: &[],
                size: [h, w],
                channels: c,
                window,
            };
            for (strip, grad) in grad.chunks(at_a_time * columns * outputs).enumerate() {
                let cells = grad.len() / outputs;
                // All of it is written.
                patches.resize(cells * CELLS * c, 0.0);
                product_onto(
                    patches,
                    Matrix::new(grad, outputs),
                    Matrix::new(weight, outputs).transposed(),
                    false,
                );
                for (cell, patch) in patches.chunks_exact(CELLS * c).enumerate() {
                    let row = strip * at_a_time + cell / columns;
                    let (from, end, skipped) = view.columns(cell % columns);
                    for down in 0..SIDE {
                        let Some(y) = view.row(row, down) else {
                            continue;
                        };
                        let sums = &mut out[(y * w + from) * c..(y * w + end) * c];
                        let part = &patch[(down * SIDE + skipped) * c..][..sums.len()];
                        add(sums, part);
                    }
                }
            }
        });
    (out, [b, h, w, c])
}

pub(super) fn gradient_weight_cpu(
    x: &[f32],
    [_, h, w, c]: [usize; 4],
    grad: &[f32],
    [_, rows, columns, outputs]: [usize; 4],
    window: Window,
) -> (Vec<f32>, [usize; 2]) {
    let at_a_time = strip_rows(columns);
    // A sum an image, so that the whole does not depend on the number of threads.
    let images = x
        .par_chunks((h * w * c).max(1))
        .zip(grad.par_chunks((rows * columns * outputs).max(1)));
    let sums: Vec<Vec<f32>> = images
        .map_init(Vec::new, |patches, (values, grad)| {
            let view = View {
                values,
                size: [h, w],
                channels: c,
                window,
            };
            let mut sum = vec![0.0; CELLS * c * outputs];
            for (strip, grad) in grad.chunks(at_a_time * columns * outputs).enumerate() {
                let count = grad.len() / (columns * outputs);
                let patches = view.patches([strip * at_a_time, count], columns, patches);
                product_onto(
                    &mut sum,
                    Matrix::new(patches, CELLS * c).transposed(),
                    Matrix::new(grad, outputs),
                    strip > 0,
                );
            }
            sum
        })
        .collect();
    let mut whole = vec![0.0; CELLS * c * outputs];
    sums.iter().for_each(|sum| add(&mut whole, sum));
    (whole, [CELLS * c, outputs])
}
