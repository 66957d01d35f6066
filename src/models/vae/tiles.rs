//! Large pictures in tiles that overlap, so that memory stays bounded.
//!
//! Norms and attention of a tile see that tile alone, so its picture differs a little from the whole one's; where tiles overlap
//! they fade into each other.

use std::{fmt, str::FromStr};

/// In what pieces latents are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tiling {
    /// Whole where that takes at most [`Tiling::BUDGET`], otherwise in tiles that do.
    #[default]
    Auto,
    Whole,
    /// Tiles of so many latent cells a side.
    Side(usize),
}

impl Tiling {
    /// Bytes that decoding in one piece may take, by estimate.
    pub const BUDGET: u64 = 2 << 30;
    /// The smallest tile: below it, pictures fall into pieces.
    pub const LEAST: usize = 16;

    /// Side of the tiles of latents of `size`; at least both sides where they are decoded whole.
    pub(super) fn side(self, bytes: impl Fn(usize) -> u64, [height, width]: [usize; 2]) -> usize {
        let whole = height.max(width);
        match self {
            Self::Whole => whole,
            Self::Side(side) => side.max(Self::LEAST),
            Self::Auto => {
                let mut side = whole;
                while side > Self::LEAST && bytes(side) > Self::BUDGET {
                    side = (side / 2).max(Self::LEAST);
                }
                side
            }
        }
    }
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Whole => f.write_str("off"),
            Self::Side(side) => side.fmt(f),
        }
    }
}

impl FromStr for Tiling {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Whole),
            side => match side.parse() {
                Ok(side @ Self::LEAST..) => Ok(Self::Side(side)),
                _ => Err(format!(
                    "expected auto, off, or a tile's side of at least {} latent cells",
                    Self::LEAST
                )),
            },
        }
    }
}

/// Where tiles of `side` begin along `length` cells: a quarter of a tile overlaps, the last one ends where the cells do.
fn starts(length: usize, side: usize) -> Vec<usize> {
    if side >= length {
        return vec![0];
    }
    let last = length - side;
    let stride = (side - side / 4).max(1);
    (0..last).step_by(stride).chain([last]).collect()
}

/// What a tile's pixels `first..first + length` weigh along an axis of `whole` pixels: less towards an edge that another tile
/// overlaps.
fn ramp(first: usize, length: usize, whole: usize, overlap: usize) -> Vec<f32> {
    let up = |distance: usize| ((distance as f32 + 0.5) / overlap.max(1) as f32).min(1.0);
    (0..length)
        .map(|i| {
            let before = if first == 0 { 1.0 } else { up(i) };
            let after = if first + length == whole {
                1.0
            } else {
                up(length - 1 - i)
            };
            f32::min(before, after)
        })
        .collect()
}

/// The picture `[3, f·H, f·W]` of latents `[C, H, W]`, tile by tile; `decode` makes the picture of one.
pub(super) fn over<E>(
    latents: &[f32],
    [channels, height, width]: [usize; 3],
    side: usize,
    factor: usize,
    mut decode: impl FnMut(Vec<f32>, [usize; 3]) -> Result<Vec<f32>, E>,
) -> Result<Vec<f32>, E> {
    if side >= height.max(width) {
        return decode(latents.to_vec(), [channels, height, width]);
    }
    let [whole_rows, whole_columns] = [height * factor, width * factor];
    let plane = whole_rows * whole_columns;
    let mut sum = vec![0.0f32; 3 * plane];
    let mut weights = vec![0.0f32; plane];
    let overlap = side / 4 * factor;
    let (rows, columns) = (side.min(height), side.min(width));
    for top in starts(height, side) {
        for left in starts(width, side) {
            let mut tile = Vec::with_capacity(channels * rows * columns);
            for c in 0..channels {
                for row in top..top + rows {
                    let start = (c * height + row) * width + left;
                    tile.extend_from_slice(&latents[start..start + columns]);
                }
            }
            let picture = decode(tile, [channels, rows, columns])?;
            let (tall, wide) = (rows * factor, columns * factor);
            let (y, x) = (top * factor, left * factor);
            let down = ramp(y, tall, whole_rows, overlap);
            let across = ramp(x, wide, whole_columns, overlap);
            for (row, down) in down.iter().enumerate() {
                for (column, across) in across.iter().enumerate() {
                    let weight = down * across;
                    let at = (y + row) * whole_columns + x + column;
                    weights[at] += weight;
                    for c in 0..3 {
                        sum[c * plane + at] += weight * picture[(c * tall + row) * wide + column];
                    }
                }
            }
        }
    }
    for (i, value) in sum.iter_mut().enumerate() {
        *value /= weights[i % plane];
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_everything_and_fade() {
        assert_eq!(starts(16, 16), [0]);
        assert_eq!(starts(40, 16), [0, 12, 24]);
        assert_eq!(starts(41, 16), [0, 12, 24, 25]);
        // A picture that is made cell by cell comes out whole, whatever the tiles.
        let (height, width, factor) = (41, 23, 2);
        let latents: Vec<f32> = (0..height * width)
            .map(|i| (i as f32 * 0.37).sin())
            .collect();
        let decode = |tile: Vec<f32>, [_, rows, columns]: [usize; 3]| {
            let mut picture = Vec::new();
            for _ in 0..3 {
                for y in 0..rows * factor {
                    let row = &tile[y / factor * columns..][..columns];
                    picture.extend((0..columns * factor).map(|x| row[x / factor]));
                }
            }
            Ok::<_, ()>(picture)
        };
        let whole = decode(latents.clone(), [1, height, width]).unwrap();
        for side in [16, 20, 64] {
            let tiled = over(&latents, [1, height, width], side, factor, decode).unwrap();
            assert_eq!(tiled.len(), whole.len());
            for (tiled, whole) in tiled.iter().zip(&whole) {
                assert!((tiled - whole).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn what_is_too_large_is_cut() {
        let bytes = |side: usize| (side * side) as u64 * (1 << 18);
        assert_eq!(Tiling::Auto.side(bytes, [64, 48]), 64);
        assert_eq!(Tiling::Auto.side(bytes, [256, 128]), 64);
        assert_eq!(Tiling::Whole.side(bytes, [256, 128]), 256);
        assert_eq!("32".parse(), Ok(Tiling::Side(32)));
        assert!("8".parse::<Tiling>().is_err());
    }
}
