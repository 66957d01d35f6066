//! An autoencoder's training in a folder: resumable, never half-written.

use std::time::{Duration, Instant};

use burn::tensor::Device;
use image::{RgbImage, imageops};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        data::{Augmentation, Dataset},
        history::{History, Logged},
        session::{Polled, Session},
    },
    feeder::VaeFeeder,
    learner::{VaeLearner, VaeStart},
    saved::{SavedVae, VaeFolder, write_vae},
    settings::VaeSettings,
};
use crate::{
    checkpoint::StoredDtype,
    device::Engine,
    models::vae::{KlConfig, VaeConfig},
    report::{Scale, Tile, columns_for, draw_curves, grid, image_from_values, write_png},
    training::run::TrainingError,
};

/// Pictures of the sample grid.
const SAMPLES: usize = 24;
/// Pictures that scaling and shift of the latents are measured on.
const MEASURED: usize = 128;
/// What is measured and drawn between two checkpoints takes at most this part of the time.
const PART: u32 = 20;

/// How a run is kept, beside what it learns.
#[derive(Debug, Clone)]
pub struct VaeOptions {
    pub folder: VaeFolder,
    pub settings: VaeSettings,
    /// Go on with the run in the folder.
    pub resume: bool,
    /// Time between checkpoints.
    pub save_every: Duration,
    /// Element type of the autoencoder's file.
    pub dtype: StoredDtype,
}

/// One optimizer step in a few numbers; a line of `train.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VaeStep {
    /// Counted from 0.
    pub step: u64,
    /// Pictures so far, this step's included.
    pub images: u64,
    pub loss: f64,
    /// Mean absolute error of the pixels, which lie in [-1, 1].
    pub error: f64,
    /// The same of differences between neighbouring pixels, summed over three sizes.
    pub edges: f64,
    /// Mean squared error of areas, means of 4×4 pixels; 0 in logs of before it was measured.
    #[serde(default)]
    pub areas: f64,
    /// Divergence to N(0, 1), a latent number.
    pub kl: f64,
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    pub images_per_second: f64,
}

impl Logged for VaeStep {
    const CURVES: [(&'static str, Scale); 3] = [
        ("mean error of the pixels, by pictures", Scale::Decades),
        ("mean error of the edges", Scale::Decades),
        (
            "divergence of the latents to N(0, 1), a number",
            Scale::Even,
        ),
    ];

    fn step(&self) -> u64 {
        self.step
    }

    fn images(&self) -> u64 {
        self.images
    }

    fn values(&self) -> [f64; 3] {
        [self.error, self.edges, self.kl]
    }
}

/// What happened in a poll.
#[derive(Debug, Clone, PartialEq)]
pub enum VaeEvent {
    Step(VaeStep),
    /// Checkpoint, autoencoder and curve were written.
    Saved,
}

/// An autoencoder in training, in a folder: an iterator that does one thing a poll, an optimizer step or a save. What a step draws
/// depends on the seed and the step's number alone, so a resumed run goes on bit for bit where it was saved.
#[derive(Debug)]
pub struct VaeRun<'d> {
    data: &'d Dataset,
    learner: VaeLearner,
    feeder: VaeFeeder<'d>,
    options: VaeOptions,
    history: History<VaeStep>,
    session: Session,
    last: Option<VaeStep>,
    /// What was last measured of the latents, when, and how long it took with the samples.
    scaling: Option<(f32, f32)>,
    measured: Instant,
    cost: Duration,
}

