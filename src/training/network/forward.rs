//! The network in training: its weights as flat tensors, and networks made of them.
//!
//! Weights, moments and averages are kept flat and by place in one list, so that the optimizer, the checkpoint and the
//! gradient know nothing of layers. For a pass a [`Dit`] is assembled from them; for a gradient, from tracked copies.

use std::{collections::HashMap, ops::Range, sync::Arc};

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};

use super::{settings::Precision, state::Named};
use crate::{
    checkpoint::StateDict,
    device::DeviceFault,
    kernels::on_cpu,
    layers::{Affine, Weight},
    models::{
        Architecture, Outline, Parameter, Supply,
        dit::{Dit, DitArchitecture, DitConfig, in_branch},
    },
    training::TrainingError,
};

/// Which tensors a network has.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub config: DitConfig,
    pub own_embedders: bool,
    pub parameters: Vec<Parameter>,
    places: HashMap<String, usize>,
    positions: Vec<f32>,
    outline: Arc<Outline>,
}

impl Layout {
    pub fn new(config: DitConfig, own_embedders: bool) -> Self {
        let architecture = DitArchitecture {
            config: config.clone(),
            own_embedders,
        };
        let all = architecture.tensors();
        let trained = all.iter().filter(|tensor| !tensor.is_positions());
        let parameters: Vec<_> = trained.map(Parameter::of).collect();
        let place = |(i, p): (usize, &Parameter)| (p.name.clone(), i);
        Self {
            places: parameters.iter().enumerate().map(place).collect(),
            positions: architecture.positions(),
            outline: Arc::new(architecture.outline()),
            config,
            own_embedders,
            parameters,
        }
    }

    /// Names and shapes of the parameters, in order.
    pub fn named(&self) -> Vec<Named> {
        let parameters = self.parameters.iter();
        parameters
            .map(|p| (p.name.clone(), p.shape.clone()))
            .collect()
    }

    /// The network on the device of `values` (flat, by place), without gradients.
    pub fn network(&self, values: &[Tensor<1>]) -> Dit {
        Leaves::constant(self, values).network(0..self.config.blocks)
    }

    /// Values by place, from names; PyTorch's layout to the network's.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] where a tensor is missing or of another size.
    pub fn values(
        &self,
        state: &StateDict,
        device: &Device,
    ) -> Result<Vec<Tensor<1>>, TrainingError> {
        self.parameters
            .iter()
            .map(|p| {
                let values = state.tensors.get(&p.name).filter(|v| v.len() == p.len());
                let values = values.ok_or_else(|| TrainingError::Setting {
                    setting: "init",
                    value: format!("a model without `{}` {:?}", p.name, p.shape),
                    expected: "a model with all tensors of its config",
                })?;
                Ok(flat(p.to_network(values.clone()), device))
            })
            .collect()
    }

    /// The way back.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn state(&self, values: &[Tensor<1>]) -> Result<HashMap<String, Vec<f32>>, TrainingError> {
        self.parameters
            .iter()
            .zip(values)
            .map(|(p, v)| Ok((p.name.clone(), p.to_canonical(read(v.clone())?))))
            .collect()
    }

    fn positions(&self, device: &Device) -> Tensor<3> {
        let shape = [1, self.config.tokens(), self.config.hidden];
        Tensor::from_data(TensorData::new(self.positions.clone(), shape), device)
    }
}

/// A flat tensor of these values.
pub(super) fn flat(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// The values of a tensor.
pub(super) fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TrainingError> {
    tensor
        .try_into_data()
        .map_err(|e| TrainingError::from(DeviceFault::failed(e)))?
        .try_into_vec::<f32>()
        .map_err(|e| DeviceFault::failed(format!("{e:?}")).into())
}

/// Names come from [`Dit::assemble`], which spells the list that the layout was made from.
fn place(layout: &Layout, name: &str) -> usize {
    let place = layout.places.get(name).copied();
    place.unwrap_or_else(|| unreachable!("no parameter {name}"))
}

/// How the blocks' matrix products are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Products {
    /// In f32.
    Whole,
    /// Of factors rounded to bf16, with sums and everything else in f32: on the CPU.
    Rounded,
    /// With all of a branch between its products in this type: on GPUs.
    In(DType),
}

impl Products {
    /// For this device; `None` where it makes none such.
    pub fn of(precision: Precision, device: &Device) -> Option<Self> {
        let dtype = match precision {
            Precision::F32 => return Some(Self::Whole),
            Precision::Bf16 if on_cpu(device) => return Some(Self::Rounded),
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        };
        (!on_cpu(device) && device.supports_dtype(dtype)).then_some(Self::In(dtype))
    }
}

/// Weights that gradients are kept for.
#[derive(Debug)]
pub(super) struct Leaves<'a> {
    layout: &'a Layout,
    leaves: Vec<Leaf>,
    positions: Tensor<3>,
    products: Products,
}

#[derive(Debug)]
enum Leaf {
    Matrix(Tensor<2>),
    Vector(Tensor<1>),
}

