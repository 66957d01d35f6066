//! Ending the way back of a gradient in the middle.
//!
//! burn goes back in one call, which may take a minute for a large model on a processor and hands no error on: it is left by
//! unwinding, and no further than [`backward`].

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use burn::{
    backend::Dispatch,
    tensor::{Gradients, Tensor},
};

use super::{Place, Route, differentiable::DifferentiableKernels, route};
use crate::stop::{Asked, Stopped};

/// `x` as it is; on the way back `asked` is asked before its gradient flows on. On the CPU alone: a GPU's work waits in a queue.
pub fn asked_on_the_way_back(x: Tensor<3>, asked: &Asked) -> Tensor<3> {
    if !asked.is_somebody() || route(&[Place::of(&x)]) != Route::DifferentiableCpu {
        return x;
    }
    let x = <Dispatch as DifferentiableKernels>::asked(x.into_dispatch(), asked.clone());
    Tensor::from_dispatch(x)
}

/// Gradients of what `loss` was made of.
///
/// # Errors
/// [`Stopped`] where somebody who was asked on the way back wants it.
pub fn backward(loss: Tensor<1>) -> Result<Gradients, Stopped> {
    let gone = catch_unwind(AssertUnwindSafe(|| loss.backward()));
    gone.map_err(|panic| match panic.downcast::<Stopped>() {
        Ok(stopped) => *stopped,
        Err(panic) => resume_unwind(panic),
    })
}

/// Leaves the way back where somebody wants to stop.
pub(super) fn ask(asked: &Asked) {
    if let Err(stopped) = asked.go_on() {
        // Past the panic hook: nothing is wrong.
        resume_unwind(Box::new(stopped));
    }
}
