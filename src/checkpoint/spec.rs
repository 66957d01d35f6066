//! Which model, what its file may leave open, and what is known of it beside the weights.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    fingerprint::Fingerprint, folder::PipelineFolder, hub::HubName, residence::Resident,
    weights::random_architecture,
};
use crate::{
    containers::CheckpointError,
    diffusion::{Guidance, Process, Solver, Spacing},
    models::{Architecture, Outline},
};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSpec {
    /// A `.pt`, `.bin` or safetensors file or a diffusers folder: a whole pipeline's, or its transformer's.
    Path(PathBuf),
    /// A diffusers folder, and which of the forms of its weights to take: `fp16`.
    Variant { folder: PathBuf, variant: String },
    /// A repository of the hub, from the local cache.
    Hub {
        name: HubName,
        variant: Option<String>,
    },
    /// The model inside the binary.
    Bundled,
    /// A safetensors file that is in memory.
    Memory(MemoryFile),
    /// Seeded random weights of a published size, for measuring: `random:DiT-S/2@256`.
    Random { size: String, tokens: usize },
}

/// A file that is in memory, and the name it goes by.
#[derive(Clone, PartialEq, Eq)]
pub struct MemoryFile {
    name: String,
    bytes: Arc<[u8]>,
}

impl MemoryFile {
    /// A file of these bytes; `name` stands for it in messages.
    pub fn new(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsRef<[u8]> for MemoryFile {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes.len())
    }
}

