//! From a file, or from a seed, to a network on a device.

use std::path::Path;

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Device, Tensor, TensorData},
};

use super::{
    error::CheckpointError,
    fingerprint::Fingerprinter,
    infer::check_config,
    layout,
    spec::{LoadOptions, ModelInfo, ModelSpec},
    weights::Weights,
};
use crate::dit::{Block, ConditionEmbedder, Dit, DitConfig};

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
