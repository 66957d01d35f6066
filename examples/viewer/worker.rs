//! The thread that samples: both sides step by step in turn, painted into the window's textures.

use std::{
    sync::mpsc::{Receiver, TryRecvError},
    time::Instant,
};

use burn::tensor::{Tensor, TensorData};
use harmonica::{
    device::{
        Engine,
        interop::{ImagePainter, InteropError},
    },
    models::{Condition, Model},
    sampler::{Event, Request, Run, SampleError, Sampler},
};

use crate::state::{Job, Side, Update};

/// The difference is small; this much brighter it can be seen.
const DIFFERENCE_GAIN: f32 = 4.0;

/// What the window shows, on the device that both share.
#[derive(Clone)]
pub struct Pictures {
    pub uncached: wgpu::Texture,
    pub cached: wgpu::Texture,
    pub difference: wgpu::Texture,
}

pub struct Worker {
    pub engine: Engine,
    pub model: Model,
    pub painter: ImagePainter,
    pub pictures: Pictures,
    /// Tells the window; `false` once it is gone.
    pub tell: Box<dyn Fn(Update) -> bool + Send>,
}

/// The uncached run of some knobs, which clicks on the schedule do not change.
struct Baseline {
    key: (usize, u64, String),
    seconds: f64,
    values: Vec<f32>,
}

/// Why a job ended early.
enum End {
    Failed(String),
    /// The window is gone.
    Closed,
}

impl From<SampleError> for End {
    fn from(error: SampleError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<InteropError> for End {
    fn from(error: InteropError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A side under way.
struct Lane {
    side: Side,
    run: Run,
    done: usize,
    seconds: f64,
    /// What was painted last, `[1, C, H, W]`.
    shown: Option<Tensor<4>>,
    values: Option<Vec<f32>>,
}

impl Worker {
    /// Works until the window closes. A newer job ends the one before within a step.
    pub fn run(self, jobs: Receiver<Job>) {
        let mut baseline = None;
        let mut next = jobs.recv().ok();
        while let Some(job) = next.take() {
            match self.job(&job, &jobs, &mut baseline) {
                Ok(newer) => next = newer,
                Err(End::Closed) => return,
                Err(End::Failed(message)) => {
                    // What the device knows is closer to the cause than what sampling saw of it.
                    let message = match self.engine.fault() {
                        Some(fault) => fault.to_string(),
                        None => message,
                    };
                    let job = job.number;
                    if !(self.tell)(Update::Failed { job, message }) {
                        return;
                    }
                }
            }
            if next.is_none() {
                next = jobs.recv().ok();
            }
        }
    }

    /// Runs a job to its end, or to the arrival of a newer one, which is handed back.
    fn job(
        &self,
        job: &Job,
        jobs: &Receiver<Job>,
        baseline: &mut Option<Baseline>,
    ) -> Result<Option<Job>, End> {
        let request = Request {
            conditions: Condition::classes(&[job.label]),
            seed: job.seed,
            first: 0,
            noise: None,
            batch: 1,
        };
        let key = (job.label, job.seed, format!("{:?}", job.settings));
        let sampler = |schedule| {
            Sampler::new(&self.model, job.settings, schedule)
                .map(|sampler| sampler.with_preview(true).with_engine(&self.engine))
        };
        let (full, scheduled) = (sampler(None)?, sampler(Some(job.schedule.clone()))?);
        let lane = |side, run| Lane {
            side,
            run,
            done: 0,
            seconds: 0.0,
            shown: None,
            values: None,
        };
        let mut cached = lane(Side::Cached, scheduled.run(request.clone())?);
        let mut uncached = lane(Side::Uncached, full.run(request)?);
        if let Some(known) = baseline.as_ref().filter(|known| known.key == key) {
            uncached.done = job.settings.steps;
            uncached.seconds = known.seconds;
            let values = known.values.clone();
            self.finish(job, &mut uncached, values)?;
        }
        while cached.values.is_none() || uncached.values.is_none() {
            match jobs.try_recv() {
                // Several may wait after a slider was dragged; only the last one counts.
                Ok(newer) => return Ok(jobs.try_iter().last().or(Some(newer))),
                Err(TryRecvError::Disconnected) => return Err(End::Closed),
                Err(TryRecvError::Empty) => {}
            }
            for lane in [&mut uncached, &mut cached] {
                if lane.values.is_none() {
                    self.poll(job, lane)?;
                }
            }
            if let (Some(a), Some(b)) = (&cached.shown, &uncached.shown) {
                let difference = (a.clone() - b.clone()).abs() * DIFFERENCE_GAIN - 1.0;
                self.painter
                    .paint(difference, 0, &self.pictures.difference)?;
            }
        }
        *baseline = uncached.values.map(|values| Baseline {
            key,
            seconds: uncached.seconds,
            values,
        });
        Ok(None)
    }

    /// One step of a side, timed to its end on the device.
    fn poll(&self, job: &Job, lane: &mut Lane) -> Result<(), End> {
        let started = Instant::now();
        let Some(event) = lane.run.next().transpose()? else {
            return Err(End::Failed("the run ended without an image".into()));
        };
        if let Err(error) = self.engine.device().sync() {
            return Err(End::Failed(self.engine.fault_of(&error).to_string()));
        }
        lane.seconds += started.elapsed().as_secs_f64();
        match event {
            Event::Step { step, x0, .. } => {
                lane.done = step + 1;
                if let Some(x0) = x0 {
                    self.show(lane, x0)?;
                }
                self.send(Update::Step {
                    job: job.number,
                    side: lane.side,
                    done: lane.done,
                    seconds: lane.seconds,
                })
            }
            Event::Images { x0, .. } => self.finish(job, lane, x0),
            _ => Ok(()),
        }
    }

    /// Shows a side's final image.
    fn finish(&self, job: &Job, lane: &mut Lane, values: Vec<f32>) -> Result<(), End> {
        let [channels, height, width] = self.model.outline().latents.shape();
        let data = TensorData::new(values.clone(), [1, channels, height, width]);
        self.show(lane, Tensor::from_data(data, self.engine.device()))?;
        lane.values = Some(values.clone());
        self.send(Update::Finished {
            job: job.number,
            side: lane.side,
            seconds: lane.seconds,
            values,
        })
    }

    /// Paints `x0` `[1, C, H, W]` where the side is shown.
    fn show(&self, lane: &mut Lane, x0: Tensor<4>) -> Result<(), End> {
        let target = match lane.side {
            Side::Uncached => &self.pictures.uncached,
            Side::Cached => &self.pictures.cached,
        };
        self.painter.paint(x0.clone(), 0, target)?;
        lane.shown = Some(x0);
        Ok(())
    }

    fn send(&self, update: Update) -> Result<(), End> {
        if (self.tell)(update) {
            Ok(())
        } else {
            Err(End::Closed)
        }
    }
}
