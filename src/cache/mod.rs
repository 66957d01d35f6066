//! The feature store: slots in preallocated arenas, named by a plan.
//!
//! Cached features live in a few large buffers of fixed address instead of one allocation each: what a run needs is
//! known and taken before its first step, nothing fragments, a span of reused branches is one dispatch whatever its
//! length, and features may be kept at half their size.

use std::{fmt, str::FromStr};

use burn::tensor::{Device, FloatDType, Tensor};

use crate::{
    kernels::{Reused, SlotAt, VectorAt, cache_write, gated_residual, reuse_span, runs_kernels},
    plan::{Read, Slot},
};

/// Bytes of an arena: every WebGPU device binds a buffer of this size.
const ARENA_BYTES: usize = 128 << 20;

/// How features are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheDtype {
    /// As they were computed.
    #[default]
    F32,
    /// Rounded to half precision, half the memory. Values beyond ±65504 end there.
    F16,
}

/// A name that is none of the choices.
#[derive(Debug, thiserror::Error)]
#[error("unknown cache type `{name}`: expected f32 or f16")]
pub struct UnknownCacheDtype {
    name: String,
}

impl CacheDtype {
    /// Bytes that a feature of `numbers` numbers takes.
    pub fn feature_bytes(self, numbers: usize) -> usize {
        4 * SlotAt::words(numbers, self == Self::F16)
    }
}

impl FromStr for CacheDtype {
    type Err = UnknownCacheDtype;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            _ => Err(UnknownCacheDtype { name: name.into() }),
        }
    }
}

impl fmt::Display for CacheDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

/// The kept features of a batch.
#[derive(Debug)]
pub struct FeatureStore {
    slots: usize,
    slots_of_arena: usize,
    /// `[B, tokens, dim]` of a feature.
    shape: [usize; 3],
    dtype: CacheDtype,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    /// `[words]` each, `None` while a kernel writes to it.
    Arenas(Vec<Option<Tensor<1>>>),
    /// Where the kernels cannot run, the tensors themselves.
    Tensors(Vec<Option<Tensor<3>>>),
}

impl FeatureStore {
    /// Room for `slots` features of `shape` `[B, tokens, dim]`.
    pub fn new(slots: usize, shape: [usize; 3], dtype: CacheDtype, device: &Device) -> Self {
        Self::with_arenas(slots, shape, dtype, device, ARENA_BYTES)
    }

    fn with_arenas(
        slots: usize,
        shape: [usize; 3],
        dtype: CacheDtype,
        device: &Device,
        arena_bytes: usize,
    ) -> Self {
        let bytes = dtype.feature_bytes(shape.iter().product());
        let each = (arena_bytes / bytes.max(1)).max(1);
        let arena = |first: usize| {
            let words = bytes / 4 * each.min(slots - first);
            Some(Tensor::empty([words], device))
        };
        let kept = if runs_kernels(device) {
            Kept::Arenas((0..slots).step_by(each).map(arena).collect())
        } else {
            Kept::Tensors(vec![None; slots])
        };
        Self {
            slots,
            slots_of_arena: each,
            shape,
            dtype,
            kept,
        }
    }

    /// Whether it can serve a plan of so many slots and features of this shape, kept in this form.
    pub fn fits(&self, slots: usize, shape: [usize; 3], dtype: CacheDtype) -> bool {
        (self.slots, self.shape, self.dtype) == (slots, shape, dtype)
    }

    /// Bytes of all slots.
    pub fn bytes(&self) -> usize {
        self.slots * self.dtype.feature_bytes(self.shape.iter().product())
    }

    fn feature_words(&self) -> usize {
        self.dtype.feature_bytes(self.shape.iter().product()) / 4
    }

    /// The arena of a slot, and the slot's place in it.
    fn place(&self, slot: Slot) -> (usize, SlotAt) {
        let each = self.slots_of_arena;
        let at = SlotAt {
            word: slot % each * self.feature_words(),
            packed: self.dtype == CacheDtype::F16,
        };
        (slot / each, at)
    }

