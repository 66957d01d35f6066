//! A training run in a folder: resumable, never half-written.
//!
//! The folder holds `router.safetensors` (everything to go on from), `*.schedule.json`, `train.jsonl` and
//! `router.png`. A pass is all or nothing: its log lines are appended when it is done, and on resuming the log
//! is cut back to the checkpoint. Of several ranks the first alone reads and writes it.

use std::{
    fs::File,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Budget, Iteration, Progress, Replay, Sdt, SdtSettings,
    saved::{Identities, Saved, check_same, load_state},
};
use crate::{
    checkpoint::ModelInfo,
    containers::open_bytes,
    device::Engine,
    graph::Graph,
    models::{Model, Prompts},
    ranks::Ranks,
    report::{Curves, draw_schedule},
    sampler::{Settings, Stop},
    schedule::ScheduleFile,
    training::run::{Begun, DeviceWatch, Log, ROUTER_STATE, TrainingError, begin},
};

/// Largest state that is read.
const MAX_BYTES: u64 = 1 << 30;

/// Where the files of a run lie.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFolder {
    pub(super) path: PathBuf,
}

impl RunFolder {
    /// A folder, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The training state.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join(ROUTER_STATE)
    }

    /// A line an iteration.
    pub fn log(&self) -> PathBuf {
        self.path.join("train.jsonl")
    }

    /// Scores and curves.
    pub fn picture(&self) -> PathBuf {
        self.path.join("router.png")
    }

    /// The schedule for a target, named after the bound of its cache and, if there are `several`, after itself.
    pub fn schedule(&self, target: Budget, max_cache: Option<f64>, several: bool) -> PathBuf {
        let target = match target {
            Budget::TargetCur(x) if several => format!("-cur{x}"),
            Budget::TargetSpeedup(x) if several => format!("-speedup{x}"),
            _ => String::new(),
        };
        let cache = max_cache.map_or(String::new(), |share| format!("-cache{share}"));
        self.path
            .join(format!("router{target}{cache}.schedule.json"))
    }
}

/// A pass in a few numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PassSummary {
    /// Mean loss over the pass's iterations.
    pub loss: f64,
    /// Mean squared error of the student's output.
    pub mse: f64,
    /// CUR of the router at τ after the pass.
    pub cur: f64,
    /// MACs ratio of that schedule.
    pub macs_ratio: f64,
    /// β of the next pass.
    pub beta: f64,
}

/// A router in training, in a folder.
pub struct RouterRun<'m> {
    sdt: Sdt<'m>,
    folder: RunFolder,
    info: &'m ModelInfo,
    run: Settings,
    /// What to emit schedules for; the first one steers.
    targets: Vec<Budget>,
    max_cache: Option<f64>,
    /// The targets and the bound of the cache that an unfinished training works for; a finished one remembers them, whatever
    /// else it makes schedules for.
    kept: (Vec<Budget>, Option<f64>),
    save_every: usize,
    history: Vec<PassSummary>,
    logs: Vec<Log<Iteration>>,
    identities: Identities,
    watch: DeviceWatch,
    ranks: Ranks,
    /// Keeps other processes out of the folder.
    #[expect(dead_code, reason = "holding it is its use")]
    held: Option<File>,
}

/// What a [`RouterRun`] is made from.
pub struct RouterRunOptions {
    pub folder: RunFolder,
    pub settings: SdtSettings,
    /// More targets to emit schedules for, beyond the one in `settings`.
    pub more_targets: Vec<Budget>,
    /// The most features that a schedule may keep at a time, as a share of all branches.
    pub max_cache: Option<f64>,
    pub prompts: Prompts,
    pub replay: Option<Replay>,
    /// Passes between checkpoints.
    pub save_every: usize,
    pub resume: bool,
    /// A second place for the log.
    pub log: Option<PathBuf>,
    /// Who trains it together.
    pub ranks: Ranks,
}

