//! The denoising loop.

use burn::tensor::{Tensor, TensorData};

use super::{
    SampleError, Settings,
    forward::{FeatureStore, planned_forward},
    model_shape,
};
use crate::{
    diffusion::{ImageNoise, Trajectory},
    dit::Dit,
    plan::{Plan, compile},
    schedule::Schedule,
};

/// What to sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// One label an image.
    pub labels: Vec<usize>,
    /// Seed of the noise; image `i` draws from stream `i` of it.
    pub seed: u64,
    /// Starting noise `[B, C, H, W]` instead of seeded noise.
    pub noise: Option<Vec<f32>>,
    /// Images at a time.
    pub batch: usize,
}

/// A model ready to sample.
#[derive(Debug)]
pub struct Sampler<'m> {
    model: &'m Dit,
    settings: Settings,
    trajectory: Trajectory,
    schedule: Schedule,
    plan: Plan,
}

/// What a run did, for all its images together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Multiply-accumulates that were done, both guidance halves counted.
    pub macs: u64,
    /// Multiply-accumulates of the same images without reuse.
    pub macs_full: u64,
    /// Bytes that cached features took at most.
    pub peak_cache_bytes: usize,
}

/// What happened in a poll.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One denoising step of a batch was issued to the device.
    Step {
        first_image: usize,
        images: usize,
        step: usize,
    },
    /// A batch is done: images `first_image..`, `x0` `[images, C, H, W]` row-major.
    Images {
        first_image: usize,
        images: usize,
        x0: Vec<f32>,
    },
}

impl<'m> Sampler<'m> {
    /// A sampler; `schedule` `None` computes everything.
    ///
    /// # Errors
    /// [`SampleError::Diffusion`] for impossible settings, [`SampleError::Schedule`] for a table of another size.
    pub fn new(
        model: &'m Dit,
        settings: Settings,
        schedule: Option<Schedule>,
    ) -> Result<Self, SampleError> {
        let trajectory = settings.trajectory()?;
        let branches = 2 * model.config().blocks;
        let schedule = match schedule {
            Some(schedule) => schedule,
            None => Schedule::full(settings.steps, branches)?,
        };
        if (schedule.steps(), schedule.branches()) != (settings.steps, branches) {
            return Err(crate::schedule::ScheduleError::Mismatch {
                reason: format!(
                    "its table is {}×{} (steps×branches), the run's is {}×{branches}",
                    schedule.steps(),
                    schedule.branches(),
                    settings.steps
                ),
            }
            .into());
        }
        let plan = compile(&schedule, &model_shape(model.config()));
        Ok(Self {
            model,
            settings,
            trajectory,
            schedule,
            plan,
        })
    }

    /// The schedule in use.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What the run will do, op by op.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Starts a run; the work is done by polling it.
    ///
    /// # Errors
    /// [`SampleError`] for a request that does not fit the model.
    pub fn run(&self, request: Request) -> Result<Run<'_, 'm>, SampleError> {
        let config = self.model.config();
        let images = request.labels.len();
        if images == 0 {
            return Err(SampleError::NoImages);
        }
        if request.batch == 0 {
            return Err(SampleError::Batch);
        }
        if let Some(&label) = request.labels.iter().find(|y| **y > config.classes) {
            return Err(SampleError::Label {
                label,
                classes: config.classes,
            });
        }
        if let Some(noise) = &request.noise {
            let shape = config.image_shape();
            let expected = images * shape.iter().product::<usize>();
            if noise.len() != expected {
                return Err(SampleError::Noise {
                    found: noise.len(),
                    expected,
                    images,
                    shape,
                });
            }
        }
        Ok(Run {
            sampler: self,
            request,
            next_image: 0,
            batch: None,
            failed: false,
            peak_cache_bytes: 0,
        })
    }

    /// Runs to the end: all images `[B, C, H, W]`, row-major.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn sample(&self, request: Request) -> Result<Vec<f32>, SampleError> {
        let mut all = Vec::new();
        for event in self.run(request)? {
            if let Event::Images { x0, .. } = event? {
                all.extend(x0);
            }
        }
        Ok(all)
    }
}

/// A run in progress.
pub struct Run<'s, 'm> {
    sampler: &'s Sampler<'m>,
    request: Request,
    next_image: usize,
    batch: Option<Batch>,
    failed: bool,
    peak_cache_bytes: usize,
}

/// The images that are being denoised together.
struct Batch {
    first: usize,
    labels: Vec<usize>,
    noise: Vec<ImageNoise>,
    x: Tensor<4>,
    step: usize,
    store: FeatureStore,
}

