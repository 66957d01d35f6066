//! Atlases: a picture a class that holds its tiles in rows, and `classes.json` that says what is where.

use std::{ops::ControlFlow, path::Path};

use image::imageops::crop_imm;
use serde::Deserialize;

use super::{Collector, DataError, DataOptions, Dataset, center_crop, folder::decode};
use crate::files::read_text_up_to;

/// The file that makes a folder an atlas.
pub(super) const INDEX: &str = "classes.json";
/// Largest index that is read.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Pixels a side of a tile at most.
const MAX_TILE: u32 = 1 << 14;

/// `{"tile": 32, "columns": 16, "classes": [{"id": 0, "name": "cat", "tiles": 79}, …]}`; class `cat` is `cat.png`.
#[derive(Deserialize)]
struct Index {
    /// Side of a tile in pixels.
    tile: u32,
    /// Tiles a row.
    columns: u32,
    classes: Vec<Class>,
}

#[derive(Deserialize)]
struct Class {
    id: usize,
    name: String,
    tiles: u32,
}

pub(super) fn read(
    path: &Path,
    options: &DataOptions,
    each: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Dataset, DataError> {
    let file = path.join(INDEX);
    let bad = |problem: String| DataError::Atlas {
        path: file.clone(),
        problem,
    };
    let text = read_text_up_to(&file, MAX_BYTES).map_err(DataError::io(&file))?;
    let mut index: Index = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if index.tile == 0 || index.columns == 0 || index.classes.is_empty() {
        return Err(bad(
            "expected `tile` and `columns` of at least 1, and `classes`".into(),
        ));
    }
    if index.tile > MAX_TILE {
        return Err(bad(format!(
            "its tiles have {} pixels a side, expected at most {MAX_TILE}",
            index.tile
        )));
    }
    index.classes.sort_by_key(|class| class.id);
    for (place, class) in index.classes.iter().enumerate() {
        if class.id != place {
            return Err(bad(format!(
                "its classes have ids that are not 0 to {}: `{}` has {}",
                index.classes.len() - 1,
                class.name,
                class.id
            )));
        }
        if class.name.is_empty() || class.name.contains(['/', '\\']) || class.name == ".." {
            return Err(bad(format!(
                "`{}` is no class name: it names the picture beside {INDEX}",
                class.name
            )));
        }
    }

    let size = options.image_size.unwrap_or(index.tile as usize);
    let count: usize = index.classes.iter().map(|c| c.tiles as usize).sum();
    let mut collector = Collector::new(size, count, options.memory)?;
    for class in &index.classes {
        let file = path.join(format!("{}.png", class.name));
        if !file.exists() {
            return Err(bad(format!("there is no {}.png beside it", class.name)));
        }
        match decode(&file) {
            Err(reason) => collector.skip(&file, class.id, reason),
            Ok(image) => {
                let needed = [
                    u64::from(index.tile) * u64::from(index.columns.min(class.tiles)),
                    u64::from(index.tile) * u64::from(class.tiles.div_ceil(index.columns)),
                ];
                if u64::from(image.width()) < needed[0] || u64::from(image.height()) < needed[1] {
                    return Err(bad(format!(
                        "{}.png is {}×{} pixels, but {} tiles of {} in rows of {} take {}×{}",
                        class.name,
                        image.width(),
                        image.height(),
                        class.tiles,
                        index.tile,
                        index.columns,
                        needed[0],
                        needed[1]
                    )));
                }
                for tile in 0..class.tiles {
                    let (x, y) = (tile % index.columns, tile / index.columns);
                    let side = index.tile;
                    let tile = crop_imm(&image, x * side, y * side, side, side).to_image();
                    let tile = center_crop(tile, size as u32);
                    collector.add(tile.as_raw(), class.id)?;
                }
            }
        }
        if each(collector.labels.len(), count).is_break() {
            return Err(DataError::Stopped);
        }
    }
    let names = index.classes.into_iter().map(|class| class.name).collect();
    collector.finish(path, names)
}
