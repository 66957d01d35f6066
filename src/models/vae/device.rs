//! On any device, by burn's operations: a convolution is a matrix product over patches.

use burn::tensor::{
    Device, Tensor, TensorData,
    activation::{relu, softmax},
    s,
};

use super::{
    layers::{NORM_EPS, Padding, QUERIES},
    machine::Machine,
};
use crate::kernels::{Groups, Window, add_bias, convolution, doubled, group_norm, product};

/// The device. Pictures are `[1, H, W, C]`.
#[derive(Debug, Clone)]
pub(super) struct OnDevice(pub Device);

/// A convolution.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub kernel: usize,
    /// `[kernel · kernel · inputs, outputs]`
    pub weight: Tensor<2>,
    /// `[outputs]`
    pub bias: Option<Tensor<1>>,
}

#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub groups: usize,
    pub scale: Tensor<1>,
    pub shift: Tensor<1>,
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
        let x = x.clone();
        filter.biased(match filter.kernel {
            1 => product(x, filter.weight.clone()),
            _ => convolution(x, filter.weight.clone(), Window::SAME),
        })
    }

    fn halved(filter: &Filter, x: &Tensor<4>, padding: Padding) -> Tensor<4> {
        let window = Window {
            stride: 2,
            before: match padding {
                Padding::Around => 1,
                Padding::After => 0,
            },
            after: 1,
        };
        filter.biased(convolution(x.clone(), filter.weight.clone(), window))
    }

    fn doubled(x: &Tensor<4>) -> Tensor<4> {
        doubled(x.clone())
    }

    fn normed(norm: &Norm, x: &Tensor<4>, silu: bool) -> Tensor<4> {
        let groups = Groups {
            count: norm.groups,
            eps: NORM_EPS,
            silu,
        };
        group_norm(x.clone(), norm.scale.clone(), norm.shift.clone(), groups)
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
    fn biased(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.bias {
            Some(bias) => add_bias(x, bias.clone()),
            None => x,
        }
    }
}
