//! Operations that training differentiates, on the CPU: one extension trait, its implementation, its gradients.
//!
//! A gradient takes one pass over memory and is written where one of its inputs was, which nobody needs any more.
//! GPUs differentiate the composed forms, which burn fuses.

use burn::backend::{Backend, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Shape;
use burn_autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn_flex::FlexTensor;

use super::{
    VectorAt, add_bias, attention,
    bf16::rounded_product_cpu,
    flex::{dims, empty, own, tensor},
    gated_residual, gelu,
    lanes::column_sums,
    modulate,
    product::{Matrix, product_cpu},
    sampling::SamplingKernels,
    way_back,
};
use crate::stop::Asked;

/// What the factors of a product, and of its gradients, are rounded to on their way. Sums are in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factors {
    F32,
    /// See [`super::bf16::rounded_product`].
    Bf16,
}

impl Factors {
    /// `a·b`, row-major.
    pub(crate) fn product(self, a: Matrix, b: Matrix) -> Vec<f32> {
        match self {
            Self::F32 => product_cpu(a, b),
            Self::Bf16 => rounded_product_cpu(a, b),
        }
    }
}

/// The differentiable operations with a CPU form of their own.
#[backend_extension(Flex, Autodiff)]
pub trait DifferentiableKernels: Backend {
    /// See [`super::product::product`].
    fn product(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        factors: Factors,
    ) -> FloatTensor<Self>;
    /// Gradient of [`DifferentiableKernels::product`] with respect to `x`.
    fn product_gradient_x(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factors: Factors,
    ) -> FloatTensor<Self>;
    /// Gradient of [`DifferentiableKernels::product`] with respect to `weight`.
    fn product_gradient_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factors: Factors,
    ) -> FloatTensor<Self>;
    /// See [`add_bias::add_bias`].
    fn add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradient of [`DifferentiableKernels::add_bias`] with respect to `bias`; that with respect to `x` is `grad`.
    fn add_bias_gradient(grad: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`attention::attention`].
    fn self_attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self>;
    /// Gradients of [`DifferentiableKernels::self_attention`] with respect to `qkv` and `bias`.
    fn attention_gradient(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`gelu::gelu`].
    fn gelu_biased(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradients of [`DifferentiableKernels::gelu_biased`] with respect to `x` and `bias`.
    fn gelu_gradient(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// `LN(x)·(1 + scale) + shift`; `x` `[B, tokens, dim]`, vectors `[B, 1, dim]`.
    fn modulate(
        x: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// Gradients of [`DifferentiableKernels::modulate`] with respect to `x`, `shift` and `scale`.
    fn modulate_gradient(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        eps: f64,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// `x + gate·(feature + bias)`; `x` and `feature` `[B, tokens, dim]`, `gate` `[B, 1, dim]`, `bias` `[dim]`.
    fn gated_residual(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        feature: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// Gradients of [`DifferentiableKernels::gated_residual`] with respect to `gate`, `feature` and `bias`; that with
    /// respect to `x` is `grad`.
    fn gated_residual_gradient(
        gate: FloatTensor<Self>,
        feature: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// See [`way_back::asked_on_the_way_back`].
    fn asked(x: FloatTensor<Self>, asked: Asked) -> FloatTensor<Self>;
}

/// `[…, width]` with another last size.
pub(super) fn with_width(x: &FlexTensor, width: usize) -> Shape {
    let mut shape = x.layout().shape().clone();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    shape
}

/// Rows of numbers, whatever the rank.
pub(super) fn rows(x: &FlexTensor) -> Matrix<'_> {
    Matrix::new(x.storage(), width(x))
}

/// The last size.
fn width(x: &FlexTensor) -> usize {
    x.layout().shape().last().copied().unwrap_or(1)
}

impl DifferentiableKernels for Flex {
    fn product(x: FlexTensor, weight: FlexTensor, factors: Factors) -> FlexTensor {
        let [x, weight] = [x, weight].map(own);
        let shape = with_width(&x, width(&weight));
        tensor(factors.product(rows(&x), rows(&weight)), shape)
    }

    fn product_gradient_x(weight: FlexTensor, grad: FlexTensor, factors: Factors) -> FlexTensor {
        let [weight, grad] = [weight, grad].map(own);
        let transposed = rows(&weight).transposed();
        let shape = with_width(&grad, weight.layout().shape()[0]);
        tensor(factors.product(rows(&grad), transposed), shape)
    }

    fn product_gradient_weight(x: FlexTensor, grad: FlexTensor, factors: Factors) -> FlexTensor {
        let [x, grad] = [x, grad].map(own);
        let shape = [width(&x), width(&grad)];
        tensor(factors.product(rows(&x).transposed(), rows(&grad)), shape)
    }

    fn add_bias(x: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let [mut x, bias] = [x, bias].map(own);
        add_bias::add_bias_cpu(x.storage_mut(), bias.storage());
        x
    }

    fn add_bias_gradient(grad: FlexTensor) -> FlexTensor {
        let (grad, width) = (own(grad.clone()), width(&grad));
        tensor(column_sums(grad.storage(), width), [width])
    }

    fn self_attention(qkv: FlexTensor, bias: FlexTensor, heads: usize) -> FlexTensor {
        <Self as SamplingKernels>::attention(qkv, bias, heads)
    }

    fn attention_gradient(
        qkv: FlexTensor,
        bias: FlexTensor,
        heads: usize,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let [mut qkv, bias, grad] = [qkv, bias, grad].map(own);
        let shape = dims(&qkv);
        let for_bias = attention::attention_gradient_cpu(
            shape,
            heads,
            qkv.storage_mut(),
            bias.storage(),
            grad.storage(),
        );
        (qkv, tensor(for_bias, [shape[2]]))
    }

    fn gelu_biased(x: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let [x, bias] = [x, bias].map(own);
        let mut out = empty(dims(&x));
        gelu::gelu_cpu(x.storage(), bias.storage(), out.storage_mut());
        out
    }

    fn gelu_gradient(
        x: FlexTensor,
        bias: FlexTensor,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let [x, bias, mut grad] = [x, bias, grad].map(own);
        let for_bias = gelu::gelu_gradient_cpu(x.storage(), bias.storage(), grad.storage_mut());
        (grad, tensor(for_bias, [dims(&x)[2]]))
    }

    fn modulate(x: FlexTensor, shift: FlexTensor, scale: FlexTensor, eps: f64) -> FlexTensor {
        let [x, shift, scale] = [x, shift, scale].map(own);
        let shape = dims(&x);
        let own = VectorAt {
            start: 0,
            stride: shape[2],
            count: shape[0],
        };
        let mut out = empty(shape);
        modulate::modulate_cpu(
            shape,
            x.storage(),
            (shift.storage(), own),
            (scale.storage(), own),
            eps,
            out.storage_mut(),
        );
        out
    }

    fn modulate_gradient(
        x: FlexTensor,
        scale: FlexTensor,
        eps: f64,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [x, scale, mut grad] = [x, scale, grad].map(own);
        let [batch, tokens, dim] = dims(&x);
        let [for_shift, for_scale] = modulate::modulate_gradient_cpu(
            [batch, tokens, dim],
            x.storage(),
            scale.storage(),
            eps,
            grad.storage_mut(),
        )
        .map(|sums| tensor(sums, [batch, 1, dim]));
        (grad, for_shift, for_scale)
    }

    fn gated_residual(
        x: FlexTensor,
        gate: FlexTensor,
        feature: FlexTensor,
        bias: FlexTensor,
    ) -> FlexTensor {
        let [x, gate, feature, bias] = [x, gate, feature, bias].map(own);
        let mut out = empty(dims(&x));
        gated_residual::joined_cpu(
            dims(&x),
            x.storage(),
            gate.storage(),
            feature.storage(),
            bias.storage(),
            out.storage_mut(),
        );
        out
    }

    fn gated_residual_gradient(
        gate: FlexTensor,
        feature: FlexTensor,
        bias: FlexTensor,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [gate, mut feature, bias, grad] = [gate, feature, bias, grad].map(own);
        let [batch, tokens, dim] = dims(&grad);
        let [for_gate, for_bias] = gated_residual::joined_gradient_cpu(
            [batch, tokens, dim],
            gate.storage(),
            feature.storage_mut(),
            bias.storage(),
            grad.storage(),
        );
        let for_gate = tensor(for_gate, [batch, 1, dim]);
        (for_gate, feature, tensor(for_bias, [dim]))
    }

    fn asked(x: FlexTensor, _: Asked) -> FlexTensor {
        x
    }
}

/// Hands every parent that wants one its gradient: `of(state, gradient of the output)`, by parent.
pub(super) fn flow<B: Backend, S, const N: usize>(
    ops: Ops<S, N>,
    grads: &mut Gradients,
    of: impl FnOnce(S, FloatTensor<B>) -> [FloatTensor<B>; N],
) where
    S: Clone + Send + std::fmt::Debug + 'static,
{
    let grad = grads.consume::<B>(&ops.node);
    for (parent, gradient) in ops.parents.into_iter().zip(of(ops.state, grad)) {
        if let Some(node) = parent {
            grads.register::<B>(node.id, gradient);
        }
    }
}

impl<B: Backend + DifferentiableKernels, C: CheckpointStrategy> DifferentiableKernels
    for Autodiff<B, C>
{
    fn product(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        factors: Factors,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + DifferentiableKernels> Backward<B, 2> for Rule {
            /// Each is kept for the gradient of the other only.
            type State = (Option<FloatTensor<B>>, Option<FloatTensor<B>>, Factors);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [for_x, for_weight] = ops.parents;
                let (x, weight, factors) = ops.state;
                if let (Some(node), Some(weight)) = (for_x, weight) {
                    let gradient = B::product_gradient_x(weight, grad.clone(), factors);
                    grads.register::<B>(node.id, gradient);
                }
                if let (Some(node), Some(x)) = (for_weight, x) {
                    grads.register::<B>(node.id, B::product_gradient_weight(x, grad, factors));
                }
            }
        }
        let (for_x, for_weight) = (x.is_tracked(), weight.is_tracked());
        let prepared = Rule.prepare::<C>([x.node(), weight.node()]);
        let [x, weight] = [x, weight].map(|x| x.into_primitive());
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let kept_x = for_weight.then(|| x.clone());
                let kept_weight = for_x.then(|| weight.clone());
                let kept = (kept_x, kept_weight, factors);
                prep.finish(kept, B::product(x, weight, factors))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::product(x, weight, factors)),
        }
    }

    fn product_gradient_x(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Factors,
    ) -> FloatTensor<Self> {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn product_gradient_weight(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Factors,
    ) -> FloatTensor<Self> {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + DifferentiableKernels> Backward<B, 2> for Rule {
            type State = ();
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [for_x, for_bias] = ops.parents;
                if let Some(node) = for_bias {
                    grads.register::<B>(node.id, B::add_bias_gradient(grad.clone()));
                }
                if let Some(node) = for_x {
                    grads.register::<B>(node.id, grad);
                }
            }
        }
        let prepared = Rule.prepare::<C>([x.node(), bias.node()]);
        let [x, bias] = [x, bias].map(|x| x.into_primitive());
        prepared.compute_bound().stateless(B::add_bias(x, bias))
    }

    fn add_bias_gradient(_: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn self_attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + DifferentiableKernels> Backward<B, 2> for Rule {
            type State = (FloatTensor<B>, FloatTensor<B>, usize);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                flow::<B, _, _>(ops, grads, |(qkv, bias, heads), grad| {
                    let (for_qkv, for_bias) = B::attention_gradient(qkv, bias, heads, grad);
                    [for_qkv, for_bias]
                });
            }
        }
        let prepared = Rule.prepare::<C>([qkv.node(), bias.node()]);
        let [qkv, bias] = [qkv, bias].map(|x| x.into_primitive());
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(
                (qkv.clone(), bias.clone(), heads),
                B::self_attention(qkv, bias, heads),
            ),
            OpsKind::UnTracked(prep) => prep.finish(B::self_attention(qkv, bias, heads)),
        }
    }

    fn attention_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: usize,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn gelu_biased(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + DifferentiableKernels> Backward<B, 2> for Rule {
            type State = (FloatTensor<B>, FloatTensor<B>);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                flow::<B, _, _>(ops, grads, |(x, bias), grad| {
                    let (for_x, for_bias) = B::gelu_gradient(x, bias, grad);
                    [for_x, for_bias]
                });
            }
        }
        let prepared = Rule.prepare::<C>([x.node(), bias.node()]);
        let [x, bias] = [x, bias].map(|x| x.into_primitive());
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                prep.finish((x.clone(), bias.clone()), B::gelu_biased(x, bias))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gelu_biased(x, bias)),
        }
    }

    fn gelu_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn modulate(
        x: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + DifferentiableKernels> Backward<B, 3> for Rule {
            type State = (FloatTensor<B>, FloatTensor<B>, f64);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                flow::<B, _, _>(ops, grads, |(x, scale, eps), grad| {
                    let (for_x, for_shift, for_scale) = B::modulate_gradient(x, scale, eps, grad);
                    [for_x, for_shift, for_scale]
                });
            }
        }
        let prepared = Rule.prepare::<C>([x.node(), shift.node(), scale.node()]);
        let [x, shift, scale] = [x, shift, scale].map(|x| x.into_primitive());
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(
                (x.clone(), scale.clone(), eps),
                B::modulate(x, shift, scale, eps),
            ),
            OpsKind::UnTracked(prep) => prep.finish(B::modulate(x, shift, scale, eps)),
        }
    }

    fn modulate_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: f64,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn gated_residual(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        feature: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + DifferentiableKernels> Backward<B, 4> for Rule {
            type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);
            fn backward(
                self,
                ops: Ops<Self::State, 4>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                flow::<B, _, _>(ops, grads, |(gate, feature, bias), grad| {
                    let (for_gate, for_feature, for_bias) =
                        B::gated_residual_gradient(gate, feature, bias, grad.clone());
                    [grad, for_gate, for_feature, for_bias]
                });
            }
        }
        let prepared = Rule.prepare::<C>([x.node(), gate.node(), feature.node(), bias.node()]);
        let [x, gate, feature, bias] = [x, gate, feature, bias].map(|x| x.into_primitive());
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(
                (gate.clone(), feature.clone(), bias.clone()),
                B::gated_residual(x, gate, feature, bias),
            ),
            OpsKind::UnTracked(prep) => prep.finish(B::gated_residual(x, gate, feature, bias)),
        }
    }

    fn gated_residual_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn asked(x: FloatTensor<Self>, asked: Asked) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend> Backward<B, 1> for Rule {
            type State = Asked;
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                way_back::ask(&ops.state);
                flow::<B, _, _>(ops, grads, |_, grad| [grad]);
            }
        }
        let prepared = Rule.prepare::<C>([x.node()]);
        let x = x.into_primitive();
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(asked, x),
            OpsKind::UnTracked(prep) => prep.finish(x),
        }
    }
}
