//! Folders of picture files.

use std::{
    io::BufReader,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use image::{DynamicImage, ImageDecoder, ImageReader, Limits, Rgb, RgbImage};
use rayon::prelude::*;

use super::{Collector, DEFAULT_IMAGE_SIZE, DataError, DataOptions, Dataset, center_crop};
use crate::files;

/// Pictures decoded at a time, over all threads.
const AT_A_TIME: usize = 128;
/// Bytes of pixels from which on a picture is decoded while no other such is: every thread has one in hand.
const LARGE: u64 = 64 << 20;
static ALONE: Mutex<()> = Mutex::new(());
/// Pictures at most that tell the size of all.
const LOOKED_INTO: usize = 1024;
/// Longer side over shorter side of a picture.
const MAX_ASPECT: u32 = 64;

/// One sub-folder a class in order of names, or pictures alone as one class of the folder's name.
pub(super) fn read(
    path: &Path,
    options: &DataOptions,
    each: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Dataset, DataError> {
    let (mut files, mut class_names) = (Vec::new(), Vec::new());
    let mut own = Vec::new();
    for entry in entries(path)? {
        if entry.is_dir() {
            let mut inside = Vec::new();
            pictures(&entry, &mut inside, &mut vec![canonical(path)?])?;
            if !inside.is_empty() {
                files.extend(inside.into_iter().map(|file| (file, class_names.len())));
                class_names.push(name_of(&entry));
            }
        } else if is_picture(&entry) {
            own.push((entry, 0));
        }
    }
    match (own.first(), files.first()) {
        (None, None) => return Err(DataError::Empty { path: path.into() }),
        (Some((picture, _)), Some(_)) => {
            return Err(DataError::Mixed {
                path: path.into(),
                picture: name_of(picture),
                folder: class_names[0].clone(),
            });
        }
        (Some(_), None) => {
            let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
            class_names = vec![name_of(&whole)];
            files = own;
        }
        (None, Some(_)) => {}
    }

    let size = options
        .image_size
        .unwrap_or_else(|| own_size(&files, options.multiple));
    let mut collector = Collector::new(size, files.len(), options.memory)?;
    let mut done = 0;
    for some in files.chunks(AT_A_TIME) {
        let decoded: Vec<_> = some
            .par_iter()
            .map(|(file, _)| decode(file).map(|image| center_crop(image, size as u32)))
            .collect();
        for ((file, label), image) in some.iter().zip(decoded) {
            match image {
                Ok(image) => collector.add(image.as_raw(), *label)?,
                Err(reason) => collector.skip(file, *label, reason),
            }
        }
        done += some.len();
        if each(done, files.len()).is_break() {
            return Err(DataError::Stopped);
        }
    }
    collector.finish(path, class_names)
}

/// The side that these pictures have, where nobody says one: the middle one of their shorter sides down to a `multiple`, and at
/// most [`DEFAULT_IMAGE_SIZE`].
fn own_size(files: &[(PathBuf, usize)], multiple: usize) -> usize {
    let every = files.len().div_ceil(LOOKED_INTO).max(1);
    let some: Vec<&(PathBuf, usize)> = files.iter().step_by(every).collect();
    let side = |(file, _): &&(PathBuf, usize)| {
        let reader = ImageReader::new(BufReader::new(files::open(file).ok()?));
        let (width, height) = reader.with_guessed_format().ok()?.into_dimensions().ok()?;
        Some(width.min(height) as usize)
    };
    let mut sides: Vec<usize> = some.par_iter().filter_map(side).collect();
    sides.sort_unstable();
    let middle = sides.get(sides.len() / 2).copied();
    let side = middle.unwrap_or(DEFAULT_IMAGE_SIZE).min(DEFAULT_IMAGE_SIZE);
    let multiple = multiple.max(1);
    (side / multiple * multiple).max(multiple)
}

/// What lies in a folder, by name; hidden things left out.
fn entries(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(DataError::io(path))? {
        let entry = entry.map_err(DataError::io(path))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// All pictures below a folder; `around` are the folders it lies in, so that a link that leads in circles is seen.
fn pictures(
    folder: &Path,
    found: &mut Vec<PathBuf>,
    around: &mut Vec<PathBuf>,
) -> Result<(), DataError> {
    let own = canonical(folder)?;
    if around.contains(&own) {
        return Err(DataError::Circle {
            link: folder.into(),
        });
    }
    around.push(own);
    for entry in entries(folder)? {
        if entry.is_dir() {
            pictures(&entry, found, around)?;
        } else if is_picture(&entry) {
            found.push(entry);
        }
    }
    around.pop();
    Ok(())
}

fn canonical(path: &Path) -> Result<PathBuf, DataError> {
    std::fs::canonicalize(path).map_err(DataError::io(path))
}

/// Whether a file is named like a picture that can be read.
pub(super) fn is_picture(path: &Path) -> bool {
    let known = ["png", "jpg", "jpeg", "webp"];
    path.extension()
        .is_some_and(|e| known.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// A file as RGB, upright as its EXIF data say, transparent parts on white; or why not.
pub(super) fn decode(path: &Path) -> Result<RgbImage, String> {
    let mut alone = None;
    let mut read = || -> image::ImageResult<DynamicImage> {
        let file = BufReader::new(files::open(path)?);
        // By content: extensions lie.
        let reader = ImageReader::new(file).with_guessed_format()?;
        let mut decoder = reader.into_decoder()?;
        // A header may promise more pixels than there is memory for.
        let mut limits = Limits::default();
        limits.reserve(decoder.total_bytes())?;
        decoder.set_limits(limits)?;
        if decoder.total_bytes() > LARGE {
            alone = Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let orientation = decoder.orientation()?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(image)
    };
    let image = read().map_err(|e| e.to_string())?;
    if image.width() == 0 || image.height() == 0 {
        return Err("it has no pixels".into());
    }
    let (short, long) = (
        image.width().min(image.height()),
        image.width().max(image.height()),
    );
    if long / short > MAX_ASPECT {
        return Err(format!(
            "its sides are 1 to {}, expected at most 1 to {MAX_ASPECT}: a crop would show next to nothing of it",
            long / short
        ));
    }
    if !image.color().has_alpha() {
        return Ok(image.into_rgb8());
    }
    let image = image.into_rgba8();
    Ok(RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [r, g, b, a] = image.get_pixel(x, y).0;
        let on_white = |v: u8| {
            let (v, a) = (u32::from(v), u32::from(a));
            ((v * a + 255 * (255 - a) + 127) / 255) as u8
        };
        Rgb([r, g, b].map(on_white))
    }))
}
