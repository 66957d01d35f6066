//! What the window shows and what it asks for; no window, no device.

use std::collections::BTreeMap;

use harmonica::{
    checkpoint::ModelInfo,
    diffusion::{DiffusionError, Guidance, Solver, Spacing},
    plan::{Accounting, compile},
    policy::{Fora, Policy},
    sampler::{Settings, model_identity, run_settings},
    schedule::{
        Measured, PolicyRecord, Router, Schedule, ScheduleError, ScheduleFile, bundled_schedules,
    },
};

/// Where the table comes from, before cells are forced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The learned router above a threshold.
    Learned,
    /// All branches at every n-th step.
    Fora,
    /// Everything.
    Full,
}

impl Source {
    pub const ALL: [Self; 3] = [Self::Learned, Self::Fora, Self::Full];

    pub fn name(self) -> &'static str {
        match self {
            Self::Learned => "learned router",
            Self::Fora => "every n-th step",
            Self::Full => "compute everything",
        }
    }
}

/// The knobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Controls {
    pub label: usize,
    pub seed: u64,
    pub steps: usize,
    pub guidance: f64,
    pub source: Source,
    /// τ of [`Source::Learned`].
    pub tau: f64,
    /// n of [`Source::Fora`].
    pub interval: usize,
}

/// A run that the knobs ask for.
#[derive(Debug, Clone)]
pub struct Job {
    pub number: u64,
    pub label: usize,
    pub seed: u64,
    pub settings: Settings,
    pub schedule: Schedule,
}

/// The two runs that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Uncached,
    Cached,
}

/// What the worker tells.
#[derive(Debug, Clone)]
pub enum Update {
    /// A side did a step; its picture was painted if it has one.
    Step {
        job: u64,
        side: Side,
        /// Steps done.
        done: usize,
        /// Seconds the side has taken so far.
        seconds: f64,
    },
    /// A side is done and painted.
    Finished {
        job: u64,
        side: Side,
        seconds: f64,
        /// `[C, H, W]`
        values: Vec<f32>,
    },
    Failed {
        job: u64,
        message: String,
    },
}

/// How far a side has come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    pub done: usize,
    pub seconds: f64,
    /// The final image `[C, H, W]`.
    pub values: Option<Vec<f32>>,
}

/// A schedule with what it costs.
#[derive(Debug, Clone)]
pub struct Compiled {
    pub schedule: Schedule,
    pub figures: Accounting,
}

pub struct State {
    pub info: ModelInfo,
    pub controls: Controls,
    /// Cells the user set by hand: `(step, branch)` to whether it is computed.
    pub forced: BTreeMap<(usize, usize), bool>,
    pub compiled: Compiled,
    pub uncached: Progress,
    pub cached: Progress,
    /// Good news, or bad.
    pub message: Option<Result<String, String>>,
    /// The learned router of these steps.
    learned: Option<(Router, f64)>,
    number: u64,
}

impl State {
    pub fn new(info: ModelInfo) -> Result<Self, ScheduleError> {
        let controls = Controls {
            label: 0,
            seed: 0,
            steps: 20,
            guidance: info.usual_guidance().scale(),
            source: Source::Learned,
            tau: 0.1,
            interval: 2,
        };
        let compiled = compile_for(
            &info,
            Schedule::full(controls.steps, info.outline.graph.branches())?,
        );
        let mut state = Self {
            info,
            controls,
            forced: BTreeMap::new(),
            compiled,
            uncached: Progress::default(),
            cached: Progress::default(),
            message: None,
            learned: None,
            number: 0,
        };
        state.load_router();
        state.recompile();
        Ok(state)
    }

    pub fn settings(&self) -> Result<Settings, DiffusionError> {
        Ok(Settings {
            steps: self.controls.steps,
            spacing: Spacing::Even,
            solver: Solver::ddim(0.0)?,
            guidance: Guidance::new(
                self.controls.guidance,
                self.info.usual_guidance().channels(),
            )?,
            clip_x0: self.info.clip_x0,
        })
    }

    /// Whether there is a learned router for these steps.
    pub fn has_router(&self) -> bool {
        self.learned.is_some()
    }

    /// After the number of steps changed: another router, and cells by hand make no sense any more.
    pub fn steps_changed(&mut self) {
        self.forced.clear();
        self.load_router();
    }

