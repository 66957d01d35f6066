//! One half of an autoencoder on a device. Pictures are `[B, H, W, C]`: a convolution is a matrix product over patches.

use std::collections::HashMap;

use burn::tensor::{
    Device, Tensor, TensorData,
    activation::{relu, silu, softmax},
    s,
};

use super::{
    infer::Half,
    layers::{Layer, Padding},
};
use crate::{
    containers::{CheckpointError, TensorSource},
    kernels::product,
};

const NORM_EPS: f64 = 1e-6;
/// Numbers of the patches that a convolution lays out at a time.
const PATCH_NUMBERS: usize = 1 << 24;
/// Queries that attention takes at a time.
const QUERIES: usize = 1024;

#[derive(Debug, Clone)]
pub(super) struct Network {
    layers: Vec<Layer>,
    ops: Vec<Op>,
}

#[derive(Debug, Clone)]
enum Op {
    Conv(Conv),
    Halve(Conv, Padding),
    Double,
    Norm(Norm),
    Residual {
        norms: [Norm; 2],
        convs: [Conv; 2],
        shortcut: Option<Conv>,
    },
    Attention {
        norm: Norm,
        query: Conv,
        key: Conv,
        value: Conv,
        out: Conv,
    },
    Block([Conv; 3]),
    Relu,
    SoftClamp,
    Affine(f32, f32),
}

/// A convolution, or a linear layer where `kernel` is 1.
#[derive(Debug, Clone)]
struct Conv {
    kernel: usize,
    /// `[kernel · kernel · inputs, outputs]`
    weight: Tensor<2>,
    /// `[outputs]`
    bias: Option<Tensor<1>>,
}

#[derive(Debug, Clone)]
struct Norm {
    groups: usize,
    scale: Tensor<1>,
    shift: Tensor<1>,
}

/// Reads weights by diffusers' names.
struct Loader<'a> {
    source: &'a mut TensorSource,
    stored: HashMap<&'a str, &'a str>,
    device: &'a Device,
}

impl Loader<'_> {
    fn values(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let stored = self.stored.get(name).copied().unwrap_or(name);
        let values = self.source.read_f32(stored)?;
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(position) => Err(CheckpointError::NotFinite {
                path: self.source.path().into(),
                name: stored.into(),
                position,
            }),
        }
    }

    fn vector(&mut self, name: &str) -> Result<Tensor<1>, CheckpointError> {
        let values = self.values(name)?;
        let length = values.len();
        Ok(Tensor::from_data(
            TensorData::new(values, [length]),
            self.device,
        ))
    }

    fn norm(&mut self, name: &str, groups: usize) -> Result<Norm, CheckpointError> {
        Ok(Norm {
            groups,
            scale: self.vector(&format!("{name}.weight"))?,
            shift: self.vector(&format!("{name}.bias"))?,
        })
    }

    /// Of PyTorch's `[outputs, inputs, kernel, kernel]`.
    fn conv(
        &mut self,
        name: &str,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        bias: bool,
    ) -> Result<Conv, CheckpointError> {
        let values = self.values(&format!("{name}.weight"))?;
        let cells = kernel * kernel;
        let mut turned = vec![0.0; values.len()];
        for (out, filter) in values.chunks(inputs * cells).enumerate() {
            for (input, cell_values) in filter.chunks(cells).enumerate() {
                for (cell, value) in cell_values.iter().enumerate() {
                    turned[(cell * inputs + input) * outputs + out] = *value;
                }
            }
        }
        let weight = TensorData::new(turned, [cells * inputs, outputs]);
        Ok(Conv {
            kernel,
            weight: Tensor::from_data(weight, self.device),
            bias: match bias {
                true => Some(self.vector(&format!("{name}.bias"))?),
                false => None,
            },
        })
    }

    fn op(&mut self, layer: &Layer) -> Result<Op, CheckpointError> {
        Ok(match layer {
            Layer::Conv {
                name,
                channels,
                kernel,
                bias,
            } => Op::Conv(self.conv(name, *channels, *kernel, *bias)?),
            Layer::Halve {
                name,
                channels,
                padding,
                bias,
            } => Op::Halve(self.conv(name, *channels, 3, *bias)?, *padding),
            Layer::Double => Op::Double,
            Layer::Norm { name, groups, .. } => Op::Norm(self.norm(name, *groups)?),
            Layer::Residual {
                name,
                channels,
                groups,
            } => {
                let [input, output] = *channels;
                let shortcut = match input == output {
                    true => None,
                    false => {
                        let name = format!("{name}.conv_shortcut");
                        Some(self.conv(&name, *channels, 1, true)?)
                    }
                };
                Op::Residual {
                    norms: [
                        self.norm(&format!("{name}.norm1"), *groups)?,
                        self.norm(&format!("{name}.norm2"), *groups)?,
                    ],
                    convs: [
                        self.conv(&format!("{name}.conv1"), *channels, 3, true)?,
                        self.conv(&format!("{name}.conv2"), [output; 2], 3, true)?,
                    ],
                    shortcut,
                }
            }
            Layer::Attention {
                name,
                channels,
                groups,
            } => {
                let norm = self.norm(&format!("{name}.group_norm"), *groups)?;
                let mut part =
                    |part: &str| self.conv(&format!("{name}.{part}"), [*channels; 2], 1, true);
                Op::Attention {
                    norm,
                    query: part("to_q")?,
                    key: part("to_k")?,
                    value: part("to_v")?,
                    out: part("to_out.0")?,
                }
            }
            Layer::Block { name, channels } => {
                let mut part =
                    |n: usize| self.conv(&format!("{name}.conv.{n}"), [*channels; 2], 3, true);
                Op::Block([part(0)?, part(2)?, part(4)?])
            }
            Layer::Relu => Op::Relu,
            Layer::SoftClamp => Op::SoftClamp,
            Layer::Affine(scale, shift) => Op::Affine(*scale, *shift),
        })
    }
}

