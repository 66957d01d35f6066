//! The denoising loop.

use burn::tensor::{Tensor, TensorData};

use super::{
    SampleError, Settings,
    forward::planned_tokens,
    model_shape,
    parts::{Part, PartTimes},
};
use crate::{
    cache::{CacheDtype, FeatureStore},
    diffusion::{ImageNoise, Solver, StepCoefficients, Trajectory},
    dit::{Conditioning, Dit},
    kernels::{DdimStep, runs_kernels, solver_step},
    plan::{Plan, compile},
    schedule::Schedule,
};

/// Bytes of adaLN vectors that are computed ahead of the steps that use them.
const CONDITIONING_BYTES: usize = 64 << 20;

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
    cache_dtype: CacheDtype,
    conditioning_bytes: usize,
}

/// What a run did, for all its images together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Multiply-accumulates that were done, both guidance halves counted.
    pub macs: u64,
    /// Multiply-accumulates of the same images without reuse.
    pub macs_full: u64,
    /// Bytes of the slots that features were kept in.
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
            cache_dtype: CacheDtype::default(),
            conditioning_bytes: CONDITIONING_BYTES,
        })
    }

    /// Keeps features in this form.
    pub fn with_cache_dtype(self, cache_dtype: CacheDtype) -> Self {
        Self {
            cache_dtype,
            ..self
        }
    }

    /// Bounds the adaLN vectors that are computed ahead [default: 64 MiB]; with 0 every step computes its own.
    pub fn with_conditioning_bytes(self, conditioning_bytes: usize) -> Self {
        Self {
            conditioning_bytes,
            ..self
        }
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
            store: None,
            parts: None,
        })
    }

    /// Bytes of the cache for a batch of `images` images.
    pub fn cache_bytes(&self, images: usize) -> usize {
        let config = self.model.config();
        let numbers = self.copies() * images * config.tokens() * config.hidden;
        self.plan.slots() * self.cache_dtype.feature_bytes(numbers)
    }

    /// Bytes of adaLN weights that a run of one batch of `images` images reads.
    pub fn adaln_bytes_read(&self, images: usize) -> usize {
        let config = self.model.config();
        let layers = 4 * config.hidden * config.hidden * (6 * config.blocks + 2);
        self.settings.steps.div_ceil(self.steps_ahead(images)) * layers
    }

    /// Steps whose adaLN vectors fit the memory bound, at least the one at hand.
    fn steps_ahead(&self, images: usize) -> usize {
        let config = self.model.config();
        let vectors = 4 * config.hidden * (6 * config.blocks + 2);
        // In a guided batch the null label's vectors serve the whole unconditional half.
        let rows = images + self.copies() - 1;
        (self.conditioning_bytes / (vectors * rows)).max(1)
    }

    /// Elements of the network's batch an image: two with guidance.
    pub fn copies(&self) -> usize {
        if self.settings.guidance.is_active() {
            2
        } else {
            1
        }
    }

    /// Runs to the end, waiting for the device after each part of each step: the images, and where the time went.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn profile(&self, request: Request) -> Result<(Vec<f32>, PartTimes), SampleError> {
        let mut run = self.run(request)?;
        run.parts = Some(PartTimes::start());
        let mut all = Vec::new();
        for event in run.by_ref() {
            if let Event::Images { x0, .. } = event? {
                all.extend(x0);
            }
        }
        Ok((all, run.parts.unwrap_or_else(PartTimes::start)))
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

impl Sampler<'_> {
    /// The step as one kernel, where it is deterministic DDIM on a device that runs it.
    fn fused_step(&self, step: &StepCoefficients) -> Option<DdimStep> {
        let Settings {
            guidance, clip_x0, ..
        } = self.settings;
        let config = self.model.config();
        let deterministic = matches!(self.settings.solver, Solver::Ddim { eta: 0.0 });
        (deterministic && runs_kernels(&self.model.device())).then(|| DdimStep {
            patch: config.patch,
            out_channels: config.out_channels(),
            guided: if guidance.is_active() {
                guidance.guided_channels(config.channels)
            } else {
                0
            },
            guidance: guidance.scale(),
            clip_x0,
            alpha_bar: step.alpha_bar,
            alpha_bar_prev: step.alpha_bar_prev,
        })
    }

    /// Any solver's step from the network's output `[B or 2B, C_out, H, W]`.
    fn composed_step(
        &self,
        step: &StepCoefficients,
        batch: &mut Batch,
        output: Tensor<4>,
    ) -> Tensor<4> {
        let Settings {
            solver,
            guidance,
            clip_x0,
            ..
        } = self.settings;
        let output = if guidance.is_active() {
            guidance.guide(output, self.model.config().channels)
        } else {
            output
        };
        let noise = (solver.is_stochastic() && !step.last).then(|| {
            let dims = batch.x.dims();
            let mut values = Vec::with_capacity(dims.iter().product());
            let size = values.capacity() / dims[0];
            batch
                .noise
                .iter_mut()
                .for_each(|stream| stream.fill(size, &mut values));
            Tensor::from_data(TensorData::new(values, dims), &batch.x.device())
        });
        solver
            .step(step, batch.x.clone(), output, clip_x0, noise)
            .next
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
    /// The last batch's slots, for the next one.
    store: Option<FeatureStore>,
    parts: Option<PartTimes>,
}

