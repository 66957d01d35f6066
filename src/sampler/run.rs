//! The run of a request, one step a poll.

use std::{any::Any, sync::Arc};

use burn::tensor::{Tensor, TensorData};

use super::{SampleError, batch::Batch, parts::PartTimes, setup::Setup, state::RunState};
use crate::{
    device::{DeviceFault, Watch, caught, read},
    diffusion::ImageNoise,
    models::Condition,
    plan::Plan,
    schedule::{Decisions, Reuse},
};

/// What to sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What each image is to show.
    pub conditions: Vec<Condition>,
    /// Seed of the noise; image `i` draws from stream `first + i` of it.
    pub seed: u64,
    /// Number of the first image, so that any image of a larger run can be drawn by itself.
    pub first: u64,
    /// Starting noise `[B, C, H, W]` instead of seeded noise.
    pub noise: Option<Vec<f32>>,
    /// Images at a time.
    pub batch: usize,
}

/// What a run did, for all its images together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Multiply-accumulates that were done, both guidance halves counted.
    pub macs: u64,
    /// Multiply-accumulates of the same images without reuse.
    pub macs_full: u64,
    /// Branch evaluations that were computed, those of both halves counted.
    pub computed: u64,
    /// Branch evaluations that were reused.
    pub reused: u64,
    /// Bytes of the slots that features were kept in.
    pub peak_cache_bytes: usize,
}

impl Totals {
    /// Cache utilization ratio: reused branch evaluations over all.
    pub fn cur(&self) -> f64 {
        self.reused as f64 / (self.computed + self.reused).max(1) as f64
    }

    /// Multiply-accumulates without reuse over those that were done.
    pub fn macs_ratio(&self) -> f64 {
        self.macs_full as f64 / self.macs.max(1) as f64
    }
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
        /// Whether it was decided to reuse, where that is decided step by step.
        reused: bool,
        /// The clean images as predicted at this step, `[images, C, H, W]` on the device; with
        /// [`super::Sampler::with_preview`] only.
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

/// A run in progress, one step an event: [`Run::next_event`], or as an iterator that waits for each. It may be moved to and
/// polled from any thread.
#[derive(Debug)]
pub struct Run {
    setup: Arc<Setup>,
    request: Arc<Request>,
    next_image: usize,
    batch: Option<Batch>,
    phase: Phase,
    peak_cache_bytes: usize,
    /// Passes of an image and half whose step decided to reuse.
    reused_passes: u64,
    state: Option<RunState>,
    watch: Option<Watch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fresh,
    Running,
    /// Everything was told, or something failed.
    Over,
}

impl Run {
    pub(super) fn new(setup: Arc<Setup>, request: Request) -> Self {
        Self {
            watch: setup.engine.as_ref().map(Watch::new),
            setup,
            request: Arc::new(request),
            next_image: 0,
            batch: None,
            phase: Phase::Fresh,
            peak_cache_bytes: 0,
            reused_passes: 0,
            state: None,
        }
    }

    /// The same run in its middle: with this batch at hand, or before that of image `next_image`.
    pub(super) fn going_on(
        self,
        next_image: usize,
        batch: Option<Batch>,
        reused_passes: u64,
    ) -> Self {
        Self {
            next_image,
            batch,
            reused_passes,
            phase: Phase::Running,
            ..self
        }
    }

    /// What the whole request costs, and the cache it has needed so far. A run that was resumed is counted as if it had not
    /// been disturbed; one that decides step by step is known when it is done.
    pub fn totals(&self) -> Totals {
        let figures = self.setup.plan.accounting();
        let passes = (self.request.conditions.len() * self.setup.copies()) as u64;
        let (mut branches, mut macs) = (0, 0);
        if let Reuse::AtRunTime(probed) = &self.setup.reuse {
            let graph = &self.setup.model.outline().graph;
            branches = self.reused_passes * probed.reused().len() as u64;
            macs = self.reused_passes * probed.saved_macs(graph);
        }
        Totals {
            macs: passes * figures.macs - macs,
            macs_full: passes * figures.macs_full,
            computed: passes * figures.computed as u64 - branches,
            reused: passes * figures.reused as u64 + branches,
            peak_cache_bytes: self.peak_cache_bytes,
        }
    }

