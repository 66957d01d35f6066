//! How the operations of sampling enter burn: one extension trait, its CPU and its shader implementation.
//!
//! Sampling differentiates nothing, so these may write in place and take vectors and slots by their address.

use burn::backend::{
    Backend, Flex, backend_extension,
    tensor::{FloatTensor, IntTensor},
    wgpu::{CubeBackend, CubeTensor},
};
use burn::tensor::Shape;
use burn_flex::FlexTensor;

use super::{
    Reused, SlotAt, VectorAt, attention, cache_write,
    differentiable::{DifferentiableKernels, Factors},
    embed_tokens,
    flex::{dims, empty, own},
    gated_residual, gelu, modulate, quantised, reuse_span,
    solver_step::{self, Launch},
    tiles,
};

/// What a step of sampling runs beside matrix products. Shapes and formulas stand at the functions of the same name
/// in [`crate::kernels`].
#[backend_extension(Cube, Flex, Fusion)]
pub trait SamplingKernels: Backend {
    /// See [`quantised::dequantise`].
    #[fusion(dtype = scales, shape = Shape::from([*inputs, scales[0]]))]
    fn dequantise(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        inputs: usize,
    ) -> FloatTensor<Self>;

    /// See [`super::product::product`] and [`super::product::half_product`].
    #[fusion(dtype = x, shape = {
        let mut shape = x.clone();
        let last = shape.num_dims() - 1;
        shape[last] = weight[1];
        shape
    })]
    fn tiled_product(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`embed_tokens::embed_tokens`].
    #[fusion(dtype = tokens, shape = {
        let mut shape = tokens.clone();
        shape[0] *= *copies;
        shape
    })]
    fn embed_tokens(
        tokens: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        positions: FloatTensor<Self>,
        copies: usize,
    ) -> FloatTensor<Self>;

    /// See [`modulate::modulate`].
    #[fusion(dtype = x, shape = x)]
    fn modulated(
        x: FloatTensor<Self>,
        slab: FloatTensor<Self>,
        shift: VectorAt,
        scale: VectorAt,
        eps: f64,
    ) -> FloatTensor<Self>;

    /// See [`attention::attention`].
    #[fusion(dtype = qkv, shape = {
        let mut shape = qkv.clone();
        shape[2] /= 3;
        shape
    })]
    fn attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self>;

    /// See [`gelu::gelu`].
    #[fusion(dtype = x, shape = x)]
    fn gelu_biased(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`gated_residual::gated_residual`].
    #[fusion(dtype = x, shape = x)]
    fn gated_residual_biased(
        x: FloatTensor<Self>,
        slab: FloatTensor<Self>,
        gate: VectorAt,
        feature: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`cache_write::cache_write`].
    #[fusion(meta = |x, _, _, _, _, arena, _| (x.clone(), arena.clone()))]
    fn cache_write(
        x: FloatTensor<Self>,
        slab: FloatTensor<Self>,
        gate: VectorAt,
        feature: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        arena: FloatTensor<Self>,
        slot: SlotAt,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`reuse_span::reuse_span`].
    #[fusion(dtype = x, shape = x)]
    fn reuse_span(
        x: FloatTensor<Self>,
        slab: FloatTensor<Self>,
        arena: FloatTensor<Self>,
        span: Vec<Reused>,
    ) -> FloatTensor<Self>;

    /// See [`solver_step::solver_step`].
    #[fusion(meta = |x, _, _, history, _, _| (x.clone(), x.clone(), history.clone()))]
    fn solver_step(
        x: FloatTensor<Self>,
        patches: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        history: FloatTensor<Self>,
        noise: FloatTensor<Self>,
        launch: Launch,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl SamplingKernels for CubeBackend {
    fn dequantise(words: CubeTensor, scales: CubeTensor, inputs: usize) -> CubeTensor {
        quantised::dequantise_wgsl(words, scales, inputs)
    }

    fn tiled_product(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        tiles::product_wgsl(x, weight)
    }

    fn embed_tokens(
        tokens: CubeTensor,
        bias: CubeTensor,
        positions: CubeTensor,
        copies: usize,
    ) -> CubeTensor {
        embed_tokens::embed_tokens_wgsl(tokens, bias, positions, copies)
    }

    fn modulated(
        x: CubeTensor,
        slab: CubeTensor,
        shift: VectorAt,
        scale: VectorAt,
        eps: f64,
    ) -> CubeTensor {
        modulate::modulate_wgsl(x, slab, shift, scale, eps)
    }

    fn attention(qkv: CubeTensor, bias: CubeTensor, heads: usize) -> CubeTensor {
        attention::attention_wgsl(qkv, bias, heads)
    }

    fn gelu_biased(x: CubeTensor, bias: CubeTensor) -> CubeTensor {
        gelu::gelu_wgsl(x, bias)
    }

    fn gated_residual_biased(
        x: CubeTensor,
        slab: CubeTensor,
        gate: VectorAt,
        feature: CubeTensor,
        bias: CubeTensor,
    ) -> CubeTensor {
        gated_residual::gated_residual_wgsl(x, slab, gate, feature, bias)
    }

    fn cache_write(
        x: CubeTensor,
        slab: CubeTensor,
        gate: VectorAt,
        feature: CubeTensor,
        bias: CubeTensor,
        arena: CubeTensor,
        slot: SlotAt,
    ) -> (CubeTensor, CubeTensor) {
        cache_write::cache_write_wgsl(x, slab, gate, feature, bias, arena, slot)
    }

    fn reuse_span(
        x: CubeTensor,
        slab: CubeTensor,
        arena: CubeTensor,
        span: Vec<Reused>,
    ) -> CubeTensor {
        reuse_span::reuse_span_wgsl(x, slab, arena, &span)
    }

    fn solver_step(
        x: CubeTensor,
        patches: CubeTensor,
        bias: CubeTensor,
        history: CubeTensor,
        noise: CubeTensor,
        launch: Launch,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        solver_step::solver_step_wgsl([x, history, noise], patches, bias, launch)
    }
}

impl SamplingKernels for Flex {
    fn dequantise(words: FlexTensor, scales: FlexTensor, inputs: usize) -> FlexTensor {
        let [words, scales] = [words, scales].map(own);
        let scales = scales.storage();
        let mut out = empty([inputs, scales.len()]);
        quantised::dequantise_cpu(words.storage(), scales, out.storage_mut());
        out
    }

    fn tiled_product(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        <Self as DifferentiableKernels>::product(x, weight, Factors::F32)
    }

    fn embed_tokens(
        tokens: FlexTensor,
        bias: FlexTensor,
        positions: FlexTensor,
        copies: usize,
    ) -> FlexTensor {
        let [tokens, bias, positions] = [tokens, bias, positions].map(own);
        let [batch, count, dim] = dims(&tokens);
        let mut out = empty([copies * batch, count, dim]);
        embed_tokens::embed_tokens_cpu(
            tokens.storage(),
            bias.storage(),
            positions.storage(),
            out.storage_mut(),
        );
        out
    }

    fn modulated(
        x: FlexTensor,
        slab: FlexTensor,
        shift: VectorAt,
        scale: VectorAt,
        eps: f64,
    ) -> FlexTensor {
        let [x, slab] = [x, slab].map(own);
        let mut out = empty(dims(&x));
        modulate::modulate_cpu(
            dims(&x),
            x.storage(),
            (slab.storage(), shift),
            (slab.storage(), scale),
            eps,
            out.storage_mut(),
        );
        out
    }

    fn attention(qkv: FlexTensor, bias: FlexTensor, heads: usize) -> FlexTensor {
        let [qkv, bias] = [qkv, bias].map(own);
        let [batch, tokens, width] = dims(&qkv);
        let mut out = empty([batch, tokens, width / 3]);
        attention::attention_cpu(
            dims(&qkv),
            heads,
            qkv.storage(),
            bias.storage(),
            out.storage_mut(),
        );
        out
    }

    fn gelu_biased(x: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let [mut x, bias] = [x, bias].map(own);
        gelu::gelu_biased_cpu(x.storage_mut(), bias.storage());
        x
    }

    fn gated_residual_biased(
        x: FlexTensor,
        slab: FlexTensor,
        gate: VectorAt,
        feature: FlexTensor,
        bias: FlexTensor,
    ) -> FlexTensor {
        let [mut x, slab, feature, bias] = [x, slab, feature, bias].map(own);
        gated_residual::gated_residual_cpu(
            dims(&x),
            x.storage_mut(),
            (slab.storage(), gate),
            feature.storage(),
            bias.storage(),
        );
        x
    }

    fn cache_write(
        x: FlexTensor,
        slab: FlexTensor,
        gate: VectorAt,
        feature: FlexTensor,
        bias: FlexTensor,
        arena: FlexTensor,
        slot: SlotAt,
    ) -> (FlexTensor, FlexTensor) {
        let [mut x, slab, feature, bias, mut arena] = [x, slab, feature, bias, arena].map(own);
        cache_write::cache_write_cpu(
            dims(&x),
            x.storage_mut(),
            (slab.storage(), gate),
            feature.storage(),
            bias.storage(),
            arena.storage_mut(),
            slot,
        );
        (x, arena)
    }

    fn reuse_span(
        x: FlexTensor,
        slab: FlexTensor,
        arena: FlexTensor,
        span: Vec<Reused>,
    ) -> FlexTensor {
        let [mut x, slab, arena] = [x, slab, arena].map(own);
        let shape = dims(&x);
        reuse_span::reuse_span_cpu(
            shape,
            x.storage_mut(),
            slab.storage(),
            arena.storage(),
            &span,
        );
        x
    }

    fn solver_step(
        x: FlexTensor,
        patches: FlexTensor,
        bias: FlexTensor,
        history: FlexTensor,
        noise: FlexTensor,
        launch: Launch,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [x, patches, bias, mut history, noise] = [x, patches, bias, history, noise].map(own);
        let shape = x.layout().shape().clone();
        let mut next = FlexTensor::empty(shape.clone(), x.dtype());
        let mut x0 = FlexTensor::empty(shape.clone(), x.dtype());
        let inputs = solver_step::Inputs {
            x: x.storage(),
            patches: patches.storage(),
            bias: bias.storage(),
            noise: noise.storage(),
        };
        let mut no_history = [];
        let kept: &mut [f32] = match launch.keeps_history() {
            true => history.storage_mut(),
            false => &mut no_history,
        };
        solver_step::solver_step_cpu(
            [shape[0], shape[1], shape[2], shape[3]],
            inputs,
            kept,
            launch,
            next.storage_mut(),
            x0.storage_mut(),
        );
        (next, x0, history)
    }
}
