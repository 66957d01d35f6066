//! A model on a device.

use std::{
    ffi::{CString, c_char},
    sync::Arc,
};

use super::{
    arguments::{self, Out},
    engine::{OpenEngine, hm_engine},
    error::{Failure, guard, guard_text, hm_status},
    handles::{Handle, Handles},
};
use crate::{
    checkpoint::{LoadOptions, ModelSpec},
    pipeline::Pipeline,
};

/// A loaded model.
pub struct hm_model {
    pub(super) pipeline: Pipeline,
    class_names: Vec<CString>,
    // The weights, above, go before the device they live on, which stays open whatever becomes of the caller's handle.
    #[expect(dead_code, reason = "holding it is its use")]
    engine: Arc<OpenEngine>,
}

/// What a model draws.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct hm_model_info {
    /// Channels of an image: 3 are RGB in [-1, 1], 4 latents.
    pub channels: u32,
    pub height: u32,
    pub width: u32,
    pub classes: u32,
    pub blocks: u32,
    /// Columns of a schedule: the branches of every block, in turn; of a DiT attention and MLP.
    pub branches: u32,
    /// Weights of the network.
    pub parameters: u64,
}

/// Loads a model onto an engine's device: a .pt or .safetensors file, a diffusers folder, "bundled", or
/// "random:DiT-S/2@256". `heads` is the number of attention heads where a bare .pt cannot tell, otherwise 0.
///
/// # Safety
/// `spec` is a string, `model` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_model_load(
    engine: *const hm_engine,
    spec: *const c_char,
    heads: u32,
    model: *mut *mut hm_model,
) -> hm_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(model, "model") }?;
        let engine = hm_engine::of(engine)?;
        // SAFETY: the caller's promise.
        let spec: ModelSpec = unsafe { arguments::text(spec, "spec") }?.parse()?;
        let options = LoadOptions {
            heads: (heads > 0).then_some(heads as usize),
            input_size: None,
        };
        let pipeline = Pipeline::open(&engine.engine, &spec, options)?;
        let class_names = pipeline
            .info
            .class_names
            .iter()
            .map(|name| CString::new(name.replace('\0', "?")).unwrap_or_default())
            .collect();
        let loaded = hm_model {
            pipeline,
            class_names,
            engine: engine.engine.clone(),
        };
        out.set(loaded.open());
        Ok(())
    })
}

/// What the model draws.
///
/// # Safety
/// `info` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_model_get_info(
    model: *const hm_model,
    info: *mut hm_model_info,
) -> hm_status {
    guard(|| {
        let model = hm_model::of(model)?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(info, "info") }?;
        let outline = &model.pipeline.info.outline;
        let [channels, height, width] = outline.latents.shape().map(|n| n as u32);
        out.set(hm_model_info {
            channels,
            height,
            width,
            classes: outline.conditioning.classes().unwrap_or(0) as u32,
            blocks: outline.graph.blocks() as u32,
            branches: outline.graph.branches() as u32,
            parameters: outline.parameters,
        });
        Ok(())
    })
}

/// The name of a class; null where it has none.
#[unsafe(no_mangle)]
pub extern "C" fn hm_model_class_name(model: *const hm_model, label: u32) -> *const c_char {
    guard_text(|| {
        let model = hm_model::optional(model)?;
        Ok(model.and_then(|m| m.class_names.get(label as usize).map(|name| name.as_ptr())))
    })
}

/// A class by its name, in any case, or its number as text.
///
/// # Safety
/// `name` is a string, `label` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_model_class_by_name(
    model: *const hm_model,
    name: *const c_char,
    label: *mut u32,
) -> hm_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(label, "label") }?;
        let model = hm_model::of(model)?;
        let info = &model.pipeline.info;
        // SAFETY: the caller's promise.
        let name = unsafe { arguments::text(name, "name") }?;
        let found = info.class_by_name(name).ok_or_else(|| {
            Failure::Argument(format!(
                "the model has no class `{name}`: expected 0 to {}, or a class's name",
                info.classes().unwrap_or(0).saturating_sub(1)
            ))
        })?;
        out.set(found as u32);
        Ok(())
    })
}

/// Unloads a model; null is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn hm_model_free(model: *mut hm_model) {
    hm_model::free(model);
}

impl hm_model {
    /// `[channels, height, width]` of an image.
    pub(super) fn image_shape(&self) -> [usize; 3] {
        self.pipeline.info.outline.latents.shape()
    }
}

static MODELS: Handles<hm_model> = Handles::new();

impl Handle for hm_model {
    const NAME: &'static str = "model";

    fn handles() -> &'static Handles<Self> {
        &MODELS
    }
}
