//! Operations that training differentiates, on the CPU: one extension trait, its implementation, its gradients.
//!
//! GPUs differentiate the composed forms, which burn fuses.

use burn::backend::{Backend, Flex, backend_extension, tensor::FloatTensor};
use burn_autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn_flex::FlexTensor;

use super::{VectorAt, gated_residual, gelu, modulate};

/// The differentiable operations with a CPU form of their own.
#[backend_extension(Flex, Autodiff)]
pub trait DifferentiableKernels: Backend {
    /// GELU in its tanh form.
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradient of [`DifferentiableKernels::gelu_tanh`] at `x`, times `grad`.
    fn gelu_tanh_gradient(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
    /// `LN(x)·(1 + scale) + shift`; `x` `[B, tokens, dim]`, vectors `[B, 1, dim]`.
    fn modulate(
        x: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// Gradient of [`DifferentiableKernels::modulate`] with respect to `x`.
    fn modulate_gradient(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// `x + gate·feature`; `gate` `[B, 1, dim]`.
    fn gated_residual(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        feature: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// `[B, tokens, dim]` of a tensor of rank 3.
pub(super) fn dims(x: &FlexTensor) -> [usize; 3] {
    let shape = x.layout().shape();
    [shape[0], shape[1], shape[2]]
}

impl DifferentiableKernels for Flex {
    fn gelu_tanh(x: FlexTensor) -> FlexTensor {
        let x = x.to_contiguous();
        let mut out = FlexTensor::empty(x.layout().shape().clone(), x.dtype());
        gelu::gelu_cpu(x.storage(), out.storage_mut());
        out
    }

    fn gelu_tanh_gradient(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
        let mut out = FlexTensor::empty(x.layout().shape().clone(), x.dtype());
        gelu::gelu_gradient_cpu(x.storage(), grad.storage(), out.storage_mut());
        out
    }

    fn modulate(x: FlexTensor, shift: FlexTensor, scale: FlexTensor, eps: f64) -> FlexTensor {
        let (x, shift, scale) = (
            x.to_contiguous(),
            shift.to_contiguous(),
            scale.to_contiguous(),
        );
        let mut out = FlexTensor::empty(x.layout().shape().clone(), x.dtype());
        let shape = dims(&x);
        let own = VectorAt {
            start: 0,
            stride: shape[2],
            count: shift.layout().shape()[0],
        };
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
        grad: FlexTensor,
        eps: f64,
    ) -> FlexTensor {
        let (x, scale, grad) = (
            x.to_contiguous(),
            scale.to_contiguous(),
            grad.to_contiguous(),
        );
        let mut out = FlexTensor::empty(x.layout().shape().clone(), x.dtype());
        modulate::modulate_gradient_cpu(
            dims(&x),
            x.storage(),
            scale.storage(),
            grad.storage(),
            eps,
            out.storage_mut(),
        );
        out
    }

    fn gated_residual(x: FlexTensor, gate: FlexTensor, feature: FlexTensor) -> FlexTensor {
        let (x, gate, feature) = (
            x.to_contiguous(),
            gate.to_contiguous(),
            feature.to_contiguous(),
        );
        let mut out = FlexTensor::empty(x.layout().shape().clone(), x.dtype());
        gated_residual::joined_cpu(
            dims(&x),
            x.storage(),
            gate.storage(),
            feature.storage(),
            out.storage_mut(),
        );
        out
    }
}

impl<B: Backend + DifferentiableKernels, C: CheckpointStrategy> DifferentiableKernels
    for Autodiff<B, C>
{
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + DifferentiableKernels> Backward<B, 1> for Rule {
            type State = FloatTensor<B>;
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [parent] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                if let Some(node) = parent {
                    grads.register::<B>(node.id, B::gelu_tanh_gradient(ops.state, grad));
                }
            }
        }
        match Rule.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let x = x.into_primitive();
                prep.finish(x.clone(), B::gelu_tanh(x))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gelu_tanh(x.into_primitive())),
        }
    }

    fn gelu_tanh_gradient(_: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
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
                let [for_x, for_shift, for_scale] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (x, scale, eps) = ops.state;
                if let Some(node) = for_scale {
                    // LN(x), by modulating with nothing.
                    let none = B::float_mul_scalar(scale.clone(), 0.0f32.into());
                    let normal = B::modulate(x.clone(), none.clone(), none, eps);
                    grads.register::<B>(
                        node.id,
                        B::float_sum_dim(B::float_mul(grad.clone(), normal), 1),
                    );
                }
                if let Some(node) = for_shift {
                    grads.register::<B>(node.id, B::float_sum_dim(grad.clone(), 1));
                }
                if let Some(node) = for_x {
                    grads.register::<B>(node.id, B::modulate_gradient(x, scale, grad, eps));
                }
            }
        }
        match Rule
            .prepare::<C>([x.node(), shift.node(), scale.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (x, shift, scale) = (
                    x.into_primitive(),
                    shift.into_primitive(),
                    scale.into_primitive(),
                );
                prep.finish(
                    (x.clone(), scale.clone(), eps),
                    B::modulate(x, shift, scale, eps),
                )
            }
            OpsKind::UnTracked(prep) => prep.finish(B::modulate(
                x.into_primitive(),
                shift.into_primitive(),
                scale.into_primitive(),
                eps,
            )),
        }
    }

    fn modulate_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: f64,
    ) -> FloatTensor<Self> {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn gated_residual(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        feature: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend> Backward<B, 3> for Rule {
            type State = (FloatTensor<B>, FloatTensor<B>);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [for_x, for_gate, for_feature] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (gate, feature) = ops.state;
                if let Some(node) = for_gate {
                    grads.register::<B>(
                        node.id,
                        B::float_sum_dim(B::float_mul(grad.clone(), feature), 1),
                    );
                }
                if let Some(node) = for_feature {
                    grads.register::<B>(node.id, B::float_mul(grad.clone(), gate));
                }
                if let Some(node) = for_x {
                    grads.register::<B>(node.id, grad);
                }
            }
        }
        match Rule
            .prepare::<C>([x.node(), gate.node(), feature.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (gate, feature) = (gate.into_primitive(), feature.into_primitive());
                let out = B::gated_residual(x.into_primitive(), gate.clone(), feature.clone());
                prep.finish((gate, feature), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated_residual(
                x.into_primitive(),
                gate.into_primitive(),
                feature.into_primitive(),
            )),
        }
    }
}
