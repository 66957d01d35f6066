//! The tensors of a network in canonical order, from a file or from a seed.

use std::{collections::HashMap, path::Path};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::{
    describe::describe,
    error::CheckpointError,
    fingerprint::{Fingerprint, Fingerprinter},
    infer::naming,
    layout::{self, Expected, Naming},
    source::{self, TensorSource},
    spec::{LoadOptions, ModelInfo, ModelSpec},
    state::StateDict,
};
use crate::dit::{DitConfig, sincos_positions};

#[cfg(feature = "bundled")]
static BUNDLED: &[u8] = include_bytes!("../../assets/dit-emoji32.safetensors");

/// Canonical tensors, wherever they come from.
pub(super) struct Weights {
    origin: Origin,
    pub config: DitConfig,
    pub own_embedders: bool,
    pub class_names: Vec<String>,
    pub clip_x0: bool,
    expected_fingerprint: Option<Fingerprint>,
}

enum Origin {
    File {
        source: Box<TensorSource>,
        naming: Naming,
    },
    /// Values by a formula, from a seed.
    Seeded {
        seed: u64,
        values: fn(u64, &Expected) -> Vec<f32>,
    },
    /// Values by canonical name.
    Memory(HashMap<String, Vec<f32>>),
}

impl Weights {
    pub fn open(spec: &ModelSpec, options: LoadOptions) -> Result<Self, CheckpointError> {
        let source = match spec {
            ModelSpec::Random { size, tokens } => {
                return Ok(Self::random(random_config(size, *tokens)?, 0));
            }
            ModelSpec::Path(path) => source::open(path)?,
            #[cfg(feature = "bundled")]
            ModelSpec::Bundled => source::open_bytes(Path::new("the bundled model"), BUNDLED)?,
            #[cfg(not(feature = "bundled"))]
            ModelSpec::Bundled => {
                return Err(CheckpointError::UnknownFormat {
                    path: "the bundled model".into(),
                    found: "this build was made without the `bundled` feature; pass --model".into(),
                });
            }
        };
        let description = describe(&source, options)?;
        let mut weights = Self {
            origin: Origin::File {
                naming: naming(&source),
                source: Box::new(source),
            },
            config: description.config,
            own_embedders: description.own_embedders,
            class_names: description.class_names,
            clip_x0: description.clip_x0,
            expected_fingerprint: description.fingerprint,
        };
        if weights.own_embedders && weights.embedders_agree()? {
            weights.own_embedders = false;
        }
        Ok(weights)
    }

    /// Random weights for tests and measurements: every part alive.
    pub fn random(config: DitConfig, seed: u64) -> Self {
        Self::seeded(config, seed, random_values)
    }

    /// Weights to start training from, as the DiT release starts.
    pub fn fresh(config: DitConfig, seed: u64) -> Self {
        Self::seeded(config, seed, fresh_values)
    }

    fn seeded(config: DitConfig, seed: u64, values: fn(u64, &Expected) -> Vec<f32>) -> Self {
        Self {
            origin: Origin::Seeded { seed, values },
            config,
            own_embedders: false,
            class_names: Vec::new(),
            clip_x0: false,
            expected_fingerprint: None,
        }
    }

    /// Weights that are in memory.
    pub fn memory(state: StateDict) -> Self {
        Self {
            origin: Origin::Memory(state.tensors),
            config: state.config,
            own_embedders: state.own_embedders,
            class_names: state.class_names,
            clip_x0: state.clip_x0,
            expected_fingerprint: None,
        }
    }

    /// Every tensor to read, in canonical order.
    pub fn expected(&self) -> Vec<Expected> {
        layout::expected(&self.config, self.own_embedders)
    }

    /// A canonical tensor, row-major in PyTorch's shape.
    pub fn read(&mut self, tensor: &Expected) -> Result<Vec<f32>, CheckpointError> {
        let config = &self.config;
        let values = match &mut self.origin {
            Origin::Seeded { .. } | Origin::Memory(_) if tensor.name == layout::POSITIONS => {
                positions(config)
            }
            Origin::Seeded { seed, values } => values(*seed, tensor),
            Origin::Memory(tensors) => tensors
                .get(&tensor.name)
                .filter(|values| values.len() == tensor.shape.iter().product::<usize>())
                .cloned()
                .ok_or_else(|| CheckpointError::Missing {
                    path: "the weights in memory".into(),
                    name: tensor.name.clone(),
                    expected: tensor.shape.clone(),
                    count: 1,
                })?,
            Origin::File { source, naming } => {
                let mut values = Vec::new();
                for name in layout::stored_names(*naming, &tensor.name) {
                    if tensor.name == layout::POSITIONS && source.get(&name).is_none() {
                        return Ok(positions(config));
                    }
                    let part = source.read_f32(&name)?;
                    if let Some(position) = part.iter().position(|v| !v.is_finite()) {
                        return Err(CheckpointError::NotFinite {
                            path: source.path().into(),
                            name,
                            position,
                        });
                    }
                    // The common case, one part, moves.
                    if values.is_empty() {
                        values = part
                    } else {
                        values.extend(part)
                    }
                }
                values
            }
        };
        Ok(values)
    }

