//! What a step learns from: which pictures, changed how, and the noise of their latents.

use rayon::prelude::*;

use super::{
    super::{
        data::Dataset,
        feeder::{drawn_change, mirrored_classes},
        order::Order,
        random::{Purpose, Stream},
        settings::mirrors,
    },
    learner::VaeBatch,
    settings::VaeSettings,
};
use crate::training::TrainingError;

/// Makes the batch of any step, a function of the seed and the step's number.
#[derive(Debug)]
pub(super) struct VaeFeeder<'d> {
    data: &'d Dataset,
    order: Order,
    /// By class: whether its pictures may be mirrored.
    mirrors: Vec<bool>,
    /// Numbers of a picture's latents.
    latents: usize,
}

impl<'d> VaeFeeder<'d> {
    pub fn new(data: &'d Dataset, settings: &VaeSettings, latents: usize) -> Self {
        let labels: Vec<_> = (0..data.len()).map(|i| data.label(i)).collect();
        let may = |name: &str| mirrors(settings.flip, &settings.no_flip, name);
        Self {
            order: Order::new(settings.seed, &labels, &data.counts(), settings.balance),
            mirrors: mirrored_classes(data, may),
            data,
            latents,
        }
    }

    /// The batch of a step.
    ///
    /// # Errors
    /// [`TrainingError::Data`] where pictures lie on disk and cannot be read.
    pub fn batch(&mut self, settings: &VaeSettings, step: u64) -> Result<VaeBatch, TrainingError> {
        let (batch, shape) = (settings.batch, self.data.shape());
        let size: usize = shape.iter().product();
        let picked: Vec<_> = (0..batch as u64)
            .map(|i| {
                let mut stream = Stream::new(settings.seed, Purpose::Latents, step, i);
                let number = step * batch as u64 + i;
                (self.order.pick(number, &mut stream), stream)
            })
            .collect();
        let mut images = vec![0.0; batch * size];
        let mut noise = vec![0.0; batch * self.latents];
        let (data, mirrors) = (self.data, &self.mirrors);
        images
            .par_chunks_mut(size)
            .zip(noise.par_chunks_mut(self.latents))
            .zip(picked)
            .try_for_each(|((image, noise), (index, mut stream))| {
                let mirrors = mirrors[data.label(index)];
                let change = drawn_change(&mut stream, mirrors, settings.shift);
                stream.normal(noise);
                data.read(index, change, image)
            })?;
        Ok(VaeBatch {
            shape,
            images,
            noise,
        })
    }
}
