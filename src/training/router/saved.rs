//! The checkpoint of a router's training: everything to go on from, in one file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    AdamWParts, Budget, PassSummary, RunFolder, Sdt, SdtSettings, Steering, TrainingState,
    adamw::AdamW,
};
use crate::{
    checkpoint::{
        self, CheckpointError, Kept, ModelInfo, TensorSource, write_tensors_with_metadata,
    },
    sampler::{Settings, model_identity, run_settings},
    schedule::{ModelIdentity, Router, RunSettings},
    training::run::{Difference, TrainingError, difference, read_metadata},
};

/// Version of the metadata.
const FORMAT: u32 = 1;

/// What the metadata of `router.safetensors` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    format: u32,
    model: ModelIdentity,
    run: RunSettings,
    clip_x0: bool,
    /// In what the model's weights were kept; unknown of files of before this was noted.
    #[serde(default)]
    weights: Option<Kept>,
    pub settings: SdtSettings,
    pub pass: usize,
    optimizer_steps: Vec<u32>,
    lambda: Vec<f64>,
    beta: f64,
    beta_correction: f64,
    /// What the training draws from, where that is given.
    #[serde(flatten)]
    pub identities: Identities,
    pub history: Vec<PassSummary>,
    /// What schedules are made for, the one that steers first; empty in files of before this was kept.
    #[serde(default)]
    targets: Vec<Budget>,
    #[serde(default)]
    pub max_cache: Option<f64>,
}

/// Hashes of what a training draws from, to know it again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Identities {
    /// Of the replayed noise, where there is some.
    #[serde(default)]
    pub replay: Option<String>,
    /// Of the texts, where conditions are texts.
    #[serde(default)]
    pub prompts: Option<String>,
}

impl Identities {
    /// Whether a run that was saved under `saved` goes on with these.
    pub fn check_same(&self, folder: &RunFolder, saved: &Self) -> Result<(), TrainingError> {
        let given = [
            ("replay", &saved.replay, &self.replay),
            ("texts", &saved.prompts, &self.prompts),
        ];
        let none = |identity: &Option<String>| identity.clone().unwrap_or_else(|| "none".into());
        match given.into_iter().find(|(_, found, asked)| found != asked) {
            None => Ok(()),
            Some((setting, found, asked)) => {
                Err(Difference::new(setting, none(found), none(asked)).refuses(&folder.path))
            }
        }
    }
}

impl Saved {
    pub fn of(
        info: &ModelInfo,
        run: &Settings,
        sdt: &Sdt<'_>,
        identities: Identities,
        history: Vec<PassSummary>,
        (targets, max_cache): (Vec<Budget>, Option<f64>),
    ) -> Result<Self, TrainingError> {
        let state = sdt.state();
        let AdamWParts(_, _, steps) = state.optimizer.parts();
        Ok(Self {
            format: FORMAT,
            model: model_identity(info),
            run: run_settings(info, run)?,
            clip_x0: run.clip_x0,
            weights: Some(info.resident.kept),
            settings: sdt.settings().clone(),
            pass: state.pass,
            optimizer_steps: steps.to_vec(),
            lambda: state.lambda.clone(),
            beta: state.beta,
            beta_correction: state.steering.correction,
            identities,
            history,
            targets,
            max_cache,
        })
    }

    /// What schedules are made for, the one that steers first.
    pub fn targets(&self) -> Vec<Budget> {
        match self.targets.is_empty() {
            true => vec![self.settings.budget],
            false => self.targets.clone(),
        }
    }

    /// Writes the checkpoint, with the tensors of the state it is of.
    pub fn write(&self, state: &TrainingState, path: &Path) -> Result<(), TrainingError> {
        let AdamWParts(first, second, _) = state.optimizer.parts();
        let shape = vec![state.router.steps(), state.router.branches()];
        let metadata = serde_json::to_string(self).unwrap_or_default();
        let tensors = [
            ("logits", shape.clone(), state.router.logits().to_vec()),
            ("adamw.first_moment", shape.clone(), first.to_vec()),
            ("adamw.second_moment", shape.clone(), second.to_vec()),
            ("marginal_values", shape, state.steering.values.clone()),
        ];
        Ok(write_tensors_with_metadata(path, &tensors, &metadata)?)
    }
}

/// What a checkpoint says, and the state that it holds.
pub(super) fn load_state(
    mut source: TensorSource,
) -> Result<(Saved, TrainingState), TrainingError> {
    let path = source.path().to_path_buf();
    let damaged = |problem: String| CheckpointError::Damaged {
        path: path.clone(),
        problem,
    };
    let saved: Saved = read_metadata(&source, |saved: &Saved| saved.format, FORMAT)?;
    let (steps, branches) = (saved.run.steps, saved.model.graph.branches());
    let size = steps.saturating_mul(branches);
    let mut tensor = |name: &str| -> Result<Vec<f32>, TrainingError> {
        let values = source.read_f32(name)?;
        if values.len() != size {
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
    let optimizer = AdamW::from_parts(branches, first, second, saved.optimizer_steps.clone());
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
pub(super) fn check_same(
    folder: &RunFolder,
    saved: &Saved,
    info: &ModelInfo,
    run: &Settings,
    settings: &SdtSettings,
) -> Result<(), TrainingError> {
    let model = model_identity(info);
    let other_model = (saved.model != model).then(|| {
        let fingerprint = |of: &ModelIdentity| format!("{:?}", of.fingerprint);
        let (found, asked) = (fingerprint(&saved.model), fingerprint(&model));
        Difference::new("a model with fingerprint", found, asked)
    });
    let word = |on: bool| if on { "on" } else { "off" }.to_owned();
    let other_clipping = (saved.clip_x0 != run.clip_x0)
        .then(|| Difference::new("clip_x0", word(saved.clip_x0), word(run.clip_x0)));
    let kept = info.resident.kept;
    let other_weights = saved.weights.filter(|saved| *saved != kept);
    let other_weights = other_weights
        .map(|saved| Difference::new("weights in", saved.to_string(), kept.to_string()));
    let run = run_settings(info, run)?;
    let other = other_model
        .or_else(|| difference(&saved.run, &run, &[]))
        .or(other_clipping)
        .or(other_weights)
        // More passes are welcome.
        .or_else(|| difference(&saved.settings, settings, &["passes"]));
    other.map_or(Ok(()), |other| Err(other.refuses(&folder.path)))
}

/// What a `router.safetensors` of ours holds.
pub struct TrainingSummary {
    pub pass: usize,
    pub settings: SdtSettings,
    /// What schedules are made for, the one that steers first.
    pub targets: Vec<Budget>,
    pub max_cache: Option<f64>,
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
            targets: saved.targets(),
            max_cache: saved.max_cache,
            settings: saved.settings,
            router,
            lambda,
            beta,
        }))
    }
}
