//! Which branch is computed at which step.

use std::ffi::c_char;

use super::{
    arguments::{self, Out},
    error::{Failure, guard, hm_status},
    handles::{Handle, Handles},
    model::hm_model,
    sample::hm_settings,
};
use crate::{
    pipeline::choose_schedule,
    plan::{Accounting, Plan},
    schedule::{Reuse, Schedule},
};

/// A schedule that fits a model and a number of steps.
pub struct hm_schedule {
    reuse: Reuse,
    figures: Accounting,
}

/// What a schedule costs and saves, for one image and one half of the guidance batch. One that decides while a run goes on
/// (`fb`, `db`, `di`, `tea`, `easy`) counts as computing everything.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct hm_figures {
    pub steps: u32,
    pub branches: u32,
    /// Share of branch evaluations that are reused.
    pub cur: f64,
    /// Multiply-accumulates without reuse over those with it.
    pub macs_ratio: f64,
    pub macs: u64,
    pub macs_full: u64,
    /// Bytes of cached features at most.
    pub cache_bytes: u64,
}

/// A schedule for a model and settings: a .schedule.json file or a folder of them, a policy as `harmonica sample --schedule` takes
/// it, such as `none` or `fora:2`, or `learned[:SPEED]`: of those that come with the bundled model the one of that MACs ratio.
/// Policies that need a calibration look for it in the folder `harmonica-calibrations` where the program runs.
///
/// # Safety
/// `settings` points to settings, `spec` is a string, `schedule` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_schedule_open(
    model: *const hm_model,
    settings: *const hm_settings,
    spec: *const c_char,
    schedule: *mut *mut hm_schedule,
) -> hm_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(schedule, "schedule") }?;
        let model = hm_model::of(model)?;
        // SAFETY: the caller's promise.
        let settings = unsafe { arguments::copied(settings, "settings") }?.to_settings()?;
        // SAFETY: the caller's promise.
        let spec = unsafe { arguments::text(spec, "spec") }?;
        let info = &model.pipeline.info;
        let chosen = choose_schedule(&spec.parse()?, false, info, &settings)?;
        if chosen.settings != settings {
            return Err(Failure::Argument(format!(
                "`{spec}` is another run: set settings.steps to {} and settings.solver to that of {}, and pass no schedule",
                chosen.settings.steps, chosen.settings.solver
            )));
        }
        out.set(hm_schedule::new(chosen.reuse, &model).open());
        Ok(())
    })
}

/// A schedule from a table: `steps` rows of `branches` bytes, non-zero for compute. The first row must compute everything.
///
/// # Safety
/// `compute` points to `length` bytes, `schedule` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_schedule_from_table(
    model: *const hm_model,
    compute: *const u8,
    length: usize,
    steps: u32,
    schedule: *mut *mut hm_schedule,
) -> hm_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(schedule, "schedule") }?;
        let model = hm_model::of(model)?;
        // SAFETY: the caller's promise.
        let compute = unsafe { arguments::slice(compute, length, "compute") }?;
        let table = Schedule::new(
            steps as usize,
            model.pipeline.info.outline.graph.branches(),
            compute.iter().map(|c| *c != 0).collect(),
        )?;
        out.set(hm_schedule::new(table.into(), &model).open());
        Ok(())
    })
}

/// What the schedule costs and saves.
///
/// # Safety
/// `figures` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_schedule_get_figures(
    schedule: *const hm_schedule,
    figures: *mut hm_figures,
) -> hm_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(figures, "figures") }?;
        let schedule = hm_schedule::of(schedule)?;
        let hm_schedule { reuse, figures } = &*schedule;
        out.set(hm_figures {
            steps: reuse.steps() as u32,
            branches: reuse.branches() as u32,
            cur: reuse.table().map_or(0.0, Schedule::cur),
            macs_ratio: figures.macs_full as f64 / figures.macs as f64,
            macs: figures.macs,
            macs_full: figures.macs_full,
            cache_bytes: figures.cache_bytes(),
        });
        Ok(())
    })
}

/// Frees a schedule; null is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn hm_schedule_free(schedule: *mut hm_schedule) {
    hm_schedule::free(schedule);
}

static SCHEDULES: Handles<hm_schedule> = Handles::new();

impl Handle for hm_schedule {
    const NAME: &'static str = "schedule";

    fn handles() -> &'static Handles<Self> {
        &SCHEDULES
    }
}

impl hm_schedule {
    fn new(reuse: Reuse, model: &hm_model) -> Self {
        let graph = &model.pipeline.info.outline.graph;
        let figures = Plan::of(&reuse, graph).accounting();
        Self { reuse, figures }
    }

    /// What a schedule that may be absent reuses.
    pub(super) fn reuse(schedule: *const Self) -> Result<Option<Reuse>, Failure> {
        Ok(Self::optional(schedule)?.map(|s| s.reuse.clone()))
    }
}
