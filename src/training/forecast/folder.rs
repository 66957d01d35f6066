//! Schedules for several speeds, searched and fitted one after another, in a folder: resumable, never half-written.
//!
//! The folder holds `ladder.json` (everything to go on from), a `*.schedule.json` a speed, `train.jsonl` (a line a move that was
//! tried) and `router.png`, a picture of the schedule nearest to twice the speed.

use std::{
    cell::Cell,
    fs::File,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    fit::{Draws, Fit, Purpose, Stop, typical},
    search::{Computed, Place, Search, Tried},
};
use crate::{
    checkpoint::ModelInfo,
    device::{DeviceFault, Engine, Watch},
    files::{read_text_up_to, write_bytes_atomically},
    metrics::{mean_and_error, median, psnr_from_mse},
    models::{Model, Prompts},
    report::draw_schedule,
    sampler::{Settings, model_identity, run_settings},
    schedule::{Measured, ModelIdentity, PolicyRecord, RunSettings, ScheduleFile},
    training::{
        router::{Budget, RunFolder},
        run::{
            Difference, LADDER_STATE, Log, TrainingError, check_folder, difference, hold_folder,
        },
    },
};

/// Version of `ladder.json`.
const FORMAT: u32 = 1;
/// Images that are drawn for a purpose at most: all of them are in memory.
const MOST_DRAWS: usize = 100_000;
/// Moves between saves, beside those that are kept.
const SAVE_EVERY: usize = 8;
/// A schedule may fall short of its target by this factor.
const SHORT: f64 = 0.97;
/// Largest state that is read.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// The speeds that are made where no target is named.
pub const USUAL_SPEEDS: [f64; 7] = [1.25, 1.33, 1.6, 2.0, 2.5, 3.0, 4.0];

/// How much is drawn and searched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LadderSettings {
    /// Images that weights are fitted to and moves are believed on.
    pub draws: usize,
    /// Images of a first look at a move, at most as many.
    pub glance: usize,
    /// Images that what was found is judged on.
    pub validation: usize,
    /// Sweeps over all moves at most; 0 computes even steps.
    pub sweeps: usize,
    pub seed: u64,
}

impl Default for LadderSettings {
    fn default() -> Self {
        Self {
            draws: 96,
            glance: 32,
            validation: 96,
            sweeps: 3,
            seed: 0,
        }
    }
}

impl LadderSettings {
    /// Those of the run in a folder, if there is one.
    ///
    /// # Errors
    /// [`TrainingError`] for a state that cannot be read.
    pub fn of_run(folder: &RunFolder) -> Result<Option<Self>, TrainingError> {
        let path = folder.path().join(LADDER_STATE);
        match path.exists() {
            true => Ok(Some(read(&path)?.settings)),
            false => Ok(None),
        }
    }

    fn check(&self) -> Result<(), TrainingError> {
        let counts = [
            ("draws", self.draws),
            ("glance", self.glance),
            ("validation", self.validation),
        ];
        let out_of_range = |(_, count): &(_, usize)| *count == 0 || *count > MOST_DRAWS;
        match counts.into_iter().find(out_of_range) {
            None => Ok(()),
            Some((setting, count)) => Err(TrainingError::Setting {
                setting,
                value: count.to_string(),
                expected: "1 to 100000",
            }),
        }
    }
}

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

/// How a schedule fared on draws that nothing was fitted to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Mean squared error to the uncached images, and its standard error.
    pub mse: f64,
    pub standard_error: f64,
    pub median: f64,
    pub worst: f64,
    /// What an image is usually off.
    pub typical: f64,
}

impl Judged {
    fn of(errors: &[f64]) -> Self {
        let (mse, standard_error) = mean_and_error(errors);
        Self {
            mse,
            standard_error,
            median: median(errors),
            worst: errors.iter().copied().fold(0.0, f64::max),
            typical: typical(errors),
        }
    }
}

