//! From a file, or from a seed, to a network on a device.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Device, Tensor, TensorData},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    error::CheckpointError,
    fingerprint::{Fingerprint, Fingerprinter},
    infer::{Hints, check_config, infer_config, naming},
    layout::{self, Expected, Naming},
    save::METADATA_KEY,
    source::{self, Format, TensorSource},
};
use crate::dit::{Block, ConditionEmbedder, Dit, DitConfig, sincos_positions};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSpec {
    /// A `.pt` or safetensors file or a diffusers folder.
    Path(PathBuf),
    /// The model inside the binary.
    Bundled,
    /// Seeded random weights of a published size, for measuring: `random:DiT-S/2@256`.
    Random { size: String, tokens: usize },
}

impl FromStr for ModelSpec {
    type Err = CheckpointError;
    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        if spec == "bundled" {
            return Ok(Self::Bundled);
        }
        let Some(rest) = spec.strip_prefix("random:") else {
            return Ok(Self::Path(spec.into()));
        };
        let bad = |problem: &str| CheckpointError::RandomSpec {
            spec: spec.into(),
            problem: problem.into(),
        };
        let (size, tokens) = rest
            .split_once('@')
            .ok_or_else(|| bad("it names no token count"))?;
        let tokens: usize = tokens
            .parse()
            .map_err(|_| bad("its token count is no number"))?;
        if tokens == 0 || tokens > 1 << 16 || tokens.isqrt().pow(2) != tokens {
            return Err(bad("its token count is no square from 1 to 65536"));
        }
        let spec = Self::Random {
            size: size.into(),
            tokens,
        };
        random_config(size, tokens)?;
        Ok(spec)
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Bundled => f.write_str("bundled"),
            Self::Random { size, tokens } => write!(f, "random:{size}@{tokens}"),
        }
    }
}

/// What a file may leave open.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Attention heads, which a `.pt` does not tell.
    pub heads: Option<usize>,
    /// `[height, width]` where tokens form no square.
    pub input_size: Option<[usize; 2]>,
}

/// What the file says beside the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    pub format: u32,
    pub family: String,
    pub config: DitConfig,
    #[serde(default)]
    pub classes: Vec<String>,
    #[serde(default)]
    pub clip_x0: bool,
    pub fingerprint: Fingerprint,
}

/// Everything about a model but its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Where it came from.
    pub source: String,
    pub config: DitConfig,
    /// Names of the classes, or empty.
    pub class_names: Vec<String>,
    /// Whether sampling clips the predicted `x_0` by default.
    pub clip_x0: bool,
    /// Identity of the weights.
    pub fingerprint: Fingerprint,
}

impl ModelInfo {
    /// Whether the network draws pixels (3 channels) rather than latents.
    pub fn is_pixel_space(&self) -> bool {
        self.config.channels == 3
    }

    /// Whether the weights are random ones, made for measuring.
    pub fn is_random(&self) -> bool {
        self.source.starts_with("random")
    }

    /// The name of a class, `#7` where it has none.
    pub fn class_name(&self, class: usize) -> String {
        self.class_names
            .get(class)
            .cloned()
            .unwrap_or_else(|| format!("#{class}"))
    }

    /// A class by number or by name, in any case.
    pub fn class_by_name(&self, name: &str) -> Option<usize> {
        match name.parse::<usize>() {
            Ok(number) => (number < self.config.classes).then_some(number),
            Err(_) => self
                .class_names
                .iter()
                .position(|n| n.eq_ignore_ascii_case(name)),
        }
    }
}

/// What a file holds, checked against the network it describes; nothing large is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    pub config: DitConfig,
    pub class_names: Vec<String>,
    pub clip_x0: bool,
    /// The fingerprint that the file itself names.
    pub fingerprint: Option<Fingerprint>,
    /// `the DiT release's` or `diffusers'` names.
    pub naming: &'static str,
    /// One embedder a block.
    pub own_embedders: bool,
}

#[cfg(feature = "bundled")]
static BUNDLED: &[u8] = include_bytes!("../../assets/dit-emoji32.safetensors");

/// Loads a model onto a device.
///
/// Peak memory is the weights in f32 plus one tensor.
///
/// # Errors
/// [`CheckpointError`]; nothing stays on the device then.
pub fn load_model(
    spec: &ModelSpec,
    options: LoadOptions,
    device: &Device,
) -> Result<(Dit, ModelInfo), CheckpointError> {
    let mut weights = Weights::open(spec, options)?;
    build(&mut weights, spec, device)
}

/// Everything about a model but its weights, which are read for their fingerprint alone.
///
/// # Errors
/// As [`load_model`].
pub fn model_info(spec: &ModelSpec, options: LoadOptions) -> Result<ModelInfo, CheckpointError> {
    let mut weights = Weights::open(spec, options)?;
    let fingerprint = weights.fingerprint()?;
    weights.check_fingerprint(spec, &fingerprint)?;
    Ok(weights.info(spec, fingerprint))
}

