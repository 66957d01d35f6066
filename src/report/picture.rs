//! From values to PNG files.

use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};

use super::ReportError;
use crate::{files::write_bytes_atomically, metrics::to_u8};

/// Linear map from the four latent channels of the Stable Diffusion VAE to RGB, fitted by its users: a
/// preview of composition and colour, not a decoded image.
const LATENT_TO_RGB: [[f32; 3]; 4] = [
    [0.298, 0.207, 0.208],
    [0.187, 0.286, 0.173],
    [-0.158, 0.189, 0.264],
    [-0.184, -0.271, -0.473],
];

/// One image `[C, H, W]` as a picture.
///
/// 3 channels are RGB in [-1, 1]; 4 are shown as a linear preview of latents; otherwise the first channel is grey.
pub fn image_from_values(values: &[f32], [channels, height, width]: [usize; 3]) -> RgbImage {
    let plane = height * width;
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = |c: usize| values[c * plane + y as usize * width + x as usize];
        Rgb(match channels {
            3 => [0, 1, 2].map(|c| to_u8(at(c))),
            4 => [0, 1, 2].map(|rgb| to_u8((0..4).map(|c| at(c) * LATENT_TO_RGB[c][rgb]).sum())),
            _ => [to_u8(at(0)); 3],
        })
    })
}

/// A picture as the bytes of a PNG file; `path` is what errors name.
pub(super) fn png(image: &RgbImage, path: &Path) -> Result<Vec<u8>, ReportError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|e| ReportError::Draw {
            path: path.into(),
            message: e.to_string(),
        })?;
    Ok(bytes.into_inner())
}

/// Writes a PNG, whole or not at all.
///
/// # Errors
/// [`ReportError`].
pub fn write_png(image: &RgbImage, path: &Path) -> Result<(), ReportError> {
    write_bytes_atomically(path, &png(image, path)?).map_err(|source| ReportError::Io {
        path: path.into(),
        source,
    })
}
