//! On any device, by burn's operations: a convolution is a matrix product over patches.

use burn::tensor::{
    Device, Tensor, TensorData,
    activation::{relu, silu, softmax},
    s,
};

use super::{
    layers::{NORM_EPS, PATCH_NUMBERS, Padding, QUERIES},
    machine::Machine,
};
use crate::kernels::product;

/// The device. Pictures are `[1, H, W, C]`.
#[derive(Debug, Clone)]
pub(super) struct OnDevice(pub Device);

/// A convolution.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    kernel: usize,
    /// `[kernel · kernel · inputs, outputs]`
    weight: Tensor<2>,
    /// `[outputs]`
    bias: Option<Tensor<1>>,
}

#[derive(Debug, Clone)]
pub(super) struct Norm {
    groups: usize,
    scale: Tensor<1>,
    shift: Tensor<1>,
}

impl OnDevice {
    fn vector(&self, values: Vec<f32>) -> Tensor<1> {
        let length = values.len();
        Tensor::from_data(TensorData::new(values, [length]), &self.0)
    }
}

impl Machine for OnDevice {
    type Picture = Tensor<4>;
    type Filter = Filter;
    type Norm = Norm;

    fn filter(
        &self,
        weight: Vec<f32>,
        kernel: usize,
        outputs: usize,
        bias: Option<Vec<f32>>,
    ) -> Filter {
        let rows = weight.len() / outputs.max(1);
        let weight = TensorData::new(weight, [rows, outputs]);
        Filter {
            kernel,
            weight: Tensor::from_data(weight, &self.0),
            bias: bias.map(|bias| self.vector(bias)),
        }
    }

    fn norm(&self, groups: usize, scale: Vec<f32>, shift: Vec<f32>) -> Norm {
        Norm {
            groups,
            scale: self.vector(scale),
            shift: self.vector(shift),
        }
    }

    fn same(filter: &Filter, x: &Tensor<4>) -> Tensor<4> {
        if filter.kernel == 1 {
            let [b, h, w, c] = x.dims();
            let [_, outputs] = filter.weight.dims();
            let rows = x.clone().reshape([b * h * w, c]);
            return filter.products(rows).reshape([b, h, w, outputs]);
        }
        filter.over_patches(padded(x, [1, 1]), 1)
    }

    fn halved(filter: &Filter, x: &Tensor<4>, padding: Padding) -> Tensor<4> {
        let around = match padding {
            Padding::Around => [1, 1],
            Padding::After => [0, 1],
        };
        filter.over_patches(padded(x, around), 2)
    }

    fn doubled(x: &Tensor<4>) -> Tensor<4> {
        let [b, h, w, c] = x.dims();
        let x = x.clone().reshape([b, h, 1, w, 1, c]);
        x.expand([b, h, 2, w, 2, c]).reshape([b, 2 * h, 2 * w, c])
    }

    fn normed(norm: &Norm, x: &Tensor<4>, with_silu: bool) -> Tensor<4> {
        let [b, h, w, c] = x.dims();
        let of_group = c / norm.groups;
        let x = x.clone().reshape([b, h * w, norm.groups, of_group]);
        let mean = x.clone().mean_dim(3).mean_dim(1);
        let x = x - mean;
        let variance = x.clone().powi_scalar(2).mean_dim(3).mean_dim(1);
        let per_channel = |v: &Tensor<1>| v.clone().reshape([1, 1, norm.groups, of_group]);
        let x = x / (variance + NORM_EPS).sqrt();
        let x = x * per_channel(&norm.scale) + per_channel(&norm.shift);
        let x = x.reshape([b, h, w, c]);
        if with_silu { silu(x) } else { x }
    }

    fn attention(query: &Tensor<4>, key: &Tensor<4>, value: &Tensor<4>) -> Tensor<4> {
        let [b, h, w, c] = query.dims();
        let cells = |x: &Tensor<4>| -> Tensor<3> { x.clone().reshape([b, h * w, c]) };
        let query = cells(query) / (c as f64).sqrt();
        let (key, value) = (cells(key).swap_dims(1, 2), cells(value));
        let pieces = (0..h * w).step_by(QUERIES).map(|first| {
            let last = (first + QUERIES).min(h * w);
            let queries = query.clone().slice(s![.., first..last, ..]);
            softmax(queries.matmul(key.clone()), 2).matmul(value.clone())
        });
        Tensor::cat(pieces.collect(), 1).reshape([b, h, w, c])
    }

    fn plus(x: Tensor<4>, y: &Tensor<4>) -> Tensor<4> {
        x + y.clone()
    }

    fn relu(x: Tensor<4>) -> Tensor<4> {
        relu(x)
    }

    fn soft_clamp(x: Tensor<4>) -> Tensor<4> {
        (x / 3.0).tanh() * 3.0
    }

    fn affine(x: Tensor<4>, a: f32, b: f32) -> Tensor<4> {
        x * a + b
    }
}

impl Filter {
    /// Over every patch of a padded picture, rows at a time, so that patches take bounded memory.
    fn over_patches(&self, x: Tensor<4>, stride: usize) -> Tensor<4> {
        let [b, h, w, c] = x.dims();
        let [_, outputs] = self.weight.dims();
        let [rows, columns] = [h, w].map(|side| (side - self.kernel) / stride + 1);
        let row_numbers = b * columns * self.kernel * self.kernel * c;
        let at_a_time = (PATCH_NUMBERS / row_numbers.max(1)).clamp(1, rows);
        let mut pieces = Vec::new();
        for first in (0..rows).step_by(at_a_time) {
            let count = at_a_time.min(rows - first);
            let mut cells = Vec::with_capacity(self.kernel * self.kernel);
            for down in 0..self.kernel {
                for across in 0..self.kernel {
                    let top = first * stride + down;
                    let bottom = top + (count - 1) * stride + 1;
                    let right = across + (columns - 1) * stride + 1;
                    let step = stride as isize;
                    let cell = s![.., top..bottom;step, across..right;step, ..];
                    cells.push(x.clone().slice(cell));
                }
            }
            let patches = Tensor::cat(cells, 3);
            let patches = patches.reshape([b * count * columns, self.kernel * self.kernel * c]);
            pieces.push(self.products(patches).reshape([b, count, columns, outputs]));
        }
        match pieces.len() {
            1 => pieces.remove(0),
            _ => Tensor::cat(pieces, 1),
        }
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    fn products(&self, x: Tensor<2>) -> Tensor<2> {
        let out = product(x, self.weight.clone());
        match &self.bias {
            Some(bias) => out + bias.clone().unsqueeze(),
            None => out,
        }
    }
}

/// Zeros `[before, after]` both sides.
fn padded(x: &Tensor<4>, [before, after]: [usize; 2]) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let shape = [b, h + before + after, w + before + after, c];
    let inside = s![.., before..before + h, before..before + w, ..];
    Tensor::zeros(shape, &x.device()).slice_assign(inside, x.clone())
}
