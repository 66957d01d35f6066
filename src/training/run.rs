//! A training run in a folder: resumable, never half-written.
//!
//! The folder holds `router.safetensors` (everything to go on from), `*.schedule.json`, `train.jsonl` and
//! `router.png`. A pass is all or nothing: its log lines are appended when it is done, and on resuming the log
//! is cut back to the checkpoint.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    AdamWParts, Budget, Iteration, Progress, Replay, Sdt, SdtSettings, Steering, TrainingError,
    TrainingState,
};
use crate::{
    checkpoint::{self, ModelInfo, write_tensors_with_metadata},
    dit::Dit,
    files::write_bytes_atomically,
    report::{Curves, draw_schedule},
    sampler::{Settings, model_identity, model_shape, run_settings},
    schedule::{Measured, ModelIdentity, PolicyRecord, Router, RunSettings, ScheduleFile},
};

/// Where the files of a run lie.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A folder, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The training state.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("router.safetensors")
    }

    /// A line an iteration.
    pub fn log(&self) -> PathBuf {
        self.path.join("train.jsonl")
    }

    /// Scores and curves.
    pub fn picture(&self) -> PathBuf {
        self.path.join("router.png")
    }

    /// The schedule for a target; `several`: named after it, since there are others.
    pub fn schedule(&self, target: Budget, several: bool) -> PathBuf {
        let name = match target {
            Budget::TargetCur(x) if several => format!("router-cur{x}.schedule.json"),
            Budget::TargetSpeedup(x) if several => format!("router-speedup{x}.schedule.json"),
            _ => "router.schedule.json".to_owned(),
        };
        self.path.join(name)
    }
}

/// Version of the metadata.
const FORMAT: u32 = 1;

/// What the metadata of `router.safetensors` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Saved {
    format: u32,
    model: ModelIdentity,
    run: RunSettings,
    clip_x0: bool,
    settings: SdtSettings,
    pass: usize,
    optimizer_steps: Vec<u32>,
    lambda: Vec<f64>,
    beta: f64,
    beta_correction: f64,
    /// Identity of the replayed noise, where there is one.
    #[serde(default)]
    replay: Option<String>,
    history: Vec<PassSummary>,
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
    save_every: usize,
    history: Vec<PassSummary>,
    extra_log: Option<PathBuf>,
    replay: Option<String>,
}

/// What a [`RouterRun`] is made from.
pub struct RouterRunOptions {
    pub folder: RunFolder,
    pub settings: SdtSettings,
    /// More targets to emit schedules for, beyond the one in `settings`.
    pub more_targets: Vec<Budget>,
    pub replay: Option<Replay>,
    /// Passes between checkpoints.
    pub save_every: usize,
    pub resume: bool,
    /// A second place for the log.
    pub log: Option<PathBuf>,
}