    /// The router that was trained for these steps, if there is one, at the threshold it was trained to.
    fn load_router(&mut self) {
        let found = self.settings().ok().and_then(|settings| {
            let run = run_settings(&self.info, &settings).ok()?;
            let files = bundled_schedules(&model_identity(&self.info), &run);
            let mut routers = files
                .iter()
                .filter_map(|file| Some((file.router().ok()??, file)));
            let (router, file) = routers.next()?;
            Some((router, file.threshold.unwrap_or(0.1)))
        });
        if let Some((_, tau)) = &found {
            self.controls.tau = *tau;
        } else if self.controls.source == Source::Learned {
            self.controls.source = Source::Fora;
        }
        self.learned = found;
    }

    /// The table that the knobs and the forced cells make; what was there stays if they make none.
    pub fn recompile(&mut self) {
        let (steps, branches) = (self.controls.steps, self.info.outline.graph.branches());
        let base = match (self.controls.source, &self.learned) {
            (Source::Learned, Some((router, _))) => router
                .threshold(self.controls.tau)
                .map_err(|e| e.to_string()),
            (Source::Fora, _) => Policy::from(Fora {
                interval: self.controls.interval.max(1),
            })
            .schedule(steps, &self.info.outline.graph)
            .map_err(|e| e.to_string()),
            _ => Schedule::full(steps, branches).map_err(|e| e.to_string()),
        };
        let table = base.and_then(|base| {
            Schedule::from_rule(steps, branches, |s, n| {
                *self.forced.get(&(s, n)).unwrap_or(&base.computes(s, n))
            })
            .map_err(|e| e.to_string())
        });
        match table {
            Ok(schedule) => self.compiled = compile_for(&self.info, schedule),
            Err(message) => self.message = Some(Err(message)),
        }
    }

    /// A click on a cell: the other way round by hand, and back to what the knobs say. Step 0 computes everything.
    pub fn click(&mut self, step: usize, branch: usize) {
        if step == 0 {
            return;
        }
        let cell = (step, branch);
        if self.forced.remove(&cell).is_none() {
            let computes = self.compiled.schedule.computes(step, branch);
            self.forced.insert(cell, !computes);
        }
        self.recompile();
    }

    /// The run that the knobs ask for now.
    pub fn job(&mut self) -> Result<Job, DiffusionError> {
        let settings = self.settings()?;
        self.number += 1;
        self.message = None;
        self.cached = Progress::default();
        self.uncached = Progress::default();
        Ok(Job {
            number: self.number,
            label: self.controls.label,
            seed: self.controls.seed,
            settings,
            schedule: self.compiled.schedule.clone(),
        })
    }

    /// Takes in what the worker tells; of an older job, nothing.
    pub fn update(&mut self, update: Update) {
        let (Update::Step { job, .. } | Update::Finished { job, .. } | Update::Failed { job, .. }) =
            &update;
        if *job != self.number {
            return;
        }
        match update {
            Update::Step {
                side,
                done,
                seconds,
                ..
            } => {
                let progress = self.side(side);
                progress.done = done;
                progress.seconds = seconds;
            }
            Update::Finished {
                side,
                seconds,
                values,
                ..
            } => {
                let steps = self.controls.steps;
                *self.side(side) = Progress {
                    done: steps,
                    seconds,
                    values: Some(values),
                };
            }
            Update::Failed { message, .. } => self.message = Some(Err(message)),
        }
    }

    fn side(&mut self, side: Side) -> &mut Progress {
        match side {
            Side::Uncached => &mut self.uncached,
            Side::Cached => &mut self.cached,
        }
    }

    /// PSNR of the finished images in dB.
    pub fn psnr(&self) -> Option<f64> {
        let (a, b) = (self.cached.values.as_ref()?, self.uncached.values.as_ref()?);
        Some(harmonica::metrics::psnr(a, b))
    }

    /// The table as a file for `harmonica sample --schedule`.
    pub fn schedule_file(&self) -> Result<ScheduleFile, DiffusionError> {
        let schedule = &self.compiled.schedule;
        let measured = Measured {
            psnr: self.psnr().filter(|psnr| psnr.is_finite()),
            images: self.psnr().map(|_| 1),
            ..Measured::of(schedule, &self.info.outline.graph)
        };
        let parameters = format!(
            "{}, {} cells by hand",
            self.controls.source.name(),
            self.forced.len()
        );
        let policy = PolicyRecord {
            name: "viewer".into(),
            parameters: Some(parameters.into()),
        };
        let run = run_settings(&self.info, &self.settings()?)?;
        Ok(ScheduleFile {
            measured: Some(measured),
            ..ScheduleFile::of(schedule, policy, model_identity(&self.info), run)
        })
    }
}

fn compile_for(info: &ModelInfo, schedule: Schedule) -> Compiled {
    let figures = compile(&schedule, &info.outline.graph).accounting();
    Compiled { schedule, figures }
}
