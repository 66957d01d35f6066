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
    let (mut all, mut totals) = (Vec::new(), Totals::default());
    for event in run {
        match event? {
            Event::Started { .. } => {}
            Event::Step { images, .. } => bar.inc(advance(images)),
            Event::Images { x0, .. } => all.extend(x0),
            Event::Done(of_run) => totals = of_run,
        }
        context.check_interrupt()?;
    }
    Ok((all, totals))
}