impl<'m> RouterRun<'m> {
    /// Starts a run, or goes on with the one in the folder.
    ///
    /// # Errors
    /// [`TrainingError`]: a run that is there already, is not there, or was made with other settings.
    pub fn open(
        model: &'m Dit,
        info: &'m ModelInfo,
        run: Settings,
        options: RouterRunOptions,
    ) -> Result<Self, TrainingError> {
        let RouterRunOptions {
            folder,
            settings,
            more_targets,
            replay,
            save_every,
            resume,
            log,
        } = options;
        settings.check()?;
        more_targets.iter().try_for_each(Budget::check)?;
        if save_every == 0 {
            return Err(TrainingError::Setting {
                flag: "save-every",
                value: "0".into(),
                expected: "at least 1",
            });
        }
        if let Some(replay) = &replay {
            replay.check(model, settings.passes)?;
        }
        let mut targets = vec![settings.budget];
        targets.extend(more_targets);
        let shape = model_shape(&info.config);
        targets
            .iter()
            .try_for_each(|target| target.check_reachable(run.steps, &shape))?;
        let replay_identity = replay.as_ref().map(Replay::identity);
        let there = folder.checkpoint().exists();
        let (sdt, history) = match (there, resume) {
            (true, false) => return Err(TrainingError::Exists { path: folder.path }),
            (false, true) => {
                return Err(TrainingError::NothingToResume {
                    path: folder.path,
                    file: "router.safetensors",
                });
            }
            (false, false) => (Sdt::new(model, run, settings, replay)?, Vec::new()),
            (true, true) => {
                let (saved, state) = load_state(checkpoint::open(&folder.checkpoint())?)?;
                check_same(&folder, &saved, info, &run, &settings)?;
                if saved.replay != replay_identity {
                    return Err(TrainingError::Resume {
                        path: folder.path,
                        flag: "--replay".into(),
                        found: saved.replay.unwrap_or_else(|| "none".into()),
                        asked: replay_identity.unwrap_or_else(|| "none".into()),
                    });
                }
                (
                    Sdt::resume(model, run, settings, replay, state)?,
                    saved.history,
                )
            }
        };
        let run = Self {
            sdt,
            folder,
            info,
            run,
            targets,
            save_every,
            history,
            extra_log: log,
            replay: replay_identity,
        };
        for log in run.logs() {
            cut_log(&log, run.sdt.state().pass)?;
        }
        run.save()?;
        Ok(run)
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

    /// Runs a pass and writes what is due. `None`: `each` broke off, and what was done before the pass is saved.
    ///
    /// # Errors
    /// [`TrainingError`].
    pub fn pass(
        &mut self,
        each: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<PassSummary>, TrainingError> {
        let mut iterations = Vec::new();
        let finished = self.sdt.pass(&mut |progress| {
            if let Progress::Trained(iteration) = progress {
                iterations.push(iteration);
            }
            each(progress)
        })?;
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
            macs_ratio: model_shape(&self.info.config).macs_ratio(&schedule),
            beta: self.sdt.state().beta,
        };
        self.history.push(summary);
        for log in self.logs() {
            append_log(&log, &iterations)?;
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
        let shape = model_shape(&self.info.config);
        let (state, settings) = (self.sdt.state(), self.sdt.settings());
        let several = self.targets.len() > 1;
        self.targets
            .iter()
            .map(|target| {
                let (schedule, threshold) = target.final_schedule(
                    &state.router,
                    settings.tau,
                    &shape,
                    &state.steering.values,
                )?;
                let mut training = serde_json::to_value(settings).unwrap_or_default();
                training["passes_done"] = state.pass.into();
                training["final_beta"] = state.beta.into();
                let file = ScheduleFile {
                    format: 1,
                    policy: PolicyRecord {
                        name: "harmonica".into(),
                        parameters: serde_json::to_value(target).ok(),
                    },
                    model: model_identity(self.info),
                    run: run_settings(self.info, &self.run)?,
                    threshold,
                    compute: schedule.to_rows(),
                    logits: Some(
                        (0..state.router.steps())
                            .map(|s| state.router.row(s).to_vec())
                            .collect(),
                    ),
                    lambda: Some(state.lambda.clone()),
                    training: Some(training),
                    measured: Some(Measured::of(&schedule, &shape)),
                };
                Ok((self.folder.schedule(*target, several), file))
            })
            .collect()
    }

    /// Writes checkpoint, schedules and picture.
    fn save(&self) -> Result<(), TrainingError> {
        let (state, settings) = (self.sdt.state(), self.sdt.settings());
        let AdamWParts(first, second, steps) = state.optimizer.parts();
        let saved = Saved {
            format: FORMAT,
            model: model_identity(self.info),
            run: run_settings(self.info, &self.run)?,
            clip_x0: self.run.clip_x0,
            settings: settings.clone(),
            pass: state.pass,
            optimizer_steps: steps.to_vec(),
            lambda: state.lambda.clone(),
            beta: state.beta,
            beta_correction: state.steering.correction,
            replay: self.replay.clone(),
            history: self.history.clone(),
        };
        let shape = vec![state.router.steps(), state.router.branches()];
        let metadata = serde_json::to_string(&saved).unwrap_or_default();
        write_tensors_with_metadata(
            &self.folder.checkpoint(),
            &[
                ("logits", shape.clone(), state.router.logits().to_vec()),
                ("adamw.first_moment", shape.clone(), first.to_vec()),
                ("adamw.second_moment", shape.clone(), second.to_vec()),
                ("marginal_values", shape, state.steering.values.clone()),
            ],
            &metadata,
        )?;
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
            draw_schedule(
                file,
                &model_shape(&self.info.config),
                Some(&curves),
                &self.folder.picture(),
            )?;
        }
        Ok(())
    }

    fn logs(&self) -> Vec<PathBuf> {
        let own = self.folder.log();
        // The same file under another name would get every line twice.
        let place =
            |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let extra = self
            .extra_log
            .clone()
            .filter(|log| place(log) != place(&own));
        std::iter::once(own).chain(extra).collect()
    }
}

/// What a `router.safetensors` of ours holds.
pub struct TrainingSummary {
    pub pass: usize,
    pub settings: SdtSettings,
    pub router: Router,
    pub lambda: Vec<f64>,
    pub beta: f64,
}

impl TrainingSummary {
    /// `None` where the file is something else.
    ///
    /// # Errors
    /// [`TrainingError`] for a training state that is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>, TrainingError> {
        if path.extension().is_none_or(|e| e != "safetensors") {
            return Ok(None);
        }
        let source = checkpoint::open(path)?;
        if source.get("adamw.first_moment").is_none() {
            return Ok(None);
        }
        let (saved, state) = load_state(source)?;
        let TrainingState {
            pass,
            router,
            lambda,
            beta,
            ..
        } = state;
        Ok(Some(Self {
            pass,
            settings: saved.settings,
            router,
            lambda,
            beta,
        }))
    }
}

