//! Schedules for several speeds, searched and fitted one after another, in a folder: resumable, never half-written.
//!
//! The folder holds `ladder.json` (everything to go on from), a `*.schedule.json` a speed, `train.jsonl` (a line a move that was
//! tried) and `router.png`, a picture of the schedule nearest to twice the speed. Of several ranks the first alone reads and writes
//! it.

use std::{fs::File, ops::ControlFlow, path::PathBuf};

use super::{
    computed::Computed,
    correct::slots_for,
    fit::{Draws, Fit, Purpose, Source},
    saved::{Judged, MAX_BYTES, Rung, RungSummary, Saved},
    search::{Search, Tried},
    settings::LadderSettings,
    target::{Allowance, check_target},
};
use crate::{
    checkpoint::ModelInfo,
    device::Engine,
    models::{Model, Prompts},
    ranks::Ranks,
    report::draw_schedule,
    sampler::{Settings, Stop},
    schedule::{PolicyRecord, ScheduleFile},
    training::{
        router::{Budget, RunFolder},
        run::{Begun, DeviceWatch, LADDER_STATE, Log, TrainingError, begin, guarded_telling},
    },
};

/// Moves between saves, beside those that are kept.
const SAVE_EVERY: usize = 8;
/// Steps in part must lower the error of whole ones by this share: their features cost memory and time that MACs do not show.
const WORTH: f64 = 0.1;

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
    /// Asked before each branch: whether to save what was reached and stop.
    pub stop: Stop,
    /// Who searches together.
    pub ranks: Ranks,
}

