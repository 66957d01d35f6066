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
    /// A hash of all that training takes from it, to know it again.
    pub fn identity(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(bytemuck::cast_slice(&self.noise))
            .update(bytemuck::cast_slice(self.router.logits()));
        for label in self.labels.iter().flatten() {
            hash.update(&(*label as u64).to_le_bytes());
        }
        hash.finalize().to_hex()[..32].to_owned()
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
        let batch = self.labels.first().map_or(0, Vec::len);
        if let Some(other) = self.labels.iter().find(|pass| pass.len() != batch) {
            return setting(
                format!(
                    "a file with passes of {batch} and of {} labels",
                    other.len()
                ),
                "as many labels a pass",
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
