//! One half of an autoencoder: its layers with their weights, on whatever machine.

use std::collections::HashMap;

use burn::tensor::{Device, Tensor, TensorData};

use super::{
    device::OnDevice,
    host::{OnHost, Picture},
    infer::Half,
    layers::{Layer, Padding, peak_bytes},
    machine::Machine,
};
use crate::{
    containers::{CheckpointError, TensorSource},
    device::{DeviceFault, read_back},
    kernels::on_cpu,
};

#[derive(Debug, Clone)]
pub(super) struct Network {
    layers: Vec<Layer>,
    placed: Placed,
}

#[derive(Debug, Clone)]
enum Placed {
    Device(Device, Vec<Op<OnDevice>>),
    Host(Vec<Op<OnHost>>),
}

#[derive(Debug, Clone)]
pub(super) enum Op<M: Machine> {
    Conv(M::Filter),
    Halve(M::Filter, Padding),
    Double,
    Norm(M::Norm),
    Residual {
        norms: [M::Norm; 2],
        convs: [M::Filter; 2],
        shortcut: Option<M::Filter>,
    },
    Attention {
        norm: M::Norm,
        query: M::Filter,
        key: M::Filter,
        value: M::Filter,
        out: M::Filter,
    },
    Block([M::Filter; 3]),
    Relu,
    SoftClamp,
    Affine(f32, f32),
}

/// Where the weights of layers come from, by diffusers' names.
pub(super) trait Supply<M: Machine> {
    type Error;

    fn norm(&mut self, name: &str, groups: usize) -> Result<M::Norm, Self::Error>;

    fn conv(
        &mut self,
        name: &str,
        channels: [usize; 2],
        kernel: usize,
        bias: bool,
    ) -> Result<M::Filter, Self::Error>;
}

/// Reads weights from files.
struct Loader<'a, M> {
    source: &'a mut TensorSource,
    stored: HashMap<&'a str, &'a str>,
    machine: M,
}

impl<M> Loader<'_, M> {
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
}

impl<M: Machine> Supply<M> for Loader<'_, M> {
    type Error = CheckpointError;

    fn norm(&mut self, name: &str, groups: usize) -> Result<M::Norm, CheckpointError> {
        let scale = self.values(&format!("{name}.weight"))?;
        let shift = self.values(&format!("{name}.bias"))?;
        Ok(self.machine.norm(groups, scale, shift))
    }

    fn conv(
        &mut self,
        name: &str,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        bias: bool,
    ) -> Result<M::Filter, CheckpointError> {
        let values = self.values(&format!("{name}.weight"))?;
        let turned = of_torch(&values, [inputs, outputs]);
        let bias = match bias {
            true => Some(self.values(&format!("{name}.bias"))?),
            false => None,
        };
        Ok(self.machine.filter(turned, kernel, outputs, bias))
    }
}

/// PyTorch's `[outputs, inputs, kernel, kernel]` as `[kernel · kernel · inputs, outputs]`.
pub(super) fn of_torch(values: &[f32], [inputs, outputs]: [usize; 2]) -> Vec<f32> {
    let cells = values.len() / (inputs * outputs).max(1);
    let mut turned = vec![0.0; values.len()];
    for (out, filter) in values.chunks(inputs * cells).enumerate() {
        for (input, cell_values) in filter.chunks(cells).enumerate() {
            for (cell, value) in cell_values.iter().enumerate() {
                turned[(cell * inputs + input) * outputs + out] = *value;
            }
        }
    }
    turned
}

/// The way back.
pub(super) fn to_torch(values: &[f32], [inputs, outputs]: [usize; 2]) -> Vec<f32> {
    let cells = values.len() / (inputs * outputs).max(1);
    let mut turned = vec![0.0; values.len()];
    for (row, of_outputs) in values.chunks(outputs).enumerate() {
        let (cell, input) = (row / inputs, row % inputs);
        for (out, value) in of_outputs.iter().enumerate() {
            turned[(out * inputs + input) * cells + cell] = *value;
        }
    }
    turned
}

