//! Trajectories that are given instead of drawn.

use super::TrainingError;
use crate::{dit::Dit, schedule::Router};

/// Fixed noise, labels and initial logits instead of drawn ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// `[passes, B, C, H, W]`
    pub noise: Vec<f32>,
    /// `[C, H, W]`
    pub image_shape: [usize; 3],
    /// `[passes][B]`
    pub labels: Vec<Vec<usize>>,
    pub router: Router,
}

impl Replay {
    /// A hash of the noise, to know it again.
    pub fn identity(&self) -> String {
        blake3::hash(bytemuck::cast_slice(&self.noise)).to_hex()[..32].to_owned()
    }

    /// Whether the replay fits the model, the run and the number of passes.
    ///
    /// # Errors
    /// [`TrainingError::Setting`].
    pub fn check(&self, model: &Dit, passes: usize) -> Result<(), TrainingError> {
        let setting = |value: String, expected| {
            Err(TrainingError::Setting {
                flag: "replay",
                value,
                expected,
            })
        };
        let size: usize = model.config().image_shape().iter().product();
        let images: usize = self.labels.iter().map(Vec::len).sum();
        if self.image_shape != model.config().image_shape() {
            let shape = self.image_shape;
            return setting(
                format!("{shape:?} an image"),
                "noise of the model's channels, height and width",
            );
        }
        if self.router.branches() != 2 * model.config().blocks {
            let branches = self.router.branches();
            return setting(
                format!("a router of {branches} branches"),
                "two branches a block of the model",
            );
        }
        if self.labels.is_empty() || images == 0 || self.noise.len() != images * size {
            return setting(
                format!("{} numbers of noise for {images} labels", self.noise.len()),
                "noise [passes,B,C,H,W] and labels [passes,B] of the model's shape",
            );
        }
        if passes > self.labels.len() {
            return setting(
                format!("{} passes long", self.labels.len()),
                "at least --passes passes",
            );
        }
        match self
            .labels
            .iter()
            .flatten()
            .find(|y| **y > model.config().classes)
        {
            Some(label) => setting(
                format!("a file with label {label}"),
                "labels within the model's classes",
            ),
            None => Ok(()),
        }
    }
}
