//! `x + gate ⊙ feature`: how a branch's feature, fresh or cached, joins the residual stream.

use burn::{backend::Dispatch, tensor::Tensor};

use super::{
    lanes::for_rows,
    op::{CpuKernels, runs_on_cpu},
};

/// `x + gate ⊙ feature` for `x`, `feature` `[B, tokens, dim]` and `gate` `[B, 1, dim]`.
pub fn gated_residual(x: Tensor<3>, gate: Tensor<3>, feature: Tensor<3>) -> Tensor<3> {
    if runs_on_cpu(&x.device()) {
        let [x, gate, feature] = [x, gate, feature].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(<Dispatch as CpuKernels>::gated_residual(x, gate, feature));
    }
    x + gate * feature
}

/// The CPU form; `shape` is `[B, tokens, dim]`.
pub fn gated_residual_cpu(
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
