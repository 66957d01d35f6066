//! Sampling, and what to do with its values.

use std::{
    ffi::{c_char, c_void},
    path::Path,
};

use super::{
    arguments::{self, Out, OutSlice},
    error::{Failure, guard, hm_status},
    handles::Handle,
    model::hm_model,
    schedule::hm_schedule,
};
use crate::{
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    models::Condition,
    report::{Tile, columns_for, grid, image_from_values, write_png},
    sampler::{BATCH_BYTES, Event, Request, Settings},
};

/// [`hm_settings::solver`]: DDIM with [`hm_settings::eta`].
pub const HM_SOLVER_DDIM: u32 = 0;
/// [`hm_settings::solver`]: ancestral DDPM.
pub const HM_SOLVER_DDPM: u32 = 1;
/// [`hm_settings::solver`]: DPM-Solver++ (2M).
pub const HM_SOLVER_DPM2M: u32 = 2;
/// [`hm_settings::solver`]: DPM-Solver++ (3M).
pub const HM_SOLVER_DPM3M: u32 = 3;
/// [`hm_settings::solver`]: DPM-Solver++ (2M) SDE, with fresh noise at every step.
pub const HM_SOLVER_DPM2M_SDE: u32 = 4;
/// [`hm_settings::solver`]: SA-Solver, with fresh noise in the middle of a run.
pub const HM_SOLVER_SA: u32 = 5;
/// [`hm_settings::solver`]: Euler's method.
pub const HM_SOLVER_EULER: u32 = 6;
/// [`hm_settings::guidance_channels`]: the first three, as the public DiT release.
pub const HM_GUIDE_THREE: u32 = 0;
/// [`hm_settings::guidance_channels`]: all.
pub const HM_GUIDE_ALL: u32 = 1;

/// How to sample. Fill with [`hm_settings_init`], then change what is to be changed.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct hm_settings {
    /// Denoising steps, 1 to 1000.
    pub steps: u32,
    /// Images at a time; 0: what fits in 1 GiB, at most 16.
    pub batch: u32,
    pub solver: u32,
    pub guidance_channels: u32,
    /// Whether the predicted clean image is clipped to [-1, 1] at every step.
    pub clip_x0: u32,
    /// DDIM's eta: 0 deterministic, 1 as noisy as DDPM.
    pub eta: f64,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: f64,
    /// Seed of the noise.
    pub seed: u64,
}

/// One denoising step that was issued; a GPU may still be working on it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct hm_progress {
    /// The first image of the batch that is being denoised.
    pub first_image: u64,
    /// Images of that batch.
    pub images: u64,
    /// Images of the whole call.
    pub count: u64,
    /// The step, from 0.
    pub step: u32,
    pub steps: u32,
}

/// Told of every step; anything but 0 cancels the call. May call any function, and free any handle. Must return: longjmp and
/// exceptions out of it are undefined.
pub type hm_progress_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, progress: *const hm_progress) -> i32>;

impl hm_settings {
    pub(super) fn to_settings(self) -> Result<Settings, Failure> {
        let unknown = |name: &str, value: u32, most: u32| {
            Failure::Argument(format!("settings.{name} is {value}, expected 0 to {most}"))
        };
        let settings = Settings {
            steps: self.steps as usize,
            spacing: Spacing::Even,
            solver: match self.solver {
                HM_SOLVER_DDIM => Solver::ddim(self.eta)?,
                HM_SOLVER_DDPM => Solver::Ddpm,
                HM_SOLVER_DPM2M => Solver::Dpm2m,
                HM_SOLVER_DPM3M => Solver::Dpm3m,
                HM_SOLVER_DPM2M_SDE => Solver::Dpm2mSde,
                HM_SOLVER_SA => Solver::SaSolver,
                HM_SOLVER_EULER => Solver::Euler,
                other => return Err(unknown("solver", other, HM_SOLVER_EULER)),
            },
            guidance: Guidance::new(
                self.guidance,
                match self.guidance_channels {
                    HM_GUIDE_THREE => GuidedChannels::Three,
                    HM_GUIDE_ALL => GuidedChannels::All,
                    other => return Err(unknown("guidance_channels", other, 1)),
                },
            )?,
            clip_x0: match self.clip_x0 {
                0 => false,
                1 => true,
                other => return Err(unknown("clip_x0", other, 1)),
            },
        };
        settings.trajectory()?;
        Ok(settings)
    }
}

/// The usual settings of a model: 20 DDIM steps, guidance as the model says or 1.5, seed 0.
///
/// # Safety
/// `settings` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_settings_init(
    model: *const hm_model,
    settings: *mut hm_settings,
) -> hm_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(settings, "settings") }?;
        let model = hm_model::of(model)?;
        let info = &model.pipeline.info;
        let guidance = info.usual_guidance();
        out.set(hm_settings {
            steps: 20,
            batch: 0,
            solver: HM_SOLVER_DDIM,
            guidance_channels: match guidance.channels() {
                GuidedChannels::Three => HM_GUIDE_THREE,
                GuidedChannels::All => HM_GUIDE_ALL,
            },
            clip_x0: info.clip_x0.into(),
            eta: 0.0,
            guidance: guidance.scale(),
            seed: 0,
        });
        Ok(())
    })
}