    /// Keeps `feature + bias` in `slot` and returns `x + gate ⊙ (feature + bias)`, the gates in `slab`.
    pub fn write(
        &mut self,
        slot: Slot,
        x: Tensor<3>,
        (slab, gate): (&Tensor<3>, VectorAt),
        feature: Tensor<3>,
        bias: Tensor<1>,
    ) -> Tensor<3> {
        let (arena, at) = self.place(slot);
        match &mut self.kept {
            Kept::Arenas(arenas) => {
                // A plan names no slot beyond the store's.
                let Some(words) = arenas.get_mut(arena).and_then(Option::take) else {
                    return gated_residual(x, slab, gate, feature, Some(bias));
                };
                let (x, words) = cache_write(x, slab, gate, feature, bias, words, at);
                arenas[arena] = Some(words);
                x
            }
            Kept::Tensors(tensors) => {
                let feature = feature + bias.unsqueeze();
                tensors[slot] = Some(match self.dtype {
                    CacheDtype::F32 => feature.clone(),
                    CacheDtype::F16 => feature.clone().cast(FloatDType::F16),
                });
                gated_residual(x, slab, gate, feature, None)
            }
        }
    }

    /// `x + Σ gate ⊙ feature` over a span: one dispatch where its slots lie in one arena.
    pub fn reuse(
        &mut self,
        x: Tensor<3>,
        slab: &Tensor<3>,
        span: &[(VectorAt, Read)],
    ) -> Tensor<3> {
        let placed: Vec<_> = span
            .iter()
            .map(|(gate, read)| {
                let (arena, slot) = self.place(read.slot);
                (arena, Reused { gate: *gate, slot })
            })
            .collect();
        match &mut self.kept {
            Kept::Arenas(arenas) => placed.chunk_by(|a, b| a.0 == b.0).fold(x, |x, together| {
                let reused = together.iter().map(|(_, reused)| *reused).collect();
                match arenas.get(together[0].0) {
                    Some(Some(arena)) => reuse_span(x, slab, arena, reused),
                    _ => x,
                }
            }),
            Kept::Tensors(tensors) => span.iter().fold(x, |x, (gate, read)| {
                let feature = if read.last {
                    tensors[read.slot].take()
                } else {
                    tensors[read.slot].clone()
                };
                match feature {
                    Some(feature) => {
                        gated_residual(x, slab, *gate, feature.cast(FloatDType::F32), None)
                    }
                    None => x,
                }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    /// Spans over slots of several arenas, of shared and of single ones, against sums by hand.
    #[test]
    fn a_span_may_cross_arenas() {
        let (shape, device) = ([2, 1, 3], Device::flex());
        let tensor =
            |values: Vec<f32>| Tensor::<3>::from_data(TensorData::new(values, shape), &device);
        for (dtype, arena_bytes) in [
            (CacheDtype::F32, 48),
            (CacheDtype::F32, 1),
            (CacheDtype::F16, 36),
            (CacheDtype::F16, 1 << 20),
        ] {
            let mut store = FeatureStore::with_arenas(5, shape, dtype, &device, arena_bytes);
            let slab = Tensor::<3>::full([1, 1, 3], 2.0, &device);
            let gate = VectorAt {
                start: 0,
                stride: 3,
                count: 1,
            };
            let bias = Tensor::<1>::ones([3], &device);
            let mut x = tensor(vec![0.0; 6]);
            for slot in [3, 0, 4, 1, 2] {
                let feature = tensor((0..6).map(|i| (10 * slot + i) as f32).collect());
                x = store.write(slot, x, (&slab, gate), feature, bias.clone());
            }
            let span: Vec<_> = [2, 3, 0, 1, 4]
                .into_iter()
                .map(|slot| {
                    let read = Read {
                        branch: slot,
                        slot,
                        last: true,
                    };
                    (gate, read)
                })
                .collect();
            let x = store.reuse(x, &slab, &span);
            // Twice Σ gate·(feature + bias): 2·2·(Σ 10·slot + 5·(i + 1)).
            let expected: Vec<f32> = (0..6)
                .map(|i| 4.0 * (100.0 + 5.0 * (i as f32 + 1.0)))
                .collect();
            let found: Vec<f32> = x.try_into_data().unwrap().try_into_vec().unwrap();
            assert_eq!(found, expected, "{dtype}, arenas of {arena_bytes} bytes");
            let words = if dtype == CacheDtype::F16 { 3 } else { 6 };
            assert_eq!(store.bytes(), 5 * 4 * words);
        }
    }
}
