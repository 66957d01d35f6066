//! `x + gate ⊙ feature`: how a branch's feature joins the residual stream.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::Tensor;

use super::{
    Place, Route, VectorAt,
    differentiable::DifferentiableKernels,
    lanes::for_rows,
    on_cpu, route,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// `x + gate ⊙ (feature + bias)` for `x`, `feature` `[B, tokens, dim]`, `bias` `[dim]` (the bias of the branch's last
/// layer) and the gates in `slab`.
pub fn gated_residual(
    x: Tensor<3>,
    slab: &Tensor<3>,
    gate: VectorAt,
    feature: Tensor<3>,
    bias: Option<Tensor<1>>,
) -> Tensor<3> {
    let route = route(&[Place::of(&x), Place::of(slab), Place::of(&feature)]);
    if let (Route::Fast, Some(bias)) = (route, &bias) {
        let slab = slab.clone().into_dispatch();
        return Tensor::from_dispatch(<Dispatch as SamplingKernels>::gated_residual_biased(
            x.into_dispatch(),
            slab,
            gate,
            feature.into_dispatch(),
            bias.clone().into_dispatch(),
        ));
    }
    let feature = match bias {
        Some(bias) => feature + bias.unsqueeze(),
        None => feature,
    };
    let [batch, _, dim] = x.dims();
    let gate = gate.gather(slab, dim, batch);
    if route == Route::Composed || !on_cpu(&x.device()) {
        return x + gate * feature;
    }
    let [x, gate, feature] = [x, gate, feature].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as DifferentiableKernels>::gated_residual(
        x, gate, feature,
    ))
}

pub(super) fn gated_residual_wgsl(
    x: CubeTensor,
    slab: CubeTensor,
    gate: VectorAt,
    feature: CubeTensor,
    bias: CubeTensor,
) -> CubeTensor {
    let x = wgsl::owned(x);
    let [slab, feature, bias] = [slab, feature, bias].map(into_contiguous);
    let dims = wgsl::dims(&x);
    let count: usize = dims.iter().product();
    let shader = Shader::flat(
        "gated_residual",
        include_str!("../../shaders/gated_residual.wgsl"),
    );
    let info = Info::gated(dims, gate).with(&[gate.start]);
    wgsl::launch_flat(shader, count, &[&x, &slab, &feature, &bias], info);
    x
}

/// The CPU twin, in place; `x` and `feature` are `[B, tokens, dim]`.
pub(super) fn gated_residual_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &mut [f32],
    (slab, gate): (&[f32], VectorAt),
    feature: &[f32],
    bias: &[f32],
) {
    for_rows(x, dim, |first, rows| {
        for (row, x) in rows.chunks_exact_mut(dim).enumerate() {
            let row = first + row;
            let gate = &slab[gate.of(row / tokens)..][..dim];
            let feature = &feature[row * dim..][..dim];
            for i in 0..dim {
                x[i] += gate[i] * (feature[i] + bias[i]);
            }
        }
    });
}

/// The CPU form of the differentiable operation: `gate` is `[B, 1, dim]`, the bias is in the feature.
pub(super) fn joined_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &[f32],
    gate: &[f32],
    feature: &[f32],
    out: &mut [f32],
) {
    for_rows(out, dim, |first, out| {
        for (row, out) in out.chunks_exact_mut(dim).enumerate() {
            let row = first + row;
            let gate = &gate[row / tokens * dim..][..dim];
            let (x, feature) = (&x[row * dim..][..dim], &feature[row * dim..][..dim]);
            for i in 0..dim {
                out[i] = x[i] + gate[i] * feature[i];
            }
        }
    });
}
