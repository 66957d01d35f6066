//! The bundled model, its learned schedule, a picture.
//!
//! ```sh
//! cargo run --release --example quickstart              # out/quickstart.png
//! cargo run --release --example quickstart -- faces.png vulkan
//! ```

use std::{error::Error, path::Path};

use harmonica::{
    checkpoint::{LoadOptions, ModelSpec},
    device::Engine,
    models::Condition,
    pipeline::Pipeline,
    report::{Tile, columns_for, grid, image_from_values, write_png},
    sampler::{Event, Request},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let out = arguments
        .next()
        .unwrap_or_else(|| "out/quickstart.png".into());
    let device = arguments.next().unwrap_or_else(|| "auto".into());

    let engine = Engine::open(device.parse()?)?.engine;
    let pipeline = Pipeline::open(&engine, &ModelSpec::Bundled, LoadOptions::default())?;
    let settings = pipeline.usual_settings();
    // What was learned for this model and run, at half of the work. `none` would compute everything.
    let chosen = pipeline.choose("learned:2", &settings)?;
    let sampler = pipeline.sampler(settings, Some(chosen.reuse))?;

    let labels: Vec<usize> = (0..12).collect();
    let request = Request {
        conditions: Condition::classes(&labels),
        seed: 0,
        first: 0,
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

    let info = &pipeline.info;
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
