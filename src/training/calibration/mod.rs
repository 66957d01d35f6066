//! Measuring what calibrated policies need, along uncached runs from noise and conditions: no pictures, no gradients.

mod sums;

use std::ops::ControlFlow;

use sums::{Past, Sums};

use crate::{
    diffusion::ImageNoise,
    pipeline::{Pipeline, calibrated_run},
    policy::{CALIBRATION_FORMAT, Calibration},
    sampler::{Observer, Request, Sampler, Settings, Stop, model_identity},
    training::run::{DeviceWatch, Drawn, TrainingError, check_draws, check_pool, guarded_telling},
};

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalibrationSettings {
    /// Images that are drawn.
    pub draws: usize,
    /// Images in the network at a time.
    pub batch: usize,
    pub seed: u64,
}

/// Measures a model along uncached runs. `each` is told when a step of so many images is done, and may stop it; so may `stop`, which
/// is asked before each branch.
///
/// # Errors
/// [`TrainingError`]: settings out of range, nothing to draw, a device that failed, measurements that are no numbers;
/// [`TrainingError::Stopped`].
pub fn calibrate(
    pipeline: &Pipeline,
    run: Settings,
    settings: CalibrationSettings,
    stop: Stop,
    each: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Calibration, TrainingError> {
    let CalibrationSettings { draws, batch, seed } = settings;
    check_draws(&[("draws", draws), ("batch", batch)])?;
    check_pool(&pipeline.prompts)?;
    let size = pipeline.info.outline.latents.numbers();
    let drawn = (0..draws).step_by(batch).map(|first| {
        let Drawn {
            conditions,
            noise,
            streams,
        } = Drawn::new(
            &pipeline.prompts,
            size,
            ("harmonica calibration", seed),
            first..draws.min(first + batch),
        );
        let request = Request {
            batch: conditions.len(),
            conditions,
            first: 0,
            seed,
            noise: Some(noise),
        };
        (request, streams)
    });
    let sampler = pipeline.sampler(run, None)?.with_stop(stop);
    calibration(pipeline, &sampler, drawn, (draws, seed), each)
}

/// Measures a model along the uncached run of a request, all of its images in the network together.
///
/// # Errors
/// As [`calibrate`], and as [`Sampler::run`](crate::sampler::Sampler::run).
pub fn calibrate_along(
    pipeline: &Pipeline,
    run: Settings,
    request: Request,
) -> Result<Calibration, TrainingError> {
    let (images, seed) = (request.conditions.len(), request.seed);
    let mut noise = Vec::new();
    let streams = (0..images as u64).map(|i| {
        let mut stream = ImageNoise::new(seed, request.first.wrapping_add(i));
        stream.fill(pipeline.info.outline.latents.numbers(), &mut noise);
        stream
    });
    let streams: Vec<_> = streams.collect();
    let request = Request {
        noise: request.noise.or(Some(noise)),
        ..request
    };
    let mut each = |_: usize| ControlFlow::Continue(());
    let runs = std::iter::once((request, streams));
    let sampler = pipeline.sampler(run, None)?;
    calibration(pipeline, &sampler, runs, (images, seed), &mut each)
}

/// The calibration of runs of so many images by an uncached sampler, drawn with this seed.
fn calibration(
    pipeline: &Pipeline,
    sampler: &Sampler,
    runs: impl Iterator<Item = (Request, Vec<ImageNoise>)>,
    (images, seed): (usize, u64),
    each: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Calibration, TrainingError> {
    let watch = DeviceWatch::new(&pipeline.engine);
    let sums = guarded_telling(each, |each| measured(pipeline, sampler, runs, each))
        .map_err(|error| watch.explained(error))?;
    watch.check()?;
    let info = &pipeline.info;
    let calibration = Calibration {
        format: CALIBRATION_FORMAT,
        model: model_identity(info),
        run: calibrated_run(info, sampler.settings())?,
        images,
        seed,
        feature_changes: sums.feature_changes(&info.outline.graph),
        stream_distances: sums.stream_distances(images),
        magnitude_ratios: sums.magnitude_ratios(),
        input_changes: sums.input_changes(),
        output_changes: sums.output_changes(),
    };
    match calibration.not_finite() {
        None => Ok(calibration),
        Some(what) => Err(TrainingError::NotMeasured { what }),
    }
}

fn measured(
    pipeline: &Pipeline,
    sampler: &Sampler,
    runs: impl Iterator<Item = (Request, Vec<ImageNoise>)>,
    each: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Sums, TrainingError> {
    let steps = sampler.settings().steps;
    let mut sums = Sums::new(steps, &pipeline.info.outline.graph);
    let mut first = 0;
    for (request, streams) in runs {
        let images = request.conditions.len();
        let mut observer = Observer::new(sampler, request, streams)?;
        let mut past = Past::default();
        for _ in 0..steps {
            let seen = observer.step()?;
            sums.add(first, images, &seen, &mut past)?;
            if each(images).is_break() {
                return Err(TrainingError::Stopped);
            }
        }
        first += images;
    }
    Ok(sums)
}
