//! A model on an open device.

use std::path::Path;

use super::{Chosen, Decoder, choose_schedule, usual_settings};
use crate::{
    checkpoint::{LoadOptions, ModelInfo, ModelSpec, Residence, load_model_onto},
    device::Engine,
    models::{Model, Prompts, vae::Tiling},
    policy::PolicyError,
    sampler::{SampleError, Sampler, Settings},
    schedule::Reuse,
};

/// A model on an open device.
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub engine: Engine,
    pub model: Model,
    pub info: ModelInfo,
    /// What its images may show: all classes of a model of classes, the texts that were given to a model of texts.
    pub prompts: Prompts,
    /// What makes pictures of its images.
    pub decoder: Decoder,
}

/// Why a pipeline could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    #[error(transparent)]
    Sample(#[from] SampleError),
}

impl Pipeline {
    /// Loads a model onto an engine's device.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        engine: &Engine,
        spec: &ModelSpec,
        options: LoadOptions,
    ) -> Result<Self, OpenError> {
        Self::open_in(engine, spec, options, Residence::default())
    }

    /// The same, weights kept as `residence` says.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_in(
        engine: &Engine,
        spec: &ModelSpec,
        options: LoadOptions,
        residence: Residence,
    ) -> Result<Self, OpenError> {
        let (model, info) = load_model_onto(engine, spec, options, residence)?;
        // Weights are uploaded in the background; runs answer for what comes after.
        if let Some(fault) = engine.fault() {
            return Err(SampleError::from(fault).into());
        }
        let prompts = match info.is_random() {
            true => Prompts::for_measuring(&*model),
            false => Prompts::of(&*model),
        };
        Ok(Self {
            engine: engine.clone(),
            model,
            info,
            prompts,
            decoder: Decoder::Direct,
        })
    }

    /// The same with an autoencoder that makes pictures of its latents: see [`Decoder::open`].
    ///
    /// # Errors
    /// [`CheckpointError`](crate::checkpoint::CheckpointError).
    pub fn with_vae(self, path: &Path, tiling: Tiling) -> Result<Self, OpenError> {
        let decoder = Decoder::open(path, tiling, &self.info, &self.engine)?;
        Ok(Self { decoder, ..self })
    }

    /// The same for other texts. What they say of no text goes before what the model brings.
    ///
    /// # Errors
    /// [`SampleError::Condition`] for texts that the model does not take.
    pub fn with_texts(self, texts: Prompts) -> Result<Self, SampleError> {
        let conditioning = self.info.outline.conditioning;
        for condition in texts.pool.iter().chain(&texts.null) {
            conditioning.check(condition)?;
        }
        let prompts = Prompts {
            null: texts.null.or(self.prompts.null),
            pool: texts.pool,
        };
        Ok(Self { prompts, ..self })
    }

    /// The usual run: 20 steps of the model's usual solver under its usual guidance.
    pub fn usual_settings(&self) -> Settings {
        usual_settings(&self.info)
    }

    /// What `spec` means for this model and run: a policy, `learned[:SPEED]`, `steps:K`, a schedule file or a folder of them.
    ///
    /// # Errors
    /// As [`choose_schedule`].
    pub fn choose(&self, spec: &str, settings: &Settings) -> Result<Chosen, PolicyError> {
        choose_schedule(&spec.parse()?, false, &self.info, settings)
    }

    /// A sampler on this device; `reuse` `None` computes everything.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn sampler(
        &self,
        settings: Settings,
        reuse: Option<Reuse>,
    ) -> Result<Sampler, SampleError> {
        let sampler = match reuse {
            Some(reuse) => Sampler::reusing(&self.model, settings, reuse),
            None => Sampler::new(&self.model, settings, None),
        };
        let sampler = sampler?.with_engine(&self.engine);
        Ok(match &self.prompts.null {
            Some(null) => sampler.with_null(null.clone()),
            None => sampler,
        })
    }
}