impl Network {
    pub fn load(
        half: &Half,
        source: &mut TensorSource,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let names = half.stored.iter();
        let mut loader = Loader {
            source,
            stored: names
                .map(|(weight, name)| (&*weight.name, &**name))
                .collect(),
            device,
        };
        let ops = half.layers.iter().map(|layer| loader.op(layer));
        Ok(Self {
            ops: ops.collect::<Result<_, _>>()?,
            layers: half.layers.clone(),
        })
    }

    /// `[B, H, W, C]` through all layers.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.ops.iter().fold(x, |x, op| op.apply(x))
    }

    /// Bytes that a pass over `[height, width]` holds at a time, by estimate.
    pub fn peak_bytes(&self, size: [usize; 2]) -> u64 {
        peak_bytes(&self.layers, size)
    }
}

/// Bytes that a pass of these layers over `[height, width]` holds at a time, by estimate.
pub(super) fn peak_bytes(layers: &[Layer], [height, width]: [usize; 2]) -> u64 {
    let mut cells = height * width;
    let mut most = 0;
    for layer in layers {
        match layer {
            Layer::Double => cells *= 4,
            Layer::Halve { .. } => cells = cells.div_ceil(4),
            _ => {}
        }
        let [input, output] = layer.channels().unwrap_or([0; 2]);
        // The input, what it is turned into, the output before and after its bias; a residual keeps its input beside them.
        let numbers = match layer {
            Layer::Residual { .. } => 2 * input + 2 * output,
            Layer::Attention { .. } => 6 * input + 2 * QUERIES,
            _ => input + 2 * output,
        };
        let patches = (9 * cells * input).min(PATCH_NUMBERS);
        most = most.max(4 * (cells * numbers + patches) as u64);
    }
    most
}

/// Bytes of the largest picture between two layers.
pub(super) fn largest_buffer(layers: &[Layer], [height, width]: [usize; 2]) -> u64 {
    let (mut cells, mut largest) = (height * width, 4 * PATCH_NUMBERS);
    for layer in layers {
        match layer {
            Layer::Double => cells *= 4,
            Layer::Halve { .. } => cells = cells.div_ceil(4),
            _ => {}
        }
        let [input, output] = layer.channels().unwrap_or([0; 2]);
        largest = largest.max(4 * cells * input.max(output));
    }
    largest as u64
}

