//! The checkpoint of a run: everything to go on from, in one file.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{
    data::Dataset,
    forward::Layout,
    learner::{Learner, LossScale},
    run::PretrainOptions,
    settings::PretrainSettings,
    state::ROLES,
};
use crate::{
    checkpoint::{self, CheckpointError, StoredDtype, TensorSource},
    models::dit::DitConfig,
    training::run::{
        Difference, NETWORK_STATE, TrainingError, check_folder, difference, read_metadata,
    },
};

/// Where the files of a run lie.
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainFolder {
    pub(super) path: PathBuf,
}

impl PretrainFolder {
    /// A folder, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Whether a run lies here, which must be so exactly when it is to be resumed.
    ///
    /// # Errors
    /// [`TrainingError::Exists`], [`TrainingError::NothingToResume`]; [`TrainingError::OtherRun`] for a router's, whose log
    /// has the same name.
    pub fn check(&self, resume: bool) -> Result<bool, TrainingError> {
        let there = check_folder(&self.path, NETWORK_STATE, resume)?;
        // A model whose state was deleted is nobody's to overwrite either.
        match self.model().exists() && !there {
            true => Err(TrainingError::Exists {
                path: self.path.clone(),
            }),
            false => Ok(there),
        }
    }

    /// The moving average of the weights, as a model to sample with.
    pub fn model(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// The training state.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join(NETWORK_STATE)
    }

    /// Latents that were made of the pictures, where an autoencoder made some.
    pub fn latents(&self) -> PathBuf {
        self.path.join("latents.safetensors")
    }

    /// A line a step.
    pub fn log(&self) -> PathBuf {
        self.path.join("train.jsonl")
    }

    /// The losses so far.
    pub fn curve(&self) -> PathBuf {
        self.path.join("curve.png")
    }

    /// What the averaged network draws.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples.png")
    }
}

/// Version of the metadata.
const FORMAT: u32 = 1;

/// What the metadata of a checkpoint says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedRun {
    format: u32,
    pub config: DitConfig,
    pub(super) own_embedders: bool,
    /// Identity of the data.
    pub(super) data: String,
    /// Where the data lay, from the root; `None` where text cannot say it, or an earlier version wrote this.
    #[serde(default)]
    pub data_path: Option<String>,
    /// Where the autoencoder lay that made latents of them, likewise.
    #[serde(default)]
    pub vae_path: Option<String>,
    pub settings: PretrainSettings,
    /// Optimizer steps done.
    pub steps: u64,
    /// Seconds trained, over all sessions.
    pub seconds: f64,
    /// Element type of `model.safetensors`.
    #[serde(default)]
    pub dtype: StoredDtype,
    pub(super) loss_scale: LossScale,
}

impl SavedRun {
    pub(super) fn of(
        learner: &Learner,
        data: &Dataset,
        seconds: f64,
        options: &PretrainOptions,
    ) -> Self {
        let said = |path: &Path| {
            let path = std::path::absolute(path).ok();
            path.and_then(|path| path.into_os_string().into_string().ok())
        };
        Self {
            format: FORMAT,
            config: learner.config().clone(),
            own_embedders: learner.layout().own_embedders,
            data: data.identity().into(),
            data_path: said(data.path()),
            vae_path: options.vae.as_ref().and_then(|vae| said(vae.path())),
            settings: learner.settings().clone(),
            steps: learner.steps(),
            seconds,
            dtype: options.dtype,
            loss_scale: learner.loss_scale(),
        }
    }

    /// What a checkpoint says, without its tensors.
    ///
    /// # Errors
    /// [`TrainingError::Checkpoint`]: unreadable, damaged, or another kind of file.
    pub fn read(path: &Path) -> Result<Self, TrainingError> {
        Self::of_source(&checkpoint::open(path)?)
    }

    /// The same; `None` where the file is no checkpoint of a DiT in training.
    ///
    /// # Errors
    /// [`TrainingError::Checkpoint`]: unreadable or damaged.
    pub fn find(path: &Path) -> Result<Option<Self>, TrainingError> {
        if path.extension().is_none_or(|e| e != "safetensors") {
            return Ok(None);
        }
        let source = checkpoint::open(path)?;
        let state = |name: &str| name.starts_with(ROLES[2]) && name.ends_with(".weight");
        if !source.entries().any(|e| state(&e.name)) {
            return Ok(None);
        }
        Self::of_source(&source).map(Some)
    }

    fn of_source(source: &TensorSource) -> Result<Self, TrainingError> {
        let saved = read_metadata(source, |saved: &Self| saved.format, FORMAT)?;
        saved
            .config
            .check()
            .map_err(|problem| CheckpointError::Damaged {
                path: source.path().into(),
                problem: format!("its training state is not valid: {problem}"),
            })?;
        Ok(saved)
    }

    /// Whether the run can go on under these settings; another length is welcome.
    pub(super) fn check_same(
        &self,
        folder: &PretrainFolder,
        config: &DitConfig,
        data: &str,
        settings: &PretrainSettings,
    ) -> Result<(), TrainingError> {
        let other_network = difference(&self.config, config, &[]).map(|other| Difference {
            setting: format!("a network ({}) of {}", self.config.name(), other.setting),
            ..other
        });
        let other_data = (self.data != data)
            .then(|| Difference::new("data of identity", self.data.clone(), data.into()));
        let other = other_network
            .or(other_data)
            .or_else(|| difference(&self.settings, settings, &["length"]));
        other.map_or(Ok(()), |other| Err(other.refuses(&folder.path)))
    }

    /// Writes the checkpoint, whole or not at all; one tensor is in memory at a time.
    pub(super) fn write(&self, learner: &Learner, path: &Path) -> Result<(), TrainingError> {
        let metadata = serde_json::to_string(self).unwrap_or_default();
        learner.write_state(&metadata, path)
    }

    /// The learner of a checkpoint.
    pub(super) fn load(
        path: &Path,
        settings: PretrainSettings,
        device: &Device,
    ) -> Result<(Self, Learner), TrainingError> {
        let mut source = checkpoint::open(path)?;
        let saved = Self::of_source(&source)?;
        let layout = Layout::new(saved.config.clone(), saved.own_embedders);
        let state = (saved.steps, saved.loss_scale);
        let learner = Learner::restore(layout, settings, device, state, &mut source)?;
        Ok((saved, learner))
    }
}