/// A finished rung.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RungSummary {
    /// Steps that run the network.
    pub computed: Computed,
    /// How the schedule fared.
    pub judged: Judged,
    /// How even steps fared, fitted alike.
    pub even: Judged,
    /// Whether the search found steps that hold on draws it has not seen; where not, even steps are taken.
    pub searched: bool,
}

/// A rung of `ladder.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Rung {
    target: Budget,
    place: Place,
    done: Option<RungSummary>,
}

/// `ladder.json`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Saved {
    format: u32,
    model: ModelIdentity,
    run: RunSettings,
    clip_x0: bool,
    settings: LadderSettings,
    /// A hash of the texts, where conditions are texts.
    prompts: Option<String>,
    rungs: Vec<Rung>,
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
    watch: Option<Watch>,
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
            target.check()?;
            match *target {
                Budget::TargetSpeedup(ratio) if SHORT * ratio > run.steps as f64 => {
                    return Err(TrainingError::Setting {
                        setting: "target-speedup",
                        value: ratio.to_string(),
                        expected: "at most the number of steps, of which the first is computed",
                    });
                }
                Budget::TargetSpeedup(_) => {}
                target => {
                    let graph = &info.outline.graph;
                    target.check_reachable(run.steps, graph, graph.branches())?;
                }
            }
        }
        let folder = options.folder.path();
        let there = check_folder(folder, LADDER_STATE, options.resume)?;
        let held = hold_folder(folder)?;
        let mut saved = Saved {
            format: FORMAT,
            model: model_identity(info),
            run: run_settings(info, &run)?,
            clip_x0: run.clip_x0,
            settings: options.settings.clone(),
            prompts: options.prompts.identity(),
            rungs: Vec::new(),
        };
        if there {
            let before = read(&folder.join(LADDER_STATE))?;
            let comparable = |saved: &Saved| Saved {
                rungs: Vec::new(),
                ..saved.clone()
            };
            let asked = comparable(&saved);
            if let Some(difference) = difference(&before.settings, &asked.settings, &[])
                .or_else(|| differs(&comparable(&before), &asked))
            {
                return Err(difference.refuses(folder));
            }
            saved.rungs = before.rungs;
        }
        for target in &options.targets {
            if !saved.rungs.iter().any(|rung| rung.target == *target) {
                let even = Computed::even(steps_of(*target, run.steps), run.steps);
                // What was searched for another target with as many steps is not searched again.
                let known = saved
                    .rungs
                    .iter()
                    .find(|rung| rung.place.computed.counts(&even));
                let place = known.map_or(Place::new(even), |rung| rung.place.clone());
                saved.rungs.push(Rung {
                    target: *target,
                    place,
                    done: None,
                });
            }
        }
        let stays = |tried: &Tried| {
            // Lines of moves that will be tried again are cut off.
            saved.rungs.iter().any(|rung| {
                let (place, count) = (&rung.place, rung.place.computed.steps().len());
                count == tried.count && (rung.done.is_some() || place.has_tried(tried))
            })
        };
        let (log, _) = Log::open(&options.folder.log(), stays)?;
        let run = Self {
            model,
            info,
            run,
            options,
            saved,
            log,
            held,
            watch: None,
        };
        run.save()?;
        Ok(run)
    }

    /// Asks the engine that the model lives on what an error of the device means.
    pub fn with_engine(self, engine: &Engine) -> Self {
        let watch = Some(Watch::of_what_was_done(engine));
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
        let telling = Cell::new(false);
        let mut tell = |told| {
            telling.set(true);
            let answer = each(told);
            telling.set(false);
            answer
        };
        let done = match catch_unwind(AssertUnwindSafe(|| self.climb(&mut tell))) {
            Ok(done) => done,
            Err(panic) if telling.get() => resume_unwind(panic),
            // Some faults of a device come out of burn as panics.
            Err(panic) => Err(DeviceFault::of_panic(&*panic).into()),
        };
        match done {
            Err(TrainingError::Stopped) => {
                self.save()?;
                Ok(false)
            }
            done => done.map_err(|error| error.explained(self.watch.as_ref())),
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
        self.check_device()?;
        file.write(&path)?;
        let macs_ratio = fit.schedule.macs_ratio(&self.info.outline.graph);
        self.saved.rungs[number].done = Some(summary.clone());
        Ok(Progress::Rung {
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

    /// Some faults leave wrong values and a read-back that succeeds: what they spoiled is not written.
    fn check_device(&self) -> Result<(), TrainingError> {
        match self.watch.as_ref().and_then(Watch::fault) {
            Some(fault) => Err(fault.into()),
            None => Ok(()),
        }
    }

    /// Named after its target, since others may join it.
    fn path_of(&self, target: Budget) -> PathBuf {
        self.options.folder.schedule(target, None, true)
    }

    /// Writes `ladder.json`.
    fn save(&self) -> Result<(), TrainingError> {
        self.check_device()?;
        let path = self.options.folder.path().join(LADDER_STATE);
        let text = serde_json::to_string_pretty(&self.saved).unwrap_or_default();
        write_bytes_atomically(&path, text.as_bytes()).map_err(|source| TrainingError::Io {
            action: "write",
            path,
            source,
        })
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

/// How many of `steps` steps a target lets a run compute: the most that fall short of it by no more than 3 %.
pub fn steps_of(target: Budget, steps: usize) -> usize {
    let reached = |count: &usize| {
        let (count, steps) = (*count as f64, steps as f64);
        match target {
            Budget::TargetSpeedup(ratio) => steps / count >= SHORT * ratio,
            Budget::TargetCur(cur) => 1.0 - count / steps >= SHORT * cur,
            Budget::Beta(_) => true,
        }
    };
    let most = steps.saturating_sub(1).max(1);
    (1..=most).rev().find(reached).unwrap_or(1)
}

/// What two runs differ in beside their settings.
fn differs(found: &Saved, asked: &Saved) -> Option<Difference> {
    let none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
    let model = |saved: &Saved| none(&saved.model.fingerprint);
    let pairs = [
        ("model", model(found), model(asked)),
        ("texts", none(&found.prompts), none(&asked.prompts)),
        (
            "clip-x0",
            found.clip_x0.to_string(),
            asked.clip_x0.to_string(),
        ),
    ];
    let first = pairs.into_iter().find(|(_, found, asked)| found != asked);
    first
        .map(|(setting, found, asked)| Difference::new(setting, found, asked))
        .or_else(|| difference(&found.run, &asked.run, &[]))
}

fn read(path: &Path) -> Result<Saved, TrainingError> {
    let text = read_text_up_to(path, MAX_BYTES).map_err(|source| TrainingError::Io {
        action: "read",
        path: path.into(),
        source,
    })?;
    let damaged = |problem: String| TrainingError::State {
        path: path.into(),
        problem,
    };
    let saved: Saved = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
    if saved.format != FORMAT {
        return Err(damaged(format!(
            "it has format {}, this program reads format {FORMAT}",
            saved.format
        )));
    }
    let whole = |rung: &Rung| {
        let done = rung.done.as_ref().map(|done| &done.computed);
        [Some(&rung.place.computed), done]
            .into_iter()
            .flatten()
            .all(|computed| computed.is_of(saved.run.steps))
    };
    if !saved.rungs.iter().all(whole) {
        return Err(damaged("its steps are not those of its run".into()));
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_leaves_some_steps() {
        let of = |target| steps_of(target, 20);
        assert_eq!(of(Budget::TargetSpeedup(2.0)), 10);
        assert_eq!(of(Budget::TargetSpeedup(1.33)), 15);
        assert_eq!(of(Budget::TargetSpeedup(1000.0)), 1);
        assert_eq!(of(Budget::TargetSpeedup(1.001)), 19);
        assert_eq!(of(Budget::TargetCur(0.25)), 15);
        // 13 steps would be 1.54×, 7 would be 2.86×.
        assert_eq!(of(Budget::TargetSpeedup(1.6)), 12);
        assert_eq!(of(Budget::TargetSpeedup(3.0)), 6);
    }
}
