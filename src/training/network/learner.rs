//! A network that learns from batches: weights, optimizer and loss scale, without data or files.

use std::{collections::HashMap, path::Path};

use burn::tensor::Device;

use super::{
    forward::{Layout, Leaves, Products},
    gradient::{BatchGradient, batch_gradient},
    objective::{Batch, Objective},
    optimizer::{MuonMatrix, Step, Weights, norm},
    settings::{Optimizer, Precision, PretrainSettings},
};
use crate::{
    checkpoint::{StateDict, TensorSource},
    kernels::{self, Factors},
    models::dit::{Dit, DitConfig},
    models::{Parameter, dit::in_branch},
    sampler::Stop,
    stop::{Asked, Stopped},
    training::TrainingError,
};

/// Loss scale of half precision at the start, and how long it must hold before it is doubled.
const FIRST_SCALE: f64 = 65_536.0;
const GOOD_STEPS: u64 = 1000;

/// What a batch gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learned {
    /// Mean squared error of the predicted noise, unweighted.
    pub mse: f64,
    /// Variational bound, bits a value.
    pub vlb: f64,
    /// Norm of the gradient before clipping; 0 where half precision overflowed and the weights stayed as they were.
    pub grad_norm: f64,
}

/// A network in training.
#[derive(Debug)]
pub struct Learner {
    layout: Layout,
    weights: Weights,
    objective: Objective,
    settings: PretrainSettings,
    products: Products,
    scale: LossScale,
    /// Optimizer steps done.
    steps: u64,
    on_cpu: bool,
    asked: Asked,
}

/// The factor on the loss that keeps gradients within half precision.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct LossScale {
    pub scale: f64,
    /// Steps since it last changed.
    pub held: u64,
}

impl Learner {
    /// Starts from these weights.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] for a setting out of range or a precision that the device does not have.
    pub fn new(
        start: &StateDict,
        settings: PretrainSettings,
        device: &Device,
    ) -> Result<Self, TrainingError> {
        // Weights are constants until a pass tracks them.
        let device = device.clone().inner();
        let layout = Layout::new(start.config.clone(), start.own_embedders);
        let matrices = matrices(&layout, &settings);
        let weights = Weights::new(layout.values(start, &device)?, matrices);
        Self::with(layout, weights, settings, &device)
    }

    /// Goes on from a checkpoint.
    pub(super) fn restore(
        layout: Layout,
        settings: PretrainSettings,
        device: &Device,
        (steps, scale): (u64, LossScale),
        source: &mut TensorSource,
    ) -> Result<Self, TrainingError> {
        let device = &device.clone().inner();
        let matrices = matrices(&layout, &settings);
        let weights = Weights::read(source, &layout.named(), matrices, device)?;
        let mut learner = Self::with(layout, weights, settings, device)?;
        (learner.steps, learner.scale) = (steps, scale);
        Ok(learner)
    }

    fn with(
        layout: Layout,
        weights: Weights,
        settings: PretrainSettings,
        device: &Device,
    ) -> Result<Self, TrainingError> {
        settings.check()?;
        let on_cpu = kernels::on_cpu(device);
        let unsupported = || TrainingError::Setting {
            setting: "precision",
            value: settings.precision.name().into(),
            expected: match on_cpu {
                true => "f32 or bf16: the CPU does not compute in that type",
                false => "f32: this device does not compute in that type",
            },
        };
        let products = Products::of(settings.precision, device).ok_or_else(unsupported)?;
        let scaled = settings.precision == Precision::F16;
        Ok(Self {
            objective: Objective::new(settings.vlb_weight, settings.min_snr)?,
            layout,
            weights,
            settings,
            products,
            scale: LossScale {
                scale: if scaled { FIRST_SCALE } else { 1.0 },
                held: 0,
            },
            steps: 0,
            on_cpu,
            asked: Asked::default(),
        })
    }

    /// Asks this before each branch, on the way back too, whether to stop: a step of a large network may take minutes on a
    /// processor. A GPU still does what it was given before.
    pub fn with_stop(self, stop: Stop) -> Self {
        let asked = Asked::of(stop);
        Self { asked, ..self }
    }

    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// The network's shape.
    pub fn config(&self) -> &DitConfig {
        &self.layout.config
    }

    /// The settings it learns by.
    pub fn settings(&self) -> &PretrainSettings {
        &self.settings
    }

    /// Optimizer steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn loss_scale(&self) -> LossScale {
        self.scale
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The network as it stands, or its moving average.
    pub fn network(&self, average: bool) -> Dit {
        self.layout.network(self.tensors(average))
    }

