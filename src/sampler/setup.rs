//! A model ready to sample.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;

use super::{
    SampleError, Settings, batch_for,
    output::KnownOutput,
    parts::PartTimes,
    run::{Request, Run},
};
use crate::{
    cache::{CacheDtype, FeatureStore},
    device::Engine,
    diffusion::{Step, solvers::kept_predictions},
    kernels::OutputLayout,
    models::{Condition, ConditionError, Latents, Model},
    plan::Plan,
    schedule::{Probe, Reuse, Schedule, ScheduleError},
    stop::{Asked, Stop},
};

/// Bytes of adaLN vectors that are computed ahead of the steps that use them.
const CONDITIONING_BYTES: usize = 64 << 20;

/// A model ready to sample: its weights are shared, so clones and runs cost nothing and live on their own.
///
/// It keeps the cache of its last run for the next one.
#[derive(Debug, Clone)]
pub struct Sampler {
    pub(super) setup: Arc<Setup>,
}

/// What a sampler and its runs share.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub model: Model,
    /// What stands for no condition.
    null: Option<Condition>,
    pub settings: Settings,
    pub steps: Vec<Step>,
    /// Earlier predictions that some step reads.
    pub history: usize,
    pub reuse: Reuse,
    pub plan: Arc<Plan>,
    pub cache_dtype: CacheDtype,
    conditioning_bytes: usize,
    pub preview: bool,
    pub recovery: bool,
    poison: bool,
    pub engine: Option<Engine>,
    pub stop: Asked,
    /// The slots of the batch that was finished last, for the next one.
    spare: Arc<Mutex<Option<FeatureStore>>>,
}

impl Sampler {
    /// A sampler; `schedule` `None` computes everything.
    ///
    /// # Errors
    /// [`SampleError::Diffusion`] for impossible settings, [`SampleError::Schedule`] for a table of another size.
    pub fn new(
        model: &Model,
        settings: Settings,
        schedule: Option<Schedule>,
    ) -> Result<Self, SampleError> {
        // Impossible settings are told as such, not as a table of their size.
        settings.trajectory()?;
        let schedule = match schedule {
            Some(schedule) => schedule,
            None => Schedule::full(settings.steps, model.outline().graph.branches())?,
        };
        Self::reusing(model, settings, schedule.into())
    }

