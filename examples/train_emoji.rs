//! From pictures to fast samples, with the library alone: emoji → a small DiT → a cache router → samples that skip
//! what the router lets them skip.
//!
//! ```text
//! cargo run --release --example train_emoji -- [MINUTES] [PASSES] [FOLDER]
//! ```
//!
//! `MINUTES` (default 50) is the time for the network, `PASSES` (default 40) the length of the router's training,
//! `FOLDER` (default `train_emoji`) where everything is written. Started again with the same folder, it goes on where it was
//! stopped, for `MINUTES` in all.

use std::{
    error::Error,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use harmonica::{
    checkpoint::{LoadOptions, ModelSpec, StoredDtype, load_model},
    device::{DeviceChoice, Engine},
    diffusion::{Solver, Spacing},
    layers::NORM_EPS,
    metrics::psnr,
    models::Condition,
    models::{Prompts, dit::DitConfig},
    ranks::Ranks,
    report::{Tile, columns_for, grid, image_from_values, write_png},
    sampler::{Request, Sampler, Settings},
    schedule::Schedule,
    training::{
        Budget, RouterRun, RouterRunOptions, RunFolder, SdtSettings,
        network::{
            DataOptions, Dataset, Length, Optimizer, PretrainEvent, PretrainFolder,
            PretrainOptions, PretrainRun, PretrainSettings, PretrainStart,
        },
    },
};

/// A training step makes and drops hundreds of large tensors; glibc's allocator gives each of them back to the system and
/// asks for the next, which costs a fifth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let minutes: f64 = arguments.first().map_or(Ok(50.0), |text| text.parse())?;
    let passes: usize = arguments.get(1).map_or(Ok(40), |text| text.parse())?;
    let folder = PathBuf::from(arguments.get(2).map_or("train_emoji", String::as_str));

    let choice = Engine::open(DeviceChoice::Auto)?;
    if let Some(notice) = choice.notice {
        println!("{notice}");
    }
    let engine = choice.engine;

    let model_file = train_network(&engine, minutes, &folder)?;
    train_router_and_draw(&engine, &model_file, passes, &folder)
}

/// The network: 12 blocks of 192 on 32×32 pixels, as the bundled model's.
fn train_network(engine: &Engine, minutes: f64, folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji32");
    let data = Dataset::open(&pictures, &DataOptions::default(), &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    println!("{} pictures in {} classes", data.len(), data.classes());

    let [channels, height, width] = data.shape();
    let config = DitConfig {
        input_size: [height, width],
        patch: 4,
        channels,
        hidden: 192,
        blocks: 12,
        heads: 3,
        classes: data.classes(),
        learned_sigma: true,
        timestep_shift: 0,
        mlp_norm_eps: NORM_EPS,
    };
    let folder = PretrainFolder::new(folder.join("network"));
    let model_file = folder.model();
    let options = PretrainOptions {
        resume: folder.checkpoint().exists(),
        folder,
        settings: PretrainSettings {
            length: Length::Minutes(minutes),
            // Shapes come sooner than with AdamW.
            optimizer: Optimizer::Muon,
            lr: Optimizer::Muon.default_lr(),
            // Small classes are seen nearly as often as large ones; letters and clocks read one way only.
            balance: 0.85,
            no_flip: ["flag", "sign", "clock", "music", "office"]
                .map(String::from)
                .to_vec(),
            ..Default::default()
        },
        save_every: Duration::from_secs(300),
        sample_every: Some(Duration::from_secs(600)),
        dtype: StoredDtype::F16,
        vae: None,
    };
    let mut run = PretrainRun::open(
        &data,
        PretrainStart::Fresh(config),
        options,
        engine.device(),
    )?
    .with_engine(engine);
    // One thing happens a poll, so a program may do its own work in between, pause, or stop.
    while let Some(event) = run.next() {
        match event? {
            PretrainEvent::Step(step) if step.step % 50 == 0 => println!(
                "step {}: {} pictures, mse {:.4}, {:.0} images/s, {:.0} % done",
                step.step,
                step.images,
                step.mse,
                step.images_per_second,
                100.0 * run.progress()
            ),
            PretrainEvent::Step(_) => {}
            PretrainEvent::Saved => println!("saved {}", run.folder().checkpoint().display()),
            PretrainEvent::Sampled => println!("drew {}", run.folder().samples().display()),
        }
    }
    Ok(model_file)
}

/// The router, and the same pictures with and without it.
fn train_router_and_draw(
    engine: &Engine,
    model_file: &Path,
    passes: usize,
    folder: &Path,
) -> Result<(), Box<dyn Error>> {
    let spec = ModelSpec::Path(model_file.into());
    let (model, info) = load_model(&spec, LoadOptions::default(), engine.device())?;
    let settings = Settings {
        steps: 20,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0)?,
        guidance: info.usual_guidance(),
        clip_x0: info.clip_x0,
    };
    // A router belongs to the weights it was made for: a network that went on learning gets another.
    let router_folder = folder.join(format!("router-{}", info.fingerprint));
    let router = RunFolder::new(&router_folder);
    let options = RouterRunOptions {
        resume: router.checkpoint().exists(),
        folder: router,
        settings: SdtSettings {
            passes,
            ..SdtSettings::usual(Budget::TargetCur(0.4))
        },
        more_targets: Vec::new(),
        max_cache: None,
        prompts: Prompts::of(&*model),
        replay: None,
        save_every: 5,
        log: None,
        ranks: Ranks::alone(),
    };
    let mut training = RouterRun::open(&model, &info, settings, options)?.with_engine(engine);
    while !training.sdt().is_done() {
        if let Some(pass) = training.pass(&mut |_| ControlFlow::Continue(()))? {
            println!(
                "pass {}: loss {:.3e}, CUR {:.1} %",
                training.history().len(),
                pass.loss,
                100.0 * pass.cur
            );
        }
    }
    let (path, file) = training.schedules()?.swap_remove(0);
    file.write(&path)?;
    println!("the schedule lies in {}", path.display());

    let labels: Vec<usize> = (0..info.classes().unwrap_or(0)).collect();
    let draw = |schedule: Option<Schedule>, name: &str| -> Result<_, Box<dyn Error>> {
        let started = Instant::now();
        let request = Request {
            conditions: Condition::classes(&labels),
            seed: 0,
            first: 0,
            noise: None,
            batch: 16,
        };
        let values = Sampler::new(&model, settings, schedule)?
            .with_engine(engine)
            .sample(request)?;
        let seconds = started.elapsed().as_secs_f64();
        let shape = info.outline.latents.shape();
        let tiles: Vec<Tile> = values
            .chunks(shape.iter().product())
            .zip(&labels)
            .map(|(values, label)| Tile {
                image: image_from_values(values, shape),
                label: info.class_name(*label),
            })
            .collect();
        let path = folder.join(name);
        write_png(&grid(&tiles, columns_for(tiles.len())), &path)?;
        println!("{}: {seconds:.1} s", path.display());
        Ok(values)
    };
    let full = draw(None, "full.png")?;
    let cached = draw(Some(file.schedule()?), "cached.png")?;
    println!("cached against full: {:.1} dB PSNR", psnr(&cached, &full));
    Ok(())
}