    /// Whether the position embedding is the fixed one.
    pub fn has_formula_positions(&mut self) -> Result<bool, CheckpointError> {
        let Some(tensor) = self
            .expected()
            .into_iter()
            .find(|t| t.name == layout::POSITIONS)
        else {
            return Ok(true);
        };
        let stored = self.read(&tensor)?;
        Ok(stored
            .iter()
            .zip(positions(&self.config))
            .all(|(a, b)| (a - b).abs() < 1e-6))
    }

    /// Whether all blocks' embedders are equal, as in converted checkpoints.
    fn embedders_agree(&mut self) -> Result<bool, CheckpointError> {
        let all = self.expected();
        let first = layout::own_embedder(0);
        for tensor in all
            .iter()
            .filter(|t| layout::is_embedder(&t.name) && t.name.starts_with(&first))
        {
            let reference = self.read(tensor)?;
            let kind = &tensor.name[first.len()..];
            for block in 1..self.config.blocks {
                let name = format!("{}{kind}", layout::own_embedder(block));
                let other = self.read(&Expected {
                    name,
                    shape: tensor.shape.clone(),
                })?;
                if other != reference {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The identity of the weights, reading them all.
    pub fn fingerprint(&mut self) -> Result<Fingerprint, CheckpointError> {
        let mut fingerprint = Fingerprinter::new();
        for tensor in self
            .expected()
            .iter()
            .filter(|t| t.name != layout::POSITIONS)
        {
            fingerprint.add(&tensor.name, &tensor.shape, &self.read(tensor)?);
        }
        Ok(fingerprint.finish())
    }

    pub fn info(&self, spec: &ModelSpec, fingerprint: Fingerprint) -> ModelInfo {
        ModelInfo {
            source: spec.clone(),
            config: self.config.clone(),
            class_names: self.class_names.clone(),
            clip_x0: self.clip_x0,
            fingerprint,
        }
    }

    /// Compares with what the file says it holds.
    pub fn check_fingerprint(
        &self,
        spec: &ModelSpec,
        found: &Fingerprint,
    ) -> Result<(), CheckpointError> {
        match &self.expected_fingerprint {
            Some(expected) if expected != found => Err(CheckpointError::Fingerprint {
                path: spec.to_string().into(),
                found: found.to_string(),
                expected: expected.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

fn positions(config: &DitConfig) -> Vec<f32> {
    let [rows, columns] = config.grid();
    sincos_positions(rows, columns, config.hidden)
}

pub(super) fn random_config(size: &str, tokens: usize) -> Result<DitConfig, CheckpointError> {
    let bad = |problem: String| CheckpointError::RandomSpec {
        spec: format!("random:{size}@{tokens}"),
        problem,
    };
    let patch: usize = size
        .rsplit('/')
        .next()
        .and_then(|p| p.parse().ok())
        .unwrap_or(0);
    DitConfig::published(size, [tokens.isqrt() * patch; 2]).map_err(|e| bad(e.to_string()))
}

/// A tensor of a DiT before its first training step, as the public release starts (DiT paper, arXiv 2212.09748,
/// section 3.2): Xavier-uniform matrices, N(0, 0.02) for labels and the timestep MLP, zeros for biases, adaLN and
/// the last layer, so that every block begins as the identity.
fn fresh_values(seed: u64, tensor: &Expected) -> Vec<f32> {
    let count = tensor.shape.iter().product();
    let name = &tensor.name;
    if tensor.shape.len() == 1 || name.contains("adaLN") || name.starts_with("final_layer") {
        return vec![0.0; count];
    }
    let mut rng = tensor_stream(seed, name);
    if layout::is_embedder(name) {
        let draw = |_| -> f32 {
            let z: f32 = StandardNormal.sample(&mut rng);
            0.02 * z
        };
        return (0..count).map(draw).collect();
    }
    let (outputs, inputs) = (tensor.shape[0], tensor.shape[1..].iter().product::<usize>());
    let bound = (6.0 / (inputs + outputs) as f32).sqrt();
    uniform(&mut rng, bound, count)
}

/// A random stream of the tensor's own.
fn tensor_stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = blake3::Hasher::new();
    key.update(&seed.to_le_bytes()).update(name.as_bytes());
    ChaCha8Rng::from_seed(*key.finalize().as_bytes())
}

/// Uniform values on `[-bound, bound]`.
fn uniform(rng: &mut ChaCha8Rng, bound: f32, count: usize) -> Vec<f32> {
    let scale = bound / (1u32 << 31) as f32;
    let mut values = Vec::with_capacity(count);
    values.extend((0..count).map(|_| rng.next_u32() as i32 as f32 * scale));
    values
}

/// Uniform values of standard deviation `1/√inputs` for matrices, 0.02 for vectors, from a stream of the tensor's own.
fn random_values(seed: u64, tensor: &Expected) -> Vec<f32> {
    let inputs: usize = tensor.shape[1..].iter().product();
    let deviation = match tensor.shape.len() {
        1 => 0.02,
        _ if tensor.name.contains("embedding_table") => 1.0,
        _ => (inputs as f32).sqrt().recip(),
    };
    // A uniform variable on [-a, a] has deviation a/√3.
    uniform(
        &mut tensor_stream(seed, &tensor.name),
        deviation * 3f32.sqrt(),
        tensor.shape.iter().product(),
    )
}
