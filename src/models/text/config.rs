//! The shape of a T5 encoder.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{containers::CheckpointError, files::read_text_up_to};

/// Largest file that is read.
const MAX_BYTES: u64 = 1024 * 1024;

/// The MLP of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum FeedForward {
    /// T5 1.0: `wo(relu(wi(x)))`.
    #[default]
    #[serde(rename = "relu")]
    Relu,
    /// T5 1.1: `wo(gelu(wi_0(x)) ⊙ wi_1(x))`, the GELU in its tanh form.
    #[serde(rename = "gated-gelu")]
    GatedGelu,
}

/// The shape of a T5 encoder (arXiv 1910.10683), under the names of its `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct T5Config {
    /// Tokens that there are.
    #[serde(default = "usual_vocabulary")]
    pub vocab_size: usize,
    /// Width of a token.
    pub d_model: usize,
    /// Channels of a head.
    pub d_kv: usize,
    /// Width between the two layers of the MLP.
    pub d_ff: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    /// Classes of distances between tokens, half of them for each direction.
    #[serde(default = "usual_buckets")]
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all are one class.
    #[serde(default = "usual_distance")]
    pub relative_attention_max_distance: usize,
    #[serde(default = "usual_epsilon")]
    pub layer_norm_epsilon: f64,
    #[serde(default)]
    pub feed_forward_proj: FeedForward,
    /// The token that ends a text.
    #[serde(default = "usual_end")]
    pub eos_token_id: u32,
}

fn usual_vocabulary() -> usize {
    32_128
}

fn usual_buckets() -> usize {
    32
}

fn usual_distance() -> usize {
    128
}

fn usual_epsilon() -> f64 {
    1e-6
}

fn usual_end() -> u32 {
    1
}

impl T5Config {
    /// Reads an encoder's `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError`]: unreadable, or it describes no T5.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bad = |problem: String| CheckpointError::Config {
            path: path.into(),
            problem,
        };
        let text = read_text_up_to(path, MAX_BYTES).map_err(|source| CheckpointError::Io {
            action: "read",
            path: path.into(),
            source,
        })?;
        let config: Self = serde_json::from_str(&text)
            .map_err(|e| bad(format!("it describes no T5 encoder: {e}")))?;
        config.check().map_err(bad)?;
        Ok(config)
    }

    /// What is wrong with the numbers, if anything.
    ///
    /// # Errors
    /// A sentence about the first one.
    fn check(&self) -> Result<(), String> {
        let buckets = self.relative_attention_num_buckets;
        let ranges = [
            ("vocab_size", self.vocab_size, 1..=1 << 22),
            ("d_model", self.d_model, 1..=1 << 16),
            ("d_kv", self.d_kv, 1..=1 << 16),
            ("d_ff", self.d_ff, 1..=1 << 18),
            ("num_layers", self.num_layers, 1..=4096),
            ("num_heads", self.num_heads, 1..=4096),
            ("relative_attention_num_buckets", buckets, 4..=1 << 12),
            (
                "relative_attention_max_distance",
                self.relative_attention_max_distance,
                buckets / 4 + 1..=1 << 20,
            ),
        ];
        for (field, value, range) in ranges {
            if !range.contains(&value) {
                return Err(format!(
                    "{field} is {value}, expected {} to {}",
                    range.start(),
                    range.end()
                ));
            }
        }
        let epsilon = self.layer_norm_epsilon;
        if !(epsilon > 0.0 && epsilon < 1.0) {
            return Err(format!(
                "layer_norm_epsilon is {epsilon}, expected a number between 0 and 1"
            ));
        }
        Ok(())
    }

    /// Class of the distance from a token to one that many places after it: a class a distance up to a quarter of them, then
    /// as many on a logarithmic scale; the second half is for tokens that come after.
    pub(super) fn bucket(&self, distance: isize) -> usize {
        let half = self.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let (side, distance) = (if distance > 0 { half } else { 0 }, distance.unsigned_abs());
        if distance < exact {
            return side + distance;
        }
        let octaves = |distance: usize| (distance as f64 / exact as f64).ln();
        let scale = octaves(distance) / octaves(self.relative_attention_max_distance);
        // Where a class begins is a whole number, which a logarithm may miss by a hair.
        let beyond = (scale * (half - exact) as f64 + 1e-9) as usize;
        side + (exact + beyond).min(half - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_distances_are_those_of_the_paper() {
        let config: T5Config = serde_json::from_str(
            r#"{"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}"#,
        )
        .unwrap();
        let begins = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        for (bucket, begin) in begins.into_iter().enumerate() {
            let last = begins.get(bucket + 1).map_or(5000, |next| next - 1);
            for distance in [begin, last] {
                assert_eq!(config.bucket(-distance), bucket, "{distance} before");
                let after = if distance == 0 { 0 } else { 16 + bucket };
                assert_eq!(config.bucket(distance), after, "{distance} after");
            }
        }
    }
}
