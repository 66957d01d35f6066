//! An autoencoder that learns from batches: weights and optimizer, without data or files.

use std::{collections::HashMap, path::Path};

use burn::tensor::{Device, Tensor, TensorData};

use super::{
    super::{
        forward::{flat, read},
        optimizer::{Step, Weights, norm},
        random::{Purpose, Stream},
        settings::{ema_decay, learning_rate},
        state::{AVERAGE, Named},
    },
    objective::{Posterior, VaeObjective},
    settings::VaeSettings,
};
use crate::{
    checkpoint::TensorSource,
    kernels,
    models::vae::{KlConfig, Leaf, TrainableVae, VaeConfig, VaeParameter},
    training::TrainingError,
};

/// Pictures `[B, 3, H, W]` in [-1, 1] and what is added to their latents, `[B, h, w, C]` of N(0, 1).
#[derive(Debug, Clone)]
pub struct VaeBatch {
    pub shape: [usize; 3],
    pub images: Vec<f32>,
    pub noise: Vec<f32>,
}

/// What a batch gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VaeLearned {
    /// The weighted sum.
    pub loss: f64,
    /// Mean absolute error of the pixels.
    pub error: f64,
    /// The same of differences between neighbouring pixels, summed over three sizes.
    pub edges: f64,
    /// Mean squared error of areas.
    pub areas: f64,
    /// Divergence to N(0, 1), a latent number.
    pub kl: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// What a training begins with.
#[derive(Debug, Clone)]
pub enum VaeStart {
    /// Weights as PyTorch initialises convolutions.
    Fresh(KlConfig),
    /// Weights that have learned something, by diffusers' names and in PyTorch's layout.
    From(KlConfig, HashMap<String, Vec<f32>>),
}

impl VaeStart {
    /// The autoencoder's shape.
    pub fn config(&self) -> &KlConfig {
        let (Self::Fresh(config) | Self::From(config, _)) = self;
        config
    }
}

/// An autoencoder in training.
#[derive(Debug)]
pub struct VaeLearner {
    network: TrainableVae,
    weights: Weights,
    settings: VaeSettings,
    device: Device,
    steps: u64,
    on_cpu: bool,
}

impl VaeLearner {
    /// Starts a training.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] for a config or a setting out of range, and where the weights to start from are not the config's.
    pub fn new(
        start: VaeStart,
        settings: VaeSettings,
        device: &Device,
    ) -> Result<Self, TrainingError> {
        let device = device.clone().inner();
        let (network, values) = match start {
            VaeStart::Fresh(config) => {
                let network = checked(config)?;
                let parameters = network.parameters();
                let places = 0..parameters.len();
                let values = places.map(|place| first_values(parameters, place, settings.seed));
                let values = values.collect::<Vec<_>>();
                (network, values)
            }
            VaeStart::From(config, mut weights) => {
                let network = checked(config)?;
                let values = network.parameters().iter().map(|p| {
                    let values = weights.remove(&p.name).filter(|v| v.len() == p.len());
                    values.ok_or_else(|| TrainingError::Setting {
                        setting: "init",
                        value: format!("an autoencoder without `{}` {:?}", p.name, p.shape),
                        expected: "one with all tensors of its config",
                    })
                });
                let values = values.collect::<Result<Vec<_>, _>>()?;
                (network, values)
            }
        };
        let placed = network.parameters().iter().zip(values);
        let placed = placed
            .map(|(p, v)| flat(p.to_network(v), &device))
            .collect();
        let weights = Weights::new(placed, vec![None; network.parameters().len()]);
        Self::with(network, weights, settings, device, 0)
    }

    /// Goes on from a checkpoint.
    pub(super) fn restore(
        config: KlConfig,
        settings: VaeSettings,
        device: &Device,
        steps: u64,
        source: &mut TensorSource,
    ) -> Result<Self, TrainingError> {
        let network = checked(config)?;
        let device = device.clone().inner();
        let matrices = vec![None; network.parameters().len()];
        let weights = Weights::read(source, &named(&network), matrices, &device)?;
        Self::with(network, weights, settings, device, steps)
    }

    fn with(
        network: TrainableVae,
        weights: Weights,
        settings: VaeSettings,
        device: Device,
        steps: u64,
    ) -> Result<Self, TrainingError> {
        settings.check()?;
        Ok(Self {
            on_cpu: kernels::on_cpu(&device),
            network,
            weights,
            settings,
            device,
            steps,
        })
    }

