//! The denoising loop.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use burn::tensor::{Tensor, TensorData};

use super::{
    SampleError, Settings,
    forward::planned_tokens,
    model_shape,
    parts::{Part, PartTimes},
};
use crate::{
    cache::{CacheDtype, FeatureStore},
    device::{DeviceFault, Engine},
    diffusion::{ImageNoise, Solver, SolverStep, StepCoefficients, Trajectory},
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

/// A model ready to sample: its weights are shared, so clones and runs cost nothing and live on their own.
#[derive(Debug, Clone)]
pub struct Sampler {
    inner: Arc<Inner>,
}

#[derive(Debug, Clone)]
struct Inner {
    model: Dit,
    settings: Settings,
    trajectory: Trajectory,
    schedule: Schedule,
    plan: Arc<Plan>,
    cache_dtype: CacheDtype,
    conditioning_bytes: usize,
    preview: bool,
    recovery: bool,
    engine: Option<Engine>,
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
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The run begins: so many images, in batches.
    Started { images: usize, steps: usize },
    /// One denoising step of a batch was issued to the device.
    Step {
        first_image: usize,
        images: usize,
        step: usize,
        /// The clean images as predicted at this step, `[images, C, H, W]` on the device; with
        /// [`Sampler::with_preview`] only.
        x0: Option<Tensor<4>>,
    },
    /// A batch is done: images `first_image..`.
    Images {
        first_image: usize,
        images: usize,
        /// `[images, C, H, W]`, row-major.
        x0: Vec<f32>,
        /// The same on the device.
        on_device: Tensor<4>,
    },
    /// All images are done.
    Done(Totals),
}

/// Where a run stood after its last finished step, on the host: all that [`Sampler::resume`] needs, on any device.
#[derive(Debug, Clone)]
pub struct RunState {
    request: Arc<Request>,
    settings: Settings,
    /// First image of the batch at hand.
    first: usize,
    step: usize,
    /// `[B, C, H, W]` of the batch at hand; nothing between batches.
    x: Vec<f32>,
    noise: Vec<ImageNoise>,
}

impl RunState {
    /// First image of the batch at hand; those before it were delivered.
    pub fn first_image(&self) -> usize {
        self.first
    }

    /// The step that comes next.
    pub fn step(&self) -> usize {
        self.step
    }
}

impl Sampler {
    /// A sampler; `schedule` `None` computes everything.
    ///
    /// # Errors
    /// [`SampleError::Diffusion`] for impossible settings, [`SampleError::Schedule`] for a table of another size.
    pub fn new(
        model: &Dit,
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
            inner: Arc::new(Inner {
                model: model.clone(),
                settings,
                trajectory,
                schedule,
                plan: Arc::new(plan),
                cache_dtype: CacheDtype::default(),
                conditioning_bytes: CONDITIONING_BYTES,
                preview: false,
                recovery: false,
                engine: None,
            }),
        })
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }

    /// Keeps features in this form.
    pub fn with_cache_dtype(self, cache_dtype: CacheDtype) -> Self {
        self.with(|inner| inner.cache_dtype = cache_dtype)
    }

    /// Bounds the adaLN vectors that are computed ahead [default: 64 MiB]; with 0 every step computes its own.
    pub fn with_conditioning_bytes(self, conditioning_bytes: usize) -> Self {
        self.with(|inner| inner.conditioning_bytes = conditioning_bytes)
    }

    /// Whether every [`Event::Step`] carries the clean images as predicted there.
    pub fn with_preview(self, preview: bool) -> Self {
        self.with(|inner| inner.preview = preview)
    }

    /// Whether runs keep a [`RunState`] of the last finished step, for the price of a read-back a step.
    pub fn with_recovery(self, recovery: bool) -> Self {
        self.with(|inner| inner.recovery = recovery)
    }

    /// Asks the engine that the model lives on what an error of the device means, and after every read-back whether
    /// there was one: some faults leave wrong values and a read-back that succeeds.
    pub fn with_engine(self, engine: &Engine) -> Self {
        self.with(|inner| inner.engine = Some(engine.clone()))
    }

    /// The schedule in use.
    pub fn schedule(&self) -> &Schedule {
        &self.inner.schedule
    }

    /// What the run will do, op by op.
    pub fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    /// Starts a run; the work is done by polling it.
    ///
    /// # Errors
    /// [`SampleError`] for a request that does not fit the model.
    pub fn run(&self, request: Request) -> Result<Run, SampleError> {
        let config = self.inner.model.config();
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
            inner: self.inner.clone(),
            request: Arc::new(request),
            next_image: 0,
            batch: None,
            phase: Phase::Fresh,
            peak_cache_bytes: 0,
            store: None,
            parts: None,
            state: None,
        })
    }

    /// Goes on with a run of the same model and settings where it stood, on this sampler's device.
    ///
    /// Cached features are not part of the state: the first step that is resumed computes every branch, the following
    /// ones reuse as the schedule says. Without reuse the images are those of the undisturbed run.
    ///
    /// # Errors
    /// [`SampleError`] for a state that does not fit the model or its settings.
    pub fn resume(&self, state: RunState) -> Result<Run, SampleError> {
        let mut run = self.run(Request::clone(&state.request))?;
        let steps = self.inner.settings.steps;
        let size: usize = self.inner.model.config().image_shape().iter().product();
        let fits = state.x.len() == state.noise.len() * size;
        if state.settings != self.inner.settings || state.step > steps || !fits {
            return Err(SampleError::State);
        }
        run.next_image = state.first;
        if state.noise.is_empty() {
            run.phase = Phase::Running;
            return Ok(run);
        }
        let schedule = &self.inner.schedule;
        let resumed = Schedule::from_rule(steps, schedule.branches(), |s, n| {
            s == 0 || s == state.step || schedule.computes(s, n)
        })?;
        let plan = compile(&resumed, &model_shape(self.inner.model.config()));
        run.phase = Phase::Running;
        let batch = run.batch(state.first, state.x, state.noise, Arc::new(plan));
        run.batch = Some(Batch {
            step: state.step,
            ..batch
        });
        Ok(run)
    }

    /// Bytes of the cache for a batch of `images` images.
    pub fn cache_bytes(&self, images: usize) -> usize {
        let config = self.inner.model.config();
        let numbers = self.inner.copies() * images * config.tokens() * config.hidden;
        self.inner.plan.slots() * self.inner.cache_dtype.feature_bytes(numbers)
    }

    /// Bytes of adaLN weights that a run of one batch of `images` images reads.
    pub fn adaln_bytes_read(&self, images: usize) -> usize {
        let config = self.inner.model.config();
        let layers = 4 * config.hidden * config.hidden * (6 * config.blocks + 2);
        let chunks = self
            .inner
            .settings
            .steps
            .div_ceil(self.inner.steps_ahead(images));
        chunks * layers
    }

    /// Elements of the network's batch an image: two with guidance.
    pub fn copies(&self) -> usize {
        self.inner.copies()
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

impl Inner {
    /// Steps whose adaLN vectors fit the memory bound, at least the one at hand.
    fn steps_ahead(&self, images: usize) -> usize {
        let config = self.model.config();
        let vectors = 4 * config.hidden * (6 * config.blocks + 2);
        // In a guided batch the null label's vectors serve the whole unconditional half.
        let rows = images + self.copies() - 1;
        (self.conditioning_bytes / (vectors * rows)).max(1)
    }

    /// Elements of the network's batch an image: two with guidance.
    fn copies(&self) -> usize {
        if self.settings.guidance.is_active() {
            2
        } else {
            1
        }
    }

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

    /// What ended a poll.
    fn fault_of_panic(&self, panic: &(dyn std::any::Any + Send)) -> DeviceFault {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let message = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given")
            .to_owned();
        let known = self.engine.as_ref().and_then(Engine::fault);
        known.unwrap_or(DeviceFault::Failed { message })
    }

    /// Any solver's step from the network's output `[B or 2B, C_out, H, W]`.
    fn composed_step(
        &self,
        step: &StepCoefficients,
        batch: &mut Batch,
        output: Tensor<4>,
    ) -> SolverStep {
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
        solver.step(step, batch.x.clone(), output, clip_x0, noise)
    }
}

/// A run in progress: an iterator of events that does one step a poll. It may be moved to and polled from any thread.
#[derive(Debug)]
pub struct Run {
    inner: Arc<Inner>,
    request: Arc<Request>,
    next_image: usize,
    batch: Option<Batch>,
    phase: Phase,
    peak_cache_bytes: usize,
    /// The last batch's slots, for the next one.
    store: Option<FeatureStore>,
    parts: Option<PartTimes>,
    state: Option<RunState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fresh,
    Running,
    /// Everything was told, or something failed.
    Over,
}

/// The images that are being denoised together.
#[derive(Debug)]
struct Batch {
    first: usize,
    labels: Vec<usize>,
    noise: Vec<ImageNoise>,
    x: Tensor<4>,
    step: usize,
    plan: Arc<Plan>,
    store: FeatureStore,
    /// adaLN vectors of the steps `ahead..`.
    conditioning: Option<Conditioning>,
    ahead: std::ops::Range<usize>,
}

impl Run {
    /// What the whole request costs, and the cache it has needed so far. A run that was resumed is counted as if it had not
    /// been disturbed.
    pub fn totals(&self) -> Totals {
        let figures = self.inner.plan.accounting();
        let passes = (self.request.labels.len() * self.inner.copies()) as u64;
        Totals {
            macs: passes * figures.macs,
            macs_full: passes * figures.macs_full,
            peak_cache_bytes: self.peak_cache_bytes,
        }
    }

    /// Where the run stood after its last finished step, also after an error; with [`Sampler::with_recovery`] only.
    pub fn state(&self) -> Option<&RunState> {
        self.state.as_ref()
    }

    fn start_batch(&mut self) -> Batch {
        let request = self.request.clone();
        let size: usize = self.inner.model.config().image_shape().iter().product();
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
        self.batch(first, values, noise, self.inner.plan.clone())
    }

    /// The batch of images `first..` in state `x`, at step 0.
    fn batch(
        &mut self,
        first: usize,
        x: Vec<f32>,
        noise: Vec<ImageNoise>,
        plan: Arc<Plan>,
    ) -> Batch {
        let inner = &self.inner;
        let config = inner.model.config();
        let ([c, h, w], device) = (config.image_shape(), inner.model.device());
        let count = noise.len();
        let shape = [inner.copies() * count, config.tokens(), config.hidden];
        let kept = self.store.take();
        let store = match kept.filter(|store| store.fits(plan.slots(), shape)) {
            Some(store) => store,
            None => FeatureStore::new(plan.slots(), shape, inner.cache_dtype, &device),
        };
        Batch {
            first,
            labels: self.request.labels[first..first + count].to_vec(),
            noise,
            x: Tensor::from_data(TensorData::new(x, [count, c, h, w]), &device),
            step: 0,
            plan,
            store,
            conditioning: None,
            ahead: 0..0,
        }
    }

    /// The adaLN vectors of the batch's step, computed for as many steps as the memory bound allows.
    fn conditioning(&mut self, batch: &mut Batch) -> Conditioning {
        let inner = self.inner.clone();
        let mut labels = batch.labels.clone();
        if inner.settings.guidance.is_active() {
            labels.push(inner.model.config().classes);
        }
        let ready = batch.conditioning.take();
        let conditioning = match ready.filter(|_| batch.ahead.contains(&batch.step)) {
            Some(conditioning) => conditioning,
            None => {
                let ahead = inner.steps_ahead(batch.labels.len());
                let end = inner.settings.steps.min(batch.step.saturating_add(ahead));
                batch.ahead = batch.step..end;
                let steps = &inner.trajectory.steps()[batch.ahead.clone()];
                let timesteps: Vec<_> = steps.iter().map(|s| s.timestep as f32).collect();
                let conditioning = inner.model.condition_steps(&timesteps, &labels);
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
            parts.mark(part, &self.inner.model.device());
        }
    }

    /// One denoising step of the batch; the predicted clean images.
    fn advance(&mut self, batch: &mut Batch) -> Tensor<4> {
        let conditioning = self.conditioning(batch);
        let inner = self.inner.clone();
        let tokens = planned_tokens(
            &inner.model,
            &batch.plan.steps()[batch.step],
            batch.x.clone(),
            inner.copies(),
            &conditioning,
            &mut batch.store,
            self.parts.as_mut(),
        );
        let step = &inner.trajectory.steps()[batch.step];
        let (next, x0) = match inner.fused_step(step) {
            Some(fused) => {
                let (patches, bias) = inner.model.patches(tokens, &conditioning);
                solver_step(batch.x.clone(), patches, bias, fused)
            }
            None => {
                let output = inner.model.unembed(tokens, &conditioning);
                let step = inner.composed_step(step, batch, output);
                (step.next, step.x0)
            }
        };
        batch.x = next;
        batch.step += 1;
        self.mark(Part::Solver);
        x0
    }

    /// Values of a tensor, and what the engine says of how they came about.
    fn read(&self, x: &Tensor<4>) -> Result<Vec<f32>, SampleError> {
        let engine = self.inner.engine.as_ref();
        let data = x.clone().try_into_data().map_err(|e| match engine {
            Some(engine) => engine.fault_of(&e),
            None => DeviceFault::Failed {
                message: e.to_string(),
            },
        })?;
        if let Some(fault) = engine.and_then(Engine::fault) {
            return Err(fault.into());
        }
        let values = data.try_into_vec::<f32>();
        values.map_err(|e| {
            let message = format!("{e:?}");
            DeviceFault::Failed { message }.into()
        })
    }

    fn finish(&mut self, batch: Batch) -> Result<Event, SampleError> {
        self.peak_cache_bytes = self.peak_cache_bytes.max(batch.store.bytes());
        let images = batch.labels.len();
        let x0 = self.read(&batch.x)?;
        let size = x0.len() / images;
        if let Some(bad) = x0.iter().position(|v| !v.is_finite()) {
            return Err(SampleError::NotFinite {
                image: batch.first + bad / size,
                step: self.first_bad_step(batch)?,
            });
        }
        self.store = Some(batch.store);
        if let Some(state) = &mut self.state {
            (state.first, state.step) = (batch.first + images, 0);
            (state.x, state.noise) = (Vec::new(), Vec::new());
        }
        Ok(Event::Images {
            first_image: batch.first,
            images,
            x0,
            on_device: batch.x,
        })
    }

    /// The first step of a failed batch that shows it: runs it again, in this one poll, looking at every step's
    /// result. Runs that go well pay nothing for this.
    fn first_bad_step(&mut self, failed: Batch) -> Result<usize, SampleError> {
        self.next_image = failed.first;
        self.store = Some(failed.store);
        let mut batch = self.start_batch();
        while batch.step < self.inner.settings.steps {
            self.advance(&mut batch);
            if self.read(&batch.x)?.iter().any(|v| !v.is_finite()) {
                break;
            }
        }
        Ok(batch.step.saturating_sub(1))
    }

    /// What the next poll does.
    fn poll(&mut self) -> Result<Option<Event>, SampleError> {
        let steps = self.inner.settings.steps;
        if self.phase == Phase::Fresh {
            self.phase = Phase::Running;
            let images = self.request.labels.len();
            return Ok(Some(Event::Started { images, steps }));
        }
        let mut batch = match self.batch.take() {
            Some(batch) => batch,
            None if self.next_image < self.request.labels.len() => self.start_batch(),
            None => {
                self.phase = Phase::Over;
                return Ok(Some(Event::Done(self.totals())));
            }
        };
        if batch.step == steps {
            self.next_image += batch.labels.len();
            return self.finish(batch).map(Some);
        }
        let x0 = self.advance(&mut batch);
        if self.inner.recovery {
            self.state = Some(RunState {
                request: self.request.clone(),
                settings: self.inner.settings,
                first: batch.first,
                step: batch.step,
                x: self.read(&batch.x)?,
                noise: batch.noise.clone(),
            });
        }
        let event = Event::Step {
            first_image: batch.first,
            images: batch.labels.len(),
            step: batch.step - 1,
            x0: self.inner.preview.then_some(x0),
        };
        self.batch = Some(batch);
        Ok(Some(event))
    }
}

impl Iterator for Run {
    type Item = Result<Event, SampleError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.phase == Phase::Over {
            return None;
        }
        // Some faults of a device come out of burn as panics.
        let polled = catch_unwind(AssertUnwindSafe(|| self.poll()));
        let polled = polled.unwrap_or_else(|panic| Err(self.inner.fault_of_panic(&*panic).into()));
        if polled.is_err() {
            self.phase = Phase::Over;
        }
        polled.transpose()
    }
}
