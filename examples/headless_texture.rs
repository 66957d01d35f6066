//! A host without burn in it: its own wgpu device, shared with the engine; images as textures on that device.
//!
//! ```sh
//! cargo run --release --example headless_texture          # out/headless_texture.png
//! ```

use std::error::Error;

use harmonica::{
    checkpoint::{LoadOptions, ModelSpec},
    device::{Engine, device_descriptor, interop::ImagePainter},
    models::Condition,
    pipeline::Pipeline,
    sampler::{Event, Request},
};

/// Side of the host's textures in pixels; their rows of 1024 bytes are a multiple of 256, as copies need.
const SIDE: u32 = 256;

fn main() -> Result<(), Box<dyn Error>> {
    // The host's own device, made as it likes, with what `device_descriptor` asks for.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    }))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&device_descriptor(&adapter)))?;
    let engine = Engine::from_wgpu(instance, adapter, device.clone(), queue.clone())?;
    println!("{} ({})", engine.report().device, engine.report().backend);

    let pipeline = Pipeline::open(&engine, &ModelSpec::Bundled, LoadOptions::default())?;
    let settings = pipeline.usual_settings();
    let chosen = pipeline.choose("learned:2", &settings)?;
    let sampler = pipeline.sampler(settings, Some(chosen.reuse))?;

    // One texture an image; what the host renders with afterwards.
    let painter = ImagePainter::new(&engine, wgpu::TextureFormat::Rgba8Unorm)?;
    let mut textures = Vec::new();
    let request = Request {
        conditions: Condition::classes(&[0, 11, 22, 33]),
        seed: 0,
        first: 0,
        noise: None,
        batch: 2,
    };
    for event in sampler.run(request)? {
        if let Event::Images {
            images, on_device, ..
        } = event?
        {
            for image in 0..images {
                let side = [SIDE as usize; 2];
                let texture = painter.texture(side, wgpu::TextureUsages::COPY_SRC)?;
                painter.paint(on_device.clone(), image, &texture)?;
                textures.push(texture);
            }
        }
    }

    // The host's own commands on the same queue: the textures side by side into a buffer that it can read.
    let row = 4 * u64::from(SIDE);
    let picture = row * u64::from(SIDE);
    let readback = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("pictures"),
        size: picture * textures.len() as u64,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    for (i, texture) in textures.iter().enumerate() {
        encoder.copy_texture_to_buffer(
            texture.as_image_copy(),
            wgpu::TexelCopyBufferInfo {
                buffer: &readback,
                layout: wgpu::TexelCopyBufferLayout {
                    offset: i as u64 * picture,
                    bytes_per_row: Some(row as u32),
                    rows_per_image: None,
                },
            },
            texture.size(),
        );
    }
    queue.submit([encoder.finish()]);
    let (send, receive) = std::sync::mpsc::channel();
    readback
        .slice(..)
        .map_async(wgpu::MapMode::Read, move |mapped| {
            // The receiver waits below, in this function.
            let _ = send.send(mapped);
        });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    receive.recv()??;
    if let Some(fault) = engine.fault() {
        return Err(fault.into());
    }

    let mut sheet = image::RgbaImage::new(SIDE * textures.len() as u32, SIDE);
    let bytes = readback.slice(..).get_mapped_range()?;
    for (i, pixels) in bytes.chunks(picture as usize).enumerate() {
        let tile = image::RgbaImage::from_raw(SIDE, SIDE, pixels.to_vec())
            .ok_or("a picture has another size than its texture")?;
        image::imageops::replace(&mut sheet, &tile, i as i64 * i64::from(SIDE), 0);
    }
    std::fs::create_dir_all("out")?;
    sheet.save("out/headless_texture.png")?;
    println!(
        "out/headless_texture.png: {} images, drawn into the host's textures",
        textures.len()
    );
    Ok(())
}
