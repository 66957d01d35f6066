//! The feature store: slots in preallocated arenas, named by a plan.
//!
//! Cached features live in a few large buffers of fixed address instead of one allocation each: what a run needs is
//! known and taken before its first step, nothing fragments, a span of reused branches is one dispatch whatever its
//! length, and features may be kept at half their size.

use std::{fmt, str::FromStr};

use burn::tensor::{Device, FloatDType, Tensor};

use crate::{
    kernels::{Reused, SlotAt, cache_write, reuse_span, runs_kernels},
    models::{Join, Partial},
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

/// A store and a plan that do not belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("slot {slot} of the cache {problem}: the plan is not that of this run")]
pub struct CacheError {
    slot: Slot,
    problem: &'static str,
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
    fn place(&self, slot: Slot) -> Result<(usize, SlotAt), CacheError> {
        if slot >= self.slots {
            return Err(CacheError {
                slot,
                problem: "does not exist",
            });
        }
        let each = self.slots_of_arena;
        let at = SlotAt {
            word: slot % each * self.feature_words(),
            packed: self.dtype == CacheDtype::F16,
        };
        Ok((slot / each, at))
    }

    /// Fills all slots with what is no number, so that reading a slot that nobody wrote shows.
    pub fn poison(&mut self, device: &Device) {
        match &mut self.kept {
            Kept::Arenas(arenas) => {
                for arena in arenas.iter_mut().flatten() {
                    *arena = Tensor::full(arena.dims(), f32::NAN, device);
                }
            }
            Kept::Tensors(tensors) => tensors.fill(None),
        }
    }

    /// Keeps the whole feature in `slot` and returns `x + gate ⊙ feature`.
    ///
    /// # Errors
    /// [`CacheError`] for a slot that the store has not.
    pub fn write(
        &mut self,
        slot: Slot,
        x: Tensor<3>,
        join: &Join,
        partial: Partial,
    ) -> Result<Tensor<3>, CacheError> {
        let missing = CacheError {
            slot,
            problem: "is being written to",
        };
        let (arena, at) = self.place(slot)?;
        match &mut self.kept {
            Kept::Arenas(arenas) => {
                let place = arenas.get_mut(arena).ok_or(missing)?;
                let words = place.take().ok_or(missing)?;
                let (feature, bias) = partial.apart();
                let (x, words) = cache_write(x, &join.slab, join.gate, feature, bias, words, at);
                *place = Some(words);
                Ok(x)
            }
            Kept::Tensors(tensors) => {
                let feature = partial.whole();
                *tensors.get_mut(slot).ok_or(missing)? = Some(match self.dtype {
                    CacheDtype::F32 => feature.clone(),
                    CacheDtype::F16 => feature
                        .clone()
                        .clamp(-LARGEST_F16, LARGEST_F16)
                        .cast(FloatDType::F16),
                });
                Ok(join.add(x, feature.into()))
            }
        }
    }

    /// Keeps `[B, tokens, dim]` that joins the stream without a gate.
    ///
    /// # Errors
    /// [`CacheError`] for a slot that the store has not.
    pub fn keep(&mut self, slot: Slot, feature: Tensor<3>) -> Result<(), CacheError> {
        let join = Join::ungated(&feature);
        self.write(slot, feature.clone(), &join, feature.into())?;
        Ok(())
    }

    /// What was kept without a gate, `[B, tokens, dim]`.
    ///
    /// # Errors
    /// As [`Self::reuse`].
    pub fn kept(&mut self, slot: Slot, device: &Device) -> Result<Tensor<3>, CacheError> {
        let read = Read {
            branch: 0,
            weight: 1.0,
            slot,
            last: false,
        };
        self.add(Tensor::zeros(self.shape, device), &[read])
    }

    /// `x + Σ w·feature` of what was kept without a gate.
    ///
    /// # Errors
    /// As [`Self::reuse`].
    pub fn add(&mut self, x: Tensor<3>, reads: &[Read]) -> Result<Tensor<3>, CacheError> {
        let join = Join::ungated(&x);
        let span: Vec<_> = reads.iter().map(|read| (join.clone(), *read)).collect();
        self.reuse(x, &span)
    }

    /// `mean|x − kept| / mean|kept|`, `[1]`.
    ///
    /// # Errors
    /// As [`Self::reuse`].
    pub fn change(&mut self, x: Tensor<3>, slot: Slot) -> Result<Tensor<1>, CacheError> {
        let kept = self.kept(slot, &x.device())?;
        let read = Read {
            branch: 0,
            weight: -1.0,
            slot,
            last: false,
        };
        let difference = self.add(x, &[read])?;
        Ok(difference.abs().mean() / kept.abs().mean())
    }

    /// `x + Σ gate ⊙ w·feature` over a span: one dispatch where its slots lie in one arena and its gates in one slab.
    ///
    /// # Errors
    /// [`CacheError`] for a slot that the store has not, or that holds nothing.
    pub fn reuse(&mut self, x: Tensor<3>, span: &[(Join, Read)]) -> Result<Tensor<3>, CacheError> {
        let missing = |read: &Read| CacheError {
            slot: read.slot,
            problem: "is being written to",
        };
        let placed: Vec<((usize, SlotAt), &Join, &Read)> = span
            .iter()
            .map(|(join, read)| Ok((self.place(read.slot)?, join, read)))
            .collect::<Result<_, CacheError>>()?;
        match &mut self.kept {
            Kept::Arenas(arenas) => placed
                .chunk_by(|((a, _), ..), ((b, _), ..)| a == b)
                .try_fold(x, |x, together| {
                    let ((arena, _), join, read) = together[0];
                    let words = arenas.get(arena).and_then(Option::as_ref);
                    let reused = together.iter().map(|((_, slot), join, read)| Reused {
                        gate: join.gate,
                        slot: *slot,
                        weight: read.weight,
                    });
                    let words = words.ok_or(missing(read))?;
                    Ok(reuse_span(x, &join.slab, words, reused.collect()))
                }),
            Kept::Tensors(tensors) => placed.into_iter().try_fold(x, |x, (_, join, read)| {
                let place = tensors.get_mut(read.slot).ok_or(missing(read))?;
                let kept = if read.last {
                    place.take()
                } else {
                    place.clone()
                };
                let feature = kept.ok_or(CacheError {
                    slot: read.slot,
                    problem: "holds nothing that could be reused",
                })?;
                let feature = feature.cast(FloatDType::F32);
                let weighed = match read.weight {
                    1.0 => feature,
                    weight => feature * weight,
                };
                Ok(join.add(x, weighed.into()))
            }),
        }
    }
}

/// What f16 cannot exceed.
const LARGEST_F16: f32 = 65504.0;

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::kernels::VectorAt;

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
            store.poison(&device);
            let join = Join {
                slab: Tensor::<3>::full([1, 1, 3], 2.0, &device),
                gate: VectorAt {
                    start: 0,
                    stride: 3,
                    count: 1,
                },
            };
            let bias = Tensor::<1>::ones([3], &device);
            let mut x = tensor(vec![0.0; 6]);
            for slot in [3, 0, 4, 1, 2] {
                let feature = tensor((0..6).map(|i| (10 * slot + i) as f32).collect());
                let partial = Partial {
                    feature,
                    bias: Some(bias.clone()),
                };
                x = store.write(slot, x, &join, partial).unwrap();
            }
            let span: Vec<_> = [2, 3, 0, 1, 4]
                .into_iter()
                .map(|slot| {
                    let read = Read {
                        branch: slot,
                        weight: 1.0,
                        slot,
                        last: true,
                    };
                    (join.clone(), read)
                })
                .collect();
            let x = store.reuse(x, &span).unwrap();
            let beyond = Read {
                slot: 99,
                ..span[0].1
            };
            assert!(store.reuse(x.clone(), &[(join, beyond)]).is_err());
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