/// A network with seeded random weights: every part of it alive (unlike a freshly initialised DiT,
/// whose gates are zero), outputs of sensible size. For tests and measurements.
///
/// # Errors
/// [`CheckpointError::Settings`] if the config describes no network.
pub fn random_model(
    config: &DitConfig,
    seed: u64,
    device: &Device,
) -> Result<(Dit, ModelInfo), CheckpointError> {
    let spec = ModelSpec::Path("random weights".into());
    check_config(Path::new("random weights"), config)?;
    let mut weights = Weights::random(config.clone(), seed);
    build(&mut weights, &spec, device)
}

/// Checks a file as loading would, without reading weights.
///
/// # Errors
/// [`CheckpointError`].
pub fn describe(
    source: &TensorSource,
    options: LoadOptions,
) -> Result<Description, CheckpointError> {
    let path = source.path();
    let naming = naming(source);
    let metadata = read_metadata(source)?;
    let (config, class_names, clip_x0, fingerprint) = match metadata {
        Some(m) => {
            if let Some(heads) = options.heads.filter(|h| *h != m.config.heads) {
                return Err(CheckpointError::Settings {
                    path: path.into(),
                    problem: format!(
                        "--heads {heads} contradicts the file, which says {}",
                        m.config.heads
                    ),
                });
            }
            if let Some(size) = options.input_size.filter(|s| *s != m.config.input_size) {
                return Err(CheckpointError::Settings {
                    path: path.into(),
                    problem: format!(
                        "--input-size {size:?} contradicts the file, which says {:?}",
                        m.config.input_size
                    ),
                });
            }
            (m.config, m.classes, m.clip_x0, Some(m.fingerprint))
        }
        None => {
            let hints = Hints {
                heads: options.heads,
                input_size: options.input_size,
            };
            (
                infer_config(source, naming, hints)?,
                Vec::new(),
                false,
                None,
            )
        }
    };
    let stored = |name: &str| layout::stored_names(naming, name);
    let own = config.blocks > 1
        && stored(&format!(
            "{}t_embedder.mlp.0.weight",
            layout::own_embedder(config.blocks - 1)
        ))
        .iter()
        .any(|n| source.get(n).is_some());
    check_tensors(source, naming, &config, own)?;
    Ok(Description {
        config,
        class_names,
        clip_x0,
        fingerprint,
        naming: match naming {
            Naming::Release => "the DiT release's",
            Naming::Diffusers => "diffusers'",
        },
        own_embedders: own,
    })
}

fn read_metadata(source: &TensorSource) -> Result<Option<Metadata>, CheckpointError> {
    let Some(text) = source.metadata().get(METADATA_KEY) else {
        return Ok(None);
    };
    let path = source.path();
    let bad = |problem: String| CheckpointError::Config {
        path: path.into(),
        problem,
    };
    let metadata: Metadata = serde_json::from_str(text)
        .map_err(|e| bad(format!("its model description is not valid: {e}")))?;
    if metadata.format != 1 || metadata.family != "DiT" {
        return Err(bad(format!(
            "it was written for format {} of family {}, this program reads format 1 of family DiT",
            metadata.format, metadata.family
        )));
    }
    check_config(path, &metadata.config)?;
    if !metadata.classes.is_empty() && metadata.classes.len() != metadata.config.classes {
        return Err(bad(format!(
            "it names {} classes of {}",
            metadata.classes.len(),
            metadata.config.classes
        )));
    }
    Ok(Some(metadata))
}

/// Names and shapes of the file against those of the network.
fn check_tensors(
    source: &TensorSource,
    naming: Naming,
    config: &DitConfig,
    own_embedders: bool,
) -> Result<(), CheckpointError> {
    let path = source.path();
    let mut known = std::collections::HashSet::new();
    let mut missing: Vec<(String, Vec<usize>)> = Vec::new();
    for Expected { name, shape } in layout::expected(config, own_embedders) {
        let stored = layout::stored_names(naming, &name);
        let mut part = shape.clone();
        part[0] /= stored.len();
        for name in stored {
            match source.get(&name) {
                Some(entry) if entry.shape != part => {
                    return Err(CheckpointError::Shape {
                        path: path.into(),
                        name,
                        found: entry.shape.clone(),
                        expected: part,
                    });
                }
                Some(entry) if !entry.dtype.is_float() => {
                    return Err(CheckpointError::Dtype {
                        path: path.into(),
                        name,
                        dtype: entry.dtype.to_string(),
                    });
                }
                Some(_) => drop(known.insert(name)),
                None if is_positions(naming, &name) => {}
                None => missing.push((name, part.clone())),
            }
        }
    }
    if let Some((name, expected)) = missing.first() {
        return Err(CheckpointError::Missing {
            path: path.into(),
            name: name.clone(),
            expected: expected.clone(),
            count: missing.len(),
        });
    }
    let extra: Vec<_> = source
        .entries()
        .filter(|e| !known.contains(&e.name))
        .collect();
    if let Some(first) = extra.first() {
        return Err(CheckpointError::Unexpected {
            path: path.into(),
            name: first.name.clone(),
            shape: first.shape.clone(),
            model: config.name(),
            count: extra.len(),
        });
    }
    Ok(())
}