impl<'a> Leaves<'a> {
    pub fn new(layout: &'a Layout, values: &[Tensor<1>], products: Products) -> Self {
        let plain = Self::constant(layout, values);
        let leaves = plain.leaves.into_iter().map(|leaf| match leaf {
            Leaf::Matrix(leaf) => Leaf::Matrix(leaf.autodiff().require_grad()),
            Leaf::Vector(leaf) => Leaf::Vector(leaf.autodiff().require_grad()),
        });
        Self {
            leaves: leaves.collect(),
            positions: plain.positions.autodiff(),
            products,
            layout,
        }
    }

    /// Weights for passes that no gradient is taken of.
    pub fn constant(layout: &'a Layout, values: &[Tensor<1>]) -> Self {
        let leaves = layout
            .parameters
            .iter()
            .zip(values)
            .map(|(p, v)| match p.shape[..] {
                [rows, columns] => Leaf::Matrix(v.clone().reshape([rows, columns])),
                _ => Leaf::Vector(v.clone()),
            });
        Self {
            leaves: leaves.collect(),
            positions: layout.positions(&values[0].device()),
            products: Products::Whole,
            layout,
        }
    }

    /// The same for such passes, with products of the same kind.
    pub fn without_gradients(&self) -> Self {
        let leaves = self.leaves.iter().map(|leaf| match leaf {
            Leaf::Matrix(leaf) => Leaf::Matrix(leaf.clone().inner()),
            Leaf::Vector(leaf) => Leaf::Vector(leaf.clone().inner()),
        });
        Self {
            leaves: leaves.collect(),
            positions: self.positions.clone().inner(),
            ..*self
        }
    }

    /// Where they lie.
    pub fn device(&self) -> Device {
        self.positions.device().inner()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.leaves.len()
    }

    /// Blocks of the whole network.
    pub fn blocks(&self) -> usize {
        self.layout.config.blocks
    }

    /// A network of these weights with some of the blocks. Each holds parts of a graph of its own, so a backward pass
    /// through one leaves the others alone.
    pub fn network(&self, blocks: Range<usize>) -> Dit {
        let mut supply = self;
        Dit::assemble(
            &self.layout.config,
            self.layout.outline.clone(),
            blocks,
            self.layout.own_embedders,
            &mut supply,
        )
    }

    /// The type that branches run in between their products, where that is not f32.
    pub fn half(&self) -> Option<DType> {
        match self.products {
            Products::In(dtype) => Some(dtype),
            Products::Whole | Products::Rounded => None,
        }
    }

    /// Takes the weights' gradients out of `gradients` and adds them to `sums` (flat, by place).
    pub fn collect(&self, gradients: &mut Gradients, sums: &mut [Option<Tensor<1>>]) {
        for (leaf, sum) in self.leaves.iter().zip(sums) {
            let gradient = match leaf {
                Leaf::Matrix(leaf) => leaf.grad_remove(gradients).map(|g| g.flatten::<1>(0, 1)),
                Leaf::Vector(leaf) => leaf.grad_remove(gradients),
            };
            if let Some(gradient) = gradient {
                *sum = Some(match sum.take() {
                    Some(before) => before + gradient,
                    None => gradient,
                });
            }
        }
    }

    /// The sums, and zeros where a weight had no part in the loss.
    pub fn with_zeros(&self, sums: Vec<Option<Tensor<1>>>) -> Vec<Tensor<1>> {
        let device = self.device();
        let zeros = |p: &Parameter| Tensor::zeros([p.len()], &device);
        let sums = sums.into_iter().zip(&self.layout.parameters);
        sums.map(|(sum, p)| sum.unwrap_or_else(|| zeros(p)))
            .collect()
    }

    /// Whether a tensor takes part in the blocks' matrix products.
    fn in_half(&self, name: &str) -> Option<DType> {
        self.half().filter(|_| in_branch(name))
    }
}

impl Supply for &Leaves<'_> {
    fn matrix(&mut self, name: &str) -> Tensor<2> {
        let Leaf::Matrix(leaf) = &self.leaves[place(self.layout, name)] else {
            unreachable!("{name} is no matrix")
        };
        match self.in_half(name) {
            Some(half) => leaf.clone().cast(half),
            None => leaf.clone(),
        }
    }

    fn vector(&mut self, name: &str) -> Tensor<1> {
        let Leaf::Vector(leaf) = &self.leaves[place(self.layout, name)] else {
            unreachable!("{name} is no vector")
        };
        match self.in_half(name) {
            Some(half) => leaf.clone().cast(half),
            None => leaf.clone(),
        }
    }

    fn positions(&mut self) -> Tensor<3> {
        self.positions.clone()
    }

    fn linear(&mut self, name: &str) -> Affine {
        let weight = format!("{name}.weight");
        let matrix = self.matrix(&weight);
        let weight = match self.products {
            Products::Rounded if in_branch(&weight) => Weight::Rounded(matrix),
            _ => Weight::Whole(matrix),
        };
        Affine::kept(weight, self.vector(&format!("{name}.bias")))
    }
}
