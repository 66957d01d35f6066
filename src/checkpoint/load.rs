//! From a file, or from a seed, to a network on a device.

use std::{collections::HashMap, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData};

use super::{
    fingerprint::Fingerprinter,
    residence::{Residence, ResidenceError, Resident},
    spec::{LoadOptions, ModelInfo, ModelSpec},
    state::StateDict,
    weights::Weights,
};
use crate::{
    containers::CheckpointError,
    device::Engine,
    diffusion::{NoiseSchedule, Process},
    layers::{Affine, Weight, WeightData},
    models::{
        Architecture, Model, Parameter, Supply,
        dit::{DitArchitecture, DitConfig},
    },
};

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
) -> Result<(Model, ModelInfo), CheckpointError> {
    load_model_in(spec, options, Residence::default(), device)
}

/// The same, weights kept as `residence` says.
///
/// # Errors
/// As [`load_model`], and [`CheckpointError::Residence`].
pub fn load_model_in(
    spec: &ModelSpec,
    options: LoadOptions,
    residence: Residence,
    device: &Device,
) -> Result<(Model, ModelInfo), CheckpointError> {
    let mut weights = Weights::open(spec, options)?;
    build(&mut weights, spec, residence, device)
}

/// The same onto an engine's device, refusing a tensor that none of its buffers can hold before any weight is read.
///
/// # Errors
/// As [`load_model_in`].
pub fn load_model_onto(
    engine: &Engine,
    spec: &ModelSpec,
    options: LoadOptions,
    residence: Residence,
) -> Result<(Model, ModelInfo), CheckpointError> {
    let mut weights = Weights::open(spec, options)?;
    let tensors = weights.expected().into_iter();
    let sizes = tensors.map(|tensor| {
        let bytes = tensor.device_bytes();
        (tensor.name, bytes)
    });
    ResidenceError::check_buffers(sizes, engine.report().max_buffer_bytes).map_err(|source| {
        CheckpointError::Residence {
            path: spec.to_string().into(),
            source,
        }
    })?;
    build(&mut weights, spec, residence, engine.device())
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

/// Everything about a model but its weights, of which none is read: the fingerprint is what the file says, or nobody's.
///
/// # Errors
/// As [`load_model`], but for those of the weights' values.
pub fn model_outline(spec: &ModelSpec, options: LoadOptions) -> Result<ModelInfo, CheckpointError> {
    let weights = Weights::open(spec, options)?;
    let fingerprint = weights
        .said_fingerprint()
        .unwrap_or_else(|| Fingerprinter::new().finish());
    Ok(weights.info(spec, fingerprint))
}

/// A network with seeded random weights: every part of it alive (unlike a freshly initialised DiT,
/// whose gates are zero), outputs of sensible size. For tests and measurements.
///
/// # Errors
/// [`CheckpointError`] never happens for weights that are not read, but is loading's to say.
pub fn random_model(
    architecture: Arc<dyn Architecture>,
    seed: u64,
    device: &Device,
) -> Result<(Model, ModelInfo), CheckpointError> {
    let outline = architecture.outline();
    let spec = ModelSpec::Random {
        size: outline.name,
        tokens: outline.graph.tokens(),
    };
    let mut weights = Weights::random(architecture, seed);
    build(&mut weights, &spec, Residence::default(), device)
}

/// A model's weights in memory, whatever kind of file it comes from.
///
/// # Errors
/// As [`load_model`].
pub fn load_state(spec: &ModelSpec, options: LoadOptions) -> Result<StateDict, CheckpointError> {
    let mut weights = Weights::open(spec, options)?;
    let untrainable = |problem: String| CheckpointError::Settings {
        path: match spec {
            ModelSpec::Path(path) => path.clone(),
            ModelSpec::Bundled | ModelSpec::Random { .. } => "the model".into(),
            other => other.to_string().into(),
        },
        problem,
    };
    if !weights.has_formula_positions()? {
        return Err(untrainable(
            "its position embedding is one of its own, which training would replace by the usual one".into(),
        ));
    }
    if !weights.process.is_usual() {
        let Process { prediction, noise } = weights.process;
        return Err(untrainable(format!(
            "it was trained on {noise} to predict {prediction:?}, which training would replace by the usual {} and Epsilon",
            NoiseSchedule::default()
        )));
    }
    state_of(&mut weights)
}

/// The weights of a network that has learned nothing yet, initialised as the DiT release does.
///
/// # Errors
/// [`CheckpointError::Settings`] if the config describes no network.
pub fn fresh_state(config: &DitConfig, seed: u64) -> Result<StateDict, CheckpointError> {
    state_of(&mut fresh_weights(config, seed)?)
}

/// The same, each tensor made where it is read.
pub(super) fn fresh_weights(config: &DitConfig, seed: u64) -> Result<Weights, CheckpointError> {
    config.check().map_err(|e| CheckpointError::Settings {
        path: "fresh weights".into(),
        problem: format!("it describes no DiT: {e}"),
    })?;
    let architecture = Arc::new(DitArchitecture::shared(config.clone()));
    Ok(Weights::fresh(architecture, seed))
}

fn state_of(weights: &mut Weights) -> Result<StateDict, CheckpointError> {
    let Some(dit) = weights.architecture.as_dit().cloned() else {
        return Err(CheckpointError::Settings {
            path: "the model".into(),
            problem: format!(
                "it is a {}, and only DiTs can be trained",
                weights.architecture.outline().name
            ),
        });
    };
    let mut tensors = HashMap::new();
    for tensor in weights.expected() {
        if !tensor.is_positions() {
            let values = weights.read(&tensor)?;
            tensors.insert(tensor.name, values);
        }
    }
    Ok(StateDict {
        config: dit.config,
        own_embedders: dit.own_embedders,
        class_names: weights.class_names.clone(),
        clip_x0: weights.clip_x0,
        guidance: weights.guidance,
        tensors,
    })
}

/// Reads tensors in canonical order and puts each where it belongs.
fn build(
    weights: &mut Weights,
    spec: &ModelSpec,
    residence: Residence,
    device: &Device,
) -> Result<(Model, ModelInfo), CheckpointError> {
    let refused = |source: ResidenceError| CheckpointError::Residence {
        path: spec.to_string().into(),
        source,
    };
    let mut fingerprint = Fingerprinter::new();
    let tensors = weights.expected();
    let (waiting, resident) = residence.plan(&tensors, device).map_err(refused)?;
    let mut loaded = Loaded {
        resident: resident.clone(),
        ..Loaded::default()
    };
    for tensor in tensors {
        let values = weights.read(&tensor)?;
        if tensor.is_positions() {
            let data = TensorData::new(values, tensor.shape);
            loaded.positions = Some(Tensor::from_data(data, device));
            continue;
        }
        fingerprint.add(&tensor.name, &tensor.shape, &values);
        let parameter = Parameter::of(&tensor);
        let values = parameter.to_network(values);
        match parameter.shape[..] {
            [rows, columns] => {
                let data = residence.matrix(&tensor, values, [rows, columns]);
                let data = data.map_err(refused)?;
                if waiting.contains(&tensor.name) {
                    loaded.waiting.insert(tensor.name, data);
                } else {
                    let weight = data.into_device(device);
                    loaded.weights.insert(tensor.name, weight);
                }
            }
            _ => {
                let data = TensorData::new(values, parameter.shape);
                loaded
                    .vectors
                    .insert(tensor.name, Tensor::from_data(data, device));
            }
        }
    }
    let fingerprint = fingerprint.finish();
    weights.check_fingerprint(spec, &fingerprint)?;
    let info = ModelInfo {
        resident,
        ..weights.info(spec, fingerprint)
    };
    tracing::debug!(model = %info.outline.name, fingerprint = %info.fingerprint, "loaded {spec}");
    let outline = Arc::new(info.outline.clone());
    Ok((weights.architecture.build(outline, &mut loaded), info))
}

/// Tensors that wait for their places in the network.
#[derive(Default)]
struct Loaded {
    weights: HashMap<String, Weight>,
    /// Matrices that stay on the host.
    waiting: HashMap<String, WeightData>,
    resident: Resident,
    vectors: HashMap<String, Tensor<1>>,
    positions: Option<Tensor<3>>,
}

/// The tensors that an architecture lists and those that it builds its network of are the same; a slip is a bug, not bad
/// input.
impl Supply for Loaded {
    fn matrix(&mut self, name: &str) -> Tensor<2> {
        match self.weights.remove(name) {
            Some(Weight::Whole(tensor)) => tensor,
            _ => unreachable!("no tensor {name} that is kept whole"),
        }
    }

    fn vector(&mut self, name: &str) -> Tensor<1> {
        let tensor = self.vectors.remove(name);
        tensor.unwrap_or_else(|| unreachable!("no tensor {name}"))
    }

    fn positions(&mut self) -> Tensor<3> {
        let tensor = self.positions.take();
        tensor.unwrap_or_else(|| unreachable!("no positions"))
    }

    fn linear(&mut self, name: &str) -> Affine {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        match self.waiting.remove(&weight) {
            Some(values) => Affine::waiting(values, self.vector(&bias), self.resident.sent.clone()),
            None => {
                let kept = self.weights.remove(&weight);
                let kept = kept.unwrap_or_else(|| unreachable!("no tensor {weight}"));
                Affine::kept(kept, self.vector(&bias))
            }
        }
    }
}
