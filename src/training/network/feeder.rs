//! What a step learns from: which pictures, changed how, with which labels, timesteps and noise.

use rayon::prelude::*;

use super::{
    data::{Augmentation, Dataset},
    objective::Batch,
    order::Order,
    random::{Purpose, Stream},
    settings::PretrainSettings,
};
use crate::{diffusion::MAX_STEPS, training::TrainingError};

/// Makes the batch of any step, a function of the seed and the step's number.
#[derive(Debug)]
pub(super) struct Feeder<'d> {
    data: &'d Dataset,
    order: Order,
    /// By class: whether its pictures may be mirrored.
    mirrors: Vec<bool>,
}

impl<'d> Feeder<'d> {
    pub fn new(data: &'d Dataset, settings: &PretrainSettings) -> Self {
        let labels: Vec<_> = (0..data.len()).map(|i| data.label(i)).collect();
        Self {
            order: Order::new(settings.seed, &labels, &data.counts(), settings.balance),
            mirrors: mirrored_classes(data, |name| settings.mirrors(name)),
            data,
        }
    }

    /// The batch of a step.
    ///
    /// # Errors
    /// [`TrainingError::Data`] where pictures lie on disk and cannot be read.
    pub fn batch(
        &mut self,
        settings: &PretrainSettings,
        step: u64,
    ) -> Result<Batch, TrainingError> {
        let null = self.data.classes();
        let shape = self.data.shape();
        let size: usize = shape.iter().product();
        let picked: Vec<_> = (0..settings.batch as u64)
            .map(|i| {
                let mut stream = Stream::new(settings.seed, Purpose::Picture, step, i);
                let number = step * settings.batch as u64 + i;
                (self.order.pick(number, &mut stream), stream)
            })
            .collect();
        let (data, mirrors) = (self.data, &self.mirrors);
        let mut images = vec![0.0; settings.batch * size];
        let mut noise = vec![0.0; settings.batch * size];
        let drawn: Vec<(usize, usize)> = images
            .par_chunks_mut(size)
            .zip(noise.par_chunks_mut(size))
            .zip(picked)
            .map(|((image, noise), (index, mut stream))| {
                // Always the same draws in the same order: a switch changes nothing but its own effect.
                let class = data.label(index);
                let change = drawn_change(&mut stream, mirrors[class], settings.shift);
                let dropped = stream.unit() < settings.label_dropout;
                let timestep = stream.below(MAX_STEPS);
                stream.normal(noise);
                data.read(index, change, image)?;
                Ok((timestep, if dropped { null } else { class }))
            })
            .collect::<Result<_, TrainingError>>()?;
        let (timesteps, labels) = drawn.into_iter().unzip();
        Ok(Batch {
            shape,
            images,
            noise,
            timesteps,
            labels,
        })
    }
}

/// By class of the data: whether its pictures can be mirrored, and may be by its name.
pub(super) fn mirrored_classes(data: &Dataset, may: impl Fn(&str) -> bool) -> Vec<bool> {
    let name = |class: usize| data.class_names().get(class).map_or("", String::as_str);
    let classes = 0..data.classes();
    classes
        .map(|class| data.mirrors() && may(name(class)))
        .collect()
}

/// How a picture is changed: mirrored every second time where it may be, and moved by up to `shift` pixels.
pub(super) fn drawn_change(stream: &mut Stream, mirrors: bool, shift: usize) -> Augmentation {
    let mirror = stream.unit() < 0.5 && mirrors;
    let mut moved = || stream.below(2 * shift + 1) as i32 - shift as i32;
    Augmentation {
        mirror,
        shift: [moved(), moved()],
    }
}
