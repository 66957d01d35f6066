//! Many images walked one step at a time, their state on the host between steps: what fitting a forecast needs.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use super::{
    SampleError,
    batch::Batch,
    run::Request,
    setup::{Sampler, Setup},
};
use crate::{
    cache::FeatureStore, device::read_back, diffusion::ImageNoise, graph::Graph, models::Condition,
    plan::Plan, schedule::FORECAST_DEPTH,
};

/// Where all images stand before a step.
#[derive(Debug, Clone)]
pub(crate) struct Stand {
    /// `[images, C, H, W]`
    pub x: Vec<f32>,
    /// Earlier predictions of the clean images, newest first, `[images, C, H, W]` each.
    pub history: Vec<Vec<f32>>,
    noise: Vec<ImageNoise>,
}

/// Where a step leads if it takes the newest prediction for the clean image.
#[derive(Debug)]
pub(crate) struct Uncorrected {
    /// `[images, C, H, W]` after the step.
    pub x: Vec<f32>,
    /// The clean images as taken, `[images, C, H, W]`.
    pub x0: Vec<f32>,
    /// What the next step has in history.
    pub history: Vec<Vec<f32>>,
    noise: Vec<ImageNoise>,
}

impl Uncorrected {
    /// The stand before the next step, with other values for `x`.
    pub fn moved_to(self, x: Vec<f32>) -> Stand {
        Stand {
            x,
            history: self.history,
            noise: self.noise,
        }
    }
}

/// The images of a request, in batches that are walked together.
pub(crate) struct Stepper {
    setup: Arc<Setup>,
    batches: Vec<Batch>,
    plan: Arc<Plan>,
    size: usize,
    start: Stand,
}

impl Stepper {
    /// Images of these conditions, if any, from noise `x` `[images, C, H, W]`, `batch` at a time, by the sampler's solver; `noise` are
    /// the images' streams of later noise.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn new(
        sampler: &Sampler,
        conditions: &[Condition],
        x: Vec<f32>,
        noise: Vec<ImageNoise>,
        batch: usize,
    ) -> Result<Self, SampleError> {
        let mut setup = Setup::clone(&sampler.setup);
        setup.history = FORECAST_DEPTH;
        let setup = Arc::new(setup);
        let size = setup.latents().numbers();
        let mut batches = Vec::new();
        if !conditions.is_empty() {
            let request = Request {
                conditions: conditions.to_vec(),
                seed: 0,
                first: 0,
                noise: Some(x.clone()),
                batch,
            };
            let sampler = Sampler {
                setup: setup.clone(),
            };
            let run = sampler.run(request)?;
            batches.extend((0..conditions.len()).step_by(batch).map(|first| {
                let end = conditions.len().min(first + batch);
                let values = x[first * size..end * size].to_vec();
                run.batch(
                    first,
                    values,
                    noise[first..end].to_vec(),
                    setup.plan.clone(),
                )
            }));
        }
        let start = Stand {
            x,
            history: Vec::new(),
            noise,
        };
        Ok(Self {
            plan: setup.plan.clone(),
            setup,
            batches,
            size,
            start,
        })
    }

    /// Where all images begin.
    pub fn start(&self) -> Stand {
        self.start.clone()
    }

    /// The network's graph.
    pub fn graph(&self) -> &Graph {
        &self.setup.model.outline().graph
    }

    /// Numbers of an image.
    pub fn image_numbers(&self) -> usize {
        self.size
    }

    /// Walks under another plan from here on, with an empty cache.
    pub fn follow(&mut self, plan: &Arc<Plan>) {
        self.plan = plan.clone();
        let graph = plan.graph();
        let device = self.setup.model.device();
        for batch in &mut self.batches {
            let elements = self.setup.copies() * batch.conditions.len();
            let shape = [elements, graph.tokens(), graph.width()];
            batch.plan = plan.clone();
            batch.store = FeatureStore::new(plan.slots(), shape, self.setup.cache_dtype, &device);
        }
    }

    /// Step `s` from where all images stand, waiting for it.
    ///
    /// # Errors
    /// [`SampleError`] of the device.
    pub fn step(&mut self, s: usize, stand: &Stand) -> Result<Uncorrected, SampleError> {
        let device = self.setup.model.device();
        let [c, h, w] = self.setup.latents().shape();
        let made = stand.history.len();
        let next = (made + usize::from(self.plan.runs_network(s))).min(FORECAST_DEPTH);
        let mut after = Uncorrected {
            x: Vec::with_capacity(stand.x.len()),
            x0: Vec::with_capacity(stand.x.len()),
            history: vec![Vec::with_capacity(stand.x.len()); next],
            noise: Vec::with_capacity(stand.noise.len()),
        };
        let upload = |values: Vec<f32>, images: usize| {
            Tensor::<4>::from_data(TensorData::new(values, [images, c, h, w]), &device)
        };
        for batch in &mut self.batches {
            let images = batch.conditions.len();
            let of_batch = batch.first * self.size..(batch.first + images) * self.size;
            let mut planes = Vec::with_capacity(FORECAST_DEPTH * of_batch.len());
            for plane in &stand.history {
                planes.extend_from_slice(&plane[of_batch.clone()]);
            }
            planes.resize(FORECAST_DEPTH * of_batch.len(), 0.0);
            batch.step = s;
            batch.x = upload(stand.x[of_batch.clone()].to_vec(), images);
            batch.history = Some(upload(planes, FORECAST_DEPTH * images));
            batch.noise = stand.noise[batch.first..batch.first + images].to_vec();
            let x0 = pollster::block_on(batch.advance(&self.setup, None))?;
            after.x.extend(read_back(batch.x.clone())?);
            after.x0.extend(read_back(x0)?);
            let planes = match batch.history.take() {
                Some(history) => read_back(history)?,
                None => Vec::new(),
            };
            for (plane, values) in after.history.iter_mut().zip(planes.chunks(of_batch.len())) {
                plane.extend_from_slice(values);
            }
            after.noise.append(&mut batch.noise);
        }
        Ok(after)
    }
}
