//! Pictures on their way out of `harmonica sample`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use image::{
    RgbImage,
    imageops::{FilterType, resize},
};

use super::{Context, error::CliError, recipe::Recipe, text::slug};
use crate::{
    checkpoint::ModelInfo,
    models::Condition,
    pipeline::Decoder,
    ranks::{Ranks, RanksError},
    report::{
        PictureFormat, PictureText, ReportError, Tile, columns_for, encode_picture, grid,
        grid_enlarged, write_picture,
    },
    words::counted,
};

/// Where pictures go.
pub(super) enum Out {
    /// All in one file: the picture, or a grid.
    File(PathBuf, PictureFormat),
    Stdout,
    /// One PNG each.
    Folder(PathBuf),
}

impl Out {
    /// What `--out` means.
    pub fn of(out: &Path, as_grid: bool, as_json: bool) -> Result<Self, CliError> {
        if out == Path::new("-") {
            return match as_json {
                true => Err(CliError::Usage(
                    "--out - writes the picture to stdout, where --json writes too; pass a file"
                        .into(),
                )),
                false => Ok(Self::Stdout),
            };
        }
        match PictureFormat::of(out) {
            Ok(Some(format)) => Ok(Self::File(out.into(), format)),
            Ok(None) if as_grid => Err(CliError::Usage(format!(
                "--grid makes one picture, and {} is a folder; pass a .png, .jpg or .webp",
                out.display()
            ))),
            Ok(None) => Ok(Self::Folder(out.into())),
            Err(ending) => Err(CliError::Usage(format!(
                "--out {}: .{ending} files are not written; expected .png, .jpg, .webp, or a folder",
                out.display()
            ))),
        }
    }

    /// The first file that will be written, if any.
    pub fn first(&self) -> Option<PathBuf> {
        match self {
            Self::Stdout => None,
            Self::File(path, _) => Some(path.clone()),
            Self::Folder(path) => Some(path.join("image.png")),
        }
    }
}

/// Pictures on their way out.
pub(super) struct Pictures<'a> {
    pub out: &'a Out,
    pub decoder: &'a Decoder,
    /// Pixels along the square that shows one; without it one, or in a grid as many as small pictures want.
    pub enlarge: Option<u32>,
    pub info: &'a ModelInfo,
    pub conditions: &'a [Condition],
    /// How to draw all of them again; none where starting noise came from a file.
    pub recipe: Option<Recipe>,
    /// Those that wait for the rest: a grid is whole or not there.
    pub waiting: Vec<RgbImage>,
    /// Files that are written.
    pub files: Vec<PathBuf>,
    /// What decoding took.
    pub seconds: f64,
}

