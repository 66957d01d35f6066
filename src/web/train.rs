//! Training a router in a page: SDT with IEPO, steered to a speed.

use std::ops::ControlFlow;

use js_sys::{Float32Array, Function, Object};
use serde::Deserialize;
use wasm_bindgen::prelude::*;

use super::{
    model::Loaded,
    promise::turn,
    sample::{Listener, now},
    schedule::Table,
    set, settings, told,
};
use crate::{
    models::Prompts,
    training::{Budget, Progress, Sdt, SdtSettings},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Asked {
    speed: f64,
    #[serde(default)]
    iterations: Option<usize>,
    #[serde(default)]
    batch: Option<usize>,
    #[serde(default)]
    learning_rate: Option<f64>,
    #[serde(default)]
    seed: u64,
}

/// Trains, and makes a schedule of what was learned.
pub async fn train(
    loaded: &Loaded,
    request: JsValue,
    each: Option<Function>,
) -> Result<JsValue, JsValue> {
    let listener = Listener::new(each, &request);
    let (wishes, asked): (_, Asked) = settings::asked(&request)?;
    let info = &loaded.info;
    let run = wishes.settings(loaded)?;
    let budget = Budget::TargetSpeedup(asked.speed);
    let usual = SdtSettings::usual(budget);
    let batch = asked.batch.unwrap_or(usual.batch);
    let guided = run.guidance.is_active();
    let how = SdtSettings {
        passes: asked.iterations.unwrap_or(usual.passes),
        batch,
        micro_batch: SdtSettings::fitting_micro_batch(&info.outline, guided, batch),
        learning_rate: asked.learning_rate.unwrap_or(usual.learning_rate),
        seed: asked.seed,
        ..usual
    };
    let (passes, tau) = (how.passes, how.tau);
    let prompts = Prompts::of(&*loaded.model);
    let mut sdt = Sdt::new(&loaded.model, run, how, prompts, None).map_err(told)?;
    let graph = &info.outline.graph;
    let (started, mut cancelled) = (now(), false);
    while !sdt.is_done() && !cancelled {
        let (mut loss, mut count) = (0.0, 0.0f64);
        let mut failed = None;
        let finished = sdt
            .pass_async(&mut async |progress| {
                if let Progress::Trained(iteration) = progress {
                    loss += iteration.loss;
                    count += 1.0;
                }
                let going = match turn().await {
                    Ok(()) => !listener.is_stopped(),
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                };
                match going {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })
            .await
            .map_err(told)?;
        if let Some(error) = failed {
            return Err(error);
        }
        let state = sdt.state();
        let table = state.router.threshold(tau).map_err(told)?;
        let scores: Vec<f32> = (0..state.router.steps())
            .flat_map(|s| state.router.scores(s))
            .map(|score| score as f32)
            .collect();
        let goes_on = finished
            && listener.goes_on(|| {
                let told = Object::new().into();
                set(&told, "iteration", state.pass as f64)?;
                set(&told, "iterations", passes as f64)?;
                set(&told, "loss", loss / count.max(1.0))?;
                set(&told, "cur", table.cur())?;
                set(&told, "macsRatio", table.macs_ratio(graph))?;
                set(&told, "weights", Float32Array::from(&scores[..]))?;
                set(&told, "seconds", now() - started)?;
                Ok(told)
            })?;
        cancelled = !goes_on && !sdt.is_done();
    }
    let file = sdt
        .schedule_file(budget, graph.branches(), info)
        .map_err(told)?;
    let name = format!("router {:.2}×", asked.speed);
    let schedule = Table::new((name, file), info)?.to_js()?;
    set(&schedule, "cancelled", cancelled)?;
    Ok(schedule)
}
