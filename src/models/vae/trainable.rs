//! An AutoencoderKL whose weights are tensors of the caller's: what training needs of it.

use std::{collections::HashMap, convert::Infallible};

use burn::tensor::Tensor;

use super::{
    config::{KlConfig, VaeConfig},
    device::{Filter, Norm, OnDevice},
    layers::{Layer, Weight, kl_decoder, kl_encoder},
    network::{Op, Supply, of_torch, to_torch},
};

impl Weight {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Numbers that make one of an output, for matrices and convolutions; `None` for vectors.
    pub fn fan_in(&self) -> Option<usize> {
        match self.shape[..] {
            [_, _, ..] => Some(self.shape[1..].iter().product()),
            _ => None,
        }
    }

    /// `[inputs, outputs]` of a matrix or convolution.
    fn channels(&self) -> Option<[usize; 2]> {
        match self.shape[..] {
            [outputs, inputs, ..] => Some([inputs, outputs]),
            _ => None,
        }
    }

    /// PyTorch's layout to the network's.
    pub fn to_network(&self, values: Vec<f32>) -> Vec<f32> {
        match self.channels() {
            Some(channels) => of_torch(&values, channels),
            None => values,
        }
    }

    /// The way back.
    pub fn to_canonical(&self, values: Vec<f32>) -> Vec<f32> {
        match self.channels() {
            Some(channels) => to_torch(&values, channels),
            None => values,
        }
    }

    /// A flat tensor of it as the network takes it.
    pub fn leaf(&self, flat: Tensor<1>) -> Leaf {
        match self.channels() {
            Some([_, outputs]) => {
                let rows = self.len() / outputs.max(1);
                Leaf::Matrix(flat.reshape([rows, outputs]))
            }
            None => Leaf::Vector(flat),
        }
    }
}

/// A weight on a device.
#[derive(Debug, Clone)]
pub(crate) enum Leaf {
    /// `[kernel · kernel · inputs, outputs]`
    Matrix(Tensor<2>),
    Vector(Tensor<1>),
}

/// An AutoencoderKL's layers and the list of its weights.
#[derive(Debug, Clone)]
pub(crate) struct TrainableVae {
    config: KlConfig,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    parameters: Vec<Weight>,
    places: HashMap<String, usize>,
}

impl TrainableVae {
    /// # Errors
    /// A sentence about what the config lacks.
    pub fn new(config: KlConfig) -> Result<Self, String> {
        VaeConfig::Kl(config.clone()).check()?;
        let (encoder, decoder) = (kl_encoder(&config), kl_decoder(&config));
        let layers = encoder.iter().chain(&decoder);
        let parameters: Vec<_> = layers.flat_map(Layer::weights).collect();
        let place = |(i, p): (usize, &Weight)| (p.name.clone(), i);
        Ok(Self {
            places: parameters.iter().enumerate().map(place).collect(),
            config,
            encoder,
            decoder,
            parameters,
        })
    }

    pub fn config(&self) -> &KlConfig {
        &self.config
    }

    /// In the order in which passes take their leaves.
    pub fn parameters(&self) -> &[Weight] {
        &self.parameters
    }

    /// Means and logarithms of variances `[B, H/f, W/f, 2C]` of pictures `[B, H, W, 3]`.
    pub fn encode(&self, leaves: &[Leaf], x: Tensor<4>) -> Tensor<4> {
        self.pass(&self.encoder, leaves, x)
    }

    /// Pictures `[B, H, W, 3]` of latents `[B, H/f, W/f, C]`, not scaled.
    pub fn decode(&self, leaves: &[Leaf], z: Tensor<4>) -> Tensor<4> {
        self.pass(&self.decoder, leaves, z)
    }

    fn pass(&self, layers: &[Layer], leaves: &[Leaf], x: Tensor<4>) -> Tensor<4> {
        let mut of_leaves = OfLeaves {
            places: &self.places,
            leaves,
        };
        layers.iter().fold(x, |x, layer| {
            let Ok(op) = Op::<OnDevice>::new(layer, &mut of_leaves);
            op.apply(x)
        })
    }
}

struct OfLeaves<'a> {
    places: &'a HashMap<String, usize>,
    leaves: &'a [Leaf],
}

/// Names come from the layers that the list of weights was made from.
impl OfLeaves<'_> {
    fn vector(&self, name: &str) -> Tensor<1> {
        match self.places.get(name).map(|place| &self.leaves[*place]) {
            Some(Leaf::Vector(leaf)) => leaf.clone(),
            _ => unreachable!("no vector {name}"),
        }
    }

    fn matrix(&self, name: &str) -> Tensor<2> {
        match self.places.get(name).map(|place| &self.leaves[*place]) {
            Some(Leaf::Matrix(leaf)) => leaf.clone(),
            _ => unreachable!("no matrix {name}"),
        }
    }
}

impl Supply<OnDevice> for OfLeaves<'_> {
    type Error = Infallible;

    fn norm(&mut self, name: &str, groups: usize) -> Result<Norm, Infallible> {
        Ok(Norm {
            groups,
            scale: self.vector(&format!("{name}.weight")),
            shift: self.vector(&format!("{name}.bias")),
        })
    }

    fn conv(
        &mut self,
        name: &str,
        _: [usize; 2],
        kernel: usize,
        bias: bool,
    ) -> Result<Filter, Infallible> {
        Ok(Filter {
            kernel,
            weight: self.matrix(&format!("{name}.weight")),
            bias: bias.then(|| self.vector(&format!("{name}.bias"))),
        })
    }
}
