//! Runs to the end, with a bar and Ctrl-C.

use indicatif::ProgressBar;

use super::{Context, error::CliError};
use crate::sampler::{Event, Run, Totals};

/// All images of a run, and what it did; a step of so many images moves the bar by `advance` of them.
pub(super) fn draw(
    run: Run,
    bar: &ProgressBar,
    advance: impl Fn(usize) -> u64,
    context: &Context,
) -> Result<(Vec<f32>, Totals), CliError> {
    let mut all = Vec::new();
    let totals = draw_each(run, bar, advance, context, |_, x0| {
        all.extend(x0);
        Ok(())
    })?;
    Ok((all, totals))
}

/// The same, giving images away batch by batch, with the number of the first; returns what the run did.
pub(super) fn draw_each(
    run: Run,
    bar: &ProgressBar,
    advance: impl Fn(usize) -> u64,
    context: &Context,
    mut take: impl FnMut(usize, Vec<f32>) -> Result<(), CliError>,
) -> Result<Totals, CliError> {
    let mut totals = Totals::default();
    for event in run {
        match event? {
            Event::Started { .. } => {}
            Event::Step {
                first_image,
                images,
                step,
                reused,
                ..
            } => {
                tracing::trace!(first_image, images, step, reused, "step");
                bar.inc(advance(images));
            }
            Event::Images {
                first_image,
                images,
                x0,
                ..
            } => {
                tracing::debug!(first_image, images, "drawn");
                take(first_image, x0)?;
            }
            Event::Done(of_run) => totals = of_run,
        }
        context.check_interrupt()?;
    }
    Ok(totals)
}