    /// Where the run stood after its last finished step, also after an error; with [`super::Sampler::with_recovery`] only.
    pub fn state(&self) -> Option<&RunState> {
        self.state.as_ref()
    }

    fn start_batch(&self) -> Batch {
        let request = self.request.clone();
        let size = self.setup.latents().numbers();
        let first = self.next_image;
        let count = request.batch.min(request.conditions.len() - first);
        let mut noise: Vec<_> = (0..count)
            .map(|i| ImageNoise::new(request.seed, request.first.wrapping_add((first + i) as u64)))
            .collect();
        let mut values = Vec::with_capacity(count * size);
        // Drawn even when replaced, so that later noise of stochastic solvers is the same.
        noise
            .iter_mut()
            .for_each(|stream| stream.fill(size, &mut values));
        if let Some(given) = &request.noise {
            values.copy_from_slice(&given[first * size..(first + count) * size]);
        }
        self.batch(first, values, noise, self.setup.plan.clone())
    }

    /// The batch of images `first..` in state `x`, at step 0.
    pub(super) fn batch(
        &self,
        first: usize,
        x: Vec<f32>,
        noise: Vec<ImageNoise>,
        plan: Arc<Plan>,
    ) -> Batch {
        let setup = &self.setup;
        let (graph, device) = (&setup.model.outline().graph, setup.model.device());
        let [c, h, w] = setup.latents().shape();
        let count = noise.len();
        let elements = setup.copies() * count;
        let shape = [elements, graph.tokens(), graph.width()];
        let conditions = self.request.conditions[first..first + count].to_vec();
        let context = setup
            .model
            .context(&setup.conditions(&conditions), elements);
        let store = setup.slots(plan.slots(), shape, &device);
        Batch {
            first,
            conditions,
            context,
            noise,
            x: Tensor::from_data(TensorData::new(x, [count, c, h, w]), &device),
            history: self.history(vec![0.0; setup.history * count * c * h * w], count),
            step: 0,
            plan,
            store,
            known_output: setup.known_output(),
            decisions: Decisions::default(),
            ahead: None,
        }
    }

    /// Earlier predictions of a batch of `images`, where the solver reads any.
    pub(super) fn history(&self, values: Vec<f32>, images: usize) -> Option<Tensor<4>> {
        let kept = self.setup.history;
        let [c, h, w] = self.setup.latents().shape();
        let values = TensorData::new(values, [kept * images, c, h, w]);
        (kept > 0).then(|| Tensor::from_data(values, &self.setup.model.device()))
    }

    /// Values of a tensor, and what the engine says of how they came about.
    async fn read(&self, x: &Tensor<4>) -> Result<Vec<f32>, SampleError> {
        let values = match read(x.clone()).await {
            Ok(values) => values,
            Err(fault) => return Err(self.explained(fault).await.into()),
        };
        if let Some(watch) = &self.watch
            && let Some(fault) = watch.fault_async().await
        {
            return Err(fault.into());
        }
        Ok(values)
    }

    /// What a batch needs of steps before the last computed one, on the host.
    async fn carried(&self, batch: &mut Batch) -> Result<Vec<f32>, SampleError> {
        let mut values = match &batch.known_output {
            Some(known) => known.carried().await?,
            None => Vec::new(),
        };
        let device = self.setup.model.device();
        for slot in batch.plan.carried() {
            values.extend(read(batch.store.kept(*slot, &device)?).await?);
        }
        Ok(values)
    }