    /// A sampler that reuses by a table or decides while it goes on. What decides reads one number a step from the device and
    /// is about a whole batch, so its images depend on who else is in it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn reusing(model: &Model, settings: Settings, reuse: Reuse) -> Result<Self, SampleError> {
        let outline = model.outline();
        let mut steps = settings.numbers(&outline.latents)?;
        let graph = &outline.graph;
        let branches = graph.branches();
        if (reuse.steps(), reuse.branches()) != (settings.steps, branches) {
            return Err(ScheduleError::Shape {
                reason: format!(
                    "its table is {}×{} (steps×branches), the run's is {}×{branches}",
                    reuse.steps(),
                    reuse.branches(),
                    settings.steps
                ),
            }
            .into());
        }
        let plan = Plan::of(&reuse, graph);
        let forecast = reuse.table().map(Schedule::forecast);
        for (s, estimate) in forecast.iter().flat_map(|f| &f.estimates) {
            steps[*s].estimate = *estimate;
        }
        let history = kept_predictions(&steps, |s| plan.runs_network(s));
        Ok(Self {
            setup: Arc::new(Setup {
                null: model.null(),
                model: model.clone(),
                settings,
                history,
                steps,
                reuse,
                plan: Arc::new(plan),
                cache_dtype: CacheDtype::default(),
                conditioning_bytes: CONDITIONING_BYTES,
                preview: false,
                recovery: false,
                poison: false,
                engine: None,
                stop: Asked::default(),
                spare: Arc::default(),
            }),
        })
    }

    fn with(mut self, change: impl FnOnce(&mut Setup)) -> Self {
        change(Arc::make_mut(&mut self.setup));
        self
    }

    /// Keeps features in this form.
    pub fn with_cache_dtype(self, cache_dtype: CacheDtype) -> Self {
        self.with(|setup| setup.cache_dtype = cache_dtype)
    }

    /// What stands for no condition in classifier-free guidance, where that is not the model's own.
    pub fn with_null(self, null: Condition) -> Self {
        self.with(|setup| setup.null = Some(null))
    }

    /// Fills the cache with what is no number before every batch, so that a read of what was not written shows.
    pub fn with_poisoned_cache(self) -> Self {
        self.with(|setup| setup.poison = true)
    }

    /// Bounds the adaLN vectors that are computed ahead [default: 64 MiB]; with 0 every step computes its own.
    pub fn with_conditioning_bytes(self, conditioning_bytes: usize) -> Self {
        self.with(|setup| setup.conditioning_bytes = conditioning_bytes)
    }

    /// Whether every [`super::Event::Step`] carries the clean images as predicted there.
    pub fn with_preview(self, preview: bool) -> Self {
        self.with(|setup| setup.preview = preview)
    }

    /// Whether runs keep a [`super::RunState`] of the last finished step, for the price of a read-back a step.
    pub fn with_recovery(self, recovery: bool) -> Self {
        self.with(|setup| setup.recovery = recovery)
    }

    /// Asks the engine that the model lives on what an error of the device means, and after every read-back whether
    /// there was one: some faults leave wrong values and a read-back that succeeds.
    pub fn with_engine(self, engine: &Engine) -> Self {
        self.with(|setup| setup.engine = Some(engine.clone()))
    }

    /// Asks this before each branch of a pass whether to stop, as a step of a large model may take a minute on a processor: runs
    /// then end with [`SampleError::Stopped`] in the middle of a step. What they have told stays, and with
    /// [`Self::with_recovery`] they can go on from their last finished step. A GPU still does what it was given before.
    pub fn with_stop(self, stop: Stop) -> Self {
        self.asking(Asked::of(stop))
    }

    /// The same of whoever is asked by work that this is part of.
    pub(crate) fn asking(self, asked: Asked) -> Self {
        self.with(|setup| setup.stop = asked)
    }

    /// How it samples.
    pub fn settings(&self) -> &Settings {
        &self.setup.settings
    }

    /// What is reused.
    pub fn reuse(&self) -> &Reuse {
        &self.setup.reuse
    }

    /// What the run will do, op by op.
    pub fn plan(&self) -> &Plan {
        &self.setup.plan
    }

    /// Starts a run; the work is done by polling it.
    ///
    /// # Errors
    /// [`SampleError`] for a request that does not fit the model.
    pub fn run(&self, request: Request) -> Result<Run, SampleError> {
        let outline = self.setup.model.outline();
        let images = request.conditions.len();
        if images == 0 {
            return Err(SampleError::NoImages);
        }
        if request.batch == 0 {
            return Err(SampleError::Batch);
        }
        for condition in request.conditions.iter().chain(&self.setup.null) {
            outline.conditioning.check(condition)?;
        }
        if self.setup.settings.guidance.is_active() && self.setup.null.is_none() {
            return Err(ConditionError::NoNull.into());
        }
        if let Some(noise) = &request.noise {
            let shape = outline.latents.shape();
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
        Ok(Run::new(self.setup.clone(), request))
    }

    /// Frees the cache of the last run, which is kept for the next one.
    pub fn release_cache(&self) {
        self.setup.lock_spare().take();
    }

    /// Bytes of the cache for a batch of `images` images.
    pub fn cache_bytes(&self, images: usize) -> usize {
        let setup = &self.setup;
        let elements = [setup.copies(), images];
        cache_bytes(
            &setup.plan,
            &setup.reuse,
            setup.latents(),
            setup.cache_dtype,
            elements,
        )
    }

    /// Images a batch within a memory budget: [`batch_for`] as many, or fewer where more than a feature a branch is kept.
    pub fn batch_within(&self, budget_bytes: u64) -> usize {
        let (outline, copies) = (self.setup.model.outline(), self.setup.copies());
        let image = 4 * outline.activations * copies as u64 + self.cache_bytes(1) as u64;
        let fitting = (budget_bytes / image.max(1)).max(1) as usize;
        batch_for(outline, copies == 2, budget_bytes).min(fitting)
    }

    /// Bytes of adaLN weights that a run of one batch of `images` images reads.
    pub fn adaln_bytes_read(&self, images: usize) -> usize {
        let setup = &self.setup;
        let [_, weights] = setup.model.prepared_numbers(setup.rows(images));
        let network = (0..setup.settings.steps).filter(|s| setup.plan.runs_network(*s));
        let chunks = network.count().div_ceil(setup.steps_ahead(images));
        chunks * 4 * weights
    }

    /// Elements of the network's batch an image: two with guidance.
    pub fn copies(&self) -> usize {
        self.setup.copies()
    }

    /// Runs to the end, waiting for the device after each part of each step: the images, and where the time went.
    ///
    /// # Errors
    /// [`SampleError`].
    #[cfg(not(target_family = "wasm"))]
    pub fn profile(&self, request: Request) -> Result<(Vec<f32>, PartTimes), SampleError> {
        let run = self.run(request)?;
        let mut parts = PartTimes::start();
        let images = pollster::block_on(run.images(Some(&mut parts)))?;
        Ok((images, parts))
    }

    /// Runs to the end: all images `[B, C, H, W]`, row-major.
    ///
    /// # Errors
    /// [`SampleError`].
    pub async fn sample_async(&self, request: Request) -> Result<Vec<f32>, SampleError> {
        self.run(request)?.images(None).await
    }

    /// [`Self::sample_async`], waiting for it.
    ///
    /// # Errors
    /// [`SampleError`].
    #[cfg(not(target_family = "wasm"))]
    pub fn sample(&self, request: Request) -> Result<Vec<f32>, SampleError> {
        pollster::block_on(self.sample_async(request))
    }
}

