//! Named tensors to a network: which place each has, and how it lies there.

use std::ops::Range;

use burn::{module::Param, nn::Linear, tensor::Tensor};

use super::layout::{self, Expected};
use crate::dit::{Block, ConditionEmbedder, Dit, DitConfig};

/// A trained tensor: its canonical name and its shape in the network.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameter {
    pub name: String,
    /// `[inputs, outputs]`, `[rows, dim]` of a table, or `[len]`.
    pub shape: Vec<usize>,
    /// Whether PyTorch keeps it the other way round, as `[outputs, inputs]`.
    turned: bool,
}

impl Parameter {
    pub(super) fn of(tensor: &Expected) -> Self {
        let (shape, turned) = match tensor.shape[..] {
            [len] => (vec![len], false),
            [rows, columns] if tensor.name.contains("embedding_table") => {
                (vec![rows, columns], false)
            }
            [outputs, ref rest @ ..] => (vec![rest.iter().product(), outputs], true),
            [] => (Vec::new(), false),
        };
        Self {
            name: tensor.name.clone(),
            shape,
            turned,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
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

/// Every trained tensor in canonical order; the fixed position embedding is none.
pub(crate) fn parameters(config: &DitConfig, own_embedders: bool) -> Vec<Parameter> {
    layout::expected(config, own_embedders)
        .iter()
        .filter(|tensor| tensor.name != layout::POSITIONS)
        .map(Parameter::of)
        .collect()
}

/// Where [`assemble`] gets tensors from, by canonical name.
pub(crate) trait Supply {
    fn matrix(&mut self, name: &str) -> Param<Tensor<2>>;
    fn vector(&mut self, name: &str) -> Param<Tensor<1>>;
    /// `[1, tokens, dim]`
    fn positions(&mut self) -> Param<Tensor<3>>;

    fn linear(&mut self, name: &str) -> Linear {
        Linear {
            weight: self.matrix(&format!("{name}.weight")),
            bias: Some(self.vector(&format!("{name}.bias"))),
        }
    }
}

/// The network, or with fewer `blocks` a part of it with all that comes before and after them.
///
/// `own_embedders`: one timestep and label embedder a block. A part without blocks then has block 0's, which
/// conditions the last layer.
pub(crate) fn assemble(
    config: &DitConfig,
    blocks: Range<usize>,
    own_embedders: bool,
    supply: &mut impl Supply,
) -> Dit {
    let prefixes: Vec<String> = match own_embedders {
        true if blocks.is_empty() => vec![layout::own_embedder(0)],
        true => blocks.clone().map(layout::own_embedder).collect(),
        false => vec![layout::SHARED.into()],
    };
    let embedders = prefixes
        .iter()
        .map(|p| ConditionEmbedder {
            timestep_in: supply.linear(&format!("{p}t_embedder.mlp.0")),
            timestep_out: supply.linear(&format!("{p}t_embedder.mlp.2")),
            labels: supply.matrix(&format!("{p}y_embedder.embedding_table.weight")),
        })
        .collect();
    let blocks = blocks
        .map(|b| Block {
            qkv: supply.linear(&format!("blocks.{b}.attn.qkv")),
            proj: supply.linear(&format!("blocks.{b}.attn.proj")),
            fc1: supply.linear(&format!("blocks.{b}.mlp.fc1")),
            fc2: supply.linear(&format!("blocks.{b}.mlp.fc2")),
            modulation: supply.linear(&format!("blocks.{b}.adaLN_modulation.1")),
            heads: config.heads,
            mlp_norm_eps: config.mlp_norm_eps,
        })
        .collect();
    Dit {
        patch_embedder: supply.linear("x_embedder.proj"),
        positions: supply.positions(),
        embedders,
        blocks,
        final_modulation: supply.linear("final_layer.adaLN_modulation.1"),
        final_linear: supply.linear("final_layer.linear"),
        config: config.clone(),
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
