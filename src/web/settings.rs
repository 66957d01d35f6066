//! How a page asks for a run.

use serde::{Deserialize, Serialize};
use wasm_bindgen::JsValue;

use super::told;
use crate::{
    checkpoint::ModelInfo, diffusion::Guidance, pipeline::usual_settings, sampler::Settings,
};

/// What of a run differs from the usual.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    #[serde(default)]
    pub steps: Option<usize>,
    #[serde(default)]
    pub solver: Option<String>,
    #[serde(default)]
    pub spacing: Option<String>,
    #[serde(default)]
    pub guidance: Option<f64>,
    #[serde(default)]
    pub clip: Option<bool>,
}

impl Wishes {
    /// The usual ones of a model.
    pub fn usual(info: &ModelInfo) -> Self {
        let usual = usual_settings(info);
        Self {
            steps: Some(usual.steps),
            solver: Some(usual.solver.to_string()),
            spacing: Some(usual.spacing.to_string()),
            guidance: Some(usual.guidance.scale()),
            clip: Some(usual.clip_x0),
        }
    }

    /// A run of this model.
    pub fn settings(&self, info: &ModelInfo) -> Result<Settings, JsValue> {
        let usual = usual_settings(info);
        let (_, channels) = info.outline.guidance;
        let solver = self.solver.as_deref().map(str::parse).transpose();
        let spacing = self.spacing.as_deref().map(str::parse).transpose();
        let guidance = self.guidance.map(|scale| Guidance::new(scale, channels));
        let settings = Settings {
            steps: self.steps.unwrap_or(usual.steps),
            solver: solver.map_err(told)?.unwrap_or(usual.solver),
            spacing: spacing.map_err(told)?.unwrap_or(usual.spacing),
            guidance: guidance
                .transpose()
                .map_err(told)?
                .unwrap_or(usual.guidance),
            clip_x0: self.clip.unwrap_or(usual.clip_x0),
        };
        settings.numbers(&info.outline.latents).map_err(told)?;
        Ok(settings)
    }
}