impl Setup {
    /// Elements of the network's batch an image: two with guidance.
    pub fn copies(&self) -> usize {
        if self.settings.guidance.is_active() {
            2
        } else {
            1
        }
    }

    /// What a batch knows of its output before its first step, where that may be reused.
    pub fn known_output(&self) -> Option<KnownOutput> {
        reuses_output(&self.reuse).then(|| KnownOutput::new(self.latents(), self.copies()))
    }

    /// Bytes of that for so many images.
    pub fn output_bytes(&self, images: usize) -> usize {
        output_bytes(&self.reuse, &self.latents(), [self.copies(), images])
    }

    /// Room for a batch's features: that of the last one if it fits.
    pub fn slots(&self, slots: usize, shape: [usize; 3], device: &Device) -> FeatureStore {
        let last = self.lock_spare().take();
        let mut store = match last {
            Some(store) if store.fits(slots, shape, self.cache_dtype) => store,
            _ => FeatureStore::new(slots, shape, self.cache_dtype, device),
        };
        if self.poison {
            store.poison(device);
        }
        store
    }

    /// Keeps a finished batch's slots.
    pub fn keep(&self, store: FeatureStore) {
        *self.lock_spare() = Some(store);
    }

    /// A store is whole at every moment, whatever panicked.
    fn lock_spare(&self) -> MutexGuard<'_, Option<FeatureStore>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the network's output is to be read.
    pub fn output_layout(&self) -> OutputLayout {
        let Latents {
            patch,
            out_channels,
            ..
        } = self.latents();
        OutputLayout {
            patch,
            out_channels,
            guidance: self.settings.guidance,
        }
    }

    /// What the model draws.
    pub fn latents(&self) -> Latents {
        self.model.outline().latents
    }

    /// The conditions of a batch: those of its images and, under guidance, once what stands for none, which the whole
    /// unconditional half shares.
    pub fn conditions(&self, images: &[Condition]) -> Vec<Condition> {
        let null = self.null.iter().filter(|_| self.copies() == 2);
        images.iter().chain(null).cloned().collect()
    }

    /// Number of those for so many images.
    fn rows(&self, images: usize) -> usize {
        images + self.copies() - 1
    }

    /// Steps whose adaLN vectors fit the memory bound, at least the one at hand.
    pub fn steps_ahead(&self, images: usize) -> usize {
        let [step, _] = self.model.prepared_numbers(self.rows(images));
        (self.conditioning_bytes / (4 * step).max(1)).max(1)
    }
}

/// Bytes that a run keeps for later steps, of `[copies, images]` elements at a time.
pub fn cache_bytes(
    plan: &Plan,
    reuse: &Reuse,
    latents: Latents,
    dtype: CacheDtype,
    [copies, images]: [usize; 2],
) -> usize {
    let numbers = copies * images * plan.graph().feature_numbers();
    plan.slots() * dtype.feature_bytes(numbers) + output_bytes(reuse, &latents, [copies, images])
}

fn output_bytes(reuse: &Reuse, latents: &Latents, [copies, images]: [usize; 2]) -> usize {
    match reuses_output(reuse) {
        true => KnownOutput::bytes(latents, copies, images),
        false => 0,
    }
}

fn reuses_output(reuse: &Reuse) -> bool {
    matches!(reuse, Reuse::AtRunTime(probed) if probed.probe() == Probe::Output)
}