impl<'d> VaeRun<'d> {
    /// Starts a run, or goes on with the one in the folder, which must be of the same network, data and settings (another length
    /// is welcome).
    ///
    /// # Errors
    /// [`TrainingError`]: data that are no pictures or of sides that are no multiples of the factor, a run that is there already,
    /// is not there, or was made with other settings.
    pub fn open(
        data: &'d Dataset,
        start: VaeStart,
        options: VaeOptions,
        device: &Device,
    ) -> Result<Self, TrainingError> {
        let settings = options.settings.clone();
        settings.check()?;
        let latents = check_data(start.config(), data)?;
        let folder = &options.folder;
        let there = folder.check(options.resume)?;
        let mut session = Session::begin(folder.path())?;
        let learner = match there {
            true => {
                let saved = SavedVae::read(&folder.checkpoint())?;
                saved.check_same(folder, start.config(), data.identity(), &settings)?;
                let (saved, learner) = SavedVae::load(&folder.checkpoint(), settings, device)?;
                session.seconds = saved.seconds;
                learner
            }
            false => VaeLearner::new(start, settings, device)?,
        };
        let mut run = Self {
            feeder: VaeFeeder::new(data, &options.settings, latents),
            history: History::open(&folder.log(), learner.steps())?,
            data,
            learner,
            options,
            session,
            last: None,
            scaling: None,
            measured: Instant::now(),
            cost: Duration::ZERO,
        };
        // A finished run may have been stopped in the middle of its last save. And a place that cannot be written is found out before
        // the work, not after it.
        match run.progress() >= 1.0 {
            true => run.save()?,
            false => run.save_state()?,
        }
        Ok(run)
    }

    /// Asks the engine that the network lives on what an error of the device means.
    pub fn with_engine(mut self, engine: &Engine) -> Self {
        self.session.watch(engine);
        self
    }

    /// The network and its optimizer.
    pub fn learner(&self) -> &VaeLearner {
        &self.learner
    }