impl Run<'_, '_> {
    /// What the whole run costs, and the cache it has needed so far.
    pub fn totals(&self) -> Totals {
        let sampler = self.sampler;
        let figures = sampler.plan.accounting();
        let passes = self.request.labels.len() as u64
            * if sampler.settings.guidance.is_active() {
                2
            } else {
                1
            };
        Totals {
            macs: passes * figures.macs,
            macs_full: passes * figures.macs_full,
            peak_cache_bytes: self.peak_cache_bytes,
        }
    }

    fn start_batch(&self) -> Batch {
        let request = &self.request;
        let [c, h, w] = self.sampler.model.config().image_shape();
        let size = c * h * w;
        let first = self.next_image;
        let count = request.batch.min(request.labels.len() - first);
        let mut noise: Vec<_> = (0..count)
            .map(|i| ImageNoise::new(request.seed, (first + i) as u64))
            .collect();
        let mut values = Vec::with_capacity(count * size);
        // Drawn even when replaced, so that later noise of stochastic solvers is the same.
        noise
            .iter_mut()
            .for_each(|stream| stream.fill(size, &mut values));
        if let Some(given) = &request.noise {
            values.copy_from_slice(&given[first * size..(first + count) * size]);
        }
        let data = TensorData::new(values, [count, c, h, w]);
        Batch {
            first,
            labels: request.labels[first..first + count].to_vec(),
            noise,
            x: Tensor::from_data(data, &self.sampler.model.device()),
            step: 0,
            store: FeatureStore::new(self.sampler.plan.slots()),
        }
    }

    /// One denoising step of the batch.
    fn advance(&self, batch: &mut Batch) {
        let Sampler {
            model,
            settings,
            trajectory,
            plan,
            ..
        } = self.sampler;
        let coefficients = &trajectory.steps()[batch.step];
        let channels = model.config().channels;
        let guided = settings.guidance.is_active();
        let mut labels = batch.labels.clone();
        if guided {
            labels.extend(vec![model.config().classes; batch.labels.len()]);
        }
        let timesteps = vec![coefficients.timestep as f32; labels.len()];
        let conditioning = model.condition(&timesteps, &labels);
        let copies = if guided { 2 } else { 1 };
        let output = planned_forward(
            model,
            &plan.steps()[batch.step],
            batch.x.clone(),
            copies,
            &conditioning,
            &mut batch.store,
        );
        let output = if guided {
            settings.guidance.guide(output, channels)
        } else {
            output
        };
        let noise = (settings.solver.is_stochastic() && !coefficients.last).then(|| {
            let dims = batch.x.dims();
            let mut values = Vec::with_capacity(dims.iter().product());
            let size = values.capacity() / dims[0];
            batch
                .noise
                .iter_mut()
                .for_each(|stream| stream.fill(size, &mut values));
            Tensor::from_data(TensorData::new(values, dims), &batch.x.device())
        });
        batch.x = settings
            .solver
            .step(
                coefficients,
                batch.x.clone(),
                output,
                settings.clip_x0,
                noise,
            )
            .next;
        batch.step += 1;
    }

    fn finish(&mut self, batch: Batch) -> Result<Event, SampleError> {
        self.peak_cache_bytes = self.peak_cache_bytes.max(batch.store.peak_bytes());
        let images = batch.labels.len();
        let data = batch
            .x
            .try_into_data()
            .map_err(|e| SampleError::Device(e.to_string()))?;
        let x0 = data
            .try_into_vec::<f32>()
            .map_err(|e| SampleError::Device(format!("{e:?}")))?;
        let size = x0.len() / images;
        if let Some(bad) = x0.iter().position(|v| !v.is_finite()) {
            return Err(SampleError::NotFinite {
                image: batch.first + bad / size,
            });
        }
        Ok(Event::Images {
            first_image: batch.first,
            images,
            x0,
        })
    }
}

impl Iterator for Run<'_, '_> {
    type Item = Result<Event, SampleError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let mut batch = match self.batch.take() {
            Some(batch) => batch,
            None if self.next_image < self.request.labels.len() => self.start_batch(),
            None => return None,
        };
        if batch.step == self.sampler.settings.steps {
            self.next_image += batch.labels.len();
            let event = self.finish(batch);
            self.failed = event.is_err();
            return Some(event);
        }
        self.advance(&mut batch);
        let event = Event::Step {
            first_image: batch.first,
            images: batch.labels.len(),
            step: batch.step - 1,
        };
        self.batch = Some(batch);
        Some(Ok(event))
    }
}
