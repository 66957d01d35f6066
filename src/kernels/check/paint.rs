//! The shader that draws into textures.

use burn::tensor::Tensor;

use super::{
    Case,
    cases::{numbers, upload},
};
use crate::device::{
    DeviceFault, Engine,
    interop::{ImagePainter, InteropError},
};

const CHANNELS: usize = 3;
const SIZE: [usize; 2] = [13, 17];
/// Bytes of a row of the texture where it is copied to: wgpu wants multiples of this.
const ROW: u32 = wgpu::COPY_BYTES_PER_ROW_ALIGNMENT;

pub(super) fn case() -> Case {
    let [height, width] = SIZE;
    let values = numbers(6, CHANNELS * height * width);
    // A device may round a colour either way.
    let most = 1.01 / 255.0;
    let level = |v: f32| 255.0 * (f64::from(v).clamp(-1.0, 1.0) + 1.0) / 2.0;
    let place = |i: usize| values[i % CHANNELS * height * width + i / CHANNELS];
    Case {
        kernel: "paint_image",
        expected: (0..values.len()).map(|i| level(place(i))).collect(),
        most,
        run: Box::new(move |engine| {
            let images = upload(&values, [1, CHANNELS, height, width], engine.device());
            painted(engine, images).map_err(|error| match error {
                InteropError::Device(fault) => fault,
                other => DeviceFault::failed(other),
            })
        }),
    }
}

/// The colours of a picture that was drawn into a texture, pixel by pixel.
fn painted(engine: &Engine, images: Tensor<4>) -> Result<Vec<f32>, InteropError> {
    let painter = ImagePainter::new(engine, wgpu::TextureFormat::Rgba8Unorm)?;
    let texture = painter.texture(SIZE, wgpu::TextureUsages::COPY_SRC)?;
    painter.paint(images, 0, &texture)?;
    let bytes = bytes_of(engine, &texture)?;
    let [height, width] = SIZE;
    let rows = bytes.chunks_exact(ROW as usize).take(height);
    let pixels = rows.flat_map(|row| row.chunks_exact(4).take(width));
    Ok(pixels
        .flat_map(|pixel| pixel[..CHANNELS].iter().map(|level| f32::from(*level)))
        .collect())
}

fn bytes_of(engine: &Engine, texture: &wgpu::Texture) -> Result<Vec<u8>, DeviceFault> {
    let Some(setup) = engine.wgpu() else {
        return Err(DeviceFault::failed("no wgpu device"));
    };
    let buffer = setup.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("harmonica picture"),
        size: u64::from(ROW * texture.height()),
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = setup.device.create_command_encoder(&Default::default());
    encoder.copy_texture_to_buffer(
        texture.as_image_copy(),
        wgpu::TexelCopyBufferInfo {
            buffer: &buffer,
            layout: wgpu::TexelCopyBufferLayout {
                offset: 0,
                bytes_per_row: Some(ROW),
                rows_per_image: None,
            },
        },
        texture.size(),
    );
    setup.queue.submit([encoder.finish()]);
    let (tell, told) = std::sync::mpsc::channel();
    buffer.map_async(wgpu::MapMode::Read, .., move |mapped| {
        // Whoever asked may have given up.
        let _ = tell.send(mapped);
    });
    setup
        .device
        .poll(wgpu::PollType::wait_indefinitely())
        .map_err(DeviceFault::failed)?;
    let mapped = told.try_recv().map_err(DeviceFault::failed)?;
    mapped.map_err(DeviceFault::failed)?;
    let range = buffer.get_mapped_range(..).map_err(DeviceFault::failed)?;
    Ok(range.to_vec())
}