    /// The autoencoder's shape.
    pub fn config(&self) -> &KlConfig {
        self.network.config()
    }

    /// The settings it learns by.
    pub fn settings(&self) -> &VaeSettings {
        &self.settings
    }

    /// Optimizer steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Weights of both halves.
    pub fn parameters(&self) -> usize {
        self.network
            .parameters()
            .iter()
            .map(VaeParameter::len)
            .sum()
    }

    /// Names and PyTorch's shapes of the weights, in order.
    pub(super) fn shapes(&self) -> Vec<Named> {
        named(&self.network)
    }

    /// Writes the state of the weights, with what is said beside it.
    pub(super) fn write_state(&self, metadata: &str, path: &Path) -> Result<(), TrainingError> {
        self.weights.write(&self.shapes(), metadata, path)
    }

    /// Weight `place` of the moving average, in PyTorch's layout.
    pub(super) fn average(&self, place: usize) -> Result<Vec<f32>, TrainingError> {
        let values = self.weights.stored(AVERAGE, place)?;
        Ok(self.network.parameters()[place].to_canonical(values))
    }

    /// The weights as they stand, by diffusers' names and in PyTorch's layout.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn weights(&self) -> Result<HashMap<String, Vec<f32>>, TrainingError> {
        self.named(self.weights.values.iter().cloned())
    }

    fn named(
        &self,
        tensors: impl Iterator<Item = Tensor<1>>,
    ) -> Result<HashMap<String, Vec<f32>>, TrainingError> {
        let pairs = self.network.parameters().iter().zip(tensors);
        pairs
            .map(|(p, tensor)| Ok((p.name.clone(), p.to_canonical(read(tensor)?))))
            .collect()
    }

    fn leaves(&self, values: &[Tensor<1>]) -> Vec<Leaf> {
        let pairs = self.network.parameters().iter().zip(values);
        pairs.map(|(p, v)| p.leaf(v.clone())).collect()
    }

    fn pictures(&self, images: &[f32], shape: [usize; 3]) -> Tensor<4> {
        let [c, h, w] = shape;
        let count = images.len() / (c * h * w).max(1);
        let planes = TensorData::new(images.to_vec(), [count, c, h, w]);
        Tensor::<4>::from_data(planes, &self.device).permute([0, 2, 3, 1])
    }

    /// Means of the latents of pictures `[B, 3, H, W]` by the averaged weights, `[B, h, w, C]`.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn means(&self, images: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, TrainingError> {
        let leaves = self.leaves(&self.weights.ema);
        let moments = self.network.encode(&leaves, self.pictures(images, shape));
        read(Posterior::of(moments).mean)
    }

    /// The same, and what is decoded of them, `[B, 3, H, W]`.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn there_and_back(
        &self,
        images: &[f32],
        shape: [usize; 3],
    ) -> Result<[Vec<f32>; 2], TrainingError> {
        let leaves = self.leaves(&self.weights.ema);
        let moments = self.network.encode(&leaves, self.pictures(images, shape));
        let mean = Posterior::of(moments).mean;
        let back = self.network.decode(&leaves, mean.clone());
        Ok([read(mean)?, read(back.permute([0, 3, 1, 2]))?])
    }

    /// Losses and gradients of a batch, by name in PyTorch's layout; nothing is learned.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn gradient(
        &self,
        batch: &VaeBatch,
    ) -> Result<(VaeLearned, HashMap<String, Vec<f32>>), TrainingError> {
        let (losses, mut gradients) = self.backward(batch);
        let (norm, losses) = norm(&mut gradients, losses, self.on_cpu)?;
        let gradients = self.named(gradients.into_iter())?;
        Ok((learned(&losses, norm), gradients))
    }

    /// One optimizer step on a batch, for a run of which the share `progress` is done.
    ///
    /// # Errors
    /// [`TrainingError::Diverged`] where loss or gradient are not finite, [`TrainingError::Device`].
    pub fn learn(&mut self, batch: &VaeBatch, progress: f64) -> Result<VaeLearned, TrainingError> {
        let (losses, mut gradients) = self.backward(batch);
        let (norm, losses) = norm(&mut gradients, losses, self.on_cpu)?;
        let learned = learned(&losses, norm);
        if !learned.loss.is_finite() || !norm.is_finite() {
            return Err(TrainingError::Diverged {
                step: self.steps,
                loss: learned.loss,
                norm,
            });
        }
        let number = self.steps + 1;
        let step = Step {
            number,
            learning_rate: self.learning_rate(progress),
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            weight_decay: 0.0,
            ema_decay: ema_decay(self.settings.ema, number),
            // As torch.nn.utils.clip_grad_norm_.
            factor: (self.settings.clip / (norm + 1e-6)).min(1.0),
            factors: kernels::Factors::F32,
        };
        self.weights.step(gradients, step, self.on_cpu)?;
        self.steps = number;
        Ok(learned)
    }

    /// The learning rate of the next step.
    pub fn learning_rate(&self, progress: f64) -> f64 {
        let settings = &self.settings;
        learning_rate([settings.lr, progress], settings.warmup, self.steps)
    }

    /// Losses `[4]` and the gradients of their weighted sum, flat and by place.
    fn backward(&self, batch: &VaeBatch) -> (Tensor<1>, Vec<Tensor<1>>) {
        let leaves: Vec<Leaf> = self
            .leaves(&self.weights.values)
            .into_iter()
            .map(|leaf| match leaf {
                Leaf::Matrix(leaf) => Leaf::Matrix(leaf.autodiff().require_grad()),
                Leaf::Vector(leaf) => Leaf::Vector(leaf.autodiff().require_grad()),
            })
            .collect();
        let x = self.pictures(&batch.images, batch.shape).autodiff();
        let posterior = Posterior::of(self.network.encode(&leaves, x.clone()));
        let noise = TensorData::new(batch.noise.clone(), posterior.mean.dims());
        let noise = Tensor::<4>::from_data(noise, &self.device).autodiff();
        let back = self.network.decode(&leaves, posterior.draw(noise));
        let objective = VaeObjective {
            kl_weight: self.settings.kl_weight,
            gradient_weight: self.settings.gradient_weight,
            area_weight: self.settings.area_weight,
        };
        let losses = objective.losses(x, back, &posterior);
        let mut gradients = losses.total.clone().backward();
        let flat = leaves
            .iter()
            .zip(&self.weights.values)
            .map(|(leaf, value)| {
                let gradient = match leaf {
                    Leaf::Matrix(leaf) => leaf.grad_remove(&mut gradients).map(|g| g.flatten(0, 1)),
                    Leaf::Vector(leaf) => leaf.grad_remove(&mut gradients),
                };
                gradient.unwrap_or_else(|| value.zeros_like())
            });
        let flat = flat.collect();
        let all = [
            losses.total,
            losses.error,
            losses.edges,
            losses.areas,
            losses.kl,
        ];
        (Tensor::cat(all.map(Tensor::inner).to_vec(), 0), flat)
    }
}

