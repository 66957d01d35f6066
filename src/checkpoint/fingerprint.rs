//! An identity for weights.

use std::fmt;

use half::f16;
use serde::{Deserialize, Serialize};

/// A hash of a network's weights.
///
/// Taken over canonical names, shapes and values rounded to f16, so a model keeps its fingerprint
/// when it is converted between containers, naming schemes, or f32 and f16.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Collects tensors in canonical order.
pub(super) struct Fingerprinter {
    hash: blake3::Hasher,
    rounded: Vec<f16>,
}

impl Fingerprinter {
    pub fn new() -> Self {
        Self {
            hash: blake3::Hasher::new(),
            rounded: Vec::new(),
        }
    }

    pub fn add(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        use half::slice::HalfFloatSliceExt;
        self.hash.update(name.as_bytes());
        self.hash.update(&[0]);
        for dim in shape {
            self.hash.update(&(*dim as u64).to_le_bytes());
        }
        // In pieces, so that the largest tensor is never held twice.
        for values in values.chunks(1 << 16) {
            self.rounded.resize(values.len(), f16::ZERO);
            self.rounded.convert_from_f32_slice(values);
            if cfg!(target_endian = "big") {
                self.rounded
                    .iter_mut()
                    .for_each(|v| *v = f16::from_bits(v.to_bits().swap_bytes()));
            }
            self.hash.update(bytemuck::cast_slice(&self.rounded));
        }
    }

    /// 16 bytes are plenty for telling models apart.
    pub fn finish(self) -> Fingerprint {
        Fingerprint(self.hash.finalize().to_hex()[..32].to_owned())
    }
}
