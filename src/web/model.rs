//! A model on a device, and the schedules that a page has brought for it.

use std::{cell::RefCell, rc::Rc};

use js_sys::{Function, Promise};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use super::{
    promise::promise,
    sample,
    schedule::{self, Known, Table},
    settings::Wishes,
    to_js, told, train,
};
use crate::{
    checkpoint::{LoadOptions, MemoryFile, ModelInfo, ModelSpec, Residence, load_model_onto},
    device::Engine,
    models::Model,
    schedule::speed_of,
};

/// What runs of a model share.
pub struct Loaded {
    pub engine: Engine,
    pub model: Model,
    pub info: ModelInfo,
    pub known: RefCell<Vec<Known>>,
}

/// A network on a device.
#[wasm_bindgen(js_name = Model)]
pub struct WebModel {
    loaded: Rc<Loaded>,
}

#[derive(Serialize)]
struct Branch {
    block: usize,
    kind: String,
    name: String,
}

#[derive(Serialize)]
struct Info {
    name: String,
    parameters: u64,
    bytes: u64,
    classes: Vec<String>,
    channels: usize,
    size: [usize; 2],
    branches: Vec<Branch>,
    usual: Wishes,
    fingerprint: String,
}

#[derive(Serialize)]
struct Named {
    name: String,
    speed: f64,
}

impl WebModel {
    pub(super) async fn load(engine: &Engine, weights: Vec<u8>) -> Result<Self, JsValue> {
        let name = "the model";
        let spec = ModelSpec::Memory(MemoryFile::new(name, weights));
        let (options, residence) = (LoadOptions::default(), Residence::default());
        let loaded = load_model_onto(engine, &spec, options, residence);
        let (model, mut info) = loaded.map_err(told)?;
        // The bytes are on the device now.
        info.source = ModelSpec::Memory(MemoryFile::new(name, []));
        if let Some(fault) = engine.fault_async().await {
            return Err(told(fault));
        }
        Ok(Self {
            loaded: Rc::new(Loaded {
                engine: engine.clone(),
                model,
                known: RefCell::new(schedule::learned_for(&info)),
                info,
            }),
        })
    }
}

#[wasm_bindgen(js_class = Model)]
impl WebModel {
    /// What is known of it beside its weights.
    #[wasm_bindgen(getter, unchecked_return_type = "ModelInfo")]
    pub fn info(&self) -> Result<JsValue, JsValue> {
        let info = &self.loaded.info;
        let outline = &info.outline;
        let sites = outline.graph.sites().iter();
        let branches = sites.map(|site| Branch {
            block: site.block,
            kind: site.kind.name().into(),
            name: format!("block {} {}", site.block, site.kind.name()),
        });
        to_js(&Info {
            name: outline.name.clone(),
            parameters: outline.parameters,
            bytes: 4 * outline.parameters,
            classes: (0..info.classes().unwrap_or(0))
                .map(|class| info.class_name(class))
                .collect(),
            channels: outline.latents.channels,
            size: outline.latents.size,
            branches: branches.collect(),
            usual: Wishes::usual(&self.loaded),
            fingerprint: info.fingerprint.to_string(),
        })
    }

    /// What was learned for its usual run, by speed: in the library, and as files that were added.
    #[wasm_bindgen(getter, unchecked_return_type = "{ name: string; speed: number }[]")]
    pub fn schedules(&self) -> Result<JsValue, JsValue> {
        let known = self.loaded.known.borrow();
        let (model, run) = schedule::usual_run(&self.loaded)?;
        let mut named: Vec<Named> = known
            .iter()
            .filter(|known| known.file.check_fits(&model, &run).is_ok())
            .map(|known| Named {
                name: known.name.clone(),
                speed: speed_of(&known.file),
            })
            .collect();
        named.sort_by(|a, b| a.speed.total_cmp(&b.speed));
        to_js(&named)
    }

    /// Takes in a schedule file made for this model, under the name that it then has.
    #[wasm_bindgen(js_name = addSchedule, unchecked_return_type = "Schedule")]
    pub fn add_schedule(&self, text: &str) -> Result<JsValue, JsValue> {
        Table::new(schedule::add(&self.loaded, text)?, &self.loaded.info)?.to_js()
    }

    /// A schedule as a table: "none", a policy such as "fora:2", "learned" or "learned:2", a name of `schedules`, or the text of
    /// a schedule file.
    #[wasm_bindgen(unchecked_return_type = "Schedule")]
    pub fn schedule(
        &self,
        schedule: &str,
        #[wasm_bindgen(unchecked_optional_param_type = "Settings")] settings: JsValue,
    ) -> Result<JsValue, JsValue> {
        let wishes: Wishes = super::from_js("settings", &settings)?;
        let settings = wishes.settings(&self.loaded)?;
        let chosen = schedule::choose(&self.loaded, schedule, &settings)?;
        Table::new(
            schedule::file_of(chosen, &self.loaded.info, &settings)?,
            &self.loaded.info,
        )?
        .to_js()
    }

    /// The same schedule with one cell the other way round; a step without the network is computed then. What a forecast weighs
    /// after that was fitted to other steps, and goes. Step 0 computes everything, and is refused.
    #[wasm_bindgen(unchecked_return_type = "Schedule")]
    pub fn toggled(
        &self,
        schedule: &str,
        step: usize,
        branch: usize,
        #[wasm_bindgen(unchecked_optional_param_type = "Settings")] settings: JsValue,
    ) -> Result<JsValue, JsValue> {
        let wishes: Wishes = super::from_js("settings", &settings)?;
        let settings = wishes.settings(&self.loaded)?;
        let chosen = schedule::choose(&self.loaded, schedule, &settings)?;
        let edited = schedule::toggled(chosen, [step, branch])?;
        Table::new(
            schedule::file_of(edited, &self.loaded.info, &settings)?,
            &self.loaded.info,
        )?
        .to_js()
    }

    /// Draws images. `onStep` hears of every step; where it returns false, or the request's signal is aborted, the run ends with
    /// what it has.
    #[wasm_bindgen(unchecked_return_type = "Promise<Sample>")]
    pub fn sample(
        &self,
        #[wasm_bindgen(unchecked_param_type = "SampleRequest")] request: JsValue,
        #[wasm_bindgen(
            js_name = onStep,
            unchecked_optional_param_type = "(step: Step) => void | boolean"
        )]
        on_step: Option<Function>,
    ) -> Promise {
        let loaded = self.loaded.clone();
        promise(async move { sample::sample(&loaded, request, on_step).await })
    }

    /// Trains a router without pictures (HarmoniCa): a schedule of the wished speed for this model and run.
    #[wasm_bindgen(js_name = trainRouter, unchecked_return_type = "Promise<Schedule & { cancelled: boolean }>")]
    pub fn train_router(
        &self,
        #[wasm_bindgen(unchecked_param_type = "TrainRequest")] request: JsValue,
        #[wasm_bindgen(
            js_name = onProgress,
            unchecked_optional_param_type = "(progress: TrainProgress) => void | boolean"
        )]
        on_progress: Option<Function>,
    ) -> Promise {
        let loaded = self.loaded.clone();
        promise(async move { train::train(&loaded, request, on_progress).await })
    }
}