impl Pictures<'_> {
    /// Images `first..` of the run.
    pub fn take(
        &mut self,
        first: usize,
        values: &[f32],
        context: &Context,
    ) -> Result<(), CliError> {
        context.something_is_at_stake();
        let shape = self.info.outline.latents.shape();
        for (i, image) in values.chunks(shape.iter().product()).enumerate() {
            let mut go_on = || context.check_interrupt().is_ok();
            let started = Instant::now();
            let picture = self.decoder.picture(image, shape, &mut go_on)?;
            self.seconds += started.elapsed().as_secs_f64();
            match self.out {
                Out::Folder(folder) => {
                    let number = first + i;
                    let title = name_of(&self.conditions[number], number, self.info);
                    let path = folder.join(format!(
                        "{number:05}-{}.png",
                        file_name(&self.conditions[number], &title)
                    ));
                    let picture = self.enlarged(picture);
                    write_picture(&picture, &path, PictureFormat::Png, &self.texts(number, 1))?;
                    self.files.push(path);
                }
                _ => self.waiting.push(picture),
            }
        }
        Ok(())
    }

    /// Brings what all ranks have to the first: pictures that wait for the rest, and names of files.
    pub fn gather(&mut self, ranks: &Ranks) -> Result<(), RanksError> {
        if ranks.is_alone() {
            return Ok(());
        }
        let mut own = Vec::new();
        self.waiting
            .iter()
            .for_each(|picture| own.extend_from_slice(picture.as_raw()));
        let all = ranks.gather_numbers(own)?;
        let files = serde_json::to_vec(&self.files).unwrap_or_default();
        let files = ranks.gather(&files)?;
        let files = files
            .iter()
            .map(|of_rank| serde_json::from_slice::<Vec<PathBuf>>(of_rank));
        self.files = files.flatten().flatten().collect();
        // The first rank has some of every run's, and all are of one size.
        if let Some([width, height]) = self
            .waiting
            .first()
            .map(|picture| [picture.width(), picture.height()])
        {
            let bytes = all.chunks(3 * width as usize * height as usize);
            let picture = |bytes: &[u8]| RgbImage::from_raw(width, height, bytes.to_vec());
            self.waiting = bytes.filter_map(picture).collect();
        }
        Ok(())
    }

    /// What a PNG of images `first..first + count` says.
    fn texts(&self, first: usize, count: usize) -> Vec<PictureText> {
        let Some(recipe) = &self.recipe else {
            return Vec::new();
        };
        let conditions = &self.conditions[first..first + count];
        let classes = conditions.iter().filter_map(Condition::class);
        let classes: Vec<_> = classes.map(|class| self.class(class)).collect();
        let title = match conditions {
            [one] => name_of(one, first, self.info),
            several => counted(several.len(), "image"),
        };
        let prompts = conditions.iter().filter_map(|condition| match condition {
            Condition::Text(text) => text.words().map(String::from),
            Condition::Class(_) => None,
        });
        let prompts = prompts.collect();
        recipe
            .of_images(first, count, classes, prompts)
            .texts(&title)
    }

    /// A picture that is alone in its file.
    fn enlarged(&self, picture: RgbImage) -> RgbImage {
        match self.enlarge {
            None | Some(1) => picture,
            Some(times) => {
                let [width, height] = [picture.width(), picture.height()];
                resize(&picture, times * width, times * height, FilterType::Nearest)
            }
        }
    }

    /// A class as `--classes` takes it.
    fn class(&self, class: usize) -> String {
        let name = self.info.class_name(class);
        match name.contains(',') || self.info.class_by_name(&name) != Some(class) {
            true => class.to_string(),
            false => name,
        }
    }

    /// Writes what waits: a picture, or a grid.
    pub fn finish(&mut self, as_grid: bool) -> Result<(), CliError> {
        let (path, format) = match self.out {
            Out::Folder(_) => return Ok(()),
            Out::File(path, format) => (Some(path), *format),
            Out::Stdout => (None, PictureFormat::Png),
        };
        let texts = self.texts(0, self.waiting.len());
        let tiles = std::mem::take(&mut self.waiting).into_iter().enumerate();
        let mut tiles: Vec<_> = tiles
            .map(|(i, image)| Tile {
                image,
                label: name_of(&self.conditions[i], i, self.info),
            })
            .collect();
        let picture = match tiles.len() {
            1 if !as_grid => self.enlarged(tiles.remove(0).image),
            count => match self.enlarge {
                None => grid(&tiles, columns_for(count)),
                Some(times) => grid_enlarged(&tiles, columns_for(count), times),
            },
        };
        match path {
            Some(path) => {
                write_picture(&picture, path, format, &texts)?;
                self.files.push(path.clone());
            }
            None => {
                let failed = |message: String| {
                    CliError::Report(ReportError::Draw {
                        path: "stdout".into(),
                        message,
                    })
                };
                let bytes = encode_picture(&picture, format, &texts).map_err(failed)?;
                let mut stdout = std::io::stdout().lock();
                let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
                written.map_err(|e| failed(e.to_string()))?;
            }
        }
        Ok(())
    }
}

/// What image number `i` is called.
pub(super) fn name_of(condition: &Condition, i: usize, info: &ModelInfo) -> String {
    match condition {
        Condition::Class(label) => info.class_name(*label),
        Condition::Text(text) => match text.words() {
            Some(words) => words.into(),
            None => format!("text-{i}"),
        },
    }
}

/// The same as part of a file's name.
fn file_name(condition: &Condition, title: &str) -> String {
    match condition {
        Condition::Class(_) => title.replace(|c: char| !c.is_alphanumeric() && c != '-', "_"),
        Condition::Text(_) => slug(title),
    }
}
