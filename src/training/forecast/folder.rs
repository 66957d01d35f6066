//! Schedules for several speeds, searched and fitted one after another, in a folder: resumable, never half-written.
//!
//! The folder holds `ladder.json` (everything to go on from), a `*.schedule.json` a speed, `train.jsonl` (a line a move that was
//! tried) and `router.png`, a picture of the schedule nearest to twice the speed.

use std::{fs::File, ops::ControlFlow, path::PathBuf};

use super::{
    fit::{Draws, Fit, Purpose, Stop},
    saved::{Judged, Rung, RungSummary, Saved},
    search::{Computed, Search, Tried},
    settings::LadderSettings,
    target::check_target,
};
use crate::{
    checkpoint::ModelInfo,
    device::Engine,
    metrics::psnr_from_mse,
    models::{Model, Prompts},
    report::draw_schedule,
    sampler::Settings,
    schedule::{Measured, PolicyRecord, ScheduleFile},
    training::{
        router::{Budget, RunFolder},
        run::{
            DeviceWatch, LADDER_STATE, Log, TrainingError, check_folder, guarded_telling,
            hold_folder,
        },
    },
};

/// Moves between saves, beside those that are kept.
const SAVE_EVERY: usize = 8;

/// What a [`LadderRun`] is made from.
pub struct LadderOptions {
    pub folder: RunFolder,
    pub settings: LadderSettings,
    /// What to make a schedule for each.
    pub targets: Vec<Budget>,
    pub prompts: Prompts,
    /// Images in the network at a time.
    pub batch: usize,
    pub resume: bool,
    /// Asked between steps: whether to save what was reached and stop.
    pub stop: Stop,
}

/// What a run tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The uncached images are being drawn, to fit to or to judge by.
    Reference { images: usize },
    /// A move was tried.
    Tried(Tried),
    /// A rung is done, and its schedule lies there.
    Rung {
        target: Budget,
        path: PathBuf,
        summary: RungSummary,
        macs_ratio: f64,
    },
}

/// Schedules in the making, in a folder.
pub struct LadderRun<'m> {
    model: &'m Model,
    info: &'m ModelInfo,
    run: Settings,
    options: LadderOptions,
    saved: Saved,
    log: Log<Tried>,
    /// Keeps other processes out of the folder.
    #[expect(dead_code, reason = "holding it is its use")]
    held: Option<File>,
    watch: DeviceWatch,
}

impl<'m> LadderRun<'m> {
    /// Starts a run, or goes on with the one in the folder. One that is resumed takes further targets.
    ///
    /// # Errors
    /// [`TrainingError`]: a run that is there already, is not there, or was made with other settings; a target that a run of so
    /// many steps has nothing for.
    pub fn open(
        model: &'m Model,
        info: &'m ModelInfo,
        run: Settings,
        options: LadderOptions,
    ) -> Result<Self, TrainingError> {
        options.settings.check()?;
        if run.steps < 2 {
            return Err(TrainingError::Setting {
                setting: "steps",
                value: run.steps.to_string(),
                expected: "at least 2: a run computes its first step",
            });
        }
        for target in &options.targets {
            check_target(*target, run.steps, &info.outline.graph)?;
        }
        let folder = options.folder.path();
        let there = check_folder(folder, LADDER_STATE, options.resume)?;
        let held = hold_folder(folder)?;
        let prompts = options.prompts.identity();
        let mut saved = Saved::new(info, &run, options.settings.clone(), prompts)?;
        if there {
            let before = Saved::read(&folder.join(LADDER_STATE))?;
            if let Some(difference) = before.differs_from(&saved) {
                return Err(difference.refuses(folder));
            }
            saved.rungs = before.rungs;
        }
        options.targets.iter().for_each(|target| saved.add(*target));
        // Lines of moves that will be tried again are cut off.
        let (log, _) = Log::open(&options.folder.log(), |tried| saved.has_tried(tried))?;
        let run = Self {
            model,
            info,
            run,
            options,
            saved,
            log,
            held,
            watch: DeviceWatch::default(),
        };
        run.save()?;
        Ok(run)
    }

    /// Asks the engine that the model lives on what an error of the device means.
    pub fn with_engine(self, engine: &Engine) -> Self {
        let watch = DeviceWatch::of_what_was_done(engine);
        Self { watch, ..self }
    }

    /// Makes all schedules; `each` hears how it goes and may break off, which saves what was reached. Returns whether all is done.
    ///
    /// # Errors
    /// [`TrainingError`].
    pub fn work(
        &mut self,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        let done = guarded_telling(each, |each| self.climb(each));
        match done {
            Err(TrainingError::Stopped) => {
                self.save()?;
                Ok(false)
            }
            done => done.map_err(|error| self.watch.explained(error)),
        }
    }

    fn climb(
        &mut self,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        if self.saved.rungs.iter().all(|rung| rung.done.is_some()) {
            self.draw()?;
            return Ok(true);
        }
        let LadderSettings {
            draws, validation, ..
        } = self.options.settings;
        if each(Progress::Reference {
            images: draws + validation,
        })
        .is_break()
        {
            return Ok(false);
        }
        let (steps, branches) = (self.run.steps, self.info.outline.graph.branches());
        let glance = self.options.settings.glance.min(draws);
        let mut search = Search {
            glance: self.draws(Purpose::Fit, glance)?,
            all: self.draws(Purpose::Fit, draws)?,
            steps,
            branches,
        };
        let mut judge = self.draws(Purpose::Validation, validation)?;
        for number in 0..self.saved.rungs.len() {
            if self.saved.rungs[number].done.is_some() {
                continue;
            }
            if !self.searched(number, &mut search, each)? {
                self.save()?;
                return Ok(false);
            }
            let told = self.finish(number, &mut search, &mut judge)?;
            self.save()?;
            self.draw()?;
            if each(told).is_break() {
                return Ok(number + 1 == self.saved.rungs.len());
            }
        }
        Ok(true)
    }

