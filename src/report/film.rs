//! Denoising as a moving picture (APNG): runs beside one another, each as far as equal work takes it.

use std::path::Path;

use image::RgbImage;

use super::{ReportError, Tile, grid};
use crate::files::write_bytes_atomically;

/// Hundredths of a second that a frame stays, and that the last one does.
const FRAME: u16 = 14;
const LAST_FRAME: u16 = 250;

/// One run of a film.
#[derive(Debug, Clone)]
pub struct FilmRow {
    pub name: String,
    /// After each of its steps: the work done by then, in steps that compute everything, and the images as they are predicted.
    pub states: Vec<(f64, Vec<RgbImage>)>,
}

impl FilmRow {
    /// How far it is after so much work: steps done.
    fn steps_by(&self, work: f64) -> usize {
        // Sums of shares of a step are not whole to the last digit.
        let within = |(done, _): &&(f64, Vec<RgbImage>)| *done <= work + 1e-6;
        self.states.iter().take_while(within).count()
    }

    /// Its images then, the first with the run's name under it, the second with how far it is.
    fn tiles(&self, work: f64) -> Vec<Tile> {
        let steps = self.steps_by(work).max(1);
        let all = self.states.len();
        let Some((_, images)) = self.states.get(steps - 1) else {
            return Vec::new();
        };
        let label = |column: usize| match column {
            0 => self.name.clone(),
            1 if steps == all => "done".into(),
            1 => format!("step {steps} of {all}"),
            _ => String::new(),
        };
        let images = images.iter().enumerate();
        images
            .map(|(column, image)| Tile {
                image: image.clone(),
                label: label(column),
            })
            .collect()
    }
}

/// Frames of a film, one for each full step's work of the longest run.
fn frames(rows: &[FilmRow]) -> Vec<RgbImage> {
    let ends = rows.iter().filter_map(|row| row.states.last());
    let longest = ends.map(|(work, _)| work.ceil() as usize).max();
    let columns = rows.iter().filter_map(|row| row.states.first());
    let columns = columns.map(|(_, images)| images.len()).max().unwrap_or(1);
    (1..=longest.unwrap_or(0))
        .map(|work| {
            let tiles = rows.iter().flat_map(|row| row.tiles(work as f64));
            grid(&tiles.collect::<Vec<_>>(), columns)
        })
        .collect()
}

/// Draws runs side by side, a row each: a frame for each full step's work, so that a run that saves half of the work is done after
/// half of the frames. Plays for ever.
///
/// # Errors
/// [`ReportError`].
pub fn draw_film(rows: &[FilmRow], path: &Path) -> Result<(), ReportError> {
    let mut bytes = Vec::new();
    encode(&frames(rows), &mut bytes).map_err(|e| ReportError::Draw {
        path: path.into(),
        message: e.to_string(),
    })?;
    write_bytes_atomically(path, &bytes).map_err(|source| ReportError::Io {
        path: path.into(),
        source,
    })
}

fn encode(frames: &[RgbImage], out: &mut Vec<u8>) -> Result<(), png::EncodingError> {
    let (width, height) = frames.first().map_or((1, 1), RgbImage::dimensions);
    let mut encoder = png::Encoder::new(out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    encoder.set_animated(frames.len() as u32, 0)?;
    encoder.set_frame_delay(FRAME, 100)?;
    let mut writer = encoder.write_header()?;
    for (number, frame) in frames.iter().enumerate() {
        if number + 1 == frames.len() {
            writer.set_frame_delay(LAST_FRAME, 100)?;
        }
        writer.write_image_data(frame)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn row(work: &[f64]) -> FilmRow {
        let image = |shade: u8| vec![RgbImage::from_pixel(8, 8, Rgb([shade; 3])); 2];
        let states = work.iter().enumerate();
        FilmRow {
            name: "run".into(),
            states: states.map(|(i, work)| (*work, image(i as u8))).collect(),
        }
    }

    #[test]
    fn a_run_that_saves_half_is_done_after_half_of_the_frames() {
        let (whole, half) = (row(&[1.0, 2.0, 3.0, 4.0]), row(&[1.0, 1.0, 2.0, 2.0]));
        let steps = |row: &FilmRow| [1.0, 2.0, 3.0, 4.0].map(|work| row.steps_by(work));
        assert_eq!(steps(&whole), [1, 2, 3, 4]);
        assert_eq!(steps(&half), [2, 4, 4, 4]);
        let labels = |work| -> Vec<String> {
            let tiles = half.tiles(work).into_iter();
            tiles.map(|tile| tile.label).collect()
        };
        assert_eq!(labels(1.0), ["run", "step 2 of 4"]);
        assert_eq!(labels(3.0), ["run", "done"]);
    }

    #[test]
    fn a_film_is_a_png_that_moves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("film.png");
        draw_film(&[row(&[1.0, 2.0, 3.0]), row(&[0.9, 1.5, 1.9])], &path).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let control = *reader.info().animation_control().unwrap();
        assert_eq!((control.num_frames, control.num_plays), (3, 0));
        let mut buffer = vec![0; reader.output_buffer_size().unwrap()];
        for _ in 0..control.num_frames {
            reader.next_frame(&mut buffer).unwrap();
        }
        let last = reader.info().frame_control().unwrap();
        assert_eq!(last.delay_num, LAST_FRAME);
        // Who shows no moving pictures shows the first frame.
        image::open(&path).unwrap();
    }
}
