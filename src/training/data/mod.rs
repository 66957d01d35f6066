//! Training data: pictures from folders or atlases, or latents made beforehand.
//!
//! A data set is read whole before training: every picture is decoded, cropped and kept as 8-bit pixels, in memory
//! or, where that does not suffice, in a temporary file. Pictures that cannot be read are named and left out.

mod atlas;
mod crop;
mod folder;
mod latents;
mod store;

pub use crop::center_crop;

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use store::Store;

use crate::{
    checkpoint::CheckpointError,
    models::vae::{Vae, VaeError},
};

/// Why there is nothing to train on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder that the system does not let us read.
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Pictures that do not fit in memory could not be kept on disk.
    #[error("cannot keep the pictures in a temporary file in {}: {source}; choose another folder for temporary files (TMPDIR; TMP on Windows), or let more of them be kept in memory", folder.display())]
    Temporary { folder: PathBuf, source: io::Error },
    /// No pictures.
    #[error("{} holds no pictures: expected a folder with one sub-folder a class, an atlas (classes.json), a folder of .png, .jpg or .webp files, or a .safetensors file of latents", path.display())]
    Empty { path: PathBuf },
    /// One picture.
    #[error("{} is one picture: expected a folder of them, or a .safetensors file of latents", path.display())]
    Picture { path: PathBuf },
    /// Pictures beside class folders: which is it?
    #[error("{} holds both pictures ({picture}) and sub-folders of pictures ({folder}): expected one sub-folder a class, or pictures alone", path.display())]
    Mixed {
        path: PathBuf,
        picture: String,
        folder: String,
    },
    /// A folder that contains itself.
    #[error("{} leads back to a folder that it lies in: remove that link", link.display())]
    Circle { link: PathBuf },
    /// A class without a readable picture.
    #[error("class `{class}` of {} has no readable picture; {reason}", path.display())]
    EmptyClass {
        path: PathBuf,
        class: String,
        reason: String,
    },
    /// An atlas that contradicts itself.
    #[error("{} is no atlas: {problem}", path.display())]
    Atlas { path: PathBuf, problem: String },
    /// A file of latents that is none.
    #[error("{} holds no latents: {problem}", path.display())]
    Latents { path: PathBuf, problem: String },
    /// The container of the latents.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The autoencoder that was to make latents of pictures.
    #[error("cannot make latents of the pictures: {0}")]
    Vae(#[from] VaeError),
    /// The caller broke off.
    #[error("reading the pictures was broken off")]
    Stopped,
}

impl DataError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Io {
            path: path.into(),
            source,
        }
    }

    fn temporary(source: io::Error) -> Self {
        Self::Temporary {
            folder: std::env::temp_dir(),
            source,
        }
    }
}

/// How to read a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct DataOptions {
    /// Side of the square pictures; `None`: an atlas's own tiles, otherwise the pictures' own, at most [`DEFAULT_IMAGE_SIZE`].
    pub image_size: Option<usize>,
    /// What that side is a multiple of where nothing says it.
    pub multiple: usize,
    /// Bytes of pixels to keep in memory; more than that goes to a temporary file.
    pub memory: u64,
}

/// Side of pictures at most where nothing says another.
pub const DEFAULT_IMAGE_SIZE: usize = 64;

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            image_size: None,
            multiple: 8,
            memory: 2 << 30,
        }
    }
}

/// A picture that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    pub path: PathBuf,
    pub reason: String,
}

/// How a picture is changed on its way into a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Augmentation {
    /// Mirror left and right.
    pub mirror: bool,
    /// Move right and down by these many pixels; the edge's pixels fill what is left free.
    pub shift: [i32; 2],
}

/// A labelled set of pictures or latents.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    values: Values,
    /// `[C, H, W]` of one picture.
    shape: [usize; 3],
    labels: Vec<u32>,
    class_names: Vec<String>,
    skipped: Vec<Skipped>,
    identity: String,
}

#[derive(Debug)]
enum Values {
    /// `[H, W, 3]` bytes a picture.
    Pixels(Store),
    /// `[N, C, H, W]`
    Latents {
        values: Vec<f32>,
        /// Those of the mirrored pictures, where they were made here and are wanted.
        mirrored: Option<Vec<f32>>,
        /// Of what they were made here.
        origin: Option<latents::Origin>,
    },
}