impl<M: Machine> Op<M> {
    /// A layer with its weights.
    pub(super) fn new<S: Supply<M>>(layer: &Layer, supply: &mut S) -> Result<Self, S::Error> {
        Ok(match layer {
            Layer::Conv {
                name,
                channels,
                kernel,
                bias,
            } => Self::Conv(supply.conv(name, *channels, *kernel, *bias)?),
            Layer::Halve {
                name,
                channels,
                padding,
                bias,
            } => Self::Halve(supply.conv(name, *channels, 3, *bias)?, *padding),
            Layer::Double => Self::Double,
            Layer::Norm { name, groups, .. } => Self::Norm(supply.norm(name, *groups)?),
            Layer::Residual {
                name,
                channels,
                groups,
            } => {
                let [input, output] = *channels;
                let shortcut = format!("{name}.conv_shortcut");
                Self::Residual {
                    norms: [
                        supply.norm(&format!("{name}.norm1"), *groups)?,
                        supply.norm(&format!("{name}.norm2"), *groups)?,
                    ],
                    convs: [
                        supply.conv(&format!("{name}.conv1"), *channels, 3, true)?,
                        supply.conv(&format!("{name}.conv2"), [output; 2], 3, true)?,
                    ],
                    shortcut: match input == output {
                        true => None,
                        false => Some(supply.conv(&shortcut, *channels, 1, true)?),
                    },
                }
            }
            Layer::Attention {
                name,
                channels,
                groups,
            } => {
                let norm = supply.norm(&format!("{name}.group_norm"), *groups)?;
                let mut part =
                    |part: &str| supply.conv(&format!("{name}.{part}"), [*channels; 2], 1, true);
                Self::Attention {
                    norm,
                    query: part("to_q")?,
                    key: part("to_k")?,
                    value: part("to_v")?,
                    out: part("to_out.0")?,
                }
            }
            Layer::Block { name, channels } => {
                let mut part =
                    |n: usize| supply.conv(&format!("{name}.conv.{n}"), [*channels; 2], 3, true);
                Self::Block([part(0)?, part(2)?, part(4)?])
            }
            Layer::Relu => Self::Relu,
            Layer::SoftClamp => Self::SoftClamp,
            Layer::Affine(scale, shift) => Self::Affine(*scale, *shift),
        })
    }
}

/// The layers of a half with their weights.
fn load<M: Machine>(
    half: &Half,
    source: &mut TensorSource,
    machine: M,
) -> Result<Vec<Op<M>>, CheckpointError> {
    let names = half.stored.iter();
    let stored = names.map(|(weight, name)| (&*weight.name, &**name));
    let mut loader = Loader {
        source,
        stored: stored.collect(),
        machine,
    };
    let layers = half.layers.iter();
    layers.map(|layer| Op::new(layer, &mut loader)).collect()
}

impl Network {
    pub fn load(
        half: &Half,
        source: &mut TensorSource,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let placed = match on_cpu(device) {
            true => Placed::Host(load(half, source, OnHost)?),
            false => {
                let ops = load(half, source, OnDevice(device.clone()))?;
                Placed::Device(device.clone(), ops)
            }
        };
        Ok(Self {
            layers: half.layers.clone(),
            placed,
        })
    }

    /// One pass over `[C, H, W]`: the values and the shape of what comes out.
    pub fn pass(
        &self,
        values: Vec<f32>,
        [c, h, w]: [usize; 3],
    ) -> Result<(Vec<f32>, [usize; 3]), DeviceFault> {
        match &self.placed {
            Placed::Device(device, ops) => {
                let x = Tensor::<4>::from_data(TensorData::new(values, [1, c, h, w]), device);
                let x = x.permute([0, 2, 3, 1]);
                let x = ops.iter().fold(x, |x, op| op.apply(x));
                let [_, h, w, c] = x.dims();
                Ok((read_back(x.permute([0, 3, 1, 2]))?, [c, h, w]))
            }
            Placed::Host(ops) => {
                let x = Picture::of_planes(&values, [c, h, w]);
                let x = ops.iter().fold(x, |x, op| op.apply(x));
                let [h, w] = x.size;
                Ok((x.planes(), [x.channels, h, w]))
            }
        }
    }

    /// Bytes that a pass over `[height, width]` holds at a time, by estimate.
    pub fn peak_bytes(&self, size: [usize; 2]) -> u64 {
        peak_bytes(&self.layers, size)
    }
}

impl<M: Machine> Op<M> {
    pub(super) fn apply(&self, x: M::Picture) -> M::Picture {
        match self {
            Self::Conv(conv) => M::same(conv, &x),
            Self::Halve(conv, padding) => M::halved(conv, &x, *padding),
            Self::Double => M::doubled(&x),
            Self::Norm(norm) => M::normed(norm, &x, true),
            Self::Residual {
                norms: [first, second],
                convs: [one, two],
                shortcut,
            } => {
                let inner = M::same(one, &M::normed(first, &x, true));
                let inner = M::same(two, &M::normed(second, &inner, true));
                match shortcut {
                    Some(shortcut) => M::plus(inner, &M::same(shortcut, &x)),
                    None => M::plus(inner, &x),
                }
            }
            Self::Attention {
                norm,
                query,
                key,
                value,
                out,
            } => {
                let normed = M::normed(norm, &x, false);
                let part = |conv: &M::Filter| M::same(conv, &normed);
                let mixed = M::attention(&part(query), &part(key), &part(value));
                M::plus(M::same(out, &mixed), &x)
            }
            Self::Block([one, two, three]) => {
                let inner = M::same(two, &M::relu(M::same(one, &x)));
                M::relu(M::plus(M::same(three, &M::relu(inner)), &x))
            }
            Self::Relu => M::relu(x),
            Self::SoftClamp => M::soft_clamp(x),
            Self::Affine(a, b) => M::affine(x, *a, *b),
        }
    }
}
