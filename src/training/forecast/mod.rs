//! Forecasts of clean images: fitted image-free, from noise and conditions alone, so that a run that skips lands where the
//! uncached one does.
//!
//! - [`fit`]: what each step of a table weighs

pub mod fit;

pub use fit::{Draws, Fit, Purpose};
