//! Forecasts for a table that somebody else made: FORA's, TaylorSeer's, a router's.

use super::{
    fit::{Draws, Purpose, Source},
    saved::Judged,
    settings::LadderSettings,
};
use crate::{
    graph::Graph,
    pipeline::Pipeline,
    plan::compile,
    ranks::Ranks,
    sampler::{BATCH_BYTES, Settings, Stop, batch_for},
    schedule::{Forecast, Schedule},
    training::run::{DeviceWatch, TrainingError, guarded},
};

/// Bytes that the features of all draws may take.
pub(super) const FEATURE_BYTES: usize = 4 << 30;

/// Features of so many images that there is room for, with guidance or without.
pub(super) fn slots_for(images: usize, guided: bool, graph: &Graph) -> usize {
    FEATURE_BYTES / bytes_of(images, guided, graph)
}

/// Images that can be walked under a table at once, for all its features to have room.
pub fn images_for(table: &Schedule, guided: bool, graph: &Graph) -> usize {
    match compile(table, graph).slots() {
        0 => usize::MAX,
        slots => (FEATURE_BYTES / slots / bytes_of(1, guided, graph)).max(1),
    }
}

/// Bytes of a feature of so many images.
fn bytes_of(images: usize, guided: bool, graph: &Graph) -> usize {
    let copies = if guided { 2 } else { 1 };
    (4 * copies * images)
        .saturating_mul(graph.feature_numbers())
        .max(1)
}

/// A table, as it was and with forecasts.
#[derive(Debug, Clone)]
pub struct Corrected {
    /// How it fares as it was.
    pub plain: Judged,
    /// How it fares with forecasts.
    pub corrected: Judged,
    /// The table with forecasts.
    pub schedule: Schedule,
}

impl Corrected {
    /// Whether the forecasts hold on draws that they were not fitted to.
    pub fn holds(&self) -> bool {
        self.corrected.typical < self.plain.typical
    }
}

/// Fits forecasts to tables, one after another.
pub struct Corrector {
    fit: Draws,
    judge: Draws,
    watch: DeviceWatch,
}

impl Corrector {
    /// Draws what `settings` say, to fit to and to judge by, and walks the uncached run, together with other ranks; `stop` is asked
    /// before each branch, here and later.
    ///
    /// # Errors
    /// As [`Source::draw`].
    pub fn new(
        pipeline: &Pipeline,
        run: Settings,
        settings: &LadderSettings,
        stop: Stop,
        ranks: Ranks,
    ) -> Result<Self, TrainingError> {
        settings.check()?;
        let watch = DeviceWatch::new(&pipeline.engine);
        let guided = run.guidance.is_active();
        let source = Source {
            model: &pipeline.model,
            settings: run,
            prompts: &pipeline.prompts,
            seed: settings.seed,
            batch: batch_for(&pipeline.info.outline, guided, BATCH_BYTES),
            stop,
            ranks,
        };
        let draws = guarded(|| {
            let fit = source.draw(Purpose::Fit, settings.draws)?;
            Ok((fit, source.draw(Purpose::Validation, settings.validation)?))
        });
        let (fit, judge) = draws.map_err(|error| watch.explained(error))?;
        Ok(Self { fit, judge, watch })
    }

    /// Fits what each step of a table takes for the clean image, and judges it on other draws. Forecasts that the table has give
    /// way; the steps that run no network stay those.
    ///
    /// # Errors
    /// [`TrainingError`] of the device, and where it is to stop.
    pub fn correct(&mut self, table: &Schedule) -> Result<Corrected, TrainingError> {
        let Self { fit, judge, watch } = self;
        let done = guarded(|| {
            let bare = table.clone().with_forecast(Forecast::default())?;
            let fitted = fit.fit(&bare, &table.forecast().skipped, None)?;
            Ok(Corrected {
                plain: Judged::of(&judge.judge(table)?),
                corrected: Judged::of(&judge.judge(&fitted.schedule)?),
                schedule: fitted.schedule,
            })
        });
        let done = done.map_err(|error| watch.explained(error))?;
        watch.check()?;
        Ok(done)
    }
}
