//! Trains a cache router for a model, writes its schedule, and samples with it.
//!
//! ```sh
//! cargo run --release --example train_router                              # 3 passes over the bundled model: a minute on two cores
//! cargo run --release --example train_router -- DiT-XL-2-256x256.pt my-router 80
//! ```
//! Three passes show how it works; a good router takes some 80.

use std::{error::Error, ops::ControlFlow, path::PathBuf};

use harmonica::{
    checkpoint::{LoadOptions, ModelSpec, load_model},
    device::{DeviceChoice, Engine},
    diffusion::{Solver, Spacing},
    models::Prompts,
    ranks::Ranks,
    report::{Tile, grid, image_from_values, write_png},
    sampler::{Request, Sampler, Settings},
    schedule::ScheduleFile,
    training::{Budget, Progress, RouterRun, RouterRunOptions, RunFolder, SdtSettings},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let spec: ModelSpec = match arguments.next() {
        Some(spec) => spec.parse()?,
        None => ModelSpec::Bundled,
    };
    let folder = PathBuf::from(
        arguments
            .next()
            .unwrap_or_else(|| "out/train_router".into()),
    );
    let passes = arguments.next().map_or(Ok(3), |text| text.parse())?;

    let choice = Engine::open(DeviceChoice::Auto)?;
    if let Some(notice) = choice.notice {
        eprintln!("{notice}");
    }
    let engine = choice.engine;
    let (model, info) = load_model(&spec, LoadOptions::default(), engine.device())?;
    let run = Settings {
        steps: 20,
        // Routers are trained along the deterministic path.
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0)?,
        guidance: info.usual_guidance(),
        clip_x0: info.clip_x0,
    };
    let batch = 2;
    let options = RouterRunOptions {
        folder: RunFolder::new(&folder),
        settings: SdtSettings {
            passes,
            batch,
            micro_batch: SdtSettings::fitting_micro_batch(&info.outline, true, batch),
            // β is steered until two branch evaluations in five are reused.
            ..SdtSettings::usual(Budget::TargetCur(0.4))
        },
        more_targets: Vec::new(),
        max_cache: None,
        prompts: Prompts::of(&*model),
        replay: None,
        save_every: 1,
        // A run that is in the folder already goes on where it was.
        resume: RunFolder::new(&folder).checkpoint().exists(),
        log: None,
        ranks: Ranks::alone(),
    };

    let mut training = RouterRun::open(&model, &info, run, options)?.with_engine(&engine);
    while !training.sdt().is_done() {
        let mut each = |progress: Progress| {
            match progress {
                Progress::Lambda { step } => eprint!("\rweighing step {step:2} …            "),
                Progress::Trained(iteration) => eprint!(
                    "\rpass {} step {:2}: loss {:.3e}",
                    iteration.pass, iteration.step, iteration.loss
                ),
            }
            // `Break` ends the pass; what was done before it is saved.
            ControlFlow::Continue(())
        };
        if let Some(pass) = training.pass(&mut each)? {
            eprintln!(
                "\rpass {}: loss {:.3e}, reuses {:.1} %, {:.2}× fewer multiplications",
                training.history().len(),
                pass.loss,
                100.0 * pass.cur,
                pass.macs_ratio
            );
        }
    }

    // A schedule file for each target; one target here.
    let schedules = training.schedules()?;
    let Some((path, _)) = schedules.first() else {
        return Err("the run has no schedule".into());
    };
    let schedule = ScheduleFile::read(path)?.schedule()?;
    println!("{}", path.display());

    let request = Request {
        conditions: Prompts::of(&*model).in_turn(6),
        seed: 7,
        first: 0,
        noise: None,
        batch: 2,
    };
    let shape = info.outline.latents.shape();
    let mut tiles = Vec::new();
    for (name, schedule) in [("", None), ("cached", Some(schedule))] {
        let sampler = Sampler::new(&model, run, schedule)?.with_engine(&engine);
        let values = sampler.sample(request.clone())?;
        tiles.extend(
            values
                .chunks(shape.iter().product())
                .zip(&request.conditions)
                .map(|(image, condition)| Tile {
                    image: image_from_values(image, shape),
                    label: match condition.class() {
                        Some(label) if name.is_empty() => info.class_name(label),
                        _ => name.into(),
                    },
                }),
        );
    }
    let picture = folder.join("samples.png");
    write_png(&grid(&tiles, request.conditions.len()), &picture)?;
    println!(
        "{}: above without, below with the trained schedule",
        picture.display()
    );
    Ok(())
}
