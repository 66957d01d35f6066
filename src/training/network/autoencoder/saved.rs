//! The checkpoint of an autoencoder's run, and the autoencoder that it writes.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    super::{data::Dataset, state::write_from_device},
    learner::VaeLearner,
    settings::VaeSettings,
};
use crate::{
    checkpoint::{self, StoredDtype, TensorSource},
    files::write_bytes_atomically,
    models::vae::KlConfig,
    training::run::{
        AUTOENCODER_STATE, Difference, TrainingError, check_folder, difference, read_metadata,
    },
};

/// Where the files of a run lie. The folder is an autoencoder as `--vae` takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeFolder {
    pub(super) path: PathBuf,
}

impl VaeFolder {
    /// A folder, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Whether a run lies here, which must be so exactly when it is to be resumed.
    ///
    /// # Errors
    /// [`TrainingError::Exists`], [`TrainingError::NothingToResume`], [`TrainingError::OtherRun`].
    pub fn check(&self, resume: bool) -> Result<bool, TrainingError> {
        let there = check_folder(&self.path, AUTOENCODER_STATE, resume)?;
        // Somebody's autoencoder is nobody's to overwrite.
        match !there && (self.weights().exists() || self.config().exists()) {
            true => Err(TrainingError::Exists {
                path: self.path.clone(),
            }),
            false => Ok(there),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The moving average of the weights, under diffusers' name.
    pub fn weights(&self) -> PathBuf {
        self.path.join("diffusion_pytorch_model.safetensors")
    }

    /// The autoencoder's config, as diffusers writes it.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The training state.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join(AUTOENCODER_STATE)
    }

    /// A line a step.
    pub fn log(&self) -> PathBuf {
        self.path.join("train.jsonl")
    }

    /// The losses so far.
    pub fn curve(&self) -> PathBuf {
        self.path.join("curve.png")
    }

    /// Pictures beside what comes back of them.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples.png")
    }
}

/// Version of the metadata.
const FORMAT: u32 = 1;

/// What the metadata of a checkpoint says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedVae {
    format: u32,
    pub config: KlConfig,
    /// Identity of the data.
    pub(super) data: String,
    /// Where the data lay, from the root; `None` where text cannot say it.
    pub data_path: Option<String>,
    /// Side of the pictures in pixels.
    pub image_size: Option<usize>,
    pub settings: VaeSettings,
    /// Optimizer steps done.
    pub steps: u64,
    /// Seconds trained, over all sessions.
    pub seconds: f64,
    /// Element type of the autoencoder's file.
    pub dtype: StoredDtype,
}

impl SavedVae {
    pub(super) fn of(
        learner: &VaeLearner,
        data: &Dataset,
        seconds: f64,
        dtype: StoredDtype,
    ) -> Self {
        let path = std::path::absolute(data.path()).ok();
        Self {
            format: FORMAT,
            config: learner.config().clone(),
            data: data.identity().into(),
            data_path: path.and_then(|path| path.into_os_string().into_string().ok()),
            image_size: Some(data.shape()[1]),
            settings: learner.settings().clone(),
            steps: learner.steps(),
            seconds,
            dtype,
        }
    }

    /// What a checkpoint says, without its tensors.
    ///
    /// # Errors
    /// [`TrainingError::Checkpoint`]: unreadable, damaged, or another kind of file.
    pub fn read(path: &Path) -> Result<Self, TrainingError> {
        Self::of_source(&checkpoint::open(path)?)
    }

    fn of_source(source: &TensorSource) -> Result<Self, TrainingError> {
        Ok(read_metadata(source, |saved: &Self| saved.format, FORMAT)?)
    }

    /// Whether the run can go on under these settings; another length is welcome.
    pub(super) fn check_same(
        &self,
        folder: &VaeFolder,
        config: &KlConfig,
        data: &str,
        settings: &VaeSettings,
    ) -> Result<(), TrainingError> {
        let other_data = (self.data != data)
            .then(|| Difference::new("data of identity", self.data.clone(), data.into()));
        let other = difference(&self.config, config, &[])
            .or(other_data)
            .or_else(|| difference(&self.settings, settings, &["length"]));
        other.map_or(Ok(()), |other| Err(other.refuses(&folder.path)))
    }

    /// Writes the checkpoint, whole or not at all.
    pub(super) fn write(&self, learner: &VaeLearner, path: &Path) -> Result<(), TrainingError> {
        let metadata = serde_json::to_string(self).unwrap_or_default();
        learner.write_state(&metadata, path)
    }

    /// The learner of a checkpoint.
    pub(super) fn load(
        path: &Path,
        settings: VaeSettings,
        device: &Device,
    ) -> Result<(Self, VaeLearner), TrainingError> {
        let mut source = checkpoint::open(path)?;
        let saved = Self::of_source(&source)?;
        let config = saved.config.clone();
        let learner = VaeLearner::restore(config, settings, device, saved.steps, &mut source)?;
        Ok((saved, learner))
    }
}

/// Writes the averaged autoencoder as diffusers lays it out, with the scaling and shift of its latents.
pub(super) fn write_vae(
    learner: &VaeLearner,
    (scale, shift): (f32, f32),
    sample_size: usize,
    dtype: StoredDtype,
    folder: &VaeFolder,
) -> Result<(), TrainingError> {
    let mut next = 0;
    let shapes = learner.shapes();
    write_from_device(&folder.weights(), &shapes, None, dtype, || {
        next += 1;
        learner.average(next - 1)
    })?;
    let config = KlConfig {
        scaling_factor: scale,
        shift_factor: Some(shift),
        ..learner.config().clone()
    };
    let mut config = json!(config);
    config["_class_name"] = json!("AutoencoderKL");
    config["sample_size"] = json!(sample_size);
    let text = format!("{config:#}\n");
    let path = folder.config();
    write_bytes_atomically(&path, text.as_bytes()).map_err(|source| TrainingError::Io {
        action: "write",
        path,
        source,
    })
}
