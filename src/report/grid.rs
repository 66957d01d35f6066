//! A labelled grid of images.

use image::{Rgb, RgbImage, imageops};

use super::font::draw_centred;

/// A picture and what to write under it.
#[derive(Debug, Clone)]
pub struct Tile {
    pub image: RgbImage,
    pub label: String,
}

const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);
const TEXT: [u8; 3] = [70, 70, 70];
const GAP: u32 = 8;
const LABEL_HEIGHT: u32 = 18;
/// Small pictures are enlarged, by a whole factor, to at least this width.
const MIN_TILE: u32 = 96;

/// Tiles in rows of `columns`, each with its label under it. All tiles are as large as the first; small ones are enlarged.
pub fn grid(tiles: &[Tile], columns: usize) -> RgbImage {
    let width = tiles.first().map_or(1, |tile| tile.image.width().max(1));
    grid_enlarged(tiles, columns, MIN_TILE.div_ceil(width).max(1))
}

/// The same with every pixel as a square of `factor`×`factor`.
pub fn grid_enlarged(tiles: &[Tile], columns: usize, factor: u32) -> RgbImage {
    let Some(first) = tiles.first() else {
        return RgbImage::from_pixel(1, 1, BACKGROUND);
    };
    let (width, height) = (first.image.width() * factor, first.image.height() * factor);
    let columns = columns.clamp(1, tiles.len()) as u32;
    let rows = (tiles.len() as u32).div_ceil(columns);
    let labelled = tiles.iter().any(|t| !t.label.is_empty());
    let (cell_width, cell_height) = (
        width + GAP,
        height + GAP + if labelled { LABEL_HEIGHT } else { 0 },
    );
    let mut out = RgbImage::from_pixel(
        columns * cell_width + GAP,
        rows * cell_height + GAP,
        BACKGROUND,
    );
    for (i, tile) in tiles.iter().enumerate() {
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        let (x, y) = (GAP + column * cell_width, GAP + row * cell_height);
        let enlarged = imageops::resize(&tile.image, width, height, imageops::FilterType::Nearest);
        imageops::replace(&mut out, &enlarged, x.into(), y.into());
        let centre = x as f32 + width as f32 / 2.0;
        draw_centred(
            &mut out,
            &tile.label,
            centre,
            (y + height + 2) as f32,
            13.0,
            cell_width as f32,
            TEXT,
        );
    }
    out
}

/// Columns that make a grid of `count` tiles about half again as wide as high.
pub fn columns_for(count: usize) -> usize {
    ((count as f64 * 1.5).sqrt().ceil() as usize).clamp(1, count.max(1))
}
