//! How a page asks for a run.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use wasm_bindgen::JsValue;

use super::{from_js, model::Loaded, told};
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

/// What a request says of its run, and the rest of what it says. Its signal is looked at where it is, not in a copy.
pub fn asked<T: DeserializeOwned>(request: &JsValue) -> Result<(Wishes, T), JsValue> {
    let mut rest: Map<String, Value> = from_js("the request", request)?;
    rest.remove("signal");
    let wishes = Wishes::NAMES.into_iter();
    let wishes: Map<String, Value> = wishes.filter_map(|name| rest.remove_entry(name)).collect();
    let wrong = |error| told(format_args!("the request: {error}"));
    Ok((
        serde_json::from_value(wishes.into()).map_err(wrong)?,
        serde_json::from_value(rest.into()).map_err(wrong)?,
    ))
}

impl Wishes {
    const NAMES: [&str; 5] = ["steps", "solver", "spacing", "guidance", "clip"];

    /// The usual ones of a model.
    pub fn usual(loaded: &Loaded) -> Self {
        let usual = usual_run(loaded);
        Self {
            steps: Some(usual.steps),
            solver: Some(usual.solver.to_string()),
            spacing: Some(usual.spacing.to_string()),
            guidance: Some(usual.guidance.scale()),
            clip: Some(usual.clip_x0),
        }
    }

    /// A run of this model.
    pub fn settings(&self, loaded: &Loaded) -> Result<Settings, JsValue> {
        let info: &ModelInfo = &loaded.info;
        let usual = usual_run(loaded);
        let channels = info.usual_guidance().channels();
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

/// The usual run, under the guidance that what was learned for the model was learned under.
pub fn usual_run(loaded: &Loaded) -> Settings {
    let usual = usual_settings(&loaded.info);
    let known = loaded.known.borrow();
    let mut scales = known
        .iter()
        .filter_map(|known| known.file.run.guidance.as_ref());
    let learned = scales.next().map(|guidance| guidance.scale);
    let channels = loaded.info.usual_guidance().channels();
    let guidance = learned.and_then(|scale| Guidance::new(scale, channels).ok());
    Settings {
        guidance: guidance.unwrap_or(usual.guidance),
        ..usual
    }
}
