//! The tensors of a network in canonical order, from a file or from a seed.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    describe::describe,
    error::CheckpointError,
    fingerprint::{Fingerprint, Fingerprinter},
    infer::naming,
    layout::{self, Expected, Naming},
    source::{self, TensorSource},
    spec::{LoadOptions, ModelInfo, ModelSpec},
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
    Random {
        seed: u64,
    },
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

    pub fn random(config: DitConfig, seed: u64) -> Self {
        Self {
            origin: Origin::Random { seed },
            config,
            own_embedders: false,
            class_names: Vec::new(),
            clip_x0: false,
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
            Origin::Random { .. } if tensor.name == layout::POSITIONS => positions(config),
            Origin::Random { seed } => random_values(*seed, tensor),
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
            source: spec.to_string(),
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

/// Uniform values of standard deviation `1/√inputs` for matrices, 0.02 for vectors, from a stream of the tensor's own.
fn random_values(seed: u64, tensor: &Expected) -> Vec<f32> {
    let mut key = blake3::Hasher::new();
    key.update(&seed.to_le_bytes())
        .update(tensor.name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*key.finalize().as_bytes());
    let inputs: usize = tensor.shape[1..].iter().product();
    let deviation = match tensor.shape.len() {
        1 => 0.02,
        _ if tensor.name.contains("embedding_table") => 1.0,
        _ => (inputs as f32).sqrt().recip(),
    };
    // A uniform variable on [-a, a] has deviation a/√3.
    let scale = deviation * 3f32.sqrt() / (1u32 << 31) as f32;
    let count = tensor.shape.iter().product();
    let mut values = Vec::with_capacity(count);
    values.extend((0..count).map(|_| rng.next_u32() as i32 as f32 * scale));
    values
}
