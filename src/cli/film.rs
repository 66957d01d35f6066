//! Runs as a moving picture: what `compare --film` draws.

use indicatif::ProgressBar;

use super::{Context, error::CliError, measure::Entry};
use crate::{
    device::read_back,
    pipeline::Pipeline,
    report::FilmRow,
    sampler::{Event, Request, SampleError},
};

/// Images of each run.
pub(super) const IMAGES: usize = 6;

/// The run of an entry, with what it predicts at every step.
pub(super) fn film_row(
    entry: &Entry,
    request: &Request,
    pipeline: &Pipeline,
    (bar, context): (&ProgressBar, &Context),
) -> Result<FilmRow, CliError> {
    let shape = pipeline.info.outline.latents.shape();
    let numbers = shape.iter().product();
    let images = request.conditions.len().min(IMAGES);
    let request = Request {
        conditions: request.conditions[..images].to_vec(),
        batch: images,
        ..request.clone()
    };
    let mut go_on = || context.check_interrupt().is_ok();
    let mut pictures = |values: &[f32]| {
        let images = values.chunks(numbers);
        images
            .map(|image| pipeline.decoder.picture(image, shape, &mut go_on))
            .collect::<Result<Vec<_>, _>>()
    };
    let mut run = entry.sampler.clone().with_preview(true).run(request)?;
    let mut states: Vec<(f64, _)> = Vec::new();
    while let Some(event) = run.next() {
        match event? {
            Event::Step { x0: Some(x0), .. } => {
                bar.inc(images as u64);
                states.push((
                    run.totals().macs as f64,
                    pictures(&read_back(x0).map_err(SampleError::from)?)?,
                ));
            }
            // What is drawn in the end, which may be clipped.
            Event::Images { x0, .. } => {
                let drawn = pictures(&x0)?;
                if let Some((_, last)) = states.last_mut() {
                    *last = drawn;
                }
            }
            _ => {}
        }
    }
    // In steps of this run that compute everything.
    let all = run.totals().macs_full as f64 / entry.sampler.settings().steps.max(1) as f64;
    states.iter_mut().for_each(|(macs, _)| *macs /= all);
    Ok(FilmRow {
        name: entry.name.clone(),
        states,
    })
}
