//! The tensors of a network in canonical order, from a file or from a seed.

use std::{collections::HashMap, sync::Arc};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::{
    fingerprint::{Fingerprint, Fingerprinter},
    folder::PipelineFolder,
    opened::open_model,
    residence::Resident,
    spec::{LoadOptions, ModelInfo, ModelSpec},
    state::StateDict,
};
use crate::{
    containers::{CheckpointError, TensorSource},
    diffusion::{Guidance, Process, Solver},
    models::{Architecture, FAMILIES, Naming, Outline, Start, TensorSpec, dit::DitArchitecture},
};

/// Canonical tensors, wherever they come from.
pub(super) struct Weights {
    origin: Origin,
    pub architecture: Arc<dyn Architecture>,
    pub class_names: Vec<String>,
    pub clip_x0: bool,
    pub process: Process,
    pub solver: Option<Solver>,
    pub guidance: Option<Guidance>,
    notes: Vec<String>,
    folder: Option<PipelineFolder>,
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
        values: fn(u64, &TensorSpec) -> Vec<f32>,
    },
    /// Values by canonical name.
    Memory(HashMap<String, Vec<f32>>),
}

impl Weights {
    pub fn open(spec: &ModelSpec, options: LoadOptions) -> Result<Self, CheckpointError> {
        if let ModelSpec::Random { size, tokens } = spec {
            return Ok(Self::random(random_architecture(size, *tokens)?, 0));
        }
        let opened = open_model(spec)?;
        let description = opened.describe(options)?;
        let mut weights = Self {
            origin: Origin::File {
                naming: description.naming,
                source: Box::new(opened.source),
            },
            architecture: description.architecture,
            class_names: description.class_names,
            clip_x0: description.clip_x0,
            process: description.process,
            solver: description.solver,
            guidance: description.guidance,
            notes: description.notes,
            folder: opened.folder,
            expected_fingerprint: description.fingerprint,
        };
        if let Some(dit) = weights
            .architecture
            .as_dit()
            .filter(|dit| dit.own_embedders)
        {
            let shared = DitArchitecture::shared(dit.config.clone());
            if weights.embedders_agree(&shared)? {
                weights.architecture = Arc::new(shared);
            }
        }
        Ok(weights)
    }

    /// Random weights for tests and measurements: every part alive.
    pub fn random(architecture: Arc<dyn Architecture>, seed: u64) -> Self {
        Self::seeded(architecture, seed, random_values)
    }

    /// Weights to start training from, as the DiT release starts.
    pub fn fresh(architecture: Arc<dyn Architecture>, seed: u64) -> Self {
        Self::seeded(architecture, seed, fresh_values)
    }

    fn seeded(
        architecture: Arc<dyn Architecture>,
        seed: u64,
        values: fn(u64, &TensorSpec) -> Vec<f32>,
    ) -> Self {
        Self::of(Origin::Seeded { seed, values }, architecture)
    }

    /// Weights of which no file says more.
    fn of(origin: Origin, architecture: Arc<dyn Architecture>) -> Self {
        Self {
            origin,
            architecture,
            class_names: Vec::new(),
            clip_x0: false,
            process: Process::default(),
            solver: None,
            guidance: None,
            notes: Vec::new(),
            folder: None,
            expected_fingerprint: None,
        }
    }

    /// Weights that are in memory.
    pub fn memory(state: StateDict) -> Self {
        let architecture = DitArchitecture {
            config: state.config,
            own_embedders: state.own_embedders,
        };
        Self {
            class_names: state.class_names,
            clip_x0: state.clip_x0,
            guidance: state.guidance,
            ..Self::of(Origin::Memory(state.tensors), Arc::new(architecture))
        }
    }

    /// What is known of the network beside its weights.
    pub fn outline(&self) -> Outline {
        let mut outline = self.architecture.outline();
        outline.latents.process = self.process;
        outline
    }

    /// Every tensor to read, in canonical order.
    pub fn expected(&self) -> Vec<TensorSpec> {
        self.architecture.tensors()
    }

