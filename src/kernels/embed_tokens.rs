//! The end of the patch embedding: bias and positions, once for each half of a guided batch.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::Tensor;

use super::{
    Place, Route, add_bias,
    lanes::for_rows,
    route,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// `tokens + bias + positions`, `copies` times one after another: `[copies·B, tokens, dim]` for `tokens`
/// `[B, tokens, dim]`, `bias` `[dim]` and `positions` `[1, tokens, dim]`.
pub fn embed_tokens(
    tokens: Tensor<3>,
    bias: Tensor<1>,
    positions: Tensor<3>,
    copies: usize,
) -> Tensor<3> {
    if route(&[Place::of(&tokens), Place::of(&bias)]) == Route::Fast {
        return Tensor::from_dispatch(<Dispatch as SamplingKernels>::embed_tokens(
            tokens.into_dispatch(),
            bias.into_dispatch(),
            positions.into_dispatch(),
            copies,
        ));
    }
    let x = add_bias(tokens, bias) + positions;
    match copies {
        1 => x,
        _ => Tensor::cat(vec![x; copies], 0),
    }
}

pub(super) fn embed_tokens_wgsl(
    tokens: CubeTensor,
    bias: CubeTensor,
    positions: CubeTensor,
    copies: usize,
) -> CubeTensor {
    let [tokens, bias, positions] = [tokens, bias, positions].map(into_contiguous);
    let mut shape = tokens.meta.shape().clone();
    let (count, element, dim) = (shape.num_elements(), shape[1] * shape[2], shape[2]);
    shape[0] *= copies;
    let out = wgsl::empty(&tokens, shape);
    let shader = Shader::flat(
        "embed_tokens",
        include_str!("../../shaders/embed_tokens.wgsl"),
    );
    let info = Info::of(&[count, copies, element, dim]);
    wgsl::launch_flat(shader, count, &[&tokens, &bias, &positions, &out], info);
    out
}

/// The CPU twin; `count` numbers of `tokens` fill `out` as often as it has room.
pub(super) fn embed_tokens_cpu(tokens: &[f32], bias: &[f32], positions: &[f32], out: &mut [f32]) {
    let dim = bias.len();
    for_rows(
        out,
        dim,
        #[inline(always)]
        |row, out| {
            let at = row * dim;
            let tokens = &tokens[at % tokens.len()..][..dim];
            let positions = &positions[at % positions.len()..][..dim];
            let added = bias.iter().zip(positions);
            for ((out, token), (bias, position)) in out.iter_mut().zip(tokens).zip(added) {
                *out = token + bias + position;
            }
        },
    );
}
