//! From values to picture files.

use std::{io::Cursor, path::Path};

use image::{
    ExtendedColorType, ImageEncoder, Rgb, RgbImage,
    codecs::{jpeg::JpegEncoder, webp::WebPEncoder},
};

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

/// Of 100.
const JPEG_QUALITY: u8 = 92;
/// Text of a PNG that is read at most.
const MAX_TEXT: usize = 1 << 20;

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

/// How a picture is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureFormat {
    /// Lossless, and keeps [texts](PictureText).
    Png,
    Jpeg,
    /// Lossless.
    WebP,
}

impl PictureFormat {
    /// By a file's name; none where it is no picture's.
    ///
    /// # Errors
    /// The ending of a kind of picture that is not written here.
    pub fn of(path: &Path) -> Result<Option<Self>, String> {
        let Some(ending) = path.extension() else {
            return Ok(None);
        };
        let ending = ending.to_string_lossy().to_lowercase();
        match &*ending {
            "png" => Ok(Some(Self::Png)),
            "jpg" | "jpeg" => Ok(Some(Self::Jpeg)),
            "webp" => Ok(Some(Self::WebP)),
            "gif" | "bmp" | "tif" | "tiff" | "avif" | "jxl" | "heic" | "svg" | "pdf" | "apng"
            | "ppm" | "tga" | "exr" | "qoi" => Err(ending),
            _ => Ok(None),
        }
    }
}

/// A text that travels in a PNG: a keyword of 1 to 79 Latin letters, such as `Description`, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureText {
    pub keyword: String,
    pub text: String,
}

/// The bytes of a picture file; texts are kept by PNGs alone.
///
/// # Errors
/// What the encoder says.
pub fn encode_picture(
    image: &RgbImage,
    format: PictureFormat,
    texts: &[PictureText],
) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (width, height) = image.dimensions();
    let rgb = ExtendedColorType::Rgb8;
    match format {
        PictureFormat::Png => encode_png(image, texts, &mut bytes).map_err(|e| e.to_string())?,
        PictureFormat::Jpeg => JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
            .write_image(image, width, height, rgb)
            .map_err(|e| e.to_string())?,
        PictureFormat::WebP => WebPEncoder::new_lossless(&mut bytes)
            .write_image(image, width, height, rgb)
            .map_err(|e| e.to_string())?,
    }
    Ok(bytes)
}

fn encode_png(
    image: &RgbImage,
    texts: &[PictureText],
    out: &mut Vec<u8>,
) -> Result<(), png::EncodingError> {
    let (width, height) = image.dimensions();
    let mut encoder = png::Encoder::new(out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for PictureText { keyword, text } in texts {
        encoder.add_itxt_chunk(keyword.clone(), text.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image)?;
    writer.finish()
}

/// The text under a keyword in a PNG, if it holds one.
///
/// # Errors
/// What is wrong with the file.
pub fn text_of_png(bytes: &[u8], keyword: &str) -> Result<Option<String>, String> {
    let limits = png::Limits { bytes: MAX_TEXT };
    let decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    let reader = decoder.read_info().map_err(|e| e.to_string())?;
    let chunks = &reader.info().utf8_text;
    let Some(chunk) = chunks.iter().find(|chunk| chunk.keyword == keyword) else {
        return Ok(None);
    };
    // A compressed text may be a thousand times as long as its chunk.
    let mut chunk = chunk.clone();
    let limited = chunk.decompress_text_with_limit(MAX_TEXT);
    let text = limited.and_then(|()| chunk.get_text());
    text.map(Some).map_err(|e| e.to_string())
}

/// Writes a picture, whole or not at all.
///
/// # Errors
/// [`ReportError`].
pub fn write_picture(
    image: &RgbImage,
    path: &Path,
    format: PictureFormat,
    texts: &[PictureText],
) -> Result<(), ReportError> {
    let bytes = encode_picture(image, format, texts).map_err(|message| ReportError::Draw {
        path: path.into(),
        message,
    })?;
    write_bytes_atomically(path, &bytes).map_err(|source| ReportError::Io {
        path: path.into(),
        source,
    })
}

/// Writes a PNG, whole or not at all.
///
/// # Errors
/// [`ReportError`].
pub fn write_png(image: &RgbImage, path: &Path) -> Result<(), ReportError> {
    write_picture(image, path, PictureFormat::Png, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_travel_in_pngs() {
        let image = RgbImage::from_pixel(3, 2, Rgb([1, 2, 3]));
        let text = PictureText {
            keyword: "Description".into(),
            text: "a cat, größer — 猫".into(),
        };
        let bytes =
            encode_picture(&image, PictureFormat::Png, std::slice::from_ref(&text)).unwrap();
        assert_eq!(text_of_png(&bytes, "Description").unwrap(), Some(text.text));
        assert_eq!(text_of_png(&bytes, "Title").unwrap(), None);
        assert!(text_of_png(&bytes[..20], "Title").is_err());
        let back = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!(back, image);
    }

    #[test]
    fn formats_go_by_name() {
        let of = |name: &str| PictureFormat::of(Path::new(name));
        assert_eq!(of("a/b.PNG"), Ok(Some(PictureFormat::Png)));
        assert_eq!(of("b.jpeg"), Ok(Some(PictureFormat::Jpeg)));
        assert_eq!(of("b.webp"), Ok(Some(PictureFormat::WebP)));
        assert_eq!(of("pictures"), Ok(None));
        assert_eq!(of("run.v2"), Ok(None));
        assert_eq!(of("b.gif"), Err("gif".into()));
        for (format, magic) in [
            (PictureFormat::Jpeg, &[0xff, 0xd8][..]),
            (PictureFormat::WebP, b"RIFF"),
        ] {
            let image = RgbImage::from_pixel(8, 8, Rgb([200, 100, 0]));
            let bytes = encode_picture(&image, format, &[]).unwrap();
            assert!(bytes.starts_with(magic));
        }
    }
}
