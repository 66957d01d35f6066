//! Which model, what its file may leave open, and what is known of it beside the weights.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{fingerprint::Fingerprint, weights::random_architecture};
use crate::{
    containers::CheckpointError,
    models::{Architecture, Outline},
};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSpec {
    /// A `.pt` or safetensors file or a diffusers folder.
    Path(PathBuf),
    /// The model inside the binary.
    Bundled,
    /// Seeded random weights of a published size, for measuring: `random:DiT-S/2@256`.
    Random { size: String, tokens: usize },
}

impl FromStr for ModelSpec {
    type Err = CheckpointError;
    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        if spec == "bundled" {
            return Ok(Self::Bundled);
        }
        let Some(rest) = spec.strip_prefix("random:") else {
            return Ok(Self::Path(spec.into()));
        };
        let bad = |problem: &str| CheckpointError::RandomSpec {
            spec: spec.into(),
            problem: problem.into(),
        };
        let (size, tokens) = rest
            .split_once('@')
            .ok_or_else(|| bad("it names no token count"))?;
        let tokens: usize = tokens
            .parse()
            .map_err(|_| bad("its token count is no number"))?;
        if tokens == 0 || tokens > 1 << 16 || tokens.isqrt().pow(2) != tokens {
            return Err(bad("its token count is no square from 1 to 65536"));
        }
        let spec = Self::Random {
            size: size.into(),
            tokens,
        };
        random_architecture(size, tokens)?;
        Ok(spec)
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Bundled => f.write_str("bundled"),
            Self::Random { size, tokens } => write!(f, "random:{size}@{tokens}"),
        }
    }
}

pub use crate::models::Hints as LoadOptions;

/// What the file says beside the weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    pub format: u32,
    pub family: String,
    /// As [`Architecture::to_json`] writes it.
    pub config: serde_json::Value,
    #[serde(default)]
    pub classes: Vec<String>,
    #[serde(default)]
    pub clip_x0: bool,
    pub fingerprint: Fingerprint,
}

/// Everything about a model but its weights.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Where it came from.
    pub source: ModelSpec,
    /// The shape of the network as its family knows it.
    pub architecture: Arc<dyn Architecture>,
    /// The same as everybody knows it.
    pub outline: Outline,
    /// Names of the classes, or empty.
    pub class_names: Vec<String>,
    /// Whether sampling clips the predicted `x_0` by default.
    pub clip_x0: bool,
    /// Identity of the weights.
    pub fingerprint: Fingerprint,
}

impl ModelInfo {
    /// Whether the network draws pixels (3 channels) rather than latents.
    pub fn is_pixel_space(&self) -> bool {
        self.outline.latents.channels == 3
    }

    /// Whether this is the model inside the binary.
    pub fn is_bundled(&self) -> bool {
        self.source == ModelSpec::Bundled
    }

    /// Whether the weights are random ones, made for measuring.
    pub fn is_random(&self) -> bool {
        matches!(self.source, ModelSpec::Random { .. })
    }

    /// Number of classes, where conditions are classes.
    pub fn classes(&self) -> Option<usize> {
        self.outline.conditioning.classes()
    }

    /// The name of a class, `#7` where it has none.
    pub fn class_name(&self, class: usize) -> String {
        self.class_names
            .get(class)
            .cloned()
            .unwrap_or_else(|| format!("#{class}"))
    }

    /// The guidance scale that its pictures are usually drawn with: 3 for the bundled model, its family's for others.
    pub fn usual_guidance(&self) -> f64 {
        if self.is_bundled() {
            3.0
        } else {
            self.outline.guidance.0
        }
    }

    /// A class by name, in any case, or by number. Names come first: they may be numbers themselves.
    pub fn class_by_name(&self, name: &str) -> Option<usize> {
        let named = |n: &String| n.eq_ignore_ascii_case(name);
        self.class_names.iter().position(named).or_else(|| {
            let number = name.parse::<usize>().ok()?;
            (number < self.classes()?).then_some(number)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::random_model,
        models::dit::{DitArchitecture, DitConfig},
    };

    #[test]
    fn classes_go_by_name_before_number() {
        let config = DitConfig {
            classes: 3,
            blocks: 1,
            ..DitConfig::published("DiT-S/8", [16, 16]).unwrap()
        };
        let architecture = Arc::new(DitArchitecture::shared(config));
        let (_, mut info) = random_model(architecture, 0, &burn::tensor::Device::flex()).unwrap();
        assert_eq!(info.class_by_name("2"), Some(2));
        info.class_names = ["1", "2", "cat"].map(String::from).to_vec();
        let found = ["1", "2", "0", "CAT", "3"].map(|name| info.class_by_name(name));
        assert_eq!(found, [Some(0), Some(1), Some(0), Some(2), None]);
    }

    #[test]
    fn a_file_with_a_special_name_is_a_file() {
        for path in [
            "random-init.safetensors",
            "random_dit/model.pt",
            "./bundled",
        ] {
            let spec: ModelSpec = path.parse().unwrap();
            assert_eq!(spec, ModelSpec::Path(path.into()));
        }
    }
}
