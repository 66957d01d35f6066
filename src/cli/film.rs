//! Runs as a moving picture: what `compare --film` draws.

use indicatif::ProgressBar;

use super::{Context, error::CliError, measure::Entry};
use crate::{
    device::read_back,
    graph::Graph,
    pipeline::Pipeline,
    policy::Origin,
    report::FilmRow,
    sampler::{Event, Request, SampleError},
    schedule::Reuse,
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
    let reuse = entry.sampler.reuse();
    let (mut done, mut states) = (0.0, Vec::new());
    for event in entry.sampler.clone().with_preview(true).run(request)? {
        match event? {
            Event::Step {
                x0: Some(x0),
                step,
                reused,
                ..
            } => {
                bar.inc(images as u64);
                done += work(reuse, step, reused, &pipeline.info.outline.graph);
                states.push((done, pictures(&read_back(x0).map_err(SampleError::from)?)?));
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
    Ok(FilmRow {
        name: match entry.origin {
            Origin::Uncached => "uncached".into(),
            _ => entry.name.clone(),
        },
        states,
    })
}

/// Work of a step, in steps that compute everything.
fn work(reuse: &Reuse, step: usize, reused: bool, graph: &Graph) -> f64 {
    let full = graph.full_step_macs();
    let macs = match reuse {
        Reuse::Ahead(table) if table.runs_network(step) => graph.step_macs(table.row(step)),
        Reuse::Ahead(_) => 0,
        Reuse::AtRunTime(probed) if reused => full - probed.saved_macs(graph),
        Reuse::AtRunTime(_) => full,
    };
    macs as f64 / full.max(1) as f64
}