impl Op {
    fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Conv(conv) => conv.same(x),
            Self::Halve(conv, padding) => conv.halve(x, *padding),
            Self::Double => double(x),
            Self::Norm(norm) => silu(norm.apply(x)),
            Self::Residual {
                norms: [first, second],
                convs: [one, two],
                shortcut,
            } => {
                let inner = one.same(silu(first.apply(x.clone())));
                let inner = two.same(silu(second.apply(inner)));
                let kept = match shortcut {
                    Some(shortcut) => shortcut.same(x),
                    None => x,
                };
                kept + inner
            }
            Self::Attention {
                norm,
                query,
                key,
                value,
                out,
            } => {
                let normed = norm.apply(x.clone());
                let [b, h, w, c] = normed.dims();
                let part = |conv: &Conv| conv.same(normed.clone()).reshape([b, h * w, c]);
                let mixed = attention(part(query), part(key), part(value));
                x + out.same(mixed.reshape([b, h, w, c]))
            }
            Self::Block(convs) => {
                let [one, two, three] = convs;
                let inner = two.same(relu(one.same(x.clone())));
                relu(three.same(relu(inner)) + x)
            }
            Self::Relu => relu(x),
            Self::SoftClamp => (x / 3.0).tanh() * 3.0,
            Self::Affine(scale, shift) => x * *scale + *shift,
        }
    }
}

impl Conv {
    /// The size kept.
    fn same(&self, x: Tensor<4>) -> Tensor<4> {
        if self.kernel == 1 {
            let [b, h, w, c] = x.dims();
            let [_, outputs] = self.weight.dims();
            return self
                .products(x.reshape([b * h * w, c]))
                .reshape([b, h, w, outputs]);
        }
        self.over_patches(padded(x, [1, 1]), 1)
    }

    /// Half of it.
    fn halve(&self, x: Tensor<4>, padding: Padding) -> Tensor<4> {
        let around = match padding {
            Padding::Around => [1, 1],
            Padding::After => [0, 1],
        };
        self.over_patches(padded(x, around), 2)
    }

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
                    let (bottom, right) = (
                        top + (count - 1) * stride + 1,
                        across + (columns - 1) * stride + 1,
                    );
                    let step = stride as isize;
                    cells.push(
                        x.clone()
                            .slice(s![.., top..bottom;step, across..right;step, ..]),
                    );
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

impl Norm {
    /// GroupNorm.
    fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, h, w, c] = x.dims();
        let of_group = c / self.groups;
        let x = x.reshape([b, h * w, self.groups, of_group]);
        let mean = x.clone().mean_dim(3).mean_dim(1);
        let x = x - mean;
        let variance = x.clone().powi_scalar(2).mean_dim(3).mean_dim(1);
        let per_channel = |v: &Tensor<1>| v.clone().reshape([1, 1, self.groups, of_group]);
        let x = x / (variance + NORM_EPS).sqrt();
        (x * per_channel(&self.scale) + per_channel(&self.shift)).reshape([b, h, w, c])
    }
}

/// Zeros `[before, after]` both sides.
fn padded(x: Tensor<4>, [before, after]: [usize; 2]) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let around = Tensor::zeros([b, h + before + after, w + before + after, c], &x.device());
    around.slice_assign(s![.., before..before + h, before..before + w, ..], x)
}

/// Every cell four times.
fn double(x: Tensor<4>) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let x = x.reshape([b, h, 1, w, 1, c]).expand([b, h, 2, w, 2, c]);
    x.reshape([b, 2 * h, 2 * w, c])
}

/// One head over `[B, cells, C]`, queries at a time.
fn attention(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Tensor<3> {
    let [_, cells, c] = query.dims();
    let key = key.swap_dims(1, 2);
    let query = query / (c as f64).sqrt();
    let pieces = (0..cells).step_by(QUERIES).map(|first| {
        let last = (first + QUERIES).min(cells);
        let scores = query
            .clone()
            .slice(s![.., first..last, ..])
            .matmul(key.clone());
        softmax(scores, 2).matmul(value.clone())
    });
    Tensor::cat(pieces.collect(), 1)
}
