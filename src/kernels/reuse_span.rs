//! A span of neighbouring reused branches: `x + Σ gate_k ⊙ w_k·f_k` in one pass over the residual stream.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::Tensor;
use half::f16;

use super::{
    VectorAt,
    cache_write::SlotAt,
    lanes::for_pieces,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// A kept feature and the gate it joins under.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reused {
    /// The branch's gate at this step.
    pub gate: VectorAt,
    /// Where its feature lies.
    pub slot: SlotAt,
    /// What the feature is multiplied by; 1 for plain reuse.
    pub weight: f32,
}

/// `x + Σ gate_k ⊙ w_k·f_k` for `x` `[B, tokens, dim]`, gates in `slab`, features in `arena` `[words]`, added in order.
///
/// All gates have the same stride and count, all slots the same packing. For tensors without gradients on a device
/// that runs the shaders or on the CPU.
pub fn reuse_span(
    x: Tensor<3>,
    slab: &Tensor<3>,
    arena: &Tensor<1>,
    span: Vec<Reused>,
) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as SamplingKernels>::reuse_span(
        x.into_dispatch(),
        slab.clone().into_dispatch(),
        arena.clone().into_dispatch(),
        span,
    ))
}

pub(super) fn reuse_span_wgsl(
    x: CubeTensor,
    slab: CubeTensor,
    arena: CubeTensor,
    span: &[Reused],
) -> CubeTensor {
    let x = wgsl::owned(x);
    let Some(first) = span.first() else {
        return x;
    };
    let [slab, arena] = [slab, arena].map(into_contiguous);
    let dims = wgsl::dims(&x);
    let count: usize = dims.iter().product();
    let shader = Shader::flat("reuse_span", include_str!("../../shaders/reuse_span.wgsl"));
    let packed = usize::from(first.slot.packed);
    let mut info = Info::gated(dims, first.gate).with(&[packed, span.len(), 0]);
    for reused in span {
        info = info
            .with(&[reused.gate.start, reused.slot.word])
            .with_f32(&[f64::from(reused.weight)])
            .with(&[0]);
    }
    wgsl::launch_flat(shader, count.div_ceil(2), &[&x, &slab, &arena], info);
    x
}

/// The CPU twin, in place.
pub(super) fn reuse_span_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &mut [f32],
    slab: &[f32],
    arena: &[f32],
    span: &[Reused],
) {
    use half::slice::HalfFloatSliceExt;
    let halves: &[f16] = bytemuck::cast_slice(arena);
    for_pieces(
        x,
        dim,
        #[inline(always)]
        |first, rows| {
            let mut wide = vec![0.0; dim];
            for (row, x) in rows.chunks_exact_mut(dim).enumerate() {
                let row = first + row;
                for reused in span {
                    let gate = &slab[reused.gate.of(row / tokens)..][..dim];
                    let feature = if reused.slot.packed {
                        let start = 2 * reused.slot.word + row * dim;
                        halves[start..][..dim].convert_to_f32_slice(&mut wide);
                        &wide
                    } else {
                        &arena[reused.slot.word + row * dim..][..dim]
                    };
                    let weight = reused.weight;
                    for ((x, gate), feature) in x.iter_mut().zip(gate).zip(feature) {
                        *x += gate * (weight * feature);
                    }
                }
            }
        },
    );
}