fn load_state(
    mut source: checkpoint::TensorSource,
) -> Result<(Saved, TrainingState), TrainingError> {
    let path = source.path().to_path_buf();
    let damaged = |problem: String| checkpoint::CheckpointError::Damaged {
        path: path.clone(),
        problem,
    };
    let text = source
        .metadata()
        .get(checkpoint::METADATA_KEY)
        .cloned()
        .unwrap_or_default();
    let saved: Saved = serde_json::from_str(&text)
        .map_err(|e| damaged(format!("its training state is not valid: {e}")))?;
    if saved.format != FORMAT {
        let problem = format!(
            "its training state has format {}, this program reads format {FORMAT}",
            saved.format
        );
        return Err(checkpoint::CheckpointError::Config { path, problem }.into());
    }
    let (steps, branches) = (saved.run.steps, saved.model.branches);
    let mut tensor = |name: &str| -> Result<Vec<f32>, TrainingError> {
        let values = source.read_f32(name)?;
        if values.len() != steps * branches {
            return Err(damaged(format!(
                "`{name}` holds {} numbers, expected {steps}·{branches}",
                values.len()
            ))
            .into());
        }
        Ok(values)
    };
    let router = Router::new(steps, branches, tensor("logits")?)?;
    let (first, second) = (
        tensor("adamw.first_moment")?,
        tensor("adamw.second_moment")?,
    );
    let values = tensor("marginal_values")?;
    if saved.optimizer_steps.len() != steps || saved.lambda.len() != steps {
        return Err(damaged(format!("it has not {steps} step counts and lambdas")).into());
    }
    let optimizer =
        super::adamw::AdamW::from_parts(branches, first, second, saved.optimizer_steps.clone());
    let state = TrainingState {
        pass: saved.pass,
        router,
        optimizer,
        lambda: saved.lambda.clone(),
        beta: saved.beta,
        steering: Steering {
            values,
            correction: saved.beta_correction,
        },
    };
    Ok((saved, state))
}

/// Whether a run in a folder can go on under these settings; more passes are welcome.
fn check_same(
    folder: &RunFolder,
    saved: &Saved,
    info: &ModelInfo,
    run: &Settings,
    settings: &SdtSettings,
) -> Result<(), TrainingError> {
    let differs = |flag: &str, found: String, asked: String| TrainingError::Resume {
        path: folder.path.clone(),
        flag: flag.into(),
        found,
        asked,
    };
    let (found, asked) = (&saved.model, model_identity(info));
    if *found != asked {
        return Err(differs(
            "a model with fingerprint",
            format!("{:?}", found.fingerprint),
            format!("{:?}", asked.fingerprint),
        ));
    }
    let asked = run_settings(info, run)?;
    if saved.run != asked || saved.clip_x0 != run.clip_x0 {
        return Err(differs(
            "the run",
            format!("{:?}", saved.run),
            format!("{asked:?}"),
        ));
    }
    let fields = |s: &SdtSettings| serde_json::to_value(s).unwrap_or_default();
    let (found, asked) = (fields(&saved.settings), fields(settings));
    for (key, value) in found.as_object().into_iter().flatten() {
        // More passes are welcome.
        let free = key == "passes";
        if asked[key] != *value && !free {
            return Err(differs(
                &format!("--{}", key.replace('_', "-")),
                value.to_string(),
                asked[key].to_string(),
            ));
        }
    }
    Ok(())
}

/// Drops the lines of passes that the checkpoint has not seen.
fn cut_log(path: &Path, passes: usize) -> Result<(), TrainingError> {
    let io = |action, source| TrainingError::Io {
        action,
        path: path.into(),
        source,
    };
    if passes == 0 {
        return write_bytes_atomically(path, b"").map_err(|e| io("write", e));
    }
    let file = match File::open(path) {
        Ok(file) => file,
        // A log that is new to a run that is not begins here.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return write_bytes_atomically(path, b"").map_err(|e| io("write", e));
        }
        Err(e) => return Err(io("read", e)),
    };
    let mut kept = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|e| io("read", e))?;
        // A line that a kill cut in half belongs to a pass that is done again.
        match serde_json::from_str::<Iteration>(&line) {
            Ok(iteration) if iteration.pass < passes => {
                kept.extend(line.bytes());
                kept.push(b'\n');
            }
            _ => break,
        }
    }
    write_bytes_atomically(path, &kept).map_err(|e| io("write", e))
}

fn append_log(path: &Path, iterations: &[Iteration]) -> Result<(), TrainingError> {
    let mut text = String::new();
    for iteration in iterations {
        text.push_str(&serde_json::to_string(iteration).unwrap_or_default());
        text.push('\n');
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| TrainingError::Io {
            action: "write",
            path: path.into(),
            source,
        })
}
