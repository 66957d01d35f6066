//! Families of models: how files are recognised, what their tensors are called, and how a network is built of them.

use std::{fmt::Debug, path::Path, sync::Arc};

use burn::tensor::Tensor;
use serde_json::Value;

use super::{Model, Outline, dit, pixart};
use crate::{
    containers::{CheckpointError, TensorSource},
    layers::Affine,
};

/// Every family that there is.
pub const FAMILIES: [&dyn Family; 2] = [&dit::DitFamily, &pixart::PixArtFamily];

/// The family of this name.
pub fn family_named(name: &str) -> Option<&'static dyn Family> {
    FAMILIES.into_iter().find(|family| family.name() == name)
}

/// What a file may leave open.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hints {
    /// Attention heads, which a `.pt` does not tell.
    pub heads: Option<usize>,
    /// `[height, width]` where the file does not tell, or another size is wanted.
    pub input_size: Option<[usize; 2]>,
}

/// Under whose names a file holds its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The authors', which are ours too.
    Release,
    /// The diffusers library's.
    Diffusers,
}

/// A kind of network.
pub trait Family: Sync {
    /// As files name it.
    fn name(&self) -> &'static str;

    /// Whether a file holds such a network, by the names of its tensors.
    fn recognises(&self, source: &TensorSource) -> bool;

    /// The network that a file without a config of ours describes; nothing large is read.
    ///
    /// # Errors
    /// [`CheckpointError`].
    fn infer(
        &self,
        source: &TensorSource,
        naming: Naming,
        hints: Hints,
    ) -> Result<Arc<dyn Architecture>, CheckpointError>;

    /// The network of a config that [`Architecture::to_json`] wrote, as a file with such tensors holds it; `path` stands for
    /// the file in messages.
    ///
    /// # Errors
    /// [`CheckpointError`].
    fn read(
        &self,
        config: Value,
        source: Option<&TensorSource>,
        hints: Hints,
        path: &Path,
    ) -> Result<Arc<dyn Architecture>, CheckpointError>;

    /// A published size by name, such as `DiT-XL/2`, for so many tokens; `None` where the name is another family's.
    ///
    /// # Errors
    /// What is wrong with it.
    fn published(&self, size: &str, tokens: usize)
    -> Option<Result<Arc<dyn Architecture>, String>>;
}

/// The shape of a network: everything that fixes the names and sizes of its weights and how they are used.
pub trait Architecture: Debug + Send + Sync {
    /// What is known beside the weights.
    fn outline(&self) -> Outline;

    /// The config as files hold it.
    fn to_json(&self) -> Value;

    /// Every tensor in canonical order.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// Tensors that a file may hold although nothing needs them.
    fn ignored(&self) -> &'static [&'static str] {
        &[]
    }

    /// The latents, `[height, width]`, for a picture of about `pixels` `[height, width]`, in the nearest size that the network was
    /// trained for; `None` for networks of one size.
    fn latents_for(&self, _pixels: [usize; 2]) -> Option<[usize; 2]> {
        None
    }

    /// The fixed position embedding, `[tokens, dim]`.
    fn positions(&self) -> Vec<f32>;

    /// The network of these weights; `outline` is its own, but for the process that it was trained on.
    fn build(&self, outline: Arc<Outline>, supply: &mut dyn Supply) -> Model;

    /// The DiT it is, where it is one, for what only DiTs can do.
    fn as_dit(&self) -> Option<&dit::DitArchitecture> {
        None
    }
}

/// The canonical name of the position embedding, `[1, tokens, dim]`: fixed by a formula, so a file need not hold it.
pub const POSITIONS: &str = "pos_embed";

/// Values of a weight before training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// Uniform on `±√(6/(inputs + outputs))`.
    Xavier,
    /// N(0, 0.02).
    Normal,
    Zeros,
}

/// A tensor of a network: every name it goes by, its shape, and how it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// The authors' name, which is ours.
    pub name: String,
    /// Names under which diffusers holds it; several are joined along the first axis.
    pub diffusers: Vec<String>,
    /// PyTorch's shape, `[outputs, inputs…]` of a layer.
    pub shape: Vec<usize>,
    /// Whether it is a layer's weights, which the network keeps as `[inputs, outputs]`.
    pub turned: bool,
    /// Whether it is computed whatever a file holds.
    pub computed: bool,
    pub start: Start,
    /// Standard deviation of random weights that leave every part of the network alive.
    pub alive: f32,
}

