//! The model a schedule is for.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::graph::{Graph, SiteKind, mlp_macs, self_attention_macs};

/// The model a schedule is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct ModelIdentity {
    /// Kind of network, such as `DiT`.
    pub family: String,
    /// The branches that the table's columns stand for.
    pub graph: Graph,
    /// Identity of the weights; absent for policies that look at shapes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    family: String,
    graph: Graph,
    #[serde(default)]
    fingerprint: Option<String>,
}

/// What version 1 of the file said of a model, which was a DiT.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordVersion1 {
    family: String,
    blocks: usize,
    branches: usize,
    hidden: usize,
    tokens: usize,
    /// Inputs of the patch embedding and outputs of the last layer.
    #[serde(default = "latent_patch")]
    patch: [usize; 2],
    #[serde(default)]
    fingerprint: Option<String>,
}

/// A latent model of patch 2 with learned sigma.
fn latent_patch() -> [usize; 2] {
    [16, 32]
}

impl TryFrom<Value> for ModelIdentity {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        if value.get("graph").is_none() {
            let record: RecordVersion1 =
                serde_json::from_value(value).map_err(|e| e.to_string())?;
            return record.identity();
        }
        let Record {
            family,
            graph,
            fingerprint,
        } = serde_json::from_value(value).map_err(|e| e.to_string())?;
        Ok(Self {
            family,
            graph,
            fingerprint,
        })
    }
}

impl RecordVersion1 {
    fn identity(self) -> Result<ModelIdentity, String> {
        let sizes = [
            ("blocks", self.blocks, 4096),
            ("hidden", self.hidden, 1 << 16),
            ("tokens", self.tokens, 1 << 16),
            ("patch inputs", self.patch[0], 1 << 24),
            ("patch outputs", self.patch[1], 1 << 24),
        ];
        for (name, value, most) in sizes {
            if value == 0 || value > most {
                return Err(format!("{name} is {value}, expected 1 to {most}"));
            }
        }
        let (blocks, dim, tokens) = (self.blocks, self.hidden, self.tokens);
        if self.branches != 2 * blocks {
            return Err(format!(
                "{blocks} blocks have {} branches, not {}",
                2 * blocks,
                self.branches
            ));
        }
        // In 128 bits, so that no product of sizes within their ranges overflows before it is judged.
        let [n, d] = [tokens as u128, dim as u128];
        let [inputs, outputs] = self.patch.map(|values| values as u128);
        let fixed = n * d * (inputs + outputs) + 256 * d + 3 * d * d + blocks as u128 * 6 * d * d;
        let branches = blocks as u128 * (12 * n * d * d + 2 * n * n * d);
        if 1000 * (fixed + branches) > u128::from(u64::MAX) {
            return Err(format!(
                "{blocks} blocks of {dim} with {tokens} tokens are no network that can be run"
            ));
        }
        let pattern = [
            (SiteKind::SelfAttention, self_attention_macs(tokens, dim)),
            (SiteKind::Mlp, mlp_macs(tokens, dim, 4)),
        ];
        let graph = Graph::uniform(blocks, &pattern, [tokens, dim], fixed as u64);
        Ok(ModelIdentity {
            family: self.family,
            graph: graph.map_err(|e| e.to_string())?,
            fingerprint: self.fingerprint,
        })
    }
}
