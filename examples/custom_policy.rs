//! A caching rule of one's own: what it costs by the plan, and what it does to the images.
//!
//! ```sh
//! cargo run --release --example custom_policy                    # out/custom_policy.{schedule.json,png}
//! cargo run --release --example custom_policy -- random:DiT-S/2@256
//! ```

use std::{error::Error, path::Path, time::Instant};

use harmonica::{
    checkpoint::{LoadOptions, ModelSpec},
    device::{DeviceChoice, Engine},
    graph::{Site, SiteKind},
    metrics::psnr,
    models::Condition,
    pipeline::Pipeline,
    report::{Tile, grid, image_from_values, write_png},
    sampler::{Request, Settings, model_identity, run_settings},
    schedule::{PolicyRecord, Schedule, ScheduleFile},
};

const STEPS: usize = 20;

/// Whether a branch is computed at step `s`: the outer blocks, which read the noise and write the
/// image, always; the inner ones at every other step, and attention, which changes less than the MLP, at every third.
///
/// Any rule will do; step 0 is computed whatever it says.
fn computes(s: usize, site: &Site, blocks: usize) -> bool {
    let outer = site.block == 0 || site.block + 1 == blocks;
    outer || s.is_multiple_of(if site.kind == SiteKind::Mlp { 2 } else { 3 })
}

fn main() -> Result<(), Box<dyn Error>> {
    let spec: ModelSpec = match std::env::args().nth(1) {
        Some(spec) => spec.parse()?,
        None => ModelSpec::Bundled,
    };
    let engine = Engine::open(DeviceChoice::Auto)?.engine;
    let pipeline = Pipeline::open(&engine, &spec, LoadOptions::default())?;
    let info = &pipeline.info;
    let settings = Settings {
        steps: STEPS,
        ..pipeline.usual_settings()
    };

    let graph = &info.outline.graph;
    let schedule = Schedule::from_rule(STEPS, graph.branches(), |s, n| {
        computes(s, &graph.sites()[n], graph.blocks())
    })?;

    // The plan says before the run what it will cost.
    let sampler = pipeline.sampler(settings, Some(schedule.clone().into()))?;
    let figures = sampler.plan().accounting();
    print!("{}", sampler.plan());
    println!(
        "reuses {:.1} %: {:.2}× fewer multiplications; {} features stored in {} slots, {:.2} MB an image",
        100.0 * schedule.cur(),
        figures.macs_full as f64 / figures.macs as f64,
        figures.writes,
        figures.slots,
        figures.cache_bytes() as f64 / 1e6,
    );

    let labels: Vec<usize> = (0..info.classes().unwrap_or(0).min(6)).collect();
    let request = Request {
        conditions: Condition::classes(&labels),
        seed: 0,
        first: 0,
        noise: None,
        batch: labels.len(),
    };
    let started = Instant::now();
    let cached = sampler.sample(request.clone())?;
    let cached_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let uncached = pipeline.sampler(settings, None)?.sample(request)?;
    let uncached_seconds = started.elapsed().as_secs_f64();
    println!(
        "{cached_seconds:.2} s against {uncached_seconds:.2} s (first runs, which compile kernels on a GPU), PSNR {:.1} dB",
        psnr(&cached, &uncached)
    );

    // With its identity and figures, for `harmonica sample --schedule`.
    let policy = PolicyRecord {
        name: "outer-blocks".into(),
        parameters: None,
    };
    let run = run_settings(info, &settings)?;
    let file = ScheduleFile::of(&schedule, policy, model_identity(info), run);
    file.write(Path::new("out/custom_policy.schedule.json"))?;

    let image_shape = info.outline.latents.shape();
    let tiles: Vec<Tile> = [&uncached, &cached]
        .iter()
        .flat_map(|values| values.chunks(image_shape.iter().product()))
        .zip(labels.iter().chain(&labels))
        .map(|(image, label)| Tile {
            image: image_from_values(image, image_shape),
            label: info.class_name(*label),
        })
        .collect();
    write_png(
        &grid(&tiles, labels.len()),
        Path::new("out/custom_policy.png"),
    )?;
    println!(
        "out/custom_policy.png: above without, below with the rule; out/custom_policy.schedule.json"
    );
    Ok(())
}
