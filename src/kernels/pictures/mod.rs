//! Operations on pictures `[B, H, W, C]` that training differentiates: an autoencoder's convolutions, norms and doublings.
//!
//! On the CPU each has a form and a gradient of its own, which burn's backend there would take many passes over memory for;
//! GPUs run and differentiate the composed forms.

mod convolution;
mod doubled;
mod group_norm;

use burn::backend::{Backend, Flex, backend_extension, tensor::FloatTensor};
use burn_autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn_flex::FlexTensor;

pub(crate) use convolution::PATCH_NUMBERS;
pub use convolution::{Window, convolution};
pub use doubled::doubled;
pub use group_norm::{Groups, group_norm};

use super::{
    differentiable::flow,
    flex::{own, tensor},
};

/// The operations on pictures with a CPU form of their own.
#[backend_extension(Flex, Autodiff)]
pub trait PictureKernels: Backend {
    /// See [`convolution()`]; `size` is `[height, width]` of `x`.
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
        size: [usize; 2],
    ) -> FloatTensor<Self>;
    /// Gradient of [`PictureKernels::convolution`] with respect to `x`, a picture of `[height, width]`.
    fn convolution_gradient_x(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
        size: [usize; 2],
    ) -> FloatTensor<Self>;
    /// Gradient of [`PictureKernels::convolution`] with respect to `weight`.
    fn convolution_gradient_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self>;
    /// See [`group_norm()`].
    fn group_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        groups: Groups,
    ) -> FloatTensor<Self>;
    /// Gradients of [`PictureKernels::group_norm`] with respect to `x`, `scale` and `shift`.
    fn group_norm_gradient(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        groups: Groups,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// See [`doubled()`].
    fn doubled(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradient of [`PictureKernels::doubled`]: every four cells' sum.
    fn doubled_gradient(grad: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// `[B, H, W, C]`
fn dims(x: &FlexTensor) -> [usize; 4] {
    let shape = x.layout().shape();
    [shape[0], shape[1], shape[2], shape[3]]
}

impl PictureKernels for Flex {
    fn convolution(x: FlexTensor, weight: FlexTensor, window: Window, _: [usize; 2]) -> FlexTensor {
        let [x, weight] = [x, weight].map(own);
        let (values, shape) =
            convolution::convolution_cpu(x.storage(), dims(&x), weight.storage(), window);
        tensor(values, shape)
    }

    fn convolution_gradient_x(
        weight: FlexTensor,
        grad: FlexTensor,
        window: Window,
        size: [usize; 2],
    ) -> FlexTensor {
        let [weight, grad] = [weight, grad].map(own);
        let (values, shape) = convolution::gradient_x_cpu(
            weight.storage(),
            grad.storage(),
            dims(&grad),
            window,
            size,
        );
        tensor(values, shape)
    }

    fn convolution_gradient_weight(x: FlexTensor, grad: FlexTensor, window: Window) -> FlexTensor {
        let [x, grad] = [x, grad].map(own);
        let (values, shape) = convolution::gradient_weight_cpu(
            x.storage(),
            dims(&x),
            grad.storage(),
            dims(&grad),
            window,
        );
        tensor(values, shape)
    }

    fn group_norm(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        groups: Groups,
    ) -> FlexTensor {
        let [x, scale, shift] = [x, scale, shift].map(own);
        let shape = dims(&x);
        let values = group_norm::group_norm_cpu(
            x.storage(),
            shape,
            [scale.storage(), shift.storage()],
            groups,
        );
        tensor(values, shape)
    }

    fn group_norm_gradient(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        groups: Groups,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [x, scale, shift, mut grad] = [x, scale, shift, grad].map(own);
        let shape = dims(&x);
        let [for_scale, for_shift] = group_norm::group_norm_gradient_cpu(
            x.storage(),
            shape,
            [scale.storage(), shift.storage()],
            groups,
            grad.storage_mut(),
        )
        .map(|sums| tensor(sums, [shape[3]]));
        (grad, for_scale, for_shift)
    }

    fn doubled(x: FlexTensor) -> FlexTensor {
        let x = own(x);
        let [b, h, w, c] = dims(&x);
        let values = doubled::doubled_cpu(x.storage(), [b, h, w, c]);
        tensor(values, [b, 2 * h, 2 * w, c])
    }

    fn doubled_gradient(grad: FlexTensor) -> FlexTensor {
        let grad = own(grad);
        let [b, h, w, c] = dims(&grad);
        let values = doubled::doubled_gradient_cpu(grad.storage(), [b, h, w, c]);
        tensor(values, [b, h / 2, w / 2, c])
    }
}

impl<B: Backend + PictureKernels, C: CheckpointStrategy> PictureKernels for Autodiff<B, C> {
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
        size: [usize; 2],
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + PictureKernels> Backward<B, 2> for Rule {
            /// Each is kept for the gradient of the other only.
            type State = (
                Option<FloatTensor<B>>,
                Option<FloatTensor<B>>,
                Window,
                [usize; 2],
            );
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [for_x, for_weight] = ops.parents;
                let (x, weight, window, size) = ops.state;
                if let (Some(node), Some(weight)) = (for_x, weight) {
                    let gradient = B::convolution_gradient_x(weight, grad.clone(), window, size);
                    grads.register::<B>(node.id, gradient);
                }
                if let (Some(node), Some(x)) = (for_weight, x) {
                    let gradient = B::convolution_gradient_weight(x, grad, window);
                    grads.register::<B>(node.id, gradient);
                }
            }
        }
        let (for_x, for_weight) = (x.is_tracked(), weight.is_tracked());
        let prepared = Rule.prepare::<C>([x.node(), weight.node()]);
        let [x, weight] = [x, weight].map(|x| x.into_primitive());
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (kept_x, kept_weight) =
                    (for_weight.then(|| x.clone()), for_x.then(|| weight.clone()));
                prep.finish(
                    (kept_x, kept_weight, window, size),
                    B::convolution(x, weight, window, size),
                )
            }
            OpsKind::UnTracked(prep) => prep.finish(B::convolution(x, weight, window, size)),
        }
    }

    fn convolution_gradient_x(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Window,
        _: [usize; 2],
    ) -> FloatTensor<Self> {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn convolution_gradient_weight(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Window,
    ) -> FloatTensor<Self> {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn group_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        groups: Groups,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + PictureKernels> Backward<B, 3> for Rule {
            type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Groups);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                flow::<B, _, _>(ops, grads, |(x, scale, shift, groups), grad| {
                    let (for_x, for_scale, for_shift) =
                        B::group_norm_gradient(x, scale, shift, groups, grad);
                    [for_x, for_scale, for_shift]
                });
            }
        }
        let prepared = Rule.prepare::<C>([x.node(), scale.node(), shift.node()]);
        let [x, scale, shift] = [x, scale, shift].map(|x| x.into_primitive());
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(
                (x.clone(), scale.clone(), shift.clone(), groups),
                B::group_norm(x, scale, shift, groups),
            ),
            OpsKind::UnTracked(prep) => prep.finish(B::group_norm(x, scale, shift, groups)),
        }
    }

    fn group_norm_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Groups,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("called on the inner backend by the rule above only")
    }

    fn doubled(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rule;
        impl<B: Backend + PictureKernels> Backward<B, 1> for Rule {
            type State = ();
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                flow::<B, _, _>(ops, grads, |(), grad| [B::doubled_gradient(grad)]);
            }
        }
        let prepared = Rule.prepare::<C>([x.node()]);
        let x = x.into_primitive();
        prepared.compute_bound().stateless(B::doubled(x))
    }

    fn doubled_gradient(_: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("called on the inner backend by the rule above only")
    }
}
