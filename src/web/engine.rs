//! A device in a browser.

use js_sys::{Promise, Uint8Array};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use super::{model::WebModel, promise::promise, to_js, told};
use crate::device::{Api, DeviceChoice, DeviceReport, Engine};

/// The GPU of the page, or its processor.
#[wasm_bindgen(js_name = Engine)]
pub struct WebEngine {
    engine: Engine,
    notice: Option<String>,
}

#[derive(Serialize)]
struct Fault {
    message: String,
    lost: bool,
}

#[wasm_bindgen(js_class = Engine)]
impl WebEngine {
    /// Opens WebGPU, or the processor (one thread, slow): "auto" takes it where there is no WebGPU.
    #[wasm_bindgen(unchecked_return_type = "Promise<Engine>")]
    pub fn open(
        #[wasm_bindgen(unchecked_optional_param_type = "\"auto\" | \"webgpu\" | \"cpu\"")]
        device: Option<String>,
    ) -> Promise {
        promise(async move {
            let choice = match device.as_deref() {
                None | Some("auto") => DeviceChoice::Auto,
                Some("webgpu") => DeviceChoice::Api(Api::WebGpu),
                Some("cpu") => DeviceChoice::Cpu,
                Some(other) => {
                    return Err(told(format_args!(
                        "unknown device `{other}`: expected auto, webgpu or cpu"
                    )));
                }
            };
            let opened = Engine::open_async(choice).await.map_err(told)?;
            let (engine, notice) = (opened.engine, opened.notice);
            Ok(Self { engine, notice }.into())
        })
    }

    /// What it runs on.
    #[wasm_bindgen(getter, unchecked_return_type = "DeviceReport")]
    pub fn report(&self) -> Result<JsValue, JsValue> {
        let report: &DeviceReport = self.engine.report();
        to_js(report)
    }

    /// Why "auto" took the processor.
    #[wasm_bindgen(getter)]
    pub fn notice(&self) -> Option<String> {
        self.notice.clone()
    }

    /// Loads a model from the bytes of one safetensors file, as `harmonica convert` writes it.
    #[wasm_bindgen(js_name = loadModel, unchecked_return_type = "Promise<Model>")]
    pub fn load_model(&self, weights: Uint8Array) -> Promise {
        let engine = self.engine.clone();
        promise(async move {
            let model = WebModel::load(&engine, weights.to_vec()).await?;
            Ok(model.into())
        })
    }

    /// What went wrong on the device since the last call: a shader that was refused, no memory, a device that was lost.
    #[wasm_bindgen(
        unchecked_return_type = "Promise<{ message: string; lost: boolean } | undefined>"
    )]
    pub fn fault(&self) -> Promise {
        let engine = self.engine.clone();
        promise(async move {
            match engine.fault_async().await {
                None => Ok(JsValue::UNDEFINED),
                Some(fault) => to_js(&Fault {
                    message: fault.to_string(),
                    lost: fault.is_lost(),
                }),
            }
        })
    }

    /// Ends what is kept for the device. Free models first.
    pub fn close(self) {
        self.engine.close();
    }
}
