//! Reading pictures to train on, with a bar.

use std::{ops::ControlFlow, path::Path, time::Instant};

use super::{Context, error::CliError, progress::progress};
use crate::training::{
    TrainingError,
    network::{DataError, DataOptions, Dataset},
};

/// Side of a picture at most.
const LARGEST: usize = 1 << 14;

/// How pictures are to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrainingPictures {
    /// Side in pixels; `None`: the data's own.
    pub image_size: Option<usize>,
    /// Pixels along a cell of the latents that are made of them.
    pub factor: usize,
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
