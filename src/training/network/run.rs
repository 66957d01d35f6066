//! A training run in a folder: resumable, never half-written.
//!
//! A [`PretrainRun`] is an iterator of [`PretrainEvent`]s that does one thing a poll: an optimizer step, a save, or a grid
//! of samples. Not polling pauses it; after [`PretrainRun::save`] it may be dropped and resumed later. What a step draws
//! depends on the seed and the step's number alone, so a resumed run goes on bit for bit where it was saved; where the
//! length is given in minutes, the learning rate follows the clock and may differ in its last digits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use burn::tensor::Device;
use image::RgbImage;

use super::{
    data::{DataError, Dataset},
    feeder::Feeder,
    history::{History, PretrainStep},
    learner::Learner,
    saved::{PretrainFolder, SavedRun},
    session::{Polled, Session},
    settings::PretrainSettings,
};
use crate::{
    checkpoint::{StateDict, StoredDtype, save_state},
    device::Engine,
    diffusion::{DiffusionError, Guidance, GuidedChannels, Solver, Spacing},
    models::{
        Condition, Model,
        dit::DitConfig,
        vae::{Tiling, Vae, VaeError},
    },
    report::{Tile, columns_for, draw_curves, grid, image_from_values, write_png},
    sampler::{Request, Sampler, Settings, Stop},
    training::run::TrainingError,
};

/// Denoising steps of the sample grids: enough to judge by.
const SAMPLE_STEPS: usize = 20;
/// Their guidance, which the model names as its usual one.
const SAMPLE_GUIDANCE: f64 = 3.0;
/// Images of a sample grid at most, and of a data set with one class.
const SAMPLES: usize = 48;
const SAMPLES_OF_ONE: usize = 12;

/// How a run is kept, beside what it learns.
#[derive(Debug, Clone)]
pub struct PretrainOptions {
    pub folder: PretrainFolder,
    pub settings: PretrainSettings,
    /// Go on with the run in the folder.
    pub resume: bool,
    /// Time between checkpoints.
    pub save_every: Duration,
    /// Time between sample grids; `None`: only at the end.
    pub sample_every: Option<Duration>,
    /// Element type of `model.safetensors`.
    pub dtype: StoredDtype,
    /// What makes pictures of the latents in the sample grids.
    pub vae: Option<Vae>,
}

/// What happened in a poll.
#[derive(Debug, Clone, PartialEq)]
pub enum PretrainEvent {
    Step(PretrainStep),
    /// Checkpoint, model and curve were written.
    Saved,
    /// The sample grid was drawn.
    Sampled,
}

/// A DiT in training, in a folder.
#[derive(Debug)]
pub struct PretrainRun<'d> {
    data: &'d Dataset,
    learner: Learner,
    feeder: Feeder<'d>,
    options: PretrainOptions,
    history: History<PretrainStep>,
    session: Session,
    sampled: Instant,
    /// Steps since the last grid.
    unsampled: u64,
    last: Option<PretrainStep>,
}

impl<'d> PretrainRun<'d> {
    /// Starts a run from `start`, or goes on with the one in the folder, which must be of the same network, data and
    /// settings (another length is welcome; its learning rate then follows the new length).
    ///
    /// # Errors
    /// [`TrainingError`]: data that the network does not take, a run that is there already, is not there, or was made with
    /// other settings.
    pub fn open(
        data: &'d Dataset,
        start: PretrainStart,
        options: PretrainOptions,
        device: &Device,
    ) -> Result<Self, TrainingError> {
        let settings = options.settings.clone();
        settings.check()?;
        check_data(start.config(), data)?;
        if !data.is_pixels() && settings.shift > 0 {
            return Err(TrainingError::Setting {
                setting: "shift",
                value: settings.shift.to_string(),
                expected: "0 for latents: only pictures can be moved",
            });
        }
        let folder = &options.folder;
        let checkpoint = folder.checkpoint();
        let there = folder.check(options.resume)?;
        let mut session = Session::begin(&folder.path)?;
        let learner = if there {
            let saved = SavedRun::read(&checkpoint)?;
            saved.check_same(folder, start.config(), data.identity(), &settings)?;
            let (saved, learner) = SavedRun::load(&checkpoint, settings, device)?;
            session.seconds = saved.seconds;
            learner
        } else {
            let start = start.weights(settings.seed)?;
            Learner::new(&start, settings, device)?
        };
        let mut run = Self {
            feeder: Feeder::new(data, &options.settings),
            history: History::open(&options.folder.log(), learner.steps())?,
            data,
            learner,
            options,
            session,
            sampled: Instant::now(),
            unsampled: 0,
            last: None,
        };
        // A place that cannot be written is found out before the work, not after it.
        run.save()?;
        if let Err(error) = data.keep_latents(&run.options.folder.latents()) {
            tracing::warn!(%error, "latents are not kept: to go on, the run makes them once more");
        }
        // A finished run may have been stopped before its last grid.
        run.unsampled = u64::from(run.learner.steps() > 0 && run.is_done());
        Ok(run)
    }

