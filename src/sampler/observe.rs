//! An uncached run, seen from within: what calibration measures.

use burn::tensor::Tensor;

use super::{SampleError, batch::Batch, run::Request, setup::Sampler};
use crate::{diffusion::ImageNoise, models::walk, stop::Stopped};

/// What passes through the network at a step. Elements are those of the batch, the conditional half first.
pub(crate) struct Seen {
    pub step: usize,
    /// `[B, tokens, dim]`: the stream before the first block, as its first branch takes it, and after the last block.
    pub before: Tensor<3>,
    pub modulated: Tensor<3>,
    pub after: Tensor<3>,
    /// `[B, tokens, dim]` a branch: features before their gates.
    pub features: Vec<Tensor<3>>,
    /// `[B, tokens, p²·C_out]`
    pub output: Tensor<3>,
}

/// An uncached run of images that are drawn together.
pub(crate) struct Observer {
    sampler: Sampler,
    batch: Batch,
}

impl Observer {
    /// A run of `request`, whose images are one batch, by an uncached sampler; `noise` are the images' streams of later noise.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn new(
        sampler: &Sampler,
        request: Request,
        noise: Vec<ImageNoise>,
    ) -> Result<Self, SampleError> {
        let x = request.noise.clone().unwrap_or_default();
        let plan = sampler.setup.plan.clone();
        let run = sampler.run(request)?;
        Ok(Self {
            batch: run.batch(0, x, noise, plan),
            sampler: sampler.clone(),
        })
    }

    /// What the next step sees.
    ///
    /// # Errors
    /// [`Stopped`] where somebody who is asked by the sampler wants it.
    pub fn step(&mut self) -> Result<Seen, Stopped> {
        let setup = &*self.sampler.setup;
        let (model, batch) = (&*setup.model, &mut self.batch);
        let step = batch.step;
        let at = batch.at(setup, None);
        let before = model.begin(batch.x.clone(), setup.copies());
        let modulated = model.modulated(before.clone(), &at);
        let sites = 0..model.outline().graph.branches();
        let mut features = Vec::with_capacity(sites.len());
        let after = walk(model, sites, before.clone(), &at, |site, x| {
            setup.stop.go_on()?;
            let feature = model.compute(site, x.clone(), &at).whole();
            features.push(feature.clone());
            Ok(feature.into())
        })?;
        let output = model.end(after.clone(), &at);
        batch.step_on(setup, Some(output.clone().apart()));
        Ok(Seen {
            step,
            before,
            modulated,
            after,
            features,
            output: output.whole(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::tensor::Device;

    use super::*;
    use crate::{
        checkpoint::random_model,
        diffusion::{Guidance, GuidedChannels, Solver, Spacing},
        metrics::max_abs_error,
        models::{
            Condition,
            dit::{DitArchitecture, DitConfig},
        },
        sampler::Settings,
    };

    #[test]
    fn what_is_observed_is_the_uncached_run() {
        let config = DitConfig {
            classes: 3,
            blocks: 2,
            ..DitConfig::published("DiT-S/8", [16, 16]).unwrap()
        };
        let architecture = Arc::new(DitArchitecture::shared(config));
        let (model, info) = random_model(architecture, 0, &Device::flex()).unwrap();
        let settings = Settings {
            steps: 3,
            spacing: Spacing::Even,
            solver: Solver::ddim(0.5).unwrap(),
            guidance: Guidance::new(2.0, GuidedChannels::Three).unwrap(),
            clip_x0: false,
        };
        let sampler = Sampler::new(&model, settings, None).unwrap();
        let (mut noise, size) = (Vec::new(), info.outline.latents.numbers());
        let mut streams: Vec<_> = (0..2).map(|i| ImageNoise::new(5, i)).collect();
        for stream in &mut streams {
            stream.fill(size, &mut noise);
        }
        let request = Request {
            conditions: Condition::classes(&[0, 2]),
            first: 0,
            seed: 5,
            noise: Some(noise),
            batch: 2,
        };
        let expected = sampler.sample(request.clone()).unwrap();
        let mut observer = Observer::new(&sampler, request, streams).unwrap();
        for step in 0..3 {
            let seen = observer.step().unwrap();
            assert_eq!((seen.step, seen.features.len()), (step, 4));
            assert_eq!(seen.after.dims(), [4, 4, 384]);
        }
        let found = crate::device::read_back(observer.batch.x.clone()).unwrap();
        let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        assert!(max_abs_error(&found, &expected) < 1e-5 * largest);
    }
}