    /// Where the files lie.
    pub fn folder(&self) -> &VaeFolder {
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
    pub fn last_step(&self) -> Option<&VaeStep> {
        self.last.as_ref()
    }

    /// Share of the run that is done, 1 at its end.
    pub fn progress(&self) -> f64 {
        let settings = self.learner.settings();
        let length = settings.length;
        length.progress(settings.batch, self.learner.steps(), self.session.seconds)
    }

    /// Writes checkpoint, autoencoder and curve; and, at the end or where that takes little of the time, measures the latents anew and
    /// draws samples.
    ///
    /// # Errors
    /// [`TrainingError`]; what was saved before is left as it was then.
    pub fn save(&mut self) -> Result<(), TrainingError> {
        self.save_state()?;
        let due = self.progress() >= 1.0 || self.measured.elapsed() >= PART * self.cost;
        let scaling = match self.scaling {
            Some(scaling) if !due => scaling,
            _ => {
                let started = Instant::now();
                let scaling = self.measure()?;
                write_png(&self.samples()?, &self.options.folder.samples())?;
                (self.measured, self.cost) = (Instant::now(), started.elapsed());
                *self.scaling.insert(scaling)
            }
        };
        let (side, options) = (self.data.shape()[1], &self.options);
        write_vae(&self.learner, scaling, side, options.dtype, &options.folder)?;
        draw_curves(&self.history.panels(), &options.folder.curve()).map_err(TrainingError::from)
    }

    fn save_state(&mut self) -> Result<(), TrainingError> {
        self.session.check_device()?;
        let options = &self.options;
        let saved = SavedVae::of(&self.learner, self.data, self.seconds(), options.dtype);
        saved.write(&self.learner, &options.folder.checkpoint())?;
        self.session.saved();
        Ok(())
    }

    /// Pictures of the data, evenly spread over it, a few at a time: their indices and values.
    fn spread(
        &self,
        count: usize,
        mut each: impl FnMut(&[usize], &[f32]) -> Result<(), TrainingError>,
    ) -> Result<(), TrainingError> {
        let size: usize = self.data.shape().iter().product();
        let count = count.min(self.data.len());
        let indices: Vec<_> = (0..count).map(|i| i * self.data.len() / count).collect();
        for part in indices.chunks(self.learner.settings().batch.max(1)) {
            let mut images = vec![0.0; part.len() * size];
            for (index, image) in part.iter().zip(images.chunks_mut(size)) {
                self.data.read(*index, Augmentation::default(), image)?;
            }
            each(part, &images)?;
        }
        Ok(())
    }

    /// `1/σ` and `μ` of the latents.
    fn measure(&self) -> Result<(f32, f32), TrainingError> {
        let mut all: Vec<f32> = Vec::new();
        self.spread(MEASURED, |_, images| {
            all.extend(self.learner.means(images, self.data.shape())?);
            Ok(())
        })?;
        let (count, numbers) = (all.len().max(1) as f64, || {
            all.iter().map(|z| f64::from(*z))
        });
        let mean = numbers().sum::<f64>() / count;
        let variance = numbers().map(|z| (z - mean).powi(2)).sum::<f64>() / count;
        Ok(((1.0 / variance.sqrt().max(1e-3)) as f32, mean as f32))
    }

    /// Pictures at the left, what came back of them at the right.
    fn samples(&self) -> Result<RgbImage, TrainingError> {
        let shape = self.data.shape();
        let size: usize = shape.iter().product();
        let mut tiles = Vec::with_capacity(SAMPLES);
        self.spread(SAMPLES, |indices, images| {
            let [_, back] = self.learner.there_and_back(images, shape)?;
            let pairs = images.chunks(size).zip(back.chunks(size));
            for (index, (picture, back)) in indices.iter().zip(pairs) {
                let [left, right] = [picture, back].map(|values| image_from_values(values, shape));
                let mut image = RgbImage::new(2 * left.width(), left.height());
                imageops::replace(&mut image, &left, 0, 0);
                imageops::replace(&mut image, &right, i64::from(left.width()), 0);
                let name = self.data.class_names().get(self.data.label(*index));
                let label = name.cloned().unwrap_or_default();
                tiles.push(Tile { image, label });
            }
            Ok(())
        })?;
        Ok(grid(&tiles, columns_for(tiles.len())))
    }

    /// One optimizer step.
    fn step(&mut self) -> Result<VaeStep, TrainingError> {
        let started = Instant::now();
        let step = self.learner.steps();
        let progress = self.progress();
        let lr = self.learner.learning_rate(progress);
        let batch = self.feeder.batch(self.learner.settings(), step)?;
        let learned = self.learner.learn(&batch, progress)?;
        let report = VaeStep {
            step,
            images: self.images(),
            loss: learned.loss,
            error: learned.error,
            edges: learned.edges,
            areas: learned.areas,
            kl: learned.kl,
            lr,
            grad_norm: learned.grad_norm,
            images_per_second: self.learner.settings().batch as f64
                / started.elapsed().as_secs_f64().max(1e-9),
        };
        self.history.push(&report)?;
        self.last = Some(report);
        self.session.stepped();
        Ok(report)
    }
}

impl Polled for VaeRun<'_> {
    type Event = VaeEvent;

    fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    fn advance(&mut self) -> Result<Option<VaeEvent>, TrainingError> {
        let done = self.progress() >= 1.0;
        if self.session.is_due(done, self.options.save_every) {
            self.save()?;
            return Ok(Some(VaeEvent::Saved));
        }
        match done {
            true => Ok(None),
            false => Ok(Some(VaeEvent::Step(self.step()?))),
        }
    }
}

impl Iterator for VaeRun<'_> {
    type Item = Result<VaeEvent, TrainingError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.poll()
    }
}

/// Whether the network takes the data: numbers of a picture's latents.
fn check_data(config: &KlConfig, data: &Dataset) -> Result<usize, TrainingError> {
    if !data.is_pixels() {
        return Err(TrainingError::DataMismatch {
            network: "pictures".into(),
            data: "latents".into(),
            advice: "an autoencoder learns from pictures",
        });
    }
    let factor = VaeConfig::Kl(config.clone()).factor();
    let [_, height, width] = data.shape();
    if !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
        return Err(TrainingError::DataMismatch {
            network: format!("sides that are multiples of {factor}"),
            data: format!("pictures of {width}×{height} pixels"),
            advice: "choose another image size or fewer widths",
        });
    }
    Ok(config.latent_channels * (height / factor) * (width / factor))
}
