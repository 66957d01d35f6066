//! The C interface: `include/harmonica.h`.
//!
//! ```sh
//! cargo rustc --release --lib --features capi --crate-type cdylib       # libharmonica.so, .dylib, .dll
//! cargo rustc --release --lib --features capi --crate-type staticlib    # libharmonica.a, .lib
//! ```
//!
//! A model is loaded onto an engine; settings and a schedule say how to sample; [`hm_sample`] does it on the calling
//! thread and tells a callback of every step. Every function that can fail returns a [`hm_status`] and leaves
//! a text in [`hm_last_error`].
//!
//! **Threads.** Any function may be called on any thread, and a handle may be used by several threads at once, and freed
//! while they use it. Callbacks run on the thread that called [`hm_sample`]. The text of the last error belongs to the thread
//! it happened on.
//!
//! **Panics** end at the boundary, as [`hm_status::HM_INTERNAL`].
//!
//! **Ownership.** What a function hands out through a `**` argument is freed by the `_free` function of its type, in any
//! order: a model keeps what it needs of its engine. Handles are numbers, which nothing follows as a pointer: what was freed,
//! or is a handle of another type, is an error. Strings belong to the handle that told them.
#![allow(unsafe_code, reason = "C hands in pointers")]
#![allow(
    non_camel_case_types,
    reason = "types are named as the header names them"
)]

mod arguments;
mod engine;
mod error;
mod handles;
mod model;
mod sample;
mod schedule;

pub use engine::{
    hm_engine, hm_engine_backend, hm_engine_device, hm_engine_free, hm_engine_notice,
    hm_engine_open,
};
pub use error::{hm_last_error, hm_status};
pub use model::{
    hm_model, hm_model_class_by_name, hm_model_class_name, hm_model_free, hm_model_get_info,
    hm_model_info, hm_model_load,
};
pub use sample::{
    HM_GUIDE_ALL, HM_GUIDE_THREE, HM_SOLVER_DDIM, HM_SOLVER_DDPM, HM_SOLVER_DPM2M,
    HM_SOLVER_DPM2M_SDE, HM_SOLVER_DPM3M, HM_SOLVER_EULER, HM_SOLVER_SA, hm_progress,
    hm_progress_fn, hm_rgb8, hm_sample, hm_settings, hm_settings_init, hm_write_png,
};
pub use schedule::{
    hm_figures, hm_schedule, hm_schedule_free, hm_schedule_from_table, hm_schedule_get_figures,
    hm_schedule_open,
};

use std::ffi::c_char;

/// What `HM_ABI_VERSION` of a header must be to fit this library; rises when a signature or struct changes.
pub const HM_ABI_VERSION: u32 = 1;

/// [`HM_ABI_VERSION`] of the library.
#[unsafe(no_mangle)]
pub extern "C" fn hm_abi_version() -> u32 {
    HM_ABI_VERSION
}

/// The library's version, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn hm_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

// Handles may be shared by threads.
const _: () = {
    const fn shareable<T: Send + Sync>() {}
    shareable::<hm_engine>();
    shareable::<hm_model>();
    shareable::<hm_schedule>();
};
