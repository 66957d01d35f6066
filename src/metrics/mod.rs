//! Numbers about images.

use crate::ranks::{Ranks, RanksError};

/// Mean squared error of two equally long sets of values.
pub fn mse(a: &[f32], b: &[f32]) -> f64 {
    debug_assert_eq!(a.len(), b.len());
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    sum / a.len().max(1) as f64
}

/// Peak signal-to-noise ratio in dB for values in [-1, 1] (peak-to-peak 2); infinite for equal images.
pub fn psnr(a: &[f32], b: &[f32]) -> f64 {
    psnr_from_mse(mse(a, b))
}

/// PSNR in dB of a mean squared error between images in [-1, 1].
pub fn psnr_from_mse(mse: f64) -> f64 {
    10.0 * (4.0 / mse).log10()
}

/// Structural similarity (Wang et al. 2004) of two images `[C, H, W]` in [-1, 1]: mean over channels and all places of a Gaussian
/// window, 11 wide with deviation 1.5, that lie within the image. Smaller images get the widest odd window that fits.
pub fn ssim(a: &[f32], b: &[f32], [channels, height, width]: [usize; 3]) -> f64 {
    const WINDOW: usize = 11;
    const DEVIATION: f64 = 1.5;
    // (0.01·L)² and (0.03·L)² of values that span L = 2.
    const C1: f64 = 0.0004;
    const C2: f64 = 0.0036;
    let side = WINDOW.min(height.min(width).saturating_sub(1) / 2 * 2 + 1);
    let middle = (side / 2) as f64;
    let bell = |i: usize| (-0.5 * ((i as f64 - middle) / DEVIATION).powi(2)).exp();
    let total: f64 = (0..side).map(bell).sum();
    let window: Vec<f64> = (0..side).map(|i| bell(i) / total).collect();
    let (rows, columns) = (height + 1 - side, width + 1 - side);
    // Weighted means of a map at every place, rows first, then columns.
    let blurred = |of: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let mut across = vec![0.0; height * columns];
        for (place, sum) in across.iter_mut().enumerate() {
            let start = place / columns * width + place % columns;
            *sum = (0..side).map(|k| window[k] * of(start + k)).sum();
        }
        let down = |place: usize| {
            let start = place / columns * columns + place % columns;
            (0..side)
                .map(|k| window[k] * across[start + k * columns])
                .sum()
        };
        (0..rows * columns).map(down).collect()
    };
    let plane = height * width;
    let of_channel = |channel: usize| -> f64 {
        let x = |i: usize| f64::from(a[channel * plane + i]);
        let y = |i: usize| f64::from(b[channel * plane + i]);
        let (mean_x, mean_y) = (blurred(&x), blurred(&y));
        let (xx, yy, xy) = (
            blurred(&|i| x(i) * x(i)),
            blurred(&|i| y(i) * y(i)),
            blurred(&|i| x(i) * y(i)),
        );
        let at = |i: usize| {
            let (mx, my) = (mean_x[i], mean_y[i]);
            let (vx, vy, cov) = (xx[i] - mx * mx, yy[i] - my * my, xy[i] - mx * my);
            (2.0 * mx * my + C1) * (2.0 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
        };
        let places = mean_x.len();
        (0..places).map(at).sum::<f64>() / places.max(1) as f64
    };
    (0..channels).map(of_channel).sum::<f64>() / channels.max(1) as f64
}

/// The largest absolute difference.
pub fn max_abs_error(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    // f32::max drops NaN; a NaN must not look like agreement.
    a.iter().zip(b).fold(0.0, |worst, (a, b)| {
        let d = (a - b).abs();
        if d.is_nan() || worst.is_nan() {
            f32::NAN
        } else {
            worst.max(d)
        }
    })
}

/// A value of [-1, 1] as an 8-bit level.
pub fn to_u8(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
}

/// Mean of a sample and the standard error of that mean.
pub fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

