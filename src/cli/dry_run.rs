//! `harmonica sample --dry-run`: what a run takes, before anything is loaded.

use comfy_table::Table;
use serde_json::json;

use super::{
    Context,
    error::CliError,
    options::print_json,
    sample::{Args, DEFAULT_COUNT},
    table::markdown_table,
};
use crate::{
    checkpoint::model_outline,
    pipeline::{Decoder, Memory, MemoryRequest},
    sampler::{BATCH_BYTES, batch_for},
    words::counted,
};

/// Prints it; fails where a buffer is larger than the device has.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let session = &args.session;
    let engine = session.device.open(context)?;
    let residence = session.residence.residence(&engine)?;
    let model = &session.model;
    let info = model_outline(&model.spec()?, model.load_options(context)?)?;
    let settings = session.run.settings(&info)?;
    let chosen = args.schedule.planned(&info, &settings, context)?;
    let settings = chosen.settings;
    let vae = model.vae_of(&info)?;
    let vae = vae.map(|path| Decoder::outline(&path, &info));
    let vae = vae.transpose()?;
    let encoder = model.text.encoder_of(&info)?;
    let count = args.count.unwrap_or(match info.classes() {
        Some(classes) if args.classes.is_empty() => classes.min(DEFAULT_COUNT),
        Some(_) => args.classes.len(),
        None => model.text.prompt.len().max(1),
    });
    let guided = settings.guidance.is_active();
    let fitting = batch_for(&info.outline, guided, BATCH_BYTES).min(count.max(1));
    let request = MemoryRequest {
        info: &info,
        residence,
        settings: &settings,
        reuse: &chosen.reuse,
        cache_dtype: args.cache.cache_dtype,
        batch: args.batch.unwrap_or(fitting),
        vae: vae
            .as_ref()
            .map(|vae| (vae, model.vae_tile.unwrap_or_default())),
        text_encoder: encoder.as_ref(),
    };
    let memory = Memory::of(&engine, &request)?;
    let report = engine.report();
    let of_encoder = encoder.as_ref().map(|encoder| {
        let [whole, ..] = encoder.bytes();
        whole
    });
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name, "schedule": chosen.name,
            "weights": residence.kept, "images": count, "batch": request.batch,
            "text_encoder_bytes": of_encoder, "memory": memory,
        }));
    } else {
        out!("{}", table(&memory));
    }
    context.say(format!(
        "{} of {}, {} at a time, schedule {}, on {}: at most {} on the device",
        counted(count, "image"),
        info.outline.name,
        request.batch,
        chosen.name,
        report.device,
        gigabytes(memory.peak_device_bytes),
    ));
    if let Some(bytes) = of_encoder {
        context.say(format!(
            "text encoder: {} in f32, of which one block at a time is read onto the device, and all is gone before sampling",
            gigabytes(bytes)
        ));
    }
    match (memory.too_large().next(), memory.max_buffer_bytes) {
        (Some(part), Some(limit)) => Err(CliError::Usage(format!(
            "{} need a buffer of {}, and the largest of this device is {}; try {}",
            part.what,
            gigabytes(part.largest_buffer),
            gigabytes(limit),
            part.smaller
        ))),
        _ => Ok(()),
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.3} GB", bytes as f64 / 1e9)
}

fn table(memory: &Memory) -> Table {
    let cell = |bytes: u64| match bytes {
        0 => String::new(),
        bytes => gigabytes(bytes),
    };
    let rows = memory.parts.iter().map(|part| {
        vec![
            part.what.into(),
            cell(part.device_bytes),
            cell(part.host_bytes),
            cell(part.largest_buffer),
        ]
    });
    let header = ["", "on the device", "on the host", "largest buffer"];
    markdown_table(&header, rows)
}
