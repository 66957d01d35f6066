//! Operations that burn does not run well by itself: hand-written shaders (`shaders/*.wgsl`), each with its CPU twin
//! beside its launch code.
//!
//! Tensors take these routes:
//! - sampling on a GPU runs the shaders, a few dispatches a branch where composed operations take twenty;
//! - sampling on the CPU runs the twins: one pass over memory, vectorised for the processor at hand, on all
//!   threads (burn's CPU backend fuses nothing and calls the scalar maths library one number at a time);
//! - training on the CPU runs forms with gradients of their own;
//! - everything else runs composed burn operations: training on GPUs, which burn fuses, and builds with burn's
//!   SPIR-V or MSL compilers, which take no WGSL.

mod add_bias;
mod attention;
mod bf16;
mod cache_write;
#[cfg(not(target_family = "wasm"))]
mod check;
mod differentiable;
mod embed_tokens;
mod flex;
mod gated_residual;
mod gelu;
mod hardware;
mod lanes;
mod microkernel;
mod modulate;
mod patches;
#[cfg(not(target_family = "wasm"))]
mod pictures;
mod product;
mod quantised;
mod reuse_span;
mod sampling;
mod solver_step;
mod tiles;
mod units;
mod vectors;
mod way_back;
mod wgsl;

use burn::{
    backend::DispatchDevice,
    tensor::{DType, Device, Tensor},
};

pub use add_bias::add_bias;
pub use attention::attention;
pub(crate) use bf16::rounded_product;
pub use bf16::{Bf16Matrix, bf16_product};
pub use cache_write::{SlotAt, cache_write};
#[cfg(not(target_family = "wasm"))]
pub use check::{KernelCheck, KernelFault, check_kernels};
pub(crate) use differentiable::Factors;
pub use embed_tokens::embed_tokens;
pub use gated_residual::gated_residual;
pub use gelu::gelu;
pub use hardware::Hardware;
pub(crate) use lanes::{exp, vectorised};
pub use modulate::modulate;
pub use patches::{images_of, output_patches_of, patches_of};
#[cfg(not(target_family = "wasm"))]
pub(crate) use pictures::PATCH_NUMBERS;
#[cfg(not(target_family = "wasm"))]
pub use pictures::{Groups, Window, convolution, doubled, group_norm};
pub(crate) use product::{Matrix, product_cpu, product_onto};
pub use product::{half_product, product};
pub use quantised::{Quantised, QuantisedData, dequantise, quantised_product};
pub use reuse_span::{Reused, reuse_span};
pub use solver_step::{After, Before, OutputLayout, solver_step, solver_step_of_images};
#[doc(hidden)]
pub use tiles::constants_of_products;
pub use vectors::VectorAt;
pub(crate) use way_back::{asked_on_the_way_back, backward};

/// How an operation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// The shaders, or their CPU twins.
    Fast,
    /// The CPU forms with gradients.
    DifferentiableCpu,
    /// burn's own operations.
    Composed,
}

/// Whether sampling on `device` runs the shaders or their CPU twins, rather than composed operations.
pub fn runs_kernels(device: &Device) -> bool {
    route(&[Place {
        device: device.clone(),
        dtype: DType::F32,
    }]) == Route::Fast
}

/// What decides a tensor's route.
struct Place {
    device: Device,
    dtype: DType,
}

impl Place {
    fn of<const D: usize>(tensor: &Tensor<D>) -> Self {
        Self {
            device: tensor.device(),
            dtype: tensor.dtype(),
        }
    }
}

/// The route of an operation on these tensors.
fn route(places: &[Place]) -> Route {
    if places.iter().any(|place| place.dtype != DType::F32) {
        // Half precision is for training on GPUs.
        return Route::Composed;
    }
    let differentiable = places.iter().any(|place| place.device.is_autodiff());
    let cpu = places.iter().any(|place| on_cpu(&place.device));
    let shaders = cfg!(not(feature = "composed"));
    match (differentiable, cpu) {
        (true, true) => Route::DifferentiableCpu,
        (false, true) => Route::Fast,
        (false, false) if shaders => Route::Fast,
        (_, false) => Route::Composed,
    }
}

/// Whether tensors of this device lie in the processor's memory.
pub(crate) fn on_cpu(device: &Device) -> bool {
    let device = device.clone().inner();
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}