impl Dataset {
    /// Reads what lies at `path`: a folder with one sub-folder a class, an atlas (a folder with `classes.json`), a flat
    /// folder of pictures (one class), or a safetensors file with `latents` `[N, C, H, W]` and perhaps `labels` `[N]`.
    ///
    /// `each` hears of every few pictures `(done, all)` and may break off.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn open(
        path: &Path,
        options: &DataOptions,
        each: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self, DataError> {
        let kind = std::fs::metadata(path).map_err(DataError::io(path))?;
        if kind.is_file() && folder::is_picture(path) {
            return Err(DataError::Picture { path: path.into() });
        }
        if kind.is_file() {
            return latents::read(path);
        }
        if path.join(atlas::INDEX).exists() {
            return atlas::read(path, options, each);
        }
        folder::read(path, options, each)
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never true: a data set without pictures does not open.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// `[C, H, W]` of one picture.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Whether a picture can be read mirrored.
    pub fn mirrors(&self) -> bool {
        match &self.values {
            Values::Pixels(_) => true,
            Values::Latents { mirrored, .. } => mirrored.is_some(),
        }
    }

    /// Whether these are RGB pixels in [-1, 1] rather than latents.
    pub fn is_pixels(&self) -> bool {
        matches!(self.values, Values::Pixels(_))
    }

    /// The class of picture `index`.
    pub fn label(&self, index: usize) -> usize {
        self.labels[index] as usize
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        let largest = self.labels.iter().max().map_or(0, |y| *y as usize + 1);
        largest.max(self.class_names.len())
    }

    /// Names by class number, or empty.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Pictures by class.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes()];
        self.labels.iter().for_each(|y| counts[*y as usize] += 1);
        counts
    }