    /// Asks the engine that the network lives on what an error of the device means, and before every save whether there was
    /// one: some faults leave wrong values and a read-back that succeeds.
    pub fn with_engine(mut self, engine: &Engine) -> Self {
        self.session.watch(engine);
        self
    }

    /// Asks this before each branch whether to stop: the run then ends with [`TrainingError::Stopped`] in the middle of a step, and
    /// [`Self::save`] keeps all steps before it.
    pub fn with_stop(self, stop: Stop) -> Self {
        let learner = self.learner.with_stop(stop);
        Self { learner, ..self }
    }

    /// The network and its optimizer.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Where the files lie.
    pub fn folder(&self) -> &PretrainFolder {
        &self.options.folder
    }

    /// Seconds trained, over all sessions.
    pub fn seconds(&self) -> f64 {
        self.session.seconds
    }

    /// Pictures seen.
    pub fn images(&self) -> u64 {
        self.learner.steps() * self.learner.settings().batch as u64
    }

    /// The last step of this session.
    pub fn last_step(&self) -> Option<&PretrainStep> {
        self.last.as_ref()
    }

    /// Share of the run that is done, 1 at its end.
    pub fn progress(&self) -> f64 {
        let settings = self.learner.settings();
        settings.progress(self.learner.steps(), self.seconds())
    }

    /// Whether all steps are done, or the time is up.
    pub fn is_done(&self) -> bool {
        self.progress() >= 1.0
    }

    /// Writes checkpoint, model and curve.
    ///
    /// # Errors
    /// [`TrainingError`]; what was saved before is left as it was then.
    pub fn save(&mut self) -> Result<(), TrainingError> {
        self.session.check_device()?;
        let folder = &self.options.folder;
        let saved = SavedRun::of(&self.learner, self.data, self.seconds(), &self.options);
        saved.write(&self.learner, &folder.checkpoint())?;
        let model = StateDict {
            config: self.learner.config().clone(),
            own_embedders: self.learner.layout().own_embedders,
            class_names: self.data.class_names().to_vec(),
            clip_x0: self.data.is_pixels(),
            guidance: Some(self.sample_guidance()?),
            tensors: self.learner.weights(true)?,
        };
        save_state(model, self.options.dtype, &folder.model())?;
        draw_curves(&self.history.panels(), &folder.curve())?;
        self.session.saved();
        Ok(())
    }

    /// The guidance of the sample grids, which is the model's usual one: there is nothing to lead to where there is one class.
    fn sample_guidance(&self) -> Result<Guidance, DiffusionError> {
        let config = self.learner.config();
        let scale = match config.classes {
            1 => 1.0,
            _ => SAMPLE_GUIDANCE,
        };
        let channels = match config.channels {
            ..=3 => GuidedChannels::Three,
            _ => GuidedChannels::All,
        };
        Guidance::new(scale, channels)
    }

    /// Draws what the averaged network makes of every class, always from the same noise.
    ///
    /// # Errors
    /// [`TrainingError`].
    pub fn draw_samples(&mut self) -> Result<(), TrainingError> {
        let config = self.learner.config();
        let one = config.classes == 1;
        let settings = Settings {
            steps: SAMPLE_STEPS,
            spacing: Spacing::Even,
            solver: Solver::ddim(0.0)?,
            guidance: self.sample_guidance()?,
            clip_x0: self.data.is_pixels(),
        };
        let labels: Vec<_> = if one {
            vec![0; SAMPLES_OF_ONE]
        } else {
            (0..config.classes.min(SAMPLES)).collect()
        };
        let model: Model = Arc::new(self.learner.network(true));
        let request = Request {
            conditions: Condition::classes(&labels),
            seed: 0,
            first: 0,
            noise: None,
            batch: 16,
        };
        let sampler = Sampler::new(&model, settings, None)?.asking(self.learner.asked().clone());
        let values = sampler.sample(request)?;
        let shape = config.image_shape();
        let name = |class: usize| {
            let names = self.data.class_names();
            names
                .get(class)
                .cloned()
                .unwrap_or_else(|| format!("#{class}"))
        };
        let tiles: Vec<_> = values
            .chunks(shape.iter().product())
            .zip(labels)
            .map(|(values, class)| {
                Ok(Tile {
                    image: self.picture(values, shape)?,
                    label: name(class),
                })
            })
            .collect::<Result<_, TrainingError>>()?;
        let picture = grid(&tiles, columns_for(tiles.len()));
        write_png(&picture, &self.options.folder.samples())?;
        (self.sampled, self.unsampled) = (Instant::now(), 0);
        Ok(())
    }

