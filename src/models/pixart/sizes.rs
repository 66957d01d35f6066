//! The sizes that PixArt was trained for: pictures of about as many pixels as the square, in classes of aspect ratio.

#[rustfmt::skip]
/// `[height, width]` of PixArt-α's pictures in sixteenths of the square's side, by rising height over width.
const UP_TO_1024: [[usize; 2]; 33] = [
    [8, 32], [8, 29], [9, 28], [9, 27], [9, 26], [10, 25], [10, 24], [11, 23], [11, 22], [11, 21],
    [12, 21], [12, 20], [13, 19], [13, 18], [14, 18], [14, 17], [15, 17], [15, 16], [16, 16], [16, 15],
    [17, 15], [17, 14], [18, 14], [18, 13], [19, 13], [20, 12], [21, 12], [22, 11], [23, 11], [24, 10],
    [25, 10], [27, 9], [32, 8],
];
#[rustfmt::skip]
/// The same of PixArt-Σ's pictures around 2048×2048.
const OF_2048: [[usize; 2]; 40] = [
    [8, 32], [8, 31], [8, 30], [8, 29], [9, 28], [9, 27], [9, 26], [10, 25], [10, 24], [11, 23],
    [11, 22], [11, 21], [12, 21], [12, 20], [13, 19], [13, 18], [14, 18], [14, 17], [15, 17], [15, 16],
    [16, 16], [16, 15], [17, 15], [17, 14], [18, 14], [18, 13], [19, 13], [20, 12], [21, 12], [22, 11],
    [23, 11], [24, 10], [25, 10], [26, 9], [27, 9], [28, 9], [29, 8], [30, 8], [31, 8], [32, 8],
];

/// The size `[height, width]` nearest in aspect ratio to `pixels`, for a network made for squares of `side` pixels. One of
/// another side than the published ones has no classes: its sizes are multiples of `step`.
pub(super) fn nearest(side: usize, step: usize, pixels: [usize; 2]) -> [usize; 2] {
    let sizes: &[[usize; 2]] = match side {
        256 | 512 | 1024 => &UP_TO_1024,
        2048 => &OF_2048,
        _ => {
            return pixels
                .map(|side| (side + step / 2) / step * step)
                .map(|side| side.max(step));
        }
    };
    let ratio = |[height, width]: [usize; 2]| height as f64 / width.max(1) as f64;
    let wanted = ratio(pixels);
    // Classes go by ratios of two digits.
    let off = |size: [usize; 2]| ((ratio(size) * 100.0).round_ties_even() / 100.0 - wanted).abs();
    let nearest = sizes
        .iter()
        .copied()
        .min_by(|a, b| off(*a).total_cmp(&off(*b)));
    nearest.map_or([side; 2], |size| size.map(|part| part * side / 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By diffusers' `classify_height_width_bin`.
    #[test]
    fn sizes_are_those_of_the_nearest_aspect_ratio() {
        for (side, pixels, size) in [
            (1024, [1024, 1024], [1024, 1024]),
            (1024, [100, 100], [1024, 1024]),
            (1024, [1080, 1920], [768, 1344]),
            (1024, [1920, 1080], [1344, 768]),
            (1024, [1, 16384], [512, 2048]),
            (1024, [3000, 1000], [1728, 576]),
            (512, [768, 512], [608, 416]),
            (512, [480, 640], [416, 576]),
            (256, [256, 300], [240, 272]),
            (2048, [1080, 1920], [1536, 2688]),
            (2048, [4096, 1024], [4096, 1024]),
            (2048, [2864, 777], [3840, 1024]),
            (64, [100, 7], [96, 16]),
        ] {
            assert_eq!(nearest(side, 16, pixels), size, "{side}: {pixels:?}");
        }
    }
}
