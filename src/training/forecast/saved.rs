//! `ladder.json`: what a search for schedules has found, and all to go on from.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    computed::Computed,
    fit::typical,
    search::{Place, Tried},
    settings::LadderSettings,
    target::steps_of,
};
use crate::{
    checkpoint::{Kept, ModelInfo},
    diffusion::DiffusionError,
    files::{read_text_up_to, write_bytes_atomically},
    metrics::{mean_and_error, median, psnr_from_mse},
    sampler::{Settings, model_identity, run_settings},
    schedule::{Measured, ModelIdentity, PolicyRecord, RunSettings, Schedule, ScheduleFile},
    training::{
        router::Budget,
        run::{Difference, TrainingError, difference},
    },
};

/// Version of `ladder.json`.
const FORMAT: u32 = 1;
/// Largest state that is read.
pub(super) const MAX_BYTES: u64 = 64 * 1024 * 1024;

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
    /// By the errors of images.
    pub(super) fn of(errors: &[f64]) -> Self {
        let (mse, standard_error) = mean_and_error(errors);
        Self {
            mse,
            standard_error,
            median: median(errors),
            worst: errors.iter().copied().fold(0.0, f64::max),
            typical: typical(errors),
        }
    }

    /// The file of a schedule of this model and run that fared so over `images`; `training` says how it came to be.
    ///
    /// # Errors
    /// As [`run_settings`].
    pub fn file(
        &self,
        schedule: &Schedule,
        policy: PolicyRecord,
        mut training: Value,
        images: usize,
        info: &ModelInfo,
        settings: &Settings,
    ) -> Result<ScheduleFile, DiffusionError> {
        let mut run = run_settings(info, settings)?;
        run.clip_x0 = Some(settings.clip_x0);
        training["weights"] = info.resident.kept.to_string().into();
        let measured = Measured {
            mse: Some(self.mse),
            psnr: Some(psnr_from_mse(self.mse)),
            images: Some(images),
            ..Measured::of(schedule, &info.outline.graph)
        };
        Ok(ScheduleFile {
            training: Some(training),
            measured: Some(measured),
            ..ScheduleFile::of(schedule, policy, model_identity(info), run)
        })
    }
}

/// A finished rung.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RungSummary {
    /// What the schedule computes.
    pub computed: Computed,
    /// How the schedule fared.
    pub judged: Judged,
    /// How even steps fared, fitted alike.
    pub even: Judged,
    /// How the best steps in part that were found fared, fitted alike, if there are any.
    #[serde(default)]
    pub parts: Option<Judged>,
    /// Whether the search found something that holds on draws it has not seen; where not, even steps are taken.
    pub searched: bool,
}

/// A rung of `ladder.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Rung {
    pub target: Budget,
    pub place: Place,
    pub done: Option<RungSummary>,
}

/// `ladder.json`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    format: u32,
    pub model: ModelIdentity,
    pub run: RunSettings,
    clip_x0: bool,
    /// In what the model's weights were kept; unknown of files of before this was noted.
    #[serde(default)]
    weights: Option<Kept>,
    pub settings: LadderSettings,
    /// A hash of the texts, where conditions are texts.
    prompts: Option<String>,
    pub rungs: Vec<Rung>,
}

impl Saved {
    /// Of a run that has found nothing yet; `prompts`, a hash of the texts, where conditions are texts.
    ///
    /// # Errors
    /// As [`run_settings`].
    pub fn new(
        info: &ModelInfo,
        run: &Settings,
        settings: LadderSettings,
        prompts: Option<String>,
    ) -> Result<Self, DiffusionError> {
        Ok(Self {
            format: FORMAT,
            model: model_identity(info),
            run: run_settings(info, run)?,
            clip_x0: run.clip_x0,
            weights: Some(info.resident.kept),
            settings,
            prompts,
            rungs: Vec::new(),
        })
    }

    /// Adds a target, if it is not there.
    pub fn add(&mut self, target: Budget) {
        if self.rungs.iter().any(|rung| rung.target == target) {
            return;
        }
        let steps = self.run.steps;
        let place = Place::new(Computed::even(steps_of(target, steps), steps));
        self.rungs.push(Rung {
            target,
            place,
            done: None,
        });
    }

    /// Whole steps that a search for another target has found, where it began with as many as this rung.
    pub fn known_whole(&self, number: usize) -> Option<Place> {
        let count = |rung: &Rung| rung.place.best_whole().steps().len();
        let same = |rung: &&Rung| count(rung) == count(&self.rungs[number]);
        let mut others = self.rungs.iter().filter(same);
        others.find_map(|rung| rung.place.knowing_whole())
    }

    /// Whether it knows of a move.
    pub fn has_tried(&self, tried: &Tried) -> bool {
        let rung = self.rungs.get(tried.rung);
        rung.is_some_and(|rung| rung.done.is_some() || rung.place.has_tried(tried))
    }

    /// What a run that asks for something else differs in, but for its targets.
    pub fn differs_from(&self, asked: &Self) -> Option<Difference> {
        let none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
        let model = |saved: &Self| none(&saved.model.fingerprint);
        let kept = |saved: &Self| saved.weights.or(asked.weights).unwrap_or_default();
        let pairs = [
            ("model", model(self), model(asked)),
            ("texts", none(&self.prompts), none(&asked.prompts)),
            (
                "clip-x0",
                self.clip_x0.to_string(),
                asked.clip_x0.to_string(),
            ),
            (
                "weights in",
                kept(self).to_string(),
                kept(asked).to_string(),
            ),
        ];
        let first = pairs.into_iter().find(|(_, found, asked)| found != asked);
        difference(&self.settings, &asked.settings, &[])
            .or_else(|| first.map(|(setting, found, asked)| Difference::new(setting, found, asked)))
            .or_else(|| difference(&self.run, &asked.run, &[]))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`TrainingError::Io`]; as [`Self::of_bytes`].
    pub fn read(path: &Path) -> Result<Self, TrainingError> {
        let text = read_text_up_to(path, MAX_BYTES).map_err(|source| TrainingError::Io {
            action: "read",
            path: path.into(),
            source,
        })?;
        Self::of_bytes(text.as_bytes(), path)
    }

    /// What the bytes of a file say.
    ///
    /// # Errors
    /// [`TrainingError::State`] for one that is damaged, or of another format.
    pub fn of_bytes(bytes: &[u8], path: &Path) -> Result<Self, TrainingError> {
        let damaged = |problem: String| TrainingError::State {
            path: path.into(),
            problem,
        };
        let saved: Self = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if saved.format != FORMAT {
            return Err(damaged(format!(
                "it has format {}, this program reads format {FORMAT}",
                saved.format
            )));
        }
        let branches = saved.model.graph.branches();
        let whole = |rung: &Rung| {
            let done = rung.done.as_ref().map(|done| &done.computed);
            [Some(&rung.place.computed), rung.place.whole.as_ref(), done]
                .into_iter()
                .flatten()
                .all(|computed| computed.is_of(saved.run.steps, branches))
        };
        if !saved.rungs.iter().all(whole) {
            return Err(damaged("its steps are not those of its run".into()));
        }
        Ok(saved)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`TrainingError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), TrainingError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        write_bytes_atomically(path, text.as_bytes()).map_err(|source| TrainingError::Io {
            action: "write",
            path: path.into(),
            source,
        })
    }
}