    async fn finish(&mut self, batch: Batch) -> Result<Event, SampleError> {
        let images = batch.conditions.len();
        let bytes = batch.store.bytes() + self.setup.output_bytes(images);
        self.peak_cache_bytes = self.peak_cache_bytes.max(bytes);
        let x0 = self.read(&batch.x).await?;
        let size = x0.len() / images;
        if let Some(bad) = x0.iter().position(|v| !v.is_finite()) {
            return Err(SampleError::NotFinite {
                image: batch.first + bad / size,
                step: self.first_bad_step(batch).await?,
            });
        }
        self.setup.keep(batch.store);
        if let Some(state) = &mut self.state {
            (state.first, state.step) = (batch.first + images, 0);
            (state.x, state.noise) = (Vec::new(), Vec::new());
            state.history = Vec::new();
            state.carried = Vec::new();
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
    async fn first_bad_step(&mut self, failed: Batch) -> Result<usize, SampleError> {
        self.next_image = failed.first;
        self.setup.keep(failed.store);
        let mut batch = self.start_batch();
        while batch.step < self.setup.settings.steps {
            batch.advance(&self.setup, None).await?;
            if self.read(&batch.x).await?.iter().any(|v| !v.is_finite()) {
                break;
            }
        }
        Ok(batch.step.saturating_sub(1))
    }

    /// What the next poll does.
    async fn poll(
        &mut self,
        phase: Phase,
        parts: Option<&mut PartTimes>,
    ) -> Result<Event, SampleError> {
        let steps = self.setup.settings.steps;
        if phase == Phase::Fresh {
            let images = self.request.conditions.len();
            return Ok(Event::Started { images, steps });
        }
        let mut batch = match self.batch.take() {
            Some(batch) => batch,
            None if self.next_image < self.request.conditions.len() => self.start_batch(),
            None => return Ok(Event::Done(self.totals())),
        };
        if batch.step == steps {
            self.next_image += batch.conditions.len();
            return self.finish(batch).await;
        }
        let x0 = match batch.advance(&self.setup, parts).await {
            Err(SampleError::Device(fault)) => return Err(self.explained(fault).await.into()),
            advanced => advanced?,
        };
        if batch.decisions.in_a_row > 0 {
            self.reused_passes += (batch.conditions.len() * self.setup.copies()) as u64;
        }
        if self.setup.recovery {
            self.state = Some(RunState {
                request: self.request.clone(),
                settings: self.setup.settings,
                first: batch.first,
                step: batch.step,
                x: self.read(&batch.x).await?,
                history: match &batch.history {
                    Some(history) => self.read(history).await?,
                    None => Vec::new(),
                },
                noise: batch.noise.clone(),
                carried: self.carried(&mut batch).await?,
                decisions: batch.decisions,
                reused_passes: self.reused_passes,
            });
        }
        let event = Event::Step {
            first_image: batch.first,
            images: batch.conditions.len(),
            step: batch.step - 1,
            reused: batch.decisions.in_a_row > 0,
            x0: self.setup.preview.then_some(x0),
        };
        self.batch = Some(batch);
        Ok(event)
    }

    /// The next event: most do one denoising step. `None` once everything was told, or something failed. A future that is
    /// dropped before it is done ends the run.
    ///
    /// # Errors
    /// [`SampleError`].
    pub async fn next_event(&mut self) -> Option<Result<Event, SampleError>> {
        self.next_timed(None).await
    }

    /// The next event, whose parts are timed where somebody asks.
    async fn next_timed(
        &mut self,
        parts: Option<&mut PartTimes>,
    ) -> Option<Result<Event, SampleError>> {
        // Over until it is known to go on: a batch that was left in mid-step cannot be taken up again.
        let phase = std::mem::replace(&mut self.phase, Phase::Over);
        if phase == Phase::Over {
            return None;
        }
        let polled = match caught(self.poll(phase, parts)).await {
            Ok(polled) => polled,
            Err(panic) => Err(self.fault_of_panic(&*panic).await.into()),
        };
        if !matches!(polled, Err(_) | Ok(Event::Done(_))) {
            self.phase = Phase::Running;
        }
        Some(polled)
    }

    /// What the engine says of a fault.
    async fn explained(&self, fault: DeviceFault) -> DeviceFault {
        match &self.watch {
            Some(watch) => watch.explained_async(fault).await,
            None => fault,
        }
    }

    /// What ended a poll.
    async fn fault_of_panic(&self, panic: &(dyn Any + Send)) -> DeviceFault {
        self.explained(DeviceFault::of_panic(panic)).await
    }

    /// Runs to the end: all images `[B, C, H, W]`, row-major.
    pub(super) async fn images(
        mut self,
        mut parts: Option<&mut PartTimes>,
    ) -> Result<Vec<f32>, SampleError> {
        let mut all = Vec::new();
        while let Some(event) = self.next_timed(parts.as_deref_mut()).await {
            if let Event::Images { x0, .. } = event? {
                all.extend(x0);
            }
        }
        Ok(all)
    }
}

/// Waits for each event.
#[cfg(not(target_family = "wasm"))]
impl Iterator for Run {
    type Item = Result<Event, SampleError>;

    fn next(&mut self) -> Option<Self::Item> {
        pollster::block_on(self.next_event())
    }
}