/// What a run tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// So many of the uncached `images` are drawn, to fit to or to judge by.
    Reference { drawn: usize, images: usize },
    /// Parts of steps are not searched to the full, since the features of all draws have room for so many of `wanted` only.
    Cramped { slots: usize, wanted: usize },
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
    /// Of the first rank.
    log: Option<Log<Tried>>,
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
        let Begun {
            state: before,
            held,
        } = begin(
            folder,
            (LADDER_STATE, MAX_BYTES),
            options.resume,
            &options.ranks,
        )?;
        let prompts = options.prompts.identity();
        let mut saved = Saved::new(info, &run, options.settings.clone(), prompts)?;
        if let Some(before) = before {
            let before = Saved::of_bytes(&before, &folder.join(LADDER_STATE))?;
            if let Some(difference) = before.differs_from(&saved) {
                return Err(difference.refuses(folder));
            }
            saved.rungs = before.rungs;
        }
        options.targets.iter().for_each(|target| saved.add(*target));
        let same = serde_json::to_vec(&saved).unwrap_or_default();
        options.ranks.agree("model, run or setting", &same)?;
        // Lines of moves that will be tried again are cut off.
        let log = match options.ranks.leads() {
            true => Some(Log::open(&options.folder.log(), |tried| saved.has_tried(tried))?.0),
            false => None,
        };
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
            draws,
            glance,
            validation,
            sweeps,
            ..
        } = self.options.settings;
        let searched = if sweeps == 0 {
            0
        } else {
            draws + glance.min(draws)
        };
        let images = searched + draws + validation;
        if each(Progress::Reference { drawn: 0, images }).is_break() {
            return Ok(false);
        }
        let (slots, wanted) = (self.slots(), self.slots_wanted());
        if slots < wanted && each(Progress::Cramped { slots, wanted }).is_break() {
            return Ok(false);
        }
        let ranks = &self.options.ranks;
        let mut before = 0;
        let mut walk = |purpose: Purpose, count: usize, ranks: &Ranks| {
            let walked = self.draws(purpose, count, ranks, &mut |share| {
                let drawn = before + (share * count as f64) as usize;
                each(Progress::Reference { drawn, images })
            });
            before += count;
            walked
        };
        let mut search = match sweeps {
            0 => None,
            sweeps => Some(Search {
                glance: walk(Purpose::Search, glance.min(draws), &Ranks::alone())?,
                all: walk(Purpose::Search, draws, ranks)?,
                steps: self.run.steps,
                graph: self.info.outline.graph.clone(),
                sweeps,
                rung: 0,
                ranks: ranks.clone(),
            }),
        };
        let mut fit = walk(Purpose::Fit, draws, ranks)?;
        let mut judge = walk(Purpose::Validation, validation, ranks)?;
        for number in 0..self.saved.rungs.len() {
            if self.saved.rungs[number].done.is_some() {
                continue;
            }
            if let Some(search) = &mut search
                && !self.searched(number, search, each)?
            {
                self.save()?;
                return Ok(false);
            }
            let told = self.finish(number, &mut fit, &mut judge)?;
            self.save()?;
            self.draw()?;
            if each(told).is_break() {
                return Ok(number + 1 == self.saved.rungs.len());
            }
        }
        Ok(true)
    }

    /// Features that a line through two of each branch needs, or as many as may be kept.
    fn slots_wanted(&self) -> usize {
        let LadderSettings {
            max_cache, sweeps, ..
        } = self.options.settings;
        let branches = self.info.outline.graph.branches();
        let share = if sweeps == 0 {
            0.0
        } else {
            max_cache.unwrap_or(2.0)
        };
        (share * branches as f64 + 1e-9) as usize
    }

    /// Those that there is room for while all draws are walked.
    fn slots(&self) -> usize {
        let LadderSettings { draws, glance, .. } = self.options.settings;
        let guided = self.run.guidance.is_active();
        // Those of the search wait while what it found is fitted.
        let images = 2 * draws + glance.min(draws);
        let room = slots_for(images, guided, &self.info.outline.graph);
        self.slots_wanted().min(room)
    }

    /// Draws that these ranks walk together; `told` hears of every step what share of them is done.
    fn draws(
        &self,
        purpose: Purpose,
        images: usize,
        ranks: &Ranks,
        told: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Draws, TrainingError> {
        let options = &self.options;
        let source = Source {
            model: self.model,
            settings: self.run,
            prompts: &options.prompts,
            seed: options.settings.seed,
            batch: options.batch,
            stop: options.stop.clone(),
            ranks: ranks.clone(),
        };
        source.draw_telling(purpose, images, told)
    }

    /// The sweeps of a rung; whether they are over.
    fn searched(
        &mut self,
        number: usize,
        search: &mut Search,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, TrainingError> {
        let allowed = Allowance::new(self.saved.rungs[number].target, self.slots());
        search.rung = number;
        if self.saved.rungs[number].place.is_fresh()
            && let Some(known) = self.saved.known_whole(number)
        {
            self.saved.rungs[number].place = known;
        }
        while !self.saved.rungs[number].place.is_over() {
            let mut place = self.saved.rungs[number].place.clone();
            let mut failed = None;
            let done = search.sweep(&mut place, &allowed, &mut |at, tried| {
                self.saved.rungs[number].place = at.clone();
                let due = tried.kept || tried.number.is_multiple_of(SAVE_EVERY);
                let written = match &mut self.log {
                    Some(log) => log.append(std::slice::from_ref(&tried)),
                    None => Ok(()),
                };
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
            if !done {
                return Ok(false);
            }
            self.save()?;
        }
        Ok(true)
    }

    /// Judges a rung on draws that it has not seen, and writes its schedule.
    fn finish(
        &mut self,
        number: usize,
        fit: &mut Draws,
        judge: &mut Draws,
    ) -> Result<Progress, TrainingError> {
        let place = self.saved.rungs[number].place.clone();
        let branches = self.info.outline.graph.branches();
        let whole = place.best_whole().clone();
        let even = Computed::even(whole.steps().len(), self.run.steps);
        let mut judged = |computed: Computed| -> Result<(Computed, Fit, Judged), TrainingError> {
            let (table, skipped) = computed.table(self.run.steps, branches)?;
            let fit = fit.fit(&table, &skipped, None)?;
            let errors = judge.judge(&fit.schedule)?;
            Ok((computed, fit, Judged::of(&errors)))
        };
        let mut best = judged(even.clone())?;
        let of_even = best.2;
        if whole != even {
            let found = judged(whole.clone())?;
            if found.2.typical < best.2.typical {
                best = found;
            }
        }
        let mut parts = None;
        if place.computed != whole {
            let found = judged(place.computed)?;
            parts = Some(found.2);
            if found.2.typical < (1.0 - WORTH) * best.2.typical {
                best = found;
            }
        }
        let (computed, fit, judged) = best;
        let searched = computed != even;
        let summary = RungSummary {
            computed,
            judged,
            even: of_even,
            parts,
            searched,
        };
        let (path, file) = self.schedule(number, &fit, &summary)?;
        self.watch.check()?;
        if self.options.ranks.leads() {
            file.write(&path)?;
        }
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
        training["parts"] = (!summary.computed.parts().is_empty()).into();
        let images = self.options.settings.validation;
        let judged = &summary.judged;
        let file = judged.file(
            &fit.schedule,
            policy,
            training,
            images,
            self.info,
            &self.run,
        )?;
        Ok((self.path_of(target), file))
    }

    /// Named after its target, since others may join it.
    fn path_of(&self, target: Budget) -> PathBuf {
        self.options.folder.schedule(target, None, true)
    }

    /// Writes `ladder.json`.
    fn save(&self) -> Result<(), TrainingError> {
        self.watch.check()?;
        match self.options.ranks.leads() {
            true => self
                .saved
                .write(&self.options.folder.path().join(LADDER_STATE)),
            false => Ok(()),
        }
    }

    /// Draws the schedule nearest to twice the speed.
    fn draw(&self) -> Result<(), TrainingError> {
        if !self.options.ranks.leads() {
            return Ok(());
        }
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