/// Samples `count` images, one for each label, on the calling thread.
///
/// `values` takes them as `[count, channels, height, width]`; `length` is exactly that many floats. Label
/// `classes` is the null label. Without a schedule everything is computed. `progress` may be null. After
/// a failure or cancellation `values` holds the batches that were finished before it.
///
/// # Safety
/// `settings` points to settings, `labels` to `count` labels, `values` to `length` floats that only this call touches while
/// it runs; `progress` may be called with `user`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_sample(
    model: *const hm_model,
    settings: *const hm_settings,
    schedule: *const hm_schedule,
    labels: *const u32,
    count: usize,
    values: *mut f32,
    length: usize,
    progress: hm_progress_fn,
    user: *mut c_void,
) -> hm_status {
    guard(|| {
        let model = hm_model::of(model)?;
        // SAFETY: the caller's promise.
        let given = unsafe { arguments::copied(settings, "settings") }?;
        let schedule = hm_schedule::reuse(schedule)?;
        // SAFETY: the caller's promise.
        let labels = unsafe { arguments::slice(labels, count, "labels") }?;
        // SAFETY: the caller's promise.
        let mut out = unsafe { OutSlice::new(values, length, "values") }?;
        let settings = given.to_settings()?;
        let outline = &model.pipeline.info.outline;
        let size = outline.latents.numbers();
        out.check(size.saturating_mul(count), "values")?;
        let sampler = model.pipeline.sampler(settings, schedule)?;
        let batch = match given.batch as usize {
            0 => sampler.batch_within(BATCH_BYTES).min(count.max(1)),
            batch => batch,
        };
        let run = sampler.run(Request {
            conditions: labels
                .iter()
                .map(|label| Condition::Class(*label as usize))
                .collect(),
            seed: given.seed,
            first: 0,
            noise: None,
            batch,
        })?;
        for event in run {
            match event? {
                Event::Step {
                    first_image,
                    images,
                    step,
                    ..
                } => {
                    let done = hm_progress {
                        first_image: first_image as u64,
                        images: images as u64,
                        count: count as u64,
                        step: step as u32,
                        steps: given.steps,
                    };
                    // SAFETY: the caller promised that it may be called with `user`; `done` lives until it returns.
                    if progress.is_some_and(|tell| unsafe { tell(user, &done) } != 0) {
                        return Err(Failure::Cancelled);
                    }
                }
                Event::Images {
                    first_image, x0, ..
                } => out.set(first_image * size, &x0),
                _ => {}
            }
        }
        Ok(())
    })
}

/// One image `[channels, height, width]` as `height · width` RGB pixels of 3 bytes. Latents become a rough preview.
///
/// # Safety
/// `image` points to `length` floats, `rgb` to `rgb_length` bytes that only this call touches.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_rgb8(
    model: *const hm_model,
    image: *const f32,
    length: usize,
    rgb: *mut u8,
    rgb_length: usize,
) -> hm_status {
    guard(|| {
        let shape = hm_model::of(model)?.image_shape();
        // SAFETY: the caller's promise.
        let values = unsafe { arguments::slice(image, length, "image") }?;
        // SAFETY: the caller's promise.
        let mut out = unsafe { OutSlice::new(rgb, rgb_length, "rgb") }?;
        check_images(values.len(), shape, Some(1))?;
        out.check(3 * shape[1] * shape[2], "rgb")?;
        out.set(0, image_from_values(values, shape).as_raw());
        Ok(())
    })
}

/// Writes images `[n, channels, height, width]` as one PNG, side by side and below each other.
///
/// # Safety
/// `values` points to `length` floats, `path` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_write_png(
    model: *const hm_model,
    values: *const f32,
    length: usize,
    path: *const c_char,
) -> hm_status {
    guard(|| {
        let shape = hm_model::of(model)?.image_shape();
        // SAFETY: the caller's promise.
        let values = unsafe { arguments::slice(values, length, "values") }?;
        // SAFETY: the caller's promise.
        let path = unsafe { arguments::text(path, "path") }?;
        check_images(values.len(), shape, None)?;
        let tiles: Vec<Tile> = values
            .chunks(shape.iter().product())
            .map(|image| Tile {
                image: image_from_values(image, shape),
                label: String::new(),
            })
            .collect();
        write_png(&grid(&tiles, columns_for(tiles.len())), Path::new(path))?;
        Ok(())
    })
}

/// Whether `length` floats are whole images, and as many as asked.
fn check_images(length: usize, shape: [usize; 3], expected: Option<usize>) -> Result<(), Failure> {
    let size: usize = shape.iter().product();
    let fits = match expected {
        Some(count) => length == count * size,
        None => length > 0 && length.is_multiple_of(size),
    };
    if fits {
        return Ok(());
    }
    Err(Failure::Argument(format!(
        "got {length} floats, expected {} of {shape:?}, which have {size}",
        if expected.is_some() {
            "an image"
        } else {
            "whole images"
        }
    )))
}
