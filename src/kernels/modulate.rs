//! LayerNorm without weights of its own, then adaLN's scale and shift: `LN(x)·(1 + scale) + shift`.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::Tensor;

use super::{
    Place, Route, VectorAt,
    differentiable::DifferentiableKernels,
    lanes::{for_rows, sum, two_sums_of_pieces},
    route,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// `LN(x)·(1 + scale) + shift` for `x` `[B, tokens, dim]`, its vectors in `slab`.
pub fn modulate(
    x: Tensor<3>,
    slab: &Tensor<3>,
    shift: VectorAt,
    scale: VectorAt,
    eps: f64,
) -> Tensor<3> {
    let route = route(&[Place::of(&x), Place::of(slab)]);
    if route == Route::Fast {
        let (x, slab) = (x.into_dispatch(), slab.clone().into_dispatch());
        return Tensor::from_dispatch(<Dispatch as SamplingKernels>::modulated(
            x, slab, shift, scale, eps,
        ));
    }
    let [batch, _, dim] = x.dims();
    let (shift, scale) = (
        shift.gather(slab, dim, batch),
        scale.gather(slab, dim, batch),
    );
    if route == Route::DifferentiableCpu {
        let [x, shift, scale] = [x, shift, scale].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(<Dispatch as DifferentiableKernels>::modulate(
            x, shift, scale, eps,
        ));
    }
    let centred = x.clone() - x.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    centred * (variance + eps).sqrt().recip() * (scale + 1.0) + shift
}

pub(super) fn modulate_wgsl(
    x: CubeTensor,
    slab: CubeTensor,
    shift: VectorAt,
    scale: VectorAt,
    eps: f64,
) -> CubeTensor {
    /// A token is a few hundred numbers.
    const THREADS: u32 = 64;
    let (x, slab) = (into_contiguous(x), into_contiguous(slab));
    let [batch, tokens, dim] = wgsl::dims(&x);
    let out = wgsl::empty_like(&x);
    let rows = batch * tokens;
    let shader = Shader {
        name: "modulate",
        source: include_str!("../../shaders/modulate.wgsl"),
        constants: vec![("threads", THREADS)],
    };
    let info = Info::of(&[
        rows,
        tokens,
        dim,
        shift.stride,
        shift.count,
        shift.start,
        scale.start,
    ]);
    wgsl::launch(
        shader,
        THREADS,
        rows,
        &[&x, &slab, &out],
        info.with_f32(&[eps]),
    );
    out
}

/// The CPU twin; `x` is `[B, tokens, dim]`.
pub(super) fn modulate_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &[f32],
    (shifts, shift_at): (&[f32], VectorAt),
    (scales, scale_at): (&[f32], VectorAt),
    eps: f64,
    out: &mut [f32],
) {
    for_rows(
        out,
        dim,
        #[inline(always)]
        |row, out| {
            let x = &x[row * dim..][..dim];
            let element = row / tokens;
            let shift = &shifts[shift_at.of(element)..][..dim];
            let scale = &scales[scale_at.of(element)..][..dim];
            let (mean, deviation) = moments(x, eps);
            let vectors = scale.iter().zip(shift);
            for ((out, x), (scale, shift)) in out.iter_mut().zip(x).zip(vectors) {
                *out = (x - mean) * deviation * (1.0 + scale) + shift;
            }
        },
    );
}

/// The gradients with respect to `x`, in the place of the output's, and to shift and scale, `[B, dim]` each.
pub(super) fn modulate_gradient_cpu(
    [_, tokens, dim]: [usize; 3],
    x: &[f32],
    scale: &[f32],
    eps: f64,
    grad: &mut [f32],
) -> [Vec<f32>; 2] {
    two_sums_of_pieces(
        grad,
        tokens * dim,
        dim,
        #[inline(always)]
        |image, grad, for_shift, for_scale| {
            let scale = &scale[image * dim..][..dim];
            let x = x[image * tokens * dim..].chunks_exact(dim);
            for (grad, x) in grad.chunks_exact_mut(dim).zip(x) {
                let (mean, deviation) = moments(x, eps);
                // With g the gradient at LN(x): dx = (g − mean(g) − LN(x)·mean(g·LN(x))) / σ.
                let vectors = for_shift.iter_mut().zip(&mut *for_scale).zip(scale);
                let numbers = grad.iter_mut().zip(x);
                for ((grad, x), ((for_shift, for_scale), scale)) in numbers.zip(vectors) {
                    *for_shift += *grad;
                    *for_scale += *grad * ((x - mean) * deviation);
                    *grad *= 1.0 + scale;
                }
                let mean_g = sum(
                    [grad],
                    #[inline(always)]
                    |[g]| g,
                ) / dim as f32;
                let mean_product = sum(
                    [grad, x],
                    #[inline(always)]
                    |[g, x]: [f32; 2]| g * ((x - mean) * deviation),
                ) / dim as f32;
                for (grad, x) in grad.iter_mut().zip(x) {
                    let normal = (x - mean) * deviation;
                    *grad = (*grad - mean_g - normal * mean_product) * deviation;
                }
            }
        },
    )
}

/// Mean, and one over the standard deviation, of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let mean = sum(
        [x],
        #[inline(always)]
        |[v]| v,
    ) / x.len() as f32;
    let variance = sum(
        [x],
        #[inline(always)]
        |[v]: [f32; 1]| (v - mean) * (v - mean),
    ) / x.len() as f32;
    (mean, 1.0 / (variance + eps as f32).sqrt())
}