    /// What the network's image shows, as far as that can be told.
    fn picture(&self, values: &[f32], shape: [usize; 3]) -> Result<RgbImage, TrainingError> {
        let Some(vae) = &self.options.vae else {
            return Ok(image_from_values(values, shape));
        };
        let [_, height, width] = shape;
        let factor = vae.config().factor();
        let mut go_on = || self.learner.asked().go_on().is_ok();
        let pixels = match vae.decode(values, shape, Tiling::Auto, &mut go_on) {
            Err(VaeError::Interrupted) => return Err(TrainingError::Stopped),
            pixels => pixels.map_err(DataError::from)?,
        };
        Ok(image_from_values(
            &pixels,
            [3, factor * height, factor * width],
        ))
    }

    /// One optimizer step.
    fn step(&mut self) -> Result<PretrainStep, TrainingError> {
        let started = Instant::now();
        let step = self.learner.steps();
        let settings = self.learner.settings();
        let lr = settings.learning_rate(step, self.progress());
        let (vlb_weight, pictures) = (settings.vlb_weight, settings.batch as f64);
        let batch = self.feeder.batch(self.learner.settings(), step)?;
        let learned = self.learner.learn(&batch, lr)?;
        let report = PretrainStep {
            step,
            images: self.images(),
            mse: learned.mse,
            vlb: learned.vlb,
            loss: learned.mse + vlb_weight * learned.vlb,
            lr,
            grad_norm: learned.grad_norm,
            images_per_second: pictures / started.elapsed().as_secs_f64().max(1e-9),
        };
        self.history.push(&report)?;
        self.last = Some(report);
        self.session.stepped();
        self.unsampled += 1;
        Ok(report)
    }
}

impl Polled for PretrainRun<'_> {
    type Event = PretrainEvent;

    fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    fn advance(&mut self) -> Result<Option<PretrainEvent>, TrainingError> {
        let done = self.is_done();
        if self.session.is_due(done, self.options.save_every) {
            self.save()?;
            return Ok(Some(PretrainEvent::Saved));
        }
        let due = |every: Duration| self.sampled.elapsed() >= every;
        if self.unsampled > 0 && (done || self.options.sample_every.is_some_and(due)) {
            self.draw_samples()?;
            return Ok(Some(PretrainEvent::Sampled));
        }
        match done {
            true => Ok(None),
            false => Ok(Some(PretrainEvent::Step(self.step()?))),
        }
    }
}

impl Iterator for PretrainRun<'_> {
    type Item = Result<PretrainEvent, TrainingError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.poll()
    }
}

/// What a run begins with.
#[derive(Debug, Clone)]
pub enum PretrainStart {
    /// Weights as the DiT release initialises them.
    Fresh(DitConfig),
    /// Weights that have learned something.
    From(Box<StateDict>),
}

impl PretrainStart {
    /// The network's shape.
    pub fn config(&self) -> &DitConfig {
        match self {
            Self::Fresh(config) => config,
            Self::From(state) => &state.config,
        }
    }

    fn weights(self, seed: u64) -> Result<StateDict, TrainingError> {
        match self {
            Self::Fresh(config) => Ok(crate::checkpoint::fresh_state(&config, seed)?),
            Self::From(state) => Ok(*state),
        }
    }
}

/// Whether the network takes the data.
fn check_data(config: &DitConfig, data: &Dataset) -> Result<(), TrainingError> {
    let (shape, classes) = (config.image_shape(), config.classes);
    if shape != data.shape() {
        return Err(TrainingError::DataMismatch {
            network: format!("values of {shape:?} (channels, height, width)"),
            data: format!("{:?}", data.shape()),
            advice: "choose another image size or another network",
        });
    }
    if classes != data.classes() {
        return Err(TrainingError::DataMismatch {
            network: format!("{classes} classes"),
            data: data.classes().to_string(),
            advice: "a model that goes on learning must have been made for the classes of its data",
        });
    }
    Ok(())
}
