//! The bundled model, its learned schedule, a picture.
//!
//! ```sh
//! cargo run --release --example quickstart              # out/quickstart.png
//! cargo run --release --example quickstart -- faces.png vulkan
//! ```

use std::{error::Error, path::Path};

use harmonica::{
    checkpoint::{LoadOptions, ModelSpec, load_model},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver},
    models::Condition,
    report::{Tile, columns_for, grid, image_from_values, write_png},
    sampler::{Event, Request, Sampler, Settings, model_identity, run_settings},
    schedule::bundled_schedule,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let out = arguments
        .next()
        .unwrap_or_else(|| "out/quickstart.png".into());
    let device = arguments.next().unwrap_or_else(|| "auto".into());

    let engine = Engine::open(device.parse()?)?.engine;
    let (model, info) = load_model(&ModelSpec::Bundled, LoadOptions::default(), engine.device())?;
    let settings = Settings {
        steps: 20,
        solver: Solver::ddim(0.0)?,
        guidance: Guidance::new(3.0, GuidedChannels::Three)?,
        clip_x0: info.clip_x0,
    };
    // The learned schedule for this model and run; without one, everything would be computed.
    let learned = bundled_schedule(&model_identity(&info), &run_settings(&info, &settings)?);
    let schedule = learned.map(|file| file.schedule()).transpose()?;
    let sampler = Sampler::new(&model, settings, schedule)?.with_engine(&engine);

    let labels: Vec<usize> = (0..12).collect();
    let request = Request {
        conditions: Condition::classes(&labels),
        seed: 0,
        noise: None,
        batch: 4,
    };
    let mut values = Vec::new();
    for event in sampler.run(request)? {
        match event? {
            Event::Step {
                first_image, step, ..
            } => eprintln!("images from {first_image}: step {step}"),
            Event::Images { x0, .. } => values.extend(x0),
            _ => {}
        }
    }

    let shape = info.outline.latents.shape();
    let tiles: Vec<Tile> = values
        .chunks(shape.iter().product())
        .zip(&labels)
        .map(|(image, label)| Tile {
            image: image_from_values(image, shape),
            label: info.class_name(*label),
        })
        .collect();
    write_png(&grid(&tiles, columns_for(tiles.len())), Path::new(&out))?;
    println!(
        "{out}: {} images on {}",
        tiles.len(),
        engine.report().device
    );
    Ok(())
}
