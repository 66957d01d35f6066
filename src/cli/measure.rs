//! Schedules drawn in turn: what `compare` and `bench` measure.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{
    Context, error::CliError, options::Session, ranks::of_all, schedules::resolve,
    table::print_table,
};
use crate::{
    cache::CacheDtype,
    checkpoint::Kept,
    diffusion::Solver,
    files::{check_writable, write_bytes_atomically},
    metrics::{Spread, mean_and_error, mse, peak_memory_bytes, reset_peak_memory, ssim},
    pipeline::Pipeline,
    policy::Origin,
    ranks::{Ranks, RanksError},
    report::{
        ReportError, StepMap,
        comparison::{Comparison, Row, warnings},
    },
    sampler::{BATCH_BYTES, Event, Request, Run, Sampler, Settings, Totals},
};

/// A schedule to measure.
pub(super) struct Entry {
    pub name: String,
    pub policy: String,
    pub origin: Origin,
    pub sampler: Sampler,
}

impl Entry {
    /// The run that computes everything.
    pub fn uncached(
        session: &Session,
        dtype: CacheDtype,
        context: &Context,
    ) -> Result<Self, CliError> {
        Self::of("none", false, session, dtype, context)
    }

    pub fn of(
        spec: &str,
        force: bool,
        session: &Session,
        dtype: CacheDtype,
        context: &Context,
    ) -> Result<Self, CliError> {
        let Session {
            pipeline, settings, ..
        } = session;
        let chosen = resolve(spec, force, &pipeline.info, settings)?;
        let sampler = pipeline.sampler(chosen.settings, Some(chosen.reuse))?;
        Ok(Self {
            name: chosen.name,
            policy: chosen.policy,
            origin: chosen.origin,
            sampler: sampler.with_cache_dtype(dtype).with_stop(context.stop()),
        })
    }

    /// MACs of its run, an image and half; of one that decides as it goes on: at most.
    pub fn macs(&self) -> u64 {
        self.sampler.plan().accounting().macs
    }

    fn settings(&self) -> &Settings {
        self.sampler.settings()
    }

    /// The number of its steps, where it is a run of fewer steps of this solver.
    pub fn fewer_steps(&self, solver: Solver) -> Option<usize> {
        let own = self.settings();
        (self.origin == Origin::FewerSteps && own.solver == solver).then_some(own.steps)
    }
}

/// What was measured.
pub(super) struct Measured {
    pub row: Row,
    pub map: StepMap,
    /// The first images `[K, C, H, W]`, as many as were asked for.
    pub pictures: Vec<f32>,
}

/// Draws all images of a request with each entry, a batch a turn: the first of every round is the uncached run, which errors and
/// speed-ups of the same round are to. `truth`: all images of the true solution, for errors to those too.
///
/// The request is this rank's share; what all ranks measured is put together on each.
pub(super) fn in_turn(
    entries: &[Entry],
    truth: Option<&[f32]>,
    request: &Request,
    pictures: usize,
    pipeline: &Pipeline,
    (bar, context): (&ProgressBar, &Context),
) -> Result<Vec<Measured>, CliError> {
    let ranks = &context.ranks;
    let outline = &pipeline.info.outline;
    let shape = outline.latents.shape();
    let turns = entries.iter().map(|entry| Turns::of(entry, request));
    let mut turns = turns.collect::<Result<Vec<_>, _>>()?;
    // Each keeps its cache for its next turn, where that takes no more memory than one batch may.
    let caches = entries
        .iter()
        .map(|entry| entry.sampler.cache_bytes(request.batch));
    let keep = caches.sum::<usize>() as u64 <= BATCH_BYTES;
    let mut spread = Spread::new(shape);
    let numbers = shape.iter().product::<usize>();
    for round in 0..request.conditions.len().div_ceil(request.batch) {
        let solution = truth.map(|truth| &truth[round * request.batch * numbers..]);
        let mut uncached = None;
        for turn in &mut turns {
            let (seconds, images) = turn.draw(bar, context)?;
            if !keep {
                turn.entry.sampler.release_cache();
            }
            let (usual, expected) = uncached.get_or_insert_with(|| {
                spread.add(&images);
                (seconds, images.clone())
            });
            turn.seconds.push(seconds);
            turn.speedups.push(*usual / seconds);
            turn.compare(&images, expected, solution, shape);
            let wanted = (pictures * numbers).saturating_sub(turn.pictures.len());
            turn.pictures.extend(images.into_iter().take(wanted));
        }
    }
    for turn in &mut turns {
        turn.gather(ranks, pictures * numbers)?;
    }
    spread.gather(ranks)?;
    let full = turns.first().map_or(1, |turn| turn.totals.macs);
    let graph = &outline.graph;
    let copies = entries.first().map_or(1, |entry| entry.sampler.copies());
    let all_features_bytes =
        4 * graph.branches() * copies * request.batch * graph.feature_numbers();
    let variance = spread.variance();
    let rows = turns.into_iter();
    Ok(rows
        .map(|turn| turn.measured(full, all_features_bytes, variance))
        .collect())
}

