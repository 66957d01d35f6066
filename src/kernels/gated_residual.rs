//! `x + gate ⊙ feature`: how a branch's feature joins the residual stream.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::Tensor;

use super::{
    Place, Route, VectorAt,
    differentiable::DifferentiableKernels,
    lanes::{column_sums, for_rows, two_sums_of_pieces},
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
    let [batch, _, dim] = x.dims();
    let bias = match bias {
        // One kernel for both: a row of zeros costs nothing there.
        None if on_cpu(&x.device()) => Some(Tensor::zeros([dim], &x.device())),
        bias => bias,
    };
    match (route, bias) {
        (Route::Fast, Some(bias)) => {
            let [x, slab, feature] = [x, slab.clone(), feature].map(Tensor::into_dispatch);
            Tensor::from_dispatch(<Dispatch as SamplingKernels>::gated_residual_biased(
                x,
                slab,
                gate,
                feature,
                bias.into_dispatch(),
            ))
        }
        (Route::DifferentiableCpu, Some(bias)) => {
            let gate = gate.gather(slab, dim, batch);
            let [x, gate, feature] = [x, gate, feature].map(Tensor::into_dispatch);
            Tensor::from_dispatch(<Dispatch as DifferentiableKernels>::gated_residual(
                x,
                gate,
                feature,
                bias.into_dispatch(),
            ))
        }
        (_, bias) => {
            let feature = match bias {
                Some(bias) => feature + bias.unsqueeze(),
                None => feature,
            };
            x + gate.gather(slab, dim, batch) * feature
        }
    }
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
    for_rows(
        x,
        dim,
        #[inline(always)]
        |row, x| {
            let gate = &slab[gate.of(row / tokens)..][..dim];
            let feature = &feature[row * dim..][..dim];
            let added = gate.iter().zip(feature).zip(bias);
            for (x, ((gate, feature), bias)) in x.iter_mut().zip(added) {
                *x += gate * (feature + bias);
            }
        },
    );
}

/// The CPU form of the differentiable operation, whose `gate` is `[B, 1, dim]`.
pub(super) fn joined_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &[f32],
    gate: &[f32],
    feature: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    for_rows(
        out,
        dim,
        #[inline(always)]
        |row, out| {
            let gate = &gate[row / tokens * dim..][..dim];
            let (x, feature) = (&x[row * dim..][..dim], &feature[row * dim..][..dim]);
            let added = gate.iter().zip(feature).zip(bias);
            for ((out, x), ((gate, feature), bias)) in out.iter_mut().zip(x).zip(added) {
                *out = x + gate * (feature + bias);
            }
        },
    );
}

/// The gradients with respect to `feature`, in its place, to `gate`, `[B, dim]`, and to `bias`, `[dim]`.
pub(super) fn joined_gradient_cpu(
    [_, tokens, dim]: [usize; 3],
    gate: &[f32],
    feature: &mut [f32],
    bias: &[f32],
    grad: &[f32],
) -> [Vec<f32>; 2] {
    let [for_gate, for_bias] = two_sums_of_pieces(
        feature,
        tokens * dim,
        dim,
        #[inline(always)]
        |image, feature, for_gate, for_bias| {
            let gate = &gate[image * dim..][..dim];
            let grad = grad[image * tokens * dim..].chunks_exact(dim);
            for (feature, grad) in feature.chunks_exact_mut(dim).zip(grad) {
                let sums = for_gate.iter_mut().zip(&mut *for_bias);
                let vectors = gate.iter().zip(bias);
                let numbers = feature.iter_mut().zip(grad);
                for (((feature, grad), (for_gate, for_bias)), (gate, bias)) in
                    numbers.zip(sums).zip(vectors)
                {
                    *for_gate += grad * (*feature + bias);
                    *feature = grad * gate;
                    *for_bias += *feature;
                }
            }
        },
    );
    [for_gate, column_sums(&for_bias, dim)]
}