impl FromStr for ModelSpec {
    type Err = CheckpointError;
    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        if spec == "bundled" {
            return Ok(Self::Bundled);
        }
        let Some(rest) = spec.strip_prefix("random:") else {
            return Ok(match hub_name(spec) {
                Some(name) => Self::Hub {
                    name,
                    variant: None,
                },
                None => Self::Path(spec.into()),
            });
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

/// Endings by which a path is told from a name of the hub where nothing lies.
const FILE_ENDINGS: [&str; 6] = ["bin", "ckpt", "json", "pt", "pth", "safetensors"];

/// `OWNER/NAME`, where that is no path.
fn hub_name(spec: &str) -> Option<HubName> {
    let path = Path::new(spec);
    let ending = path.extension().and_then(|ending| ending.to_str());
    let is_file = ending.is_some_and(|ending| FILE_ENDINGS.contains(&ending));
    if is_file || path.exists() {
        return None;
    }
    spec.parse().ok()
}

impl ModelSpec {
    /// The same with the weights in this form: `fp16`.
    ///
    /// # Errors
    /// [`CheckpointError::Settings`] for a model that is in one form alone.
    pub fn with_variant(self, variant: &str) -> Result<Self, CheckpointError> {
        let variant = variant.to_owned();
        match self {
            Self::Path(folder) | Self::Variant { folder, .. } => {
                Ok(Self::Variant { folder, variant })
            }
            Self::Hub { name, .. } => Ok(Self::Hub {
                name,
                variant: Some(variant),
            }),
            other => Err(CheckpointError::Settings {
                path: other.to_string().into(),
                problem: format!("it has no variant `{variant}`"),
            }),
        }
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Variant { folder, variant } => write!(f, "{} ({variant})", folder.display()),
            Self::Hub {
                name,
                variant: None,
            } => name.fmt(f),
            Self::Hub {
                name,
                variant: Some(variant),
            } => write!(f, "{name} ({variant})"),
            Self::Bundled => f.write_str("bundled"),
            Self::Memory(file) => f.write_str(&file.name),
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
    #[serde(default, skip_serializing_if = "Process::is_usual")]
    pub process: Process,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solver: Option<Solver>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<Guidance>,
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
    /// Names of the classes, or empty. Commas separate synonyms.
    pub class_names: Vec<String>,
    /// Whether sampling clips the predicted `x_0` by default.
    pub clip_x0: bool,
    /// How its pictures are usually drawn, where its files say so.
    pub solver: Option<Solver>,
    /// Under which guidance, where they say so.
    pub guidance: Option<Guidance>,
    /// What its files ask of a run and runs here do otherwise, a sentence each.
    pub notes: Vec<String>,
    /// The pipeline that it is part of, whose other parts encode texts and decode pictures.
    pub folder: Option<PipelineFolder>,
    /// Identity of the weights.
    pub fingerprint: Fingerprint,
    /// Where they lie.
    pub resident: Resident,
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

    /// The name of a class, the first of its synonyms, `#7` where it has none.
    pub fn class_name(&self, class: usize) -> String {
        match self.class_names.get(class) {
            Some(name) => synonyms(name).next().unwrap_or_default().to_owned(),
            None => format!("#{class}"),
        }
    }

    /// How its pictures are usually drawn: as its files say, otherwise by DDIM.
    pub fn usual_solver(&self) -> Solver {
        self.solver.unwrap_or(Solver::Ddim { eta: 0.0 })
    }

    /// Where the steps of its usual run lie: as its files' solver has them, otherwise evenly.
    pub fn usual_spacing(&self) -> Spacing {
        match self.solver {
            Some(Solver::Dpm2m) => Spacing::Dpm,
            _ => Spacing::usual(self.outline.latents.process.prediction),
        }
    }

    /// The guidance that its pictures are usually drawn under: as its file says, otherwise its family's.
    pub fn usual_guidance(&self) -> Guidance {
        self.outline.usual_guidance(self.guidance)
    }

    /// The folder that holds the transformer and a part of this name.
    pub fn folder_with(&self, part: &str) -> Option<PathBuf> {
        let own = match (&self.folder, &self.source) {
            (Some(folder), _) => folder.path.as_path(),
            (None, ModelSpec::Path(path) | ModelSpec::Variant { folder: path, .. }) => path,
            _ => return None,
        };
        let above = own.parent().filter(|_| own.ends_with("transformer"));
        let mut folders = std::iter::once(own).chain(above);
        let found = folders.find(|folder| folder.join(part).is_dir());
        found.map(Path::to_path_buf)
    }

    /// The class that [`Self::classes_by_name`] finds, if it is one.
    pub fn class_by_name(&self, name: &str) -> Option<usize> {
        match self.classes_by_name(name)[..] {
            [class] => Some(class),
            _ => None,
        }
    }

    /// The classes that a name means: those of that whole name, otherwise those with that synonym, otherwise that number. Case
    /// does not matter. Names come first: they may be numbers themselves. Several classes may share a name.
    pub fn classes_by_name(&self, name: &str) -> Vec<usize> {
        let that = |matches: &dyn Fn(&str) -> bool| -> Vec<usize> {
            let classes = self.class_names.iter().enumerate();
            let found = classes.filter(|(_, names)| matches(names));
            found.map(|(class, _)| class).collect()
        };
        let name = name.trim();
        let is_name = |other: &str| other.to_lowercase() == name.to_lowercase();
        let whole = that(&|names| is_name(names));
        if !whole.is_empty() {
            return whole;
        }
        let synonym = that(&|names| synonyms(names).any(is_name));
        if !synonym.is_empty() {
            return synonym;
        }
        let number = name.parse::<usize>().ok();
        let number = number.filter(|class| self.classes().is_some_and(|count| *class < count));
        number.into_iter().collect()
    }
}

/// The names in `tench, Tinca tinca`.
pub fn synonyms(names: &str) -> impl Iterator<Item = &str> {
    names.split(',').map(str::trim)
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
    fn a_class_has_synonyms_and_shares_some() {
        let config = DitConfig {
            classes: 4,
            blocks: 1,
            ..DitConfig::published("DiT-S/8", [16, 16]).unwrap()
        };
        let architecture = Arc::new(DitArchitecture::shared(config));
        let (_, mut info) = random_model(architecture, 0, &burn::tensor::Device::flex()).unwrap();
        let names = [
            "tench, Tinca tinca",
            "crane, bird",
            "crane, machine",
            "bird",
        ];
        info.class_names = names.map(String::from).to_vec();
        for (name, classes) in [
            ("Tinca Tinca", &[0][..]),
            ("TENCH, tinca tinca", &[0]),
            ("crane", &[1, 2]),
            (" machine ", &[2]),
            ("bird", &[3]),
            ("2", &[2]),
            ("4", &[]),
            ("Tinca", &[]),
        ] {
            assert_eq!(info.classes_by_name(name), classes, "{name}");
        }
        assert_eq!(info.class_by_name("crane"), None);
        assert_eq!(info.class_name(0), "tench");
    }

    #[test]
    fn a_name_of_the_hub_is_told_from_a_path() {
        let spec: ModelSpec = "facebook/DiT-XL-2-256".parse().unwrap();
        assert!(
            matches!(&spec, ModelSpec::Hub { name, variant: None } if name.revision() == "main")
        );
        let half = spec.with_variant("fp16").unwrap();
        assert_eq!(half.to_string(), "facebook/DiT-XL-2-256 (fp16)");
        // There is such a folder, from where tests run.
        let spec: ModelSpec = "src/checkpoint".parse().unwrap();
        assert_eq!(spec, ModelSpec::Path("src/checkpoint".into()));
        for path in ["a/model.safetensors", "a/b/c", "../model", "/a/b", "a"] {
            let spec: ModelSpec = path.parse().unwrap();
            assert_eq!(spec, ModelSpec::Path(path.into()));
        }
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
