//! Trajectories that are given instead of drawn.

use crate::training::run::TrainingError;
use crate::{
    models::{Condition, Denoiser},
    schedule::Router,
};

/// Fixed noise, labels and initial logits instead of drawn ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// `[passes, B, C, H, W]`
    pub noise: Vec<f32>,
    /// `[C, H, W]`
    pub image_shape: [usize; 3],
    /// `[passes][B]`
    pub conditions: Vec<Vec<Condition>>,
    pub router: Router,
}

impl Replay {
    /// A hash of all that training takes from it, to know it again.
    pub fn identity(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(bytemuck::cast_slice(&self.noise))
            .update(bytemuck::cast_slice(self.router.logits()));
        for condition in self.conditions.iter().flatten() {
            condition.add_to(&mut hash);
        }
        hash.finalize().to_hex()[..32].to_owned()
    }

    /// Whether the replay fits the model, the run and the number of passes.
    ///
    /// # Errors
    /// [`TrainingError::Setting`].
    pub fn check(&self, model: &dyn Denoiser, passes: usize) -> Result<(), TrainingError> {
        let setting = |value: String, expected| {
            Err(TrainingError::Setting {
                setting: "replay",
                value,
                expected,
            })
        };
        let outline = model.outline();
        let size = outline.latents.numbers();
        let images: usize = self.conditions.iter().map(Vec::len).sum();
        if self.image_shape != outline.latents.shape() {
            let shape = self.image_shape;
            return setting(
                format!("{shape:?} an image"),
                "noise of the model's channels, height and width",
            );
        }
        if self.router.branches() != outline.graph.branches() {
            let branches = self.router.branches();
            return setting(
                format!("a router of {branches} branches"),
                "one of the model's branches",
            );
        }
        if self.conditions.is_empty() || images == 0 || self.noise.len() != images * size {
            return setting(
                format!(
                    "{} numbers of noise for {images} conditions",
                    self.noise.len()
                ),
                "noise [passes,B,C,H,W] of the model's shape and a condition an image",
            );
        }
        let batch = self.conditions.first().map_or(0, Vec::len);
        if let Some(other) = self.conditions.iter().find(|pass| pass.len() != batch) {
            return setting(
                format!(
                    "a file with passes of {batch} and of {} images",
                    other.len()
                ),
                "as many images a pass",
            );
        }
        if passes > self.conditions.len() {
            return setting(
                format!("{} passes long", self.conditions.len()),
                "at least as many passes as are to be trained",
            );
        }
        for condition in self.conditions.iter().flatten() {
            let checked = outline.conditioning.check(condition);
            checked.map_err(crate::sampler::SampleError::from)?;
        }
        Ok(())
    }
}