    /// Its weights by canonical name, in PyTorch's layout.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn weights(&self, average: bool) -> Result<HashMap<String, Vec<f32>>, TrainingError> {
        self.layout.state(self.tensors(average))
    }

    fn tensors(&self, average: bool) -> &[burn::tensor::Tensor<1>] {
        if average {
            &self.weights.ema
        } else {
            &self.weights.values
        }
    }

    /// Writes the state of the weights, with what is said beside it.
    pub(super) fn write_state(&self, metadata: &str, path: &Path) -> Result<(), TrainingError> {
        self.weights.write(&self.layout.named(), metadata, path)
    }

    /// Losses and gradients of a batch, by canonical name in PyTorch's layout; nothing is learned.
    ///
    /// # Errors
    /// [`TrainingError::Device`]; [`TrainingError::Stopped`].
    pub fn gradient(
        &self,
        batch: &Batch,
    ) -> Result<(Learned, HashMap<String, Vec<f32>>), TrainingError> {
        let scale = self.scale.scale;
        let mut found = self.backward(batch, scale)?;
        if scale != 1.0 {
            let unscaled = found.gradients.into_iter().map(|g| g / scale);
            found.gradients = unscaled.collect();
        }
        let (grad_norm, losses) = norm(&mut found.gradients, found.losses, self.on_cpu)?;
        let learned = Learned {
            mse: losses[0].into(),
            vlb: losses[1].into(),
            grad_norm,
        };
        Ok((learned, self.layout.state(&found.gradients)?))
    }

    /// One optimizer step on a batch.
    ///
    /// # Errors
    /// [`TrainingError::Diverged`] where loss or gradient are not finite, [`TrainingError::Device`]; [`TrainingError::Stopped`], which
    /// leaves the network as it was.
    pub fn learn(&mut self, batch: &Batch, learning_rate: f64) -> Result<Learned, TrainingError> {
        let scale = self.scale.scale;
        let BatchGradient {
            losses,
            mut gradients,
        } = self.backward(batch, scale)?;
        let (scaled_norm, losses) = norm(&mut gradients, losses, self.on_cpu)?;
        let mut learned = Learned {
            mse: losses[0].into(),
            vlb: losses[1].into(),
            grad_norm: scaled_norm / scale,
        };
        let finite = learned.mse.is_finite() && learned.vlb.is_finite();
        if finite && !scaled_norm.is_finite() && scale > 1.0 {
            // Half precision overflowed on the way back: this batch teaches nothing, the next has a smaller scale.
            self.scale = LossScale {
                scale: scale / 2.0,
                held: 0,
            };
            learned.grad_norm = 0.0;
            self.steps += 1;
            return Ok(learned);
        }
        if !finite || !scaled_norm.is_finite() {
            return Err(TrainingError::Diverged {
                step: self.steps,
                loss: learned.mse + self.settings.vlb_weight * learned.vlb,
                norm: learned.grad_norm,
            });
        }
        let number = self.steps + 1;
        let step = Step {
            number,
            learning_rate,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            weight_decay: self.settings.weight_decay,
            ema_decay: self.settings.ema_decay(number),
            // As torch.nn.utils.clip_grad_norm_.
            factor: (self.settings.clip / (learned.grad_norm + 1e-6)).min(1.0) / scale,
            factors: match self.products {
                Products::Rounded => Factors::Bf16,
                Products::Whole | Products::In(_) => Factors::F32,
            },
        };
        self.weights.step(gradients, step, self.on_cpu)?;
        self.steps = number;
        if self.settings.precision == Precision::F16 {
            self.scale.held += 1;
            if self.scale.held >= GOOD_STEPS {
                self.scale = LossScale {
                    scale: scale * 2.0,
                    held: 0,
                };
            }
        }
        Ok(learned)
    }

    fn backward(&self, batch: &Batch, scale: f64) -> Result<BatchGradient, Stopped> {
        let leaves = Leaves::new(&self.layout, &self.weights.values, self.products);
        let (objective, settings) = (&self.objective, &self.settings);
        batch_gradient(&leaves, objective, batch, settings, scale, &self.asked)
    }
}

/// What Muon moves of the network: the matrices of its attention and MLP branches.
fn matrices(layout: &Layout, settings: &PretrainSettings) -> Vec<Option<MuonMatrix>> {
    let parameters = layout.parameters.iter();
    let matrix = |p: &Parameter| match p.shape[..] {
        [inputs, outputs] if settings.optimizer == Optimizer::Muon && in_branch(&p.name) => {
            Some(MuonMatrix {
                shape: [inputs, outputs],
                parts: if p.name.ends_with("qkv.weight") { 3 } else { 1 },
            })
        }
        _ => None,
    };
    parameters.map(matrix).collect()
}
