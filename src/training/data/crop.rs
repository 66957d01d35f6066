//! Pictures to squares, as the public DiT release prepares them.
//!
//! The release crops with ADM's `center_crop_arr` (guided-diffusion) on Pillow. Pillow resizes 8-bit pictures by
//! a horizontal, then a vertical pass of normalised filter weights in fixed point, rounding to 8 bits after
//! each; the same is done here, so pixels agree.

use image::RgbImage;

/// Fraction bits of a filter weight: 8 bits of pixel and 2 of headroom leave these of 32.
const PRECISION: u32 = 22;

/// A separable resampling filter of Pillow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Box,
    /// Keys' cubic with `a = −1/2`.
    Bicubic,
}

impl Filter {
    /// Half width, in source pixels when not shrinking.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Box => 0.0,
            Self::Bicubic => match x.abs() {
                x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                _ => 0.0,
            },
        }
    }
}

/// A square of `size` pixels from the middle of a picture (ADM's `center_crop_arr`): halved by a box filter while
/// the shorter side is at least twice `size`, then resized by a bicubic filter so that it is `size`, then cut. A `size` of 0 is taken as 1.
pub fn center_crop(mut image: RgbImage, size: u32) -> RgbImage {
    let size = size.max(1);
    while image.width().min(image.height()) >= 2 * size {
        let (width, height) = (image.width() / 2, image.height() / 2);
        image = resize(&image, width, height, Filter::Box);
    }
    let scale = f64::from(size) / f64::from(image.width().min(image.height()).max(1));
    let side = |pixels: u32| ((f64::from(pixels) * scale).round_ties_even() as u32).max(size);
    let (width, height) = (side(image.width()), side(image.height()));
    image = resize(&image, width, height, Filter::Bicubic);
    let (left, top) = ((width - size) / 2, (height - size) / 2);
    image::imageops::crop_imm(&image, left, top, size, size).to_image()
}

fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (old_width, old_height) = (image.width() as usize, image.height() as usize);
    let (width, height) = (width as usize, height as usize);
    let mut pixels = image.as_raw().clone();
    if width != old_width {
        let taps = taps(old_width, width, filter);
        let mut out = Vec::with_capacity(3 * width * old_height);
        for row in pixels.chunks_exact(3 * old_width) {
            for tap in &taps {
                for channel in 0..3 {
                    out.push(tap.apply(|i| row[3 * i + channel]));
                }
            }
        }
        pixels = out;
    }
    if height != old_height {
        let taps = taps(old_height, height, filter);
        let stride = 3 * width;
        let mut out = Vec::with_capacity(stride * height);
        for tap in &taps {
            for column in 0..stride {
                out.push(tap.apply(|i| pixels[i * stride + column]));
            }
        }
        pixels = out;
    }
    RgbImage::from_raw(width as u32, height as u32, pixels)
        .unwrap_or_else(|| unreachable!("the buffer was made for this size"))
}

/// The source pixels of one target pixel and their fixed-point weights.
struct Tap {
    first: usize,
    weights: Vec<i32>,
}

impl Tap {
    fn apply(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let half = 1i64 << (PRECISION - 1);
        let sum: i64 = self
            .weights
            .iter()
            .enumerate()
            .map(|(i, w)| i64::from(*w) * i64::from(pixel(self.first + i)))
            .sum();
        ((sum + half) >> PRECISION).clamp(0, 255) as u8
    }
}

/// One tap a target pixel; shrinking widens the filter.
fn taps(old: usize, new: usize, filter: Filter) -> Vec<Tap> {
    let scale = old as f64 / new as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..new)
        .map(|target| {
            let centre = (target as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5).max(0.0)) as usize;
            let end = ((centre + support + 0.5) as usize).min(old);
            let weights: Vec<f64> = (first..end)
                .map(|i| filter.weight((i as f64 - centre + 0.5) / stretch))
                .collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| {
                let share = if sum == 0.0 { *w } else { w / sum };
                (share * f64::from(1u32 << PRECISION)).round() as i32
            };
            Tap {
                first,
                weights: weights.iter().map(fixed).collect(),
            }
        })
        .collect()
}