impl<'m> RouterRun<'m> {
    /// Starts a run, or goes on with the one in the folder.
    ///
    /// # Errors
    /// [`TrainingError`]: a run that is there already, is not there, or was made with other settings.
    pub fn open(
        model: &'m Model,
        info: &'m ModelInfo,
        run: Settings,
        options: RouterRunOptions,
    ) -> Result<Self, TrainingError> {
        let RouterRunOptions {
            folder,
            mut settings,
            more_targets,
            max_cache,
            prompts,
            replay,
            save_every,
            resume,
            log,
            ranks,
        } = options;
        settings.check()?;
        more_targets.iter().try_for_each(Budget::check)?;
        if save_every == 0 {
            return Err(TrainingError::Setting {
                setting: "save-every",
                value: "0".into(),
                expected: "at least 1",
            });
        }
        if let Some(share) = max_cache.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return Err(TrainingError::Setting {
                setting: "max-cache",
                value: share.to_string(),
                expected: "a number above 0 and at most 1",
            });
        }
        if let Some(replay) = &replay {
            replay.check(&**model, settings.passes)?;
        }
        let mut targets = vec![settings.budget];
        targets.extend(more_targets);
        let graph = &info.outline.graph;
        let slots = max_slots(max_cache, graph);
        targets.iter().try_for_each(|target| {
            target.check_reachable(run.steps, graph, slots, |s| settings.trains(s, run.steps))
        })?;
        let identities = Identities {
            replay: replay.as_ref().map(Replay::identity),
            prompts: prompts.identity(),
        };
        let Begun {
            state: before,
            held,
        } = begin(&folder.path, (ROUTER_STATE, MAX_BYTES), resume, &ranks)?;
        let mut kept = (targets.clone(), max_cache);
        let (sdt, history) = match before {
            None => (Sdt::new(model, run, settings, prompts, replay)?, Vec::new()),
            Some(before) => {
                let before = open_bytes(&folder.checkpoint(), before)?;
                let (saved, state) = load_state(before)?;
                if saved.pass >= settings.passes {
                    // Nothing is steered any more: a finished run makes schedules for any targets, and remembers its own.
                    settings.budget = saved.settings.budget;
                    kept = (saved.targets(), saved.max_cache);
                }
                check_same(&folder, &saved, info, &run, &settings)?;
                identities.check_same(&folder, &saved.identities)?;
                (
                    Sdt::resume(model, run, settings, prompts, replay, state)?,
                    saved.history,
                )
            }
        };
        let logs = match ranks.leads() {
            true => open_logs(folder.log(), log, sdt.state().pass)?,
            false => Vec::new(),
        };
        let run = Self {
            logs,
            sdt: sdt.with_ranks(ranks.clone()),
            folder,
            info,
            run,
            targets,
            max_cache,
            kept,
            save_every,
            history,
            identities,
            watch: DeviceWatch::default(),
            ranks,
            held,
        };
        let saved = run.saved()?;
        let same = serde_json::to_vec(&saved).unwrap_or_default();
        run.ranks.agree("model, run or setting", &same)?;
        run.save()?;
        Ok(run)
    }

    /// Asks the engine that the model lives on what an error of the device means, and before every save whether there was
    /// one: some faults leave wrong values and a read-back that succeeds.
    pub fn with_engine(self, engine: &Engine) -> Self {
        let watch = DeviceWatch::of_what_was_done(engine);
        Self { watch, ..self }
    }

    /// Asks this before each branch whether to stop, which ends a pass as `each` of [`Self::pass`] does: see [`Sdt::with_stop`].
    pub fn with_stop(self, stop: Stop) -> Self {
        let sdt = self.sdt.with_stop(stop);
        Self { sdt, ..self }
    }

    /// The training itself.
    pub fn sdt(&self) -> &Sdt<'m> {
        &self.sdt
    }

    /// All passes so far.
    pub fn history(&self) -> &[PassSummary] {
        &self.history
    }

    /// Where the files lie.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Runs a pass and writes what is due. `None`: `each` or whoever is asked broke off, and what was done before the pass is saved.
    ///
    /// # Errors
    /// [`TrainingError`].
    pub fn pass(
        &mut self,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<PassSummary>, TrainingError> {
        let mut iterations = Vec::new();
        let mut each = |progress| {
            if let Progress::Trained(iteration) = progress {
                iterations.push(iteration);
            }
            each(progress)
        };
        let finished = self
            .sdt
            .pass(&mut each)
            .map_err(|error| self.watch.explained(error))?;
        if !finished {
            self.save()?;
            return Ok(None);
        }
        let count = iterations.len().max(1) as f64;
        let schedule = self.sdt.state().router.threshold(self.sdt.settings().tau)?;
        let summary = PassSummary {
            loss: iterations.iter().map(|i| i.loss).sum::<f64>() / count,
            mse: iterations.iter().map(|i| i.mse).sum::<f64>() / count,
            cur: schedule.cur(),
            macs_ratio: schedule.macs_ratio(&self.info.outline.graph),
            beta: self.sdt.state().beta,
        };
        self.history.push(summary);
        for log in &mut self.logs {
            log.append(&iterations)?;
        }
        if self.sdt.state().pass.is_multiple_of(self.save_every) || self.sdt.is_done() {
            self.save()?;
        }
        Ok(Some(summary))
    }

    /// The schedule file of every target, as the router stands.
    ///
    /// # Errors
    /// [`TrainingError`].
    pub fn schedules(&self) -> Result<Vec<(PathBuf, ScheduleFile)>, TrainingError> {
        let several = self.targets.len() > 1;
        let max_slots = max_slots(self.max_cache, &self.info.outline.graph);
        self.targets
            .iter()
            .map(|target| {
                let mut file = self.sdt.schedule_file(*target, max_slots, self.info)?;
                if let (Some(share), Some(parameters)) =
                    (self.max_cache, &mut file.policy.parameters)
                {
                    parameters["max-cache"] = share.into();
                }
                Ok((self.folder.schedule(*target, self.max_cache, several), file))
            })
            .collect()
    }

    /// What the checkpoint says.
    fn saved(&self) -> Result<Saved, TrainingError> {
        Saved::of(
            self.info,
            &self.run,
            &self.sdt,
            self.identities.clone(),
            self.history.clone(),
            self.kept.clone(),
        )
    }

    /// Writes checkpoint, schedules and picture.
    fn save(&self) -> Result<(), TrainingError> {
        self.watch.check()?;
        if !self.ranks.leads() {
            return Ok(());
        }
        let (state, settings) = (self.sdt.state(), self.sdt.settings());
        self.saved()?.write(state, &self.folder.checkpoint())?;
        let files = self.schedules()?;
        for (path, file) in &files {
            file.write(path)?;
        }
        if let Some((_, file)) = files.first() {
            let curves = Curves {
                loss: self.history.iter().map(|p| p.loss).collect(),
                cur: self.history.iter().map(|p| p.cur).collect(),
                target_cur: match settings.budget {
                    Budget::TargetCur(cur) => Some(cur),
                    _ => None,
                },
            };
            draw_schedule(file, Some(&curves), &self.folder.picture())?;
        }
        Ok(())
    }
}

/// The run's own log and a second one, cut back to `passes`.
fn open_logs(
    own: PathBuf,
    extra: Option<PathBuf>,
    passes: usize,
) -> Result<Vec<Log<Iteration>>, TrainingError> {
    let stays = |iteration: &Iteration| iteration.pass < passes;
    let mut logs = vec![Log::open(&own, stays)?.0];
    // The same file under another name would get every line twice.
    let place = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if let Some(extra) = extra.filter(|extra| place(extra) != place(&own)) {
        logs.push(Log::open(&extra, stays)?.0);
    }
    Ok(logs)
}

/// Slots that a share of all branches allows.
fn max_slots(max_cache: Option<f64>, graph: &Graph) -> usize {
    let branches = graph.branches();
    // 0.3 of 10 branches must not lose a slot to rounding.
    max_cache.map_or(branches, |share| (share * branches as f64 + 1e-9) as usize)
}