    fn draws(&self, purpose: Purpose, images: usize) -> Result<Draws, TrainingError> {
        let options = &self.options;
        let batch = options.batch.min(images);
        let seed = options.settings.seed;
        Draws::new(
            self.model,
            self.run,
            &options.prompts,
            purpose,
            seed,
            images,
            batch,
            options.stop.clone(),
        )
    }

    /// The sweeps of a rung; whether they are over.
    fn searched(
        &mut self,
        number: usize,
        search: &mut Search,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        while self.saved.rungs[number].place.sweeps < self.options.settings.sweeps {
            let mut place = self.saved.rungs[number].place.clone();
            let mut failed = None;
            let more = search.sweep(&mut place, &mut |at, tried| {
                self.saved.rungs[number].place = at.clone();
                let due = tried.kept || tried.number.is_multiple_of(SAVE_EVERY);
                let written = self.log.append(std::slice::from_ref(&tried));
                let saved = written.and_then(|()| if due { self.save() } else { Ok(()) });
                if let Err(error) = saved {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
                each(Progress::Tried(tried))
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            self.saved.rungs[number].place = place;
            match more {
                None => return Ok(false),
                Some(true) => self.save()?,
                Some(false) => break,
            }
        }
        Ok(true)
    }

    /// Judges a rung on draws that it has not seen, and writes its schedule.
    fn finish(
        &mut self,
        number: usize,
        search: &mut Search,
        judge: &mut Draws,
    ) -> Result<Progress, TrainingError> {
        let found = self.saved.rungs[number].place.computed.clone();
        let even = Computed::even(found.steps().len(), self.run.steps);
        let fit = search.fitted(&even)?;
        let of_even = Judged::of(&judge.judge(&fit.schedule)?);
        let (mut computed, mut fit, mut judged) = (even, fit, of_even);
        let mut searched = false;
        if found != computed {
            let better = search.fitted(&found)?;
            let of_found = Judged::of(&judge.judge(&better.schedule)?);
            if of_found.typical < of_even.typical {
                (computed, fit, judged, searched) = (found, better, of_found, true);
            }
        }
        let summary = RungSummary {
            computed,
            judged,
            even: of_even,
            searched,
        };
        let (path, file) = self.schedule(number, &fit, &summary)?;
        self.watch.check()?;
        file.write(&path)?;
        let macs_ratio = fit.schedule.macs_ratio(&self.info.outline.graph);
        self.saved.rungs[number].done = Some(summary.clone());
        Ok(Progress::Rung {
            target: self.saved.rungs[number].target,
            path,
            summary,
            macs_ratio,
        })
    }

    fn schedule(
        &self,
        number: usize,
        fit: &Fit,
        summary: &RungSummary,
    ) -> Result<(PathBuf, ScheduleFile), TrainingError> {
        let target = self.saved.rungs[number].target;
        let policy = PolicyRecord {
            name: "forecast".into(),
            parameters: serde_json::to_value(target).ok(),
        };
        let mut training = serde_json::to_value(&self.options.settings).unwrap_or_default();
        training["searched"] = summary.searched.into();
        training["weights"] = self.info.resident.kept.to_string().into();
        let (model, mut run) = (self.saved.model.clone(), self.saved.run.clone());
        run.clip_x0 = Some(self.run.clip_x0);
        let graph = &self.info.outline.graph;
        let measured = Measured {
            mse: Some(summary.judged.mse),
            psnr: Some(psnr_from_mse(summary.judged.mse)),
            images: Some(self.options.settings.validation),
            ..Measured::of(&fit.schedule, graph)
        };
        let file = ScheduleFile {
            training: Some(training),
            measured: Some(measured),
            ..ScheduleFile::of(&fit.schedule, policy, model, run)
        };
        Ok((self.path_of(target), file))
    }

    /// Named after its target, since others may join it.
    fn path_of(&self, target: Budget) -> PathBuf {
        self.options.folder.schedule(target, None, true)
    }

    /// Writes `ladder.json`.
    fn save(&self) -> Result<(), TrainingError> {
        self.watch.check()?;
        self.saved
            .write(&self.options.folder.path().join(LADDER_STATE))
    }

    /// Draws the schedule nearest to twice the speed.
    fn draw(&self) -> Result<(), TrainingError> {
        let steps = self.run.steps as f64;
        let off = |rung: &&Rung| (steps / rung.place.computed.steps().len() as f64 - 2.0).abs();
        // Whoever moved a schedule away wants no picture of it.
        let there = |rung: &&Rung| rung.done.is_some() && self.path_of(rung.target).exists();
        let done = self.saved.rungs.iter().filter(there);
        if let Some(rung) = done.min_by(|a, b| off(a).total_cmp(&off(b))) {
            let path = self.path_of(rung.target);
            draw_schedule(
                &ScheduleFile::read(&path)?,
                None,
                &self.options.folder.picture(),
            )?;
        }
        Ok(())
    }
}
