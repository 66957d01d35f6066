//! Training a router in a page: SDT with IEPO, steered to a speed.

use js_sys::{Float32Array, Function, Object};
use serde::{Deserialize, de::IgnoredAny};
use std::ops::ControlFlow;
use wasm_bindgen::prelude::*;

use super::{
    from_js,
    model::Loaded,
    promise::turn,
    sample::{Listener, now},
    schedule::Table,
    set,
    settings::Wishes,
    told,
};
use crate::{
    models::Prompts,
    sampler::{batch_for, model_identity, run_settings},
    schedule::{PolicyRecord, ScheduleFile},
    training::{Budget, Proxy, Sdt, SdtSettings},
};

/// Bytes of activations in the network at a time: the graph keeps many times a forward pass.
const MICRO_BATCH_BYTES: u64 = 256 << 20;

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
    /// Looked at where it is, not in a copy.
    #[serde(default, rename = "signal")]
    _signal: Option<IgnoredAny>,
    #[serde(default)]
    steps: Option<usize>,
    #[serde(default)]
    solver: Option<String>,
    #[serde(default)]
    spacing: Option<String>,
    #[serde(default)]
    guidance: Option<f64>,
    #[serde(default)]
    clip: Option<bool>,
}

/// Trains, and makes a schedule of what was learned.
pub async fn train(
    loaded: &Loaded,
    request: JsValue,
    each: Option<Function>,
) -> Result<JsValue, JsValue> {
    let listener = Listener::new(each, &request);
    let asked: Asked = from_js("the request", &request)?;
    let info = &loaded.info;
    let wishes = Wishes {
        steps: asked.steps,
        solver: asked.solver,
        spacing: asked.spacing,
        guidance: asked.guidance,
        clip: asked.clip,
    };
    let run = wishes.settings(loaded)?;
    let batch = asked.batch.unwrap_or(4);
    let fitting = batch_for(&info.outline, run.guidance.is_active(), MICRO_BATCH_BYTES);
    // As `harmonica train router --recipe harmonica` steers to a target.
    let settings = SdtSettings {
        passes: asked.iterations.unwrap_or(80),
        batch,
        micro_batch: fitting.min(batch.max(1)),
        learning_rate: asked.learning_rate.unwrap_or(0.1),
        tau: 0.1,
        lambda_every: 200,
        proxy: Proxy::Sensitivity,
        budget: Budget::TargetSpeedup(asked.speed),
        seed: asked.seed,
        gradient_checkpointing: false,
    };
    let (passes, tau) = (settings.passes, settings.tau);
    let prompts = Prompts::of(&*loaded.model);
    let mut sdt = Sdt::new(&loaded.model, run, settings, prompts, None).map_err(told)?;
    let graph = &info.outline.graph;
    let (started, mut cancelled) = (now(), false);
    while !sdt.is_done() && !cancelled {
        let (mut loss, mut count) = (0.0, 0.0f64);
        let mut failed = None;
        let finished = sdt
            .pass_async(&mut async |progress| {
                if let crate::training::Progress::Trained(iteration) = progress {
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
    let file = file_of(loaded, &sdt, &run).map_err(told)?;
    let name = format!("router {:.2}×", asked.speed);
    let schedule = Table::new((name, file), info)?.to_js()?;
    set(&schedule, "cancelled", cancelled)?;
    Ok(schedule)
}

/// The schedule that the router stands for, with its logits.
fn file_of(
    loaded: &Loaded,
    sdt: &Sdt<'_>,
    run: &crate::sampler::Settings,
) -> Result<ScheduleFile, crate::training::TrainingError> {
    let (state, settings, info) = (sdt.state(), sdt.settings(), &loaded.info);
    let graph = &info.outline.graph;
    let (schedule, threshold) = settings.budget.final_schedule(
        &state.router,
        settings.tau,
        graph,
        &state.steering.values,
        graph.branches(),
    )?;
    let policy = PolicyRecord {
        name: "harmonica".into(),
        parameters: serde_json::to_value(settings.budget).ok(),
    };
    let rows = 0..state.router.steps();
    let made = ScheduleFile::of(
        &schedule,
        policy,
        model_identity(info),
        run_settings(info, run)?,
    );
    Ok(ScheduleFile {
        threshold,
        logits: Some(rows.map(|s| state.router.row(s).to_vec()).collect()),
        lambda: Some(state.lambda.clone()),
        training: serde_json::to_value(settings).ok(),
        ..made
    })
}
