//! What is drawn for runs that are learned or measured along: none of it a sampled image's.

use std::ops::Range;

use super::TrainingError;
use crate::{
    diffusion::ImageNoise,
    models::{Condition, Prompts},
};

/// Images that are drawn for a purpose at most: something of each is in memory.
const MOST_DRAWS: usize = 100_000;

/// That settings which count images can be met.
///
/// # Errors
/// [`TrainingError::Setting`] for the first that cannot.
pub(in crate::training) fn check_draws(
    counts: &[(&'static str, usize)],
) -> Result<(), TrainingError> {
    let out_of_range = |(_, count): &&(&str, usize)| *count == 0 || *count > MOST_DRAWS;
    match counts.iter().find(out_of_range) {
        None => Ok(()),
        Some((setting, count)) => Err(TrainingError::Setting {
            setting,
            value: count.to_string(),
            expected: "1 to 100000",
        }),
    }
}

/// That there are conditions to draw from.
///
/// # Errors
/// [`TrainingError::Setting`].
pub(in crate::training) fn check_pool(prompts: &Prompts) -> Result<(), TrainingError> {
    match prompts.pool.is_empty() {
        false => Ok(()),
        true => Err(TrainingError::Setting {
            setting: "texts",
            value: "missing".into(),
            expected: "embedded texts to draw from, since the model has no classes",
        }),
    }
}

/// Images that were drawn.
pub(in crate::training) struct Drawn {
    pub conditions: Vec<Condition>,
    /// `size` numbers an image.
    pub noise: Vec<f32>,
    /// What each image's later noise comes from.
    pub streams: Vec<ImageNoise>,
}

impl Drawn {
    /// The images of these numbers; each purpose and each seed has its own.
    pub fn new(
        prompts: &Prompts,
        size: usize,
        (purpose, seed): (&str, u64),
        numbers: Range<usize>,
    ) -> Self {
        let pool = &prompts.pool;
        let (mut conditions, mut noise, mut streams) = (Vec::new(), Vec::new(), Vec::new());
        for number in numbers {
            let mut stream = ImageNoise::with_purpose(purpose, seed, number as u64);
            conditions.push(pool[stream.below(pool.len())].clone());
            stream.fill(size, &mut noise);
            streams.push(stream);
        }
        Self {
            conditions,
            noise,
            streams,
        }
    }
}