fn is_positions(naming: Naming, stored: &str) -> bool {
    layout::stored_names(naming, layout::POSITIONS)
        .iter()
        .any(|n| n == stored)
}

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

    fn random(config: DitConfig, seed: u64) -> Self {
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

    fn info(&self, spec: &ModelSpec, fingerprint: Fingerprint) -> ModelInfo {
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

fn random_config(size: &str, tokens: usize) -> Result<DitConfig, CheckpointError> {
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

/// Reads tensors in canonical order and puts each where it belongs.
fn build(
    weights: &mut Weights,
    spec: &ModelSpec,
    device: &Device,
) -> Result<(Dit, ModelInfo), CheckpointError> {
    let config = weights.config.clone();
    let mut fingerprint = Fingerprinter::new();
    let mut vectors: std::collections::HashMap<String, Tensor<1>> = Default::default();
    let mut matrices: std::collections::HashMap<String, Tensor<2>> = Default::default();
    for tensor in weights.expected() {
        let values = weights.read(&tensor)?;
        if tensor.name != layout::POSITIONS {
            fingerprint.add(&tensor.name, &tensor.shape, &values);
        }
        match tensor.shape[..] {
            [len] => {
                vectors.insert(
                    tensor.name,
                    Tensor::from_data(TensorData::new(values, [len]), device),
                );
            }
            // A table of rows stays as it is; a matrix turns from PyTorch's [out, in] to burn's [in, out].
            [rows, columns] if tensor.name.contains("embedding_table") => {
                matrices.insert(
                    tensor.name,
                    Tensor::from_data(TensorData::new(values, [rows, columns]), device),
                );
            }
            [1, tokens, dim] => {
                matrices.insert(
                    tensor.name,
                    Tensor::from_data(TensorData::new(values, [tokens, dim]), device),
                );
            }
            [outputs, ref rest @ ..] => {
                let inputs = rest.iter().product();
                let turned = transpose(values, outputs, inputs);
                matrices.insert(
                    tensor.name,
                    Tensor::from_data(TensorData::new(turned, [inputs, outputs]), device),
                );
            }
            [] => {}
        }
    }
    let fingerprint = fingerprint.finish();
    weights.check_fingerprint(spec, &fingerprint)?;
    tracing::debug!(model = %config.name(), %fingerprint, "loaded {spec}");

    // `layout::expected` and the names below are two spellings of one list; a slip is a bug, not bad input.
    let mut matrix = |name: &str| {
        matrices
            .remove(name)
            .unwrap_or_else(|| unreachable!("no tensor {name}"))
    };
    let mut vector = |name: &str| {
        vectors
            .remove(name)
            .unwrap_or_else(|| unreachable!("no tensor {name}"))
    };
    let mut linear = |name: &str| Linear {
        weight: Param::from_tensor(matrix(&format!("{name}.weight"))),
        bias: Some(Param::from_tensor(vector(&format!("{name}.bias")))),
    };
    let blocks = (0..config.blocks)
        .map(|b| Block {
            qkv: linear(&format!("blocks.{b}.attn.qkv")),
            proj: linear(&format!("blocks.{b}.attn.proj")),
            fc1: linear(&format!("blocks.{b}.mlp.fc1")),
            fc2: linear(&format!("blocks.{b}.mlp.fc2")),
            modulation: linear(&format!("blocks.{b}.adaLN_modulation.1")),
            heads: config.heads,
            mlp_norm_eps: config.mlp_norm_eps,
        })
        .collect();
    let patch_embedder = linear("x_embedder.proj");
    let final_linear = linear("final_layer.linear");
    let final_modulation = linear("final_layer.adaLN_modulation.1");
    let prefixes: Vec<String> = if weights.own_embedders {
        (0..config.blocks).map(layout::own_embedder).collect()
    } else {
        vec![layout::SHARED.into()]
    };
    let timestep: Vec<_> = prefixes
        .iter()
        .map(|p| {
            (
                linear(&format!("{p}t_embedder.mlp.0")),
                linear(&format!("{p}t_embedder.mlp.2")),
            )
        })
        .collect();
    let embedders = prefixes
        .iter()
        .zip(timestep)
        .map(|(p, (timestep_in, timestep_out))| ConditionEmbedder {
            timestep_in,
            timestep_out,
            labels: Param::from_tensor(matrix(&format!("{p}y_embedder.embedding_table.weight"))),
        })
        .collect();
    let positions = matrix(layout::POSITIONS).unsqueeze::<3>();
    let model = Dit {
        patch_embedder,
        positions: Param::from_tensor(positions),
        embedders,
        blocks,
        final_modulation,
        final_linear,
        config: config.clone(),
    };
    let info = weights.info(spec, fingerprint);
    Ok((model.no_grad(), info))
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

impl Format {
    /// For people.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Torch => "PyTorch zip archive",
            Self::Safetensors => "safetensors",
        }
    }
}
