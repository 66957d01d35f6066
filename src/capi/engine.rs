//! A device.

use std::{
    ffi::{CString, c_char},
    ops::Deref,
    sync::Arc,
};

use super::{
    arguments::{self, Out},
    error::{guard, guard_text, hm_status},
    handles::{Handle, Handles},
};
use crate::device::Engine;

/// A device to run models on.
pub struct hm_engine {
    pub(super) engine: Arc<OpenEngine>,
    device: CString,
    backend: CString,
    notice: Option<CString>,
}

/// An engine that is closed when nothing uses it any more.
pub(super) struct OpenEngine(Engine);

impl Deref for OpenEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.0
    }
}

impl Drop for OpenEngine {
    fn drop(&mut self) {
        // burn's native compilers give the engines of an adapter one device between them.
        if cfg!(not(any(feature = "spirv", feature = "msl"))) {
            self.0.clone().close();
        }
    }
}

/// Opens a device: "auto", "cpu", "vulkan", "metal", "dx12", "gl", or an index as `harmonica devices` lists them.
///
/// # Safety
/// `device` is a string; `engine` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_engine_open(
    device: *const c_char,
    engine: *mut *mut hm_engine,
) -> hm_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(engine, "engine") }?;
        // SAFETY: the caller's promise.
        let choice = unsafe { arguments::text(device, "device") }?.parse()?;
        let choice = Engine::open(choice)?;
        let report = choice.engine.report();
        let string = |text: &str| CString::new(text.replace('\0', "?")).unwrap_or_default();
        let opened = hm_engine {
            device: string(&report.device),
            backend: string(&report.backend),
            notice: choice.notice.as_deref().map(string),
            engine: Arc::new(OpenEngine(choice.engine)),
        };
        out.set(opened.open());
        Ok(())
    })
}

/// The adapter's name. Null for a null engine.
#[unsafe(no_mangle)]
pub extern "C" fn hm_engine_device(engine: *const hm_engine) -> *const c_char {
    guard_text(|| Ok(hm_engine::optional(engine)?.map(|e| e.device.as_ptr())))
}

/// "vulkan", "metal", "dx12", "gl" or "cpu". Null for a null engine.
#[unsafe(no_mangle)]
pub extern "C" fn hm_engine_backend(engine: *const hm_engine) -> *const c_char {
    guard_text(|| Ok(hm_engine::optional(engine)?.map(|e| e.backend.as_ptr())))
}

/// A line for the user where "auto" found no GPU, otherwise null.
#[unsafe(no_mangle)]
pub extern "C" fn hm_engine_notice(engine: *const hm_engine) -> *const c_char {
    guard_text(|| {
        let engine = hm_engine::optional(engine)?;
        Ok(engine.and_then(|e| e.notice.as_ref().map(|text| text.as_ptr())))
    })
}

/// Frees an engine; null is nothing. Its models go on, and the device is closed with the last of them.
#[unsafe(no_mangle)]
pub extern "C" fn hm_engine_free(engine: *mut hm_engine) {
    hm_engine::free(engine);
}

static ENGINES: Handles<hm_engine> = Handles::new();

impl Handle for hm_engine {
    const NAME: &'static str = "engine";

    fn handles() -> &'static Handles<Self> {
        &ENGINES
    }
}