/// An entry's run, and what its turns have shown so far.
struct Turns<'a> {
    entry: &'a Entry,
    /// None where there is nothing to draw.
    run: Option<Run>,
    /// What the run did, once it is over.
    totals: Totals,
    errors: Vec<f64>,
    true_errors: Vec<f64>,
    likeness: Vec<f64>,
    seconds: Vec<f64>,
    speedups: Vec<f64>,
    peak_host_bytes: Option<u64>,
    /// Images that each step decided to reuse.
    reused: Vec<u64>,
    pictures: Vec<f32>,
}

impl<'a> Turns<'a> {
    fn of(entry: &'a Entry, request: &Request) -> Result<Self, CliError> {
        Ok(Self {
            run: match request.conditions.is_empty() {
                true => None,
                false => Some(entry.sampler.run(request.clone())?),
            },
            totals: Totals::default(),
            errors: Vec::new(),
            true_errors: Vec::new(),
            likeness: Vec::new(),
            seconds: Vec::new(),
            speedups: Vec::new(),
            peak_host_bytes: None,
            reused: vec![0; entry.settings().steps],
            pictures: Vec::new(),
            entry,
        })
    }

    /// The next batch, and the seconds until its images are here.
    fn draw(&mut self, bar: &ProgressBar, context: &Context) -> Result<(f64, Vec<f32>), CliError> {
        let fresh_peak = reset_peak_memory();
        let started = Instant::now();
        let mut drawn = Vec::new();
        for event in self.run.iter_mut().flatten() {
            match event? {
                Event::Step {
                    step,
                    images,
                    reused,
                    ..
                } => {
                    tracing::trace!(schedule = self.entry.name, images, step, reused, "step");
                    bar.inc(images as u64);
                    if reused {
                        self.reused[step] += images as u64;
                    }
                }
                Event::Images { x0, .. } => drawn = x0,
                Event::Started { .. } | Event::Done(_) => {}
            }
            context.check_interrupt()?;
            if !drawn.is_empty() {
                break;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let peak = peak_memory_bytes().filter(|_| fresh_peak);
        self.peak_host_bytes = self.peak_host_bytes.max(peak);
        Ok((seconds, drawn))
    }

    /// Errors of a batch.
    fn compare(
        &mut self,
        images: &[f32],
        uncached: &[f32],
        solution: Option<&[f32]>,
        shape: [usize; 3],
    ) {
        let size = shape.iter().product();
        let pairs = |to: &[f32]| -> Vec<f64> {
            let pairs = images.chunks(size).zip(to.chunks(size));
            pairs.map(|(a, b)| mse(a, b)).collect()
        };
        self.errors.extend(pairs(uncached));
        self.true_errors
            .extend(solution.map(pairs).unwrap_or_default());
        let pairs = images.chunks(size).zip(uncached.chunks(size));
        self.likeness.extend(pairs.map(|(a, b)| ssim(a, b, shape)));
    }

    /// Puts together what all ranks measured, and the first `pictures` numbers of their pictures.
    fn gather(&mut self, ranks: &Ranks, pictures: usize) -> Result<(), RanksError> {
        let own = self.run.as_ref().map_or(Totals::default(), Run::totals);
        self.totals = of_all(own, ranks)?;
        for numbers in [
            &mut self.errors,
            &mut self.true_errors,
            &mut self.likeness,
            &mut self.seconds,
            &mut self.speedups,
        ] {
            *numbers = ranks.gather_numbers(std::mem::take(numbers))?;
        }
        self.reused = ranks.sum(std::mem::take(&mut self.reused))?;
        let peaks = ranks.gather_numbers(vec![self.peak_host_bytes.unwrap_or(0)])?;
        self.peak_host_bytes = peaks.into_iter().max().filter(|peak| *peak > 0);
        self.pictures = ranks.gather_numbers(std::mem::take(&mut self.pictures))?;
        self.pictures.truncate(pictures);
        Ok(())
    }

    /// `full`: MACs of the uncached run; `variance`: of its images.
    fn measured(self, full: u64, all_features_bytes: usize, variance: f64) -> Measured {
        let totals = self.totals;
        let (entry, reuse) = (self.entry, self.entry.sampler.reuse());
        let (error, images) = (mean_and_error(&self.errors).0, self.errors.len());
        let errors = Some((error, variance));
        let share = |count: u64| count as f64 / images.max(1) as f64;
        Measured {
            map: StepMap::of(reuse, self.reused.into_iter().map(share).collect()),
            pictures: self.pictures,
            row: Row {
                schedule: entry.name.clone(),
                policy: entry.policy.clone(),
                origin: entry.origin,
                steps: entry.settings().steps,
                cur: totals.cur(),
                macs_ratio: full as f64 / totals.macs.max(1) as f64,
                errors: self.errors,
                true_errors: self.true_errors,
                ssim: mean_and_error(&self.likeness).0,
                seconds: self.seconds,
                speedups: self.speedups,
                peak_cache_bytes: totals.peak_cache_bytes,
                all_features_bytes,
                peak_host_bytes: self.peak_host_bytes,
                dispatches: None,
                warnings: warnings(&entry.name, entry.origin, reuse, totals.reused, errors),
            },
        }
    }
}

/// Whether there is room for what a comparison is to be written to, before the work.
pub(super) fn check_outputs<'a>(
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<(), CliError> {
    for path in paths {
        check_writable(path).map_err(|source| ReportError::Io {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Writes text, and says so.
pub(super) fn write_text(path: &Path, text: &str, context: &Context) -> Result<(), CliError> {
    write_bytes_atomically(path, text.as_bytes()).map_err(|source| ReportError::Io {
        path: path.into(),
        source,
    })?;
    context.say(format!("wrote {}", path.display()));
    Ok(())
}

/// The rows as `--json` has them, with what the network's weights are kept in.
pub(super) fn json_rows(comparison: &Comparison, kept: Kept) -> Vec<Value> {
    let row = |row| {
        let mut figures = comparison.json(row);
        figures.insert("weights".into(), json!(kept));
        figures.into()
    };
    (0..comparison.rows().len()).map(row).collect()
}

/// The table for people.
pub(super) fn print_rows(comparison: &Comparison) {
    let names: Vec<String> = comparison
        .rows()
        .iter()
        .map(|r| r.schedule.clone())
        .collect();
    print_table(&names, &comparison.columns());
}

/// What is wrong with some row.
pub(super) fn say_warnings(comparison: &Comparison, context: &Context) {
    for warning in comparison.rows().iter().flat_map(|row| &row.warnings) {
        context.say(format!("warning: {warning}"));
    }
}