/// How far images lie from what knows nothing of them: the mean squared distance to their mean image.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    shape: [usize; 3],
    images: usize,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Spread {
    /// Of no images `[C, H, W]` so far.
    pub fn new(shape: [usize; 3]) -> Self {
        let size = shape.iter().product();
        Self {
            shape,
            images: 0,
            sums: vec![0.0; size],
            squares: vec![0.0; size],
        }
    }

    /// Counts images `[B, C, H, W]`.
    pub fn add(&mut self, images: &[f32]) {
        for image in images.chunks(self.sums.len().max(1)) {
            self.images += 1;
            let sums = self.sums.iter_mut().zip(&mut self.squares);
            for ((sum, square), value) in sums.zip(image) {
                let value = f64::from(*value);
                *sum += value;
                *square += value * value;
            }
        }
    }

    /// Counts the images of all ranks.
    ///
    /// # Errors
    /// [`RanksError`].
    pub fn gather(&mut self, ranks: &Ranks) -> Result<(), RanksError> {
        self.images = ranks.sum(vec![self.images as u64])?[0] as usize;
        for sums in [&mut self.sums, &mut self.squares] {
            *sums = ranks.sum(std::mem::take(sums))?;
        }
        Ok(())
    }

    /// Variance over the images (of a sample), a mean over all places. A single image has none: that of its places, a mean over
    /// its channels, stands for it, which is the distance to its mean colour.
    pub fn variance(&self) -> f64 {
        let numbers = self.sums.len().max(1) as f64;
        if self.images < 2 {
            let plane = self.shape[1] * self.shape[2];
            let of_channel = |values: &[f64]| {
                let mean = values.iter().sum::<f64>() / plane as f64;
                values.iter().map(|v| (v - mean).powi(2)).sum::<f64>()
            };
            return self.sums.chunks(plane.max(1)).map(of_channel).sum::<f64>() / numbers;
        }
        let n = self.images as f64;
        let places = self.sums.iter().zip(&self.squares);
        let squares: f64 = places.map(|(sum, square)| square - sum * sum / n).sum();
        squares / (n - 1.0) / numbers
    }
}

/// The middle value, or the mean of the middle two; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// Starts the peak of [`peak_memory_bytes`] afresh; `false` where the system does not offer it.
pub fn reset_peak_memory() -> bool {
    // proc(5): 5 resets the peak resident set size.
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Peak resident memory of this process, where the system tells (Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against scikit-image 0.26: `structural_similarity` with Gaussian weights and no sample covariance.
    #[test]
    fn structural_similarity_is_scikit_images() {
        let image = |k: u32| -> Vec<f32> {
            let k = f64::from(k);
            (0..3 * 16 * 20)
                .map(|i| ((f64::from(i) * (0.37 + 0.11 * k) + k).sin() * 0.8) as f32)
                .collect()
        };
        let (a, b) = (image(0), image(1));
        let mixed: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * 0.8 + b * 0.2).collect();
        let of = |other: &[f32]| ssim(&a, other, [3, 16, 20]);
        assert!((of(&mixed) - 0.9294853).abs() < 1e-6, "{}", of(&mixed));
        assert!((of(&b) - 0.00052409945).abs() < 1e-6, "{}", of(&b));
    }

    #[test]
    fn the_spread_is_the_variance_over_images_and_of_one_image_over_its_places() {
        let mut spread = Spread::new([1, 1, 2]);
        spread.add(&[0.0, 1.0]);
        assert_eq!(spread.variance(), 0.25);
        spread.add(&[1.0, 1.0]);
        assert_eq!(spread.variance(), 0.25);
        // Two images of another two: the same however they come.
        spread.add(&[0.5, -1.0, 0.5, -1.0]);
        let mut at_once = Spread::new([1, 1, 2]);
        at_once.add(&[0.0, 1.0, 1.0, 1.0, 0.5, -1.0, 0.5, -1.0]);
        assert_eq!(spread, at_once);
        // 1/6 at the first place, 4/3 at the second.
        assert!((spread.variance() - 0.75).abs() < 1e-12);
    }

    #[test]
    fn known_values() {
        let (mean, error) = mean_and_error(&[1.0, 2.0, 3.0]);
        assert!((mean - 2.0).abs() < 1e-12 && (error - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(mse(&[1.0, -1.0], &[1.0, 1.0]), 2.0);
        assert_eq!(psnr(&[0.0], &[0.0]), f64::INFINITY);
        assert!((psnr(&[0.0], &[0.2]) - 20.0).abs() < 1e-5);
        assert_eq!(ssim(&[0.5; 300], &[0.5; 300], [3, 10, 10]), 1.0);
        assert!(max_abs_error(&[0.0, f32::NAN], &[0.0, 0.0]).is_nan());
        assert_eq!((to_u8(-2.0), to_u8(0.0), to_u8(1.0)), (0, 128, 255));
    }
}