/// The images that are being denoised together.
struct Batch {
    first: usize,
    labels: Vec<usize>,
    noise: Vec<ImageNoise>,
    x: Tensor<4>,
    step: usize,
    store: FeatureStore,
    /// adaLN vectors of the steps `ahead..`.
    conditioning: Option<Conditioning>,
    ahead: std::ops::Range<usize>,
}

impl Run<'_, '_> {
    /// What the whole run costs, and the cache it has needed so far.
    pub fn totals(&self) -> Totals {
        let sampler = self.sampler;
        let figures = sampler.plan.accounting();
        let passes = (self.request.labels.len() * sampler.copies()) as u64;
        Totals {
            macs: passes * figures.macs,
            macs_full: passes * figures.macs_full,
            peak_cache_bytes: self.peak_cache_bytes,
        }
    }

    fn start_batch(&mut self) -> Batch {
        let request = &self.request;
        let sampler = self.sampler;
        let config = sampler.model.config();
        let [c, h, w] = config.image_shape();
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
        let device = sampler.model.device();
        let shape = [sampler.copies() * count, config.tokens(), config.hidden];
        let store = match self.store.take().filter(|store| store.fits(shape)) {
            Some(store) => store,
            None => FeatureStore::new(sampler.plan.slots(), shape, sampler.cache_dtype, &device),
        };
        Batch {
            first,
            labels: request.labels[first..first + count].to_vec(),
            noise,
            x: Tensor::from_data(data, &device),
            step: 0,
            store,
            conditioning: None,
            ahead: 0..0,
        }
    }

    /// The adaLN vectors of the batch's step, computed for as many steps as the memory bound allows.
    fn conditioning(&mut self, batch: &mut Batch) -> Conditioning {
        let sampler = self.sampler;
        let config = sampler.model.config();
        let mut labels = batch.labels.clone();
        if sampler.settings.guidance.is_active() {
            labels.push(config.classes);
        }
        let ready = batch.conditioning.take();
        let conditioning = match ready.filter(|_| batch.ahead.contains(&batch.step)) {
            Some(conditioning) => conditioning,
            None => {
                let ahead = sampler.steps_ahead(batch.labels.len());
                let end = sampler.settings.steps.min(batch.step.saturating_add(ahead));
                batch.ahead = batch.step..end;
                let steps = &sampler.trajectory.steps()[batch.ahead.clone()];
                let timesteps: Vec<_> = steps.iter().map(|s| s.timestep as f32).collect();
                let conditioning = sampler.model.condition_steps(&timesteps, &labels);
                self.mark(Part::Conditioning);
                conditioning
            }
        };
        let step = conditioning.step(batch.step - batch.ahead.start, labels.len());
        batch.conditioning = Some(conditioning);
        step
    }

    fn mark(&mut self, part: Part) {
        if let Some(parts) = &mut self.parts {
            parts.mark(part, &self.sampler.model.device());
        }
    }

    /// One denoising step of the batch.
    fn advance(&mut self, batch: &mut Batch) {
        let conditioning = self.conditioning(batch);
        let sampler = self.sampler;
        let tokens = planned_tokens(
            sampler.model,
            &sampler.plan.steps()[batch.step],
            batch.x.clone(),
            sampler.copies(),
            &conditioning,
            &mut batch.store,
            self.parts.as_mut(),
        );
        let step = &sampler.trajectory.steps()[batch.step];
        batch.x = match sampler.fused_step(step) {
            Some(fused) => {
                let (patches, bias) = sampler.model.patches(tokens, &conditioning);
                solver_step(batch.x.clone(), patches, bias, fused).0
            }
            None => {
                let output = sampler.model.unembed(tokens, &conditioning);
                sampler.composed_step(step, batch, output)
            }
        };
        batch.step += 1;
        self.mark(Part::Solver);
    }

    fn finish(&mut self, batch: Batch) -> Result<Event, SampleError> {
        self.peak_cache_bytes = self.peak_cache_bytes.max(batch.store.bytes());
        self.store = Some(batch.store);
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
