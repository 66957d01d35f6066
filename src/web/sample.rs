//! Drawing images for a page.

use js_sys::{Array, Float32Array, Function, Object, Uint8ClampedArray};
use serde::Deserialize;
use wasm_bindgen::{JsCast, prelude::*};
use web_sys::AbortSignal;

use super::{model::Loaded, promise::turn, schedule, set, settings, told};
use crate::{
    device::read,
    models::Condition,
    report::image_from_values,
    sampler::{Event, Request, Sampler, Settings, Totals},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    classes: Vec<usize>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    first: u64,
    #[serde(default)]
    batch: Option<usize>,
    #[serde(default)]
    schedule: Option<String>,
    #[serde(default)]
    preview: bool,
}

/// Whether somebody has had enough.
pub struct Listener {
    each: Option<Function>,
    signal: Option<AbortSignal>,
}

impl Listener {
    /// `each` is told; the `signal` of a request may say stop.
    pub fn new(each: Option<Function>, request: &JsValue) -> Self {
        let signal = js_sys::Reflect::get(request, &"signal".into()).ok();
        Self {
            each,
            signal: signal.and_then(|signal| signal.dyn_into().ok()),
        }
    }

    /// Tells it, if somebody listens; whether to go on. What a listener throws ends the run with that.
    pub fn goes_on(
        &self,
        what: impl FnOnce() -> Result<JsValue, JsValue>,
    ) -> Result<bool, JsValue> {
        if let Some(each) = &self.each {
            let answer = each.call1(&JsValue::NULL, &what()?)?;
            if answer.as_bool() == Some(false) {
                return Ok(false);
            }
        }
        Ok(!self.is_stopped())
    }

    /// Whether the signal said so.
    pub fn is_stopped(&self) -> bool {
        self.signal.as_ref().is_some_and(AbortSignal::aborted)
    }
}

/// Images `[C, H, W]` one after another as RGBA pictures.
fn pictures(values: &[f32], shape: [usize; 3]) -> Array {
    let of_image = |image: &[f32]| {
        let picture = image_from_values(image, shape);
        let pixels: Vec<u8> = picture
            .pixels()
            .flat_map(|p| [p.0[0], p.0[1], p.0[2], 255])
            .collect();
        JsValue::from(Uint8ClampedArray::from(&pixels[..]))
    };
    values
        .chunks(shape.iter().product())
        .map(of_image)
        .collect()
}

/// Seconds since some time.
pub fn now() -> f64 {
    js_sys::Date::now() / 1000.0
}

/// Draws what a page asks for.
pub async fn sample(
    loaded: &Loaded,
    request: JsValue,
    each: Option<Function>,
) -> Result<JsValue, JsValue> {
    let listener = Listener::new(each, &request);
    let (wishes, asked): (_, Asked) = settings::asked(&request)?;
    let run: Settings = wishes.settings(loaded)?;
    let named = asked.schedule.as_deref().unwrap_or("none");
    let chosen = schedule::choose(loaded, named, &run)?;
    let table = chosen.reuse.table().cloned();
    let computes_nothing = |s: usize| match &table {
        Some(table) => !table.row(s).contains(&true),
        None => false,
    };
    let sampler = Sampler::reusing(&loaded.model, chosen.settings, chosen.reuse).map_err(told)?;
    let sampler = sampler
        .with_engine(&loaded.engine)
        .with_preview(asked.preview);
    let conditions = Condition::classes(&asked.classes);
    let batch = asked
        .batch
        .unwrap_or_else(|| sampler.batch_within(crate::sampler::BATCH_BYTES));
    let mut run = sampler
        .run(Request {
            conditions,
            seed: asked.seed,
            first: asked.first,
            noise: None,
            batch,
        })
        .map_err(told)?;

    let shape = loaded.info.outline.latents.shape();
    let (mut values, mut step_seconds) = (Vec::new(), Vec::new());
    let (started, mut cancelled) = (now(), false);
    let mut last = started;
    let mut totals = Totals::default();
    while let Some(event) = run.next_event().await {
        let goes_on = match event.map_err(told)? {
            Event::Step {
                first_image,
                images,
                step,
                reused,
                x0,
            } => {
                let preview = match x0 {
                    Some(x0) => Some(read(x0).await.map_err(told)?),
                    None => None,
                };
                let seconds = now();
                step_seconds.push(seconds - last);
                last = seconds;
                turn().await?;
                listener.goes_on(|| {
                    let told = Object::new().into();
                    set(&told, "step", step as f64)?;
                    set(&told, "steps", chosen.settings.steps as f64)?;
                    set(&told, "first", first_image as f64)?;
                    set(&told, "images", images as f64)?;
                    set(&told, "reused", reused || computes_nothing(step))?;
                    if let Some(preview) = &preview {
                        set(&told, "pixels", pictures(preview, shape))?;
                    }
                    Ok(told)
                })?
            }
            Event::Images { x0, .. } => {
                values.extend(x0);
                true
            }
            Event::Done(done) => {
                totals = done;
                true
            }
            _ => true,
        };
        if !goes_on {
            cancelled = true;
            break;
        }
    }
    if cancelled {
        totals = run.totals();
    }
    let [_, height, width] = shape;
    let done = Object::new().into();
    set(&done, "width", width as f64)?;
    set(&done, "height", height as f64)?;
    set(&done, "pixels", pictures(&values, shape))?;
    set(&done, "values", Float32Array::from(&values[..]))?;
    set(&done, "seconds", now() - started)?;
    let step_seconds: Array = step_seconds.into_iter().map(JsValue::from).collect();
    set(&done, "stepSeconds", step_seconds)?;
    set(&done, "macs", totals.macs as f64)?;
    set(&done, "macsFull", totals.macs_full as f64)?;
    set(&done, "cur", totals.cur())?;
    set(&done, "peakCacheBytes", totals.peak_cache_bytes as f64)?;
    set(&done, "cancelled", cancelled)?;
    Ok(done)
}