    /// A canonical tensor, row-major in PyTorch's shape.
    pub fn read(&mut self, tensor: &TensorSpec) -> Result<Vec<f32>, CheckpointError> {
        let architecture = &self.architecture;
        let values = match &mut self.origin {
            Origin::Seeded { .. } | Origin::Memory(_) if tensor.is_positions() => {
                architecture.positions()
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
                let stored = tensor.stored(*naming);
                if tensor.is_positions() && stored.iter().all(|name| source.get(name).is_none()) {
                    return Ok(architecture.positions());
                }
                for name in stored {
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
        let Some(tensor) = self.expected().into_iter().find(TensorSpec::is_positions) else {
            return Ok(true);
        };
        let stored = self.read(&tensor)?;
        Ok(stored
            .iter()
            .zip(self.architecture.positions())
            .all(|(a, b)| (a - b).abs() < 1e-6))
    }

    /// Whether the embedders that blocks have of their own are equal to a shared one, as in converted checkpoints.
    fn embedders_agree(&mut self, shared: &DitArchitecture) -> Result<bool, CheckpointError> {
        let own = self.expected();
        for tensor in shared.tensors() {
            let copies = own.iter().filter(|own| {
                own.name != tensor.name && own.name.ends_with(&format!(".{}", tensor.name))
            });
            let copies: Vec<_> = copies.cloned().collect();
            let Some((first, others)) = copies.split_first() else {
                continue;
            };
            let reference = self.read(first)?;
            for other in others {
                if self.read(other)? != reference {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The identity of the weights, reading them all.
    pub fn fingerprint(&mut self) -> Result<Fingerprint, CheckpointError> {
        let mut fingerprint = Fingerprinter::new();
        for tensor in self.expected().iter().filter(|t| !t.is_positions()) {
            fingerprint.add(&tensor.name, &tensor.shape, &self.read(tensor)?);
        }
        Ok(fingerprint.finish())
    }

    pub fn info(&self, spec: &ModelSpec, fingerprint: Fingerprint) -> ModelInfo {
        ModelInfo {
            source: spec.clone(),
            outline: self.outline(),
            architecture: self.architecture.clone(),
            class_names: self.class_names.clone(),
            clip_x0: self.clip_x0,
            solver: self.solver,
            guidance: self.guidance,
            notes: self.notes.clone(),
            folder: self.folder.clone(),
            fingerprint,
            resident: Resident::default(),
        }
    }

    /// What the file says it holds.
    pub fn said_fingerprint(&self) -> Option<Fingerprint> {
        self.expected_fingerprint.clone()
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

/// A published size of any family.
pub(super) fn random_architecture(
    size: &str,
    tokens: usize,
) -> Result<Arc<dyn Architecture>, CheckpointError> {
    let mut families = FAMILIES.into_iter();
    let found = families.find_map(|family| family.published(size, tokens));
    let found = found.unwrap_or_else(|| Err(format!("no family has a size `{size}`")));
    found.map_err(|problem| CheckpointError::RandomSpec {
        spec: format!("random:{size}@{tokens}"),
        problem,
    })
}

/// A tensor before its first training step.
fn fresh_values(seed: u64, tensor: &TensorSpec) -> Vec<f32> {
    let count = tensor.numbers();
    let mut rng = tensor_stream(seed, &tensor.name);
    match tensor.start {
        Start::Zeros => vec![0.0; count],
        Start::Normal => {
            let draw = |_| -> f32 {
                let z: f32 = StandardNormal.sample(&mut rng);
                0.02 * z
            };
            (0..count).map(draw).collect()
        }
        Start::Xavier => {
            let outputs = tensor.shape.first().copied().unwrap_or(1);
            let inputs = count / outputs.max(1);
            uniform(&mut rng, (6.0 / (inputs + outputs) as f32).sqrt(), count)
        }
    }
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

/// Uniform values that leave every part of a network alive, from a stream of the tensor's own.
fn random_values(seed: u64, tensor: &TensorSpec) -> Vec<f32> {
    // A uniform variable on [-a, a] has deviation a/√3.
    let bound = tensor.alive * 3f32.sqrt();
    uniform(
        &mut tensor_stream(seed, &tensor.name),
        bound,
        tensor.numbers(),
    )
}