    /// What could not be read.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// A hash of all pictures, labels and names.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The latents of these pictures, as an autoencoder makes them: the means of what it says. With `mirror`, those of the
    /// mirrored pictures too, which training then takes for them. They are taken from the file `kept` where it holds those that
    /// [were kept](Self::keep_latents) of the same pictures and autoencoder.
    ///
    /// `each` hears of every picture `(done, all)` and may break off.
    ///
    /// # Errors
    /// [`DataError`]; latents stay as they are.
    pub fn encoded(
        self,
        vae: &Vae,
        mirror: bool,
        kept: Option<&Path>,
        each: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self, DataError> {
        if !self.is_pixels() {
            return Ok(self);
        }
        let factor = vae.config().factor();
        let [_, height, width] = self.shape;
        let channels = vae.config().latent_channels();
        let shape @ [c, h, w] = [channels, height / factor, width / factor];
        let origin = latents::Origin::of(&self, vae)?;
        let found =
            kept.and_then(|path| latents::kept(path, &origin, [self.len(), c, h, w], mirror));
        let sides = match found {
            Some(sides) => sides,
            None => self.made(vae, mirror, each)?,
        };
        let mut hash = blake3::Hasher::new();
        hash.update(self.identity.as_bytes());
        let size = c * h * w;
        for index in 0..self.len() {
            for side in &sides {
                hash.update(bytemuck::cast_slice(&side[index * size..][..size]));
            }
        }
        let mut sides = sides.into_iter();
        Ok(Self {
            values: Values::Latents {
                values: sides.next().unwrap_or_default(),
                mirrored: sides.next(),
                origin: Some(origin),
            },
            shape,
            identity: hash.finalize().to_hex()[..32].to_owned(),
            ..self
        })
    }

    /// Keeps latents that [were made](Self::encoded) in a file of their own, whole or not at all, unless they lie there; others stay
    /// where they are.
    ///
    /// # Errors
    /// [`DataError::Checkpoint`] where it cannot be written; [`DataError::Latents`] where the file is another's.
    pub fn keep_latents(&self, path: &Path) -> Result<(), DataError> {
        let Values::Latents {
            values,
            mirrored,
            origin: Some(origin),
        } = &self.values
        else {
            return Ok(());
        };
        let [c, h, w] = self.shape;
        let shape = [self.len(), c, h, w];
        let sides: Vec<&[f32]> = std::iter::once(values)
            .chain(mirrored)
            .map(Vec::as_slice)
            .collect();
        latents::keep(path, origin, shape, &sides)
    }

    /// All latents, and with `mirror` all of the mirrored pictures.
    fn made(
        &self,
        vae: &Vae,
        mirror: bool,
        each: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<f32>>, DataError> {
        let mut sides = vec![Vec::new(); 1 + usize::from(mirror)];
        for index in 0..self.len() {
            if each(index, self.len()).is_break() {
                return Err(DataError::Stopped);
            }
            for (side, latents) in sides.iter_mut().enumerate() {
                latents.extend(self.latents_of(vae, index, side == 1)?);
            }
        }
        Ok(sides)
    }

    fn latents_of(&self, vae: &Vae, index: usize, mirror: bool) -> Result<Vec<f32>, DataError> {
        let change = Augmentation {
            mirror,
            shift: [0; 2],
        };
        let mut pixels = vec![0.0; self.shape.iter().product()];
        self.read(index, change, &mut pixels)?;
        Ok(vae.encode(&pixels, self.shape)?)
    }

    /// Picture `index` as `[C, H, W]` values into `out`: pixels `v/127.5 − 1`, latents as they are (these are never
    /// shifted, and mirrored only where they [were made](Self::encoded) of mirrored pictures).
    ///
    /// # Errors
    /// [`DataError::Temporary`] where pixels lie on disk.
    pub fn read(
        &self,
        index: usize,
        change: Augmentation,
        out: &mut [f32],
    ) -> Result<(), DataError> {
        let [channels, height, width] = self.shape;
        match &self.values {
            Values::Latents {
                values, mirrored, ..
            } => {
                let values = match mirrored {
                    Some(mirrored) if change.mirror => mirrored,
                    _ => values,
                };
                out.copy_from_slice(&values[index * out.len()..][..out.len()]);
            }
            Values::Pixels(store) => {
                let mut bytes = vec![0; out.len()];
                store
                    .read(index, &mut bytes)
                    .map_err(DataError::temporary)?;
                let source = |at: usize, shift: i32, side: usize| {
                    (at as i64 - i64::from(shift)).clamp(0, side as i64 - 1) as usize
                };
                for y in 0..height {
                    let from_y = source(y, change.shift[1], height);
                    for x in 0..width {
                        let mut from_x = source(x, change.shift[0], width);
                        if change.mirror {
                            from_x = width - 1 - from_x;
                        }
                        for c in 0..channels {
                            let value = bytes[(from_y * width + from_x) * channels + c];
                            out[(c * height + y) * width + x] = f32::from(value) / 127.5 - 1.0;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Pictures that were read one after the other, before they are a [`Dataset`].
struct Collector {
    size: usize,
    store: Store,
    hash: blake3::Hasher,
    labels: Vec<u32>,
    /// With the classes that they would have had.
    skipped: Vec<(usize, Skipped)>,
}

impl Collector {
    fn new(size: usize, count: usize, memory: u64) -> Result<Self, DataError> {
        Ok(Self {
            size,
            store: Store::new(3 * size * size, count, memory).map_err(DataError::temporary)?,
            hash: blake3::Hasher::new(),
            labels: Vec::new(),
            skipped: Vec::new(),
        })
    }

    fn add(&mut self, pixels: &[u8], label: usize) -> Result<(), DataError> {
        self.store.push(pixels).map_err(DataError::temporary)?;
        self.hash.update(pixels);
        self.labels.push(label as u32);
        Ok(())
    }

    fn skip(&mut self, path: &Path, label: usize, reason: String) {
        tracing::warn!(path = %path.display(), %reason, "picture skipped");
        let path = path.into();
        self.skipped.push((label, Skipped { path, reason }));
    }

    /// # Errors
    /// [`DataError::EmptyClass`].
    fn finish(mut self, path: &Path, class_names: Vec<String>) -> Result<Dataset, DataError> {
        let mut seen = vec![false; class_names.len()];
        self.labels.iter().for_each(|y| seen[*y as usize] = true);
        if let Some(class) = seen.iter().position(|seen| !seen) {
            let reason = self
                .skipped
                .iter()
                .find(|(label, _)| *label == class)
                .map_or("put some there, or remove it".into(), |(_, s)| {
                    format!("{}: {}", s.path.display(), s.reason)
                });
            return Err(DataError::EmptyClass {
                path: path.into(),
                class: class_names[class].clone(),
                reason,
            });
        }
        for label in &self.labels {
            self.hash.update(&label.to_le_bytes());
        }
        for name in &class_names {
            self.hash.update(name.as_bytes()).update(&[0]);
        }
        self.hash.update(&(self.size as u64).to_le_bytes());
        Ok(Dataset {
            path: path.into(),
            values: Values::Pixels(self.store),
            shape: [3, self.size, self.size],
            labels: self.labels,
            class_names,
            skipped: self.skipped.into_iter().map(|(_, s)| s).collect(),
            identity: self.hash.finalize().to_hex()[..32].to_owned(),
        })
    }
}
