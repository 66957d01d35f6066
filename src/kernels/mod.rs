//! Operations that burn does not run well by itself, each with its CPU form and its gradient.
//!
//! On GPUs burn fuses chains of elementwise work into few dispatches, and an operation of our own would
//! split the chain; there the composed form runs. burn's CPU backend fuses nothing and calls the
//! scalar maths library one number at a time, so the CPU gets loops of our own: one pass over memory,
//! vectorised for the processor at hand, on all threads.

mod gated_residual;
mod gelu;
mod lanes;
mod modulate;
mod op;

pub use gated_residual::{gated_residual, gated_residual_cpu};
pub use gelu::{gelu, gelu_cpu, gelu_gradient_cpu};
pub use modulate::{modulate, modulate_cpu, modulate_gradient_cpu};
