//! A fresh feature joins the residual stream and is kept in the arena, in one pass.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::Tensor;
use half::f16;
use rayon::prelude::*;

use super::{
    VectorAt,
    lanes::{GRAIN, vectorised},
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// A slot of an arena: a tensor of words that holds features one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotAt {
    /// Its first word.
    pub word: usize,
    /// Whether a word holds two f16 (the earlier one in the low half) or one f32.
    pub packed: bool,
}

impl SlotAt {
    /// Words that a feature of `numbers` numbers takes.
    pub fn words(numbers: usize, packed: bool) -> usize {
        if packed { numbers.div_ceil(2) } else { numbers }
    }
}

/// What f16 cannot exceed.
const LARGEST: f32 = 65504.0;

/// `x + gate ⊙ (feature + bias)`, and `feature + bias` into `slot` of `arena` `[words]`.
///
/// As [`super::gated_residual`], for tensors without gradients on a device that runs the shaders or on the CPU.
pub fn cache_write(
    x: Tensor<3>,
    slab: &Tensor<3>,
    gate: VectorAt,
    feature: Tensor<3>,
    bias: Tensor<1>,
    arena: Tensor<1>,
    slot: SlotAt,
) -> (Tensor<3>, Tensor<1>) {
    let (x, arena) = <Dispatch as SamplingKernels>::cache_write(
        x.into_dispatch(),
        slab.clone().into_dispatch(),
        gate,
        feature.into_dispatch(),
        bias.into_dispatch(),
        arena.into_dispatch(),
        slot,
    );
    (Tensor::from_dispatch(x), Tensor::from_dispatch(arena))
}

pub(super) fn cache_write_wgsl(
    x: CubeTensor,
    slab: CubeTensor,
    gate: VectorAt,
    feature: CubeTensor,
    bias: CubeTensor,
    arena: CubeTensor,
    slot: SlotAt,
) -> (CubeTensor, CubeTensor) {
    let [x, arena] = [x, arena].map(wgsl::owned);
    let [slab, feature, bias] = [slab, feature, bias].map(into_contiguous);
    let dims = wgsl::dims(&x);
    let count: usize = dims.iter().product();
    let shader = Shader::flat(
        "cache_write",
        include_str!("../../shaders/cache_write.wgsl"),
    );
    let info = Info::gated(dims, gate).with(&[gate.start, slot.word, usize::from(slot.packed)]);
    let buffers = [&x, &slab, &feature, &bias, &arena];
    wgsl::launch_flat(shader, count.div_ceil(2), &buffers, info);
    (x, arena)
}

/// The CPU twin, in place.
pub(super) fn cache_write_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &mut [f32],
    (slab, gate): (&[f32], VectorAt),
    feature: &[f32],
    bias: &[f32],
    arena: &mut [f32],
    slot: SlotAt,
) {
    // An even number of rows, so that a thread's numbers begin and end with a word.
    let rows = (GRAIN / dim.max(1)).max(2) & !1;
    let words = SlotAt::words(x.len(), slot.packed);
    let kept = &mut arena[slot.word..][..words];
    let words_of_rows = SlotAt::words(rows * dim, slot.packed);
    x.par_chunks_mut(rows * dim)
        .zip(kept.par_chunks_mut(words_of_rows))
        .enumerate()
        .for_each(|(chunk, (x, kept))| {
            let mut fresh = vec![0.0; x.len()];
            vectorised(
                #[inline(always)]
                || {
                    let rows_out = x.chunks_exact_mut(dim).zip(fresh.chunks_exact_mut(dim));
                    for (row, (x, fresh)) in rows_out.enumerate() {
                        let row = chunk * rows + row;
                        let gate = &slab[gate.of(row / tokens)..][..dim];
                        let feature = &feature[row * dim..][..dim];
                        let numbers = x.iter_mut().zip(fresh);
                        let added = gate.iter().zip(feature).zip(bias);
                        for ((x, fresh), ((gate, feature), bias)) in numbers.zip(added) {
                            *fresh = feature + bias;
                            *x += gate * *fresh;
                        }
                    }
                },
            );
            if slot.packed {
                pack(&mut fresh, kept);
            } else {
                kept.copy_from_slice(&fresh);
            }
        });
}

/// `values` as f16, two a word; an odd last one shares its word with a zero.
fn pack(values: &mut [f32], words: &mut [f32]) {
    use half::slice::HalfFloatSliceExt;
    values
        .iter_mut()
        .for_each(|v| *v = v.clamp(-LARGEST, LARGEST));
    let halves: &mut [f16] = bytemuck::cast_slice_mut(words);
    let (halves, rest) = halves.split_at_mut(values.len());
    halves.convert_from_f32_slice(values);
    rest.fill(f16::ZERO);
}