fn named(network: &TrainableVae) -> Vec<Named> {
    let parameters = network.parameters().iter();
    parameters
        .map(|p| (p.name.clone(), p.shape.clone()))
        .collect()
}

fn learned(losses: &[f32], grad_norm: f64) -> VaeLearned {
    let at = |place: usize| f64::from(losses.get(place).copied().unwrap_or(f32::NAN));
    VaeLearned {
        loss: at(0),
        error: at(1),
        edges: at(2),
        areas: at(3),
        kl: at(4),
        grad_norm,
    }
}

fn checked(config: KlConfig) -> Result<TrainableVae, TrainingError> {
    TrainableVae::new(config).map_err(|problem| TrainingError::Setting {
        setting: "network",
        value: format!("an autoencoder of which {problem}"),
        expected: VaeConfig::EXPECTED,
    })
}

/// What weight `place` begins with: PyTorch's `U(±1/√fan_in)` for convolutions and their biases, 1 and 0 for norms.
fn first_values(parameters: &[VaeParameter], place: usize, seed: u64) -> Vec<f32> {
    let parameter = &parameters[place];
    // A bias comes behind its weight.
    let own = parameter.fan_in();
    let before = place.checked_sub(1).map(|before| &parameters[before]);
    let layer = |name: &str| name.rsplit_once('.').map(|(layer, _)| layer.to_owned());
    let of_layer = before.filter(|p| layer(&p.name) == layer(&parameter.name));
    match own.or(of_layer.and_then(VaeParameter::fan_in)) {
        Some(inputs) => {
            let bound = 1.0 / (inputs.max(1) as f64).sqrt();
            let mut stream = Stream::new(seed, Purpose::Weights, 0, place as u64);
            let values = (0..parameter.len()).map(|_| ((2.0 * stream.unit() - 1.0) * bound) as f32);
            values.collect()
        }
        None if parameter.name.ends_with(".weight") => vec![1.0; parameter.len()],
        None => vec![0.0; parameter.len()],
    }
}
