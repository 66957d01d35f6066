//! What trainings from pictures share: reading them, with a bar, and how long to train.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Context, error::CliError, progress::progress};
use crate::training::{
    TrainingError,
    network::{DEFAULT_IMAGE_SIZE, DataError, DataOptions, Dataset, Length},
};

/// How long.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Length")]
#[group(multiple = false)]
pub(super) struct LengthArgs {
    /// Train for this long, over all sessions; the learning rate falls to 0 at its end [default: 60]
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Train on this many pictures
    #[arg(long, value_name = "N")]
    images: Option<u64>,
    /// Train for this many optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
}

impl LengthArgs {
    /// What the command says, if anything.
    pub fn length(&self) -> Option<Length> {
        let minutes = self.minutes.map(Length::Minutes);
        let images = self.images.map(Length::Images);
        minutes.or(images).or(self.steps.map(Length::Steps))
    }
}

/// So many minutes, as a flag says.
pub(super) fn minutes(setting: &'static str, value: f64) -> Result<Duration, TrainingError> {
    Duration::try_from_secs_f64(60.0 * value).map_err(|_| TrainingError::Setting {
        setting,
        value: value.to_string(),
        expected: "minutes: a number of at least 0",
    })
}

/// Where the pictures lie: where the command says, or where they lay when the run in `out` was saved.
pub(super) fn place_of_data(
    asked: Option<&Path>,
    saved: Option<&str>,
    out: &Path,
) -> Result<PathBuf, CliError> {
    asked
        .or(saved.map(Path::new))
        .map(Path::to_path_buf)
        .ok_or_else(|| {
            CliError::Usage(format!(
                "the run in {} does not say where its pictures lie: pass --data",
                out.display()
            ))
        })
}

/// Side of a picture at most.
const LARGEST: usize = 1 << 14;

/// How pictures are to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrainingPictures {
    /// Side in pixels; `None`: the data's own.
    pub image_size: Option<usize>,
    /// Pixels along a cell of the latents that are made of them.
    pub factor: usize,
    /// Cells along a patch at most, of those that are usual.
    pub patch: usize,
    /// Gigabytes of pixels to keep in memory.
    pub memory: f64,
}

impl TrainingPictures {
    /// Reads what lies at `place`.
    ///
    /// # Errors
    /// [`CliError::Usage`] for a size or a memory that is none; those of [`Dataset::open`].
    pub fn read(self, place: &Path, context: &Context) -> Result<Dataset, CliError> {
        let factor = self.factor;
        if let Some(size) = self.image_size.filter(|size| !size.is_multiple_of(factor)) {
            return Err(CliError::Usage(format!(
                "--image-size is {size}, expected a multiple of {factor}, the pixels of a cell of the autoencoder's latents"
            )));
        }
        if let Some(size) = self.image_size.filter(|size| *size == 0 || *size > LARGEST) {
            return Err(CliError::Usage(format!(
                "--image-size is {size}, expected 1 to {LARGEST}"
            )));
        }
        if self.memory.is_nan() || self.memory < 0.0 {
            return Err(CliError::Usage(format!(
                "--data-memory is {}, expected a number of gigabytes of at least 0",
                self.memory
            )));
        }
        let options = DataOptions {
            image_size: self.image_size,
            multiple: (factor * self.patch)
                .clamp(8, DEFAULT_IMAGE_SIZE)
                .max(factor),
            memory: (self.memory * 1e9) as u64,
        };
        let bar = progress(context, 0, "pictures");
        let started = Instant::now();
        let data = Dataset::open(place, &options, &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            match context.check_interrupt() {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        bar.finish_and_clear();
        tracing::debug!(seconds = started.elapsed().as_secs_f64(), "read the data");
        read(data)
    }
}

/// What was read, or why not; an interrupt is one.
pub(super) fn read(data: Result<Dataset, DataError>) -> Result<Dataset, CliError> {
    match data {
        Ok(data) => Ok(data),
        Err(DataError::Stopped) => Err(CliError::Interrupted),
        Err(e) => Err(TrainingError::from(e).into()),
    }
}