impl TensorSpec {
    /// A layer's weights `[outputs, inputs…]`.
    pub fn matrix(name: String, shape: Vec<usize>, diffusers: Vec<String>) -> Self {
        let inputs: usize = shape.iter().skip(1).product();
        Self {
            name,
            diffusers,
            turned: true,
            computed: false,
            start: Start::Xavier,
            alive: (inputs.max(1) as f32).sqrt().recip(),
            shape,
        }
    }

    /// A layer's bias `[outputs]`.
    pub fn vector(name: String, length: usize, diffusers: Vec<String>) -> Self {
        Self {
            name,
            diffusers,
            shape: vec![length],
            turned: false,
            computed: false,
            start: Start::Zeros,
            alive: 0.02,
        }
    }

    /// The embedding of patches of `patch` by `patch` cells: weights `[dim, channels, patch, patch]` and bias.
    pub fn patches(dim: usize, channels: usize, patch: usize) -> [Self; 2] {
        let ours = |part: &str| format!("x_embedder.proj.{part}");
        let theirs = |part: &str| vec![format!("pos_embed.proj.{part}")];
        let shape = vec![dim, channels, patch, patch];
        [
            Self::matrix(ours("weight"), shape, theirs("weight")),
            Self::vector(ours("bias"), dim, theirs("bias")),
        ]
    }

    /// A table `[rows, columns]`, kept as it lies.
    pub fn table(name: String, shape: [usize; 2], diffusers: Vec<String>, alive: f32) -> Self {
        Self {
            name,
            diffusers,
            shape: shape.to_vec(),
            turned: false,
            computed: false,
            start: Start::Normal,
            alive,
        }
    }

    /// The position embedding.
    pub fn positions(tokens: usize, dim: usize, diffusers: Vec<String>) -> Self {
        Self {
            name: POSITIONS.into(),
            diffusers,
            shape: vec![1, tokens, dim],
            turned: false,
            computed: false,
            start: Start::Zeros,
            alive: 1.0,
        }
    }

    /// The same beginning with these values.
    pub fn starting(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// The same, never read from a file.
    pub fn computed(self) -> Self {
        Self {
            computed: true,
            ..self
        }
    }

    /// Whether it is the position embedding.
    pub fn is_positions(&self) -> bool {
        self.name == POSITIONS
    }

    /// The names under which a file holds it; several are joined along the first axis.
    pub fn stored(&self, naming: Naming) -> Vec<String> {
        match naming {
            _ if self.computed => Vec::new(),
            Naming::Release => vec![self.name.clone()],
            Naming::Diffusers => self.diffusers.clone(),
        }
    }

    /// Number of values.
    pub fn numbers(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the buffer that a device uses it from: f32, whatever it is kept in.
    pub fn device_bytes(&self) -> u64 {
        4 * self.numbers() as u64
    }
}

/// A trained tensor as the network keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    pub name: String,
    /// `[inputs, outputs]`, `[rows, columns]` of a table, or `[len]`.
    pub shape: Vec<usize>,
    /// Whether PyTorch keeps it the other way round, as `[outputs, inputs]`.
    turned: bool,
}

impl Parameter {
    /// Of a tensor that is not the position embedding.
    pub fn of(tensor: &TensorSpec) -> Self {
        let shape = match tensor.shape[..] {
            [outputs, ref rest @ ..] if tensor.turned => vec![rest.iter().product(), outputs],
            _ => tensor.shape.clone(),
        };
        Self {
            name: tensor.name.clone(),
            shape,
            turned: tensor.turned,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values as PyTorch lays them out, as the network does.
    pub fn to_network(&self, values: Vec<f32>) -> Vec<f32> {
        match self.shape[..] {
            [inputs, outputs] if self.turned => transpose(values, outputs, inputs),
            _ => values,
        }
    }

    /// The way back.
    pub fn to_canonical(&self, values: Vec<f32>) -> Vec<f32> {
        match self.shape[..] {
            [inputs, outputs] if self.turned => transpose(values, inputs, outputs),
            _ => values,
        }
    }
}

/// Where a network gets its tensors from, by canonical name.
pub trait Supply {
    fn matrix(&mut self, name: &str) -> Tensor<2>;
    fn vector(&mut self, name: &str) -> Tensor<1>;
    /// `[1, tokens, dim]`
    fn positions(&mut self) -> Tensor<3>;

    fn linear(&mut self, name: &str) -> Affine {
        let weight = self.matrix(&format!("{name}.weight"));
        Affine::new(weight, self.vector(&format!("{name}.bias")))
    }
}

/// `[rows, columns]` to `[columns, rows]`, in tiles that stay in cache.
fn transpose(values: Vec<f32>, rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for r in row..(row + TILE).min(rows) {
                for c in column..(column + TILE).min(columns) {
                    out[c * rows + r] = values[r * columns + c];
                }
            }
        }
    }
    out
}
