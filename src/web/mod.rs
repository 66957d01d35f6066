//! The JavaScript interface: what a page sees of the engine, with types. See `examples/web/package`.
//!
//! Everything that may wait is a promise. A panic would leave promises open for ever, since nothing unwinds here: [`promise`]
//! rejects them all with its words.

mod engine;
mod model;
mod promise;
mod sample;
mod schedule;
mod settings;
mod train;
mod types;

use js_sys::Error;
use wasm_bindgen::{JsCast, prelude::*};

pub use engine::WebEngine;
pub use model::WebModel;

/// Runs when the module is loaded.
#[wasm_bindgen(start)]
pub fn start() {
    promise::reject_on_panic();
}

/// What JavaScript is told of an error: a sentence.
fn told(error: impl std::fmt::Display) -> JsValue {
    Error::new(&error.to_string()).into()
}

/// A value as JavaScript has it.
fn to_js(value: &impl serde::Serialize) -> Result<JsValue, JsValue> {
    let text = serde_json::to_string(value).map_err(told)?;
    js_sys::JSON::parse(&text)
}

/// What JavaScript gave as `name`, an object; nothing is an empty one.
fn from_js<T: serde::de::DeserializeOwned>(name: &str, value: &JsValue) -> Result<T, JsValue> {
    let nothing = value.is_undefined() || value.is_null();
    // JSON would make nothing of numbers that are none.
    for (key, number) in object_numbers(value).filter(|(_, number)| !number.is_finite()) {
        return Err(told(format_args!(
            "{name}: `{key}` is {number}, expected a finite number"
        )));
    }
    let text = match nothing {
        true => "{}".to_owned(),
        // What JSON does not know, such as a function, comes as nothing.
        false => js_sys::JSON::stringify(value)
            .ok()
            .and_then(|text| text.as_string())
            .ok_or_else(|| told(format_args!("{name} is no object")))?,
    };
    serde_json::from_str(&text).map_err(|error| told(format_args!("{name}: {error}")))
}

/// The numbers among the properties of an object.
fn object_numbers(value: &JsValue) -> impl Iterator<Item = (String, f64)> {
    let object = value.dyn_ref::<js_sys::Object>().cloned();
    let entries = object.map(|object| js_sys::Object::entries(&object));
    entries
        .into_iter()
        .flat_map(|entries| entries.to_vec())
        .filter_map(|entry| {
            let entry: js_sys::Array = entry.dyn_into().ok()?;
            Some((entry.get(0).as_string()?, entry.get(1).as_f64()?))
        })
}

/// Sets a property of an object.
fn set(object: &JsValue, name: &str, value: impl Into<JsValue>) -> Result<(), JsValue> {
    js_sys::Reflect::set(object, &name.into(), &value.into()).map(|_| ())
}
