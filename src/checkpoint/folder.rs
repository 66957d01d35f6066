//! A diffusers pipeline folder, as it lies on the hub: which parts it has, where, and what its index says.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde_json::Value;

use super::{describe::Description, scheduler::SchedulerConfig};
use crate::containers::{CheckpointError, read_json};

/// The file that makes a folder a pipeline.
pub const MODEL_INDEX: &str = "model_index.json";

/// Pipelines by their class, and the family of their transformers.
const PIPELINES: [(&str, &str); 3] = [
    ("DiTPipeline", "DiT"),
    ("PixArtAlphaPipeline", "PixArt"),
    ("PixArtSigmaPipeline", "PixArt"),
];

/// A part of a pipeline, a folder of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Transformer,
    Scheduler,
    Vae,
    TextEncoder,
    Tokenizer,
}

impl Part {
    pub const ALL: [Self; 5] = [
        Self::Transformer,
        Self::Scheduler,
        Self::Vae,
        Self::TextEncoder,
        Self::Tokenizer,
    ];

    /// The name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Scheduler => "scheduler",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::Tokenizer => "tokenizer",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Part {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("expected one of {}", names.join(", "))
        })
    }
}

/// A part that a pipeline's index names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderPart {
    pub part: Part,
    /// diffusers' or transformers' class, such as `AutoencoderKL`.
    pub class: String,
    pub path: PathBuf,
    /// Whether the folder is there: downloads may leave parts out.
    pub there: bool,
}

/// A pipeline folder: what its `model_index.json` says, and what of it is there. Nothing else has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineFolder {
    pub path: PathBuf,
    /// Such as `DiTPipeline`.
    pub class: &'static str,
    /// The family of the transformer that such a pipeline has.
    pub family: &'static str,
    /// In the order of [`Part::ALL`].
    pub parts: Vec<FolderPart>,
    /// Names of the classes, or empty. Commas separate synonyms.
    pub class_names: Vec<String>,
}

impl PipelineFolder {
    /// Reads the index of a folder; `None` where there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Config`]: no JSON, or no pipeline of ours.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let index = path.join(MODEL_INDEX);
        if !index.is_file() {
            return Ok(None);
        }
        let json = read_json(&index)?;
        let bad = |problem: String| CheckpointError::Config {
            path: index.clone(),
            problem,
        };
        let found = json.get("_class_name").unwrap_or(&Value::Null);
        let pipeline = PIPELINES.iter().find(|(class, _)| found == class);
        let (class, family) = *pipeline.ok_or_else(|| {
            let known = PIPELINES.map(|(class, _)| class);
            bad(format!(
                "its `_class_name` is {found}, expected {}",
                known.join(", ")
            ))
        })?;
        let part = |part: Part| {
            // `["diffusers", "AutoencoderKL"]`, or nulls for a part that was left out on purpose.
            let class = json.get(part.name())?.get(1)?.as_str()?.to_owned();
            let path = path.join(part.name());
            Some(FolderPart {
                part,
                class,
                there: path.is_dir(),
                path,
            })
        };
        let parts: Vec<_> = Part::ALL.into_iter().filter_map(part).collect();
        if !parts.iter().any(|part| part.part == Part::Transformer) {
            return Err(bad("it names no `transformer`".into()));
        }
        let class_names = match json.get("id2label") {
            None | Some(Value::Null) => Vec::new(),
            Some(labels) => class_names(labels).map_err(bad)?,
        };
        Ok(Some(Self {
            path: path.into(),
            class,
            family,
            parts,
            class_names,
        }))
    }

    /// Where a part lies; `None` if the pipeline has no such part.
    ///
    /// # Errors
    /// [`CheckpointError::MissingPart`] if it should have one and the folder is not there.
    pub fn part(&self, part: Part) -> Result<Option<&Path>, CheckpointError> {
        match self.parts.iter().find(|found| found.part == part) {
            None => Ok(None),
            Some(found) if found.there => Ok(Some(&found.path)),
            Some(_) => Err(CheckpointError::MissingPart {
                path: self.path.clone(),
                part: part.name(),
            }),
        }
    }

    /// The transformer's folder.
    ///
    /// # Errors
    /// [`CheckpointError::MissingPart`].
    pub fn transformer(&self) -> Result<&Path, CheckpointError> {
        self.part(Part::Transformer)?
            .ok_or_else(|| CheckpointError::MissingPart {
                path: self.path.clone(),
                part: Part::Transformer.name(),
            })
    }

    /// What the scheduler's config says, where there is one.
    ///
    /// # Errors
    /// [`CheckpointError`]: missing, unreadable, or not understood.
    pub fn scheduler(&self) -> Result<Option<SchedulerConfig>, CheckpointError> {
        let folder = self.part(Part::Scheduler)?;
        let config =
            folder.map(|folder| SchedulerConfig::read(&folder.join("scheduler_config.json")));
        config.transpose()
    }

    /// Adds what the folder says to what its transformer's files say.
    pub(super) fn complete(&self, description: &mut Description) -> Result<(), CheckpointError> {
        let outline = description.architecture.outline();
        let bad = |problem: String| CheckpointError::Config {
            path: self.path.join(MODEL_INDEX),
            problem,
        };
        if outline.family != self.family {
            return Err(bad(format!(
                "it is a {}, whose transformer is a {}, but the one there is a {}",
                self.class, self.family, outline.family
            )));
        }
        let classes = outline.conditioning.classes();
        if !self.class_names.is_empty() && Some(self.class_names.len()) != classes {
            return Err(bad(format!(
                "its `id2label` names {} classes, the transformer has {}",
                self.class_names.len(),
                classes.unwrap_or(0)
            )));
        }
        description.class_names.clone_from(&self.class_names);
        if let Some(scheduler) = self.scheduler()? {
            description.process = scheduler.process;
            description.clip_x0 = scheduler.clip_x0;
            description.solver = scheduler.solver;
            description.notes = scheduler.notes;
        }
        Ok(())
    }
}

/// `{"0": "tench, Tinca tinca", …}` as a list.
fn class_names(labels: &Value) -> Result<Vec<String>, String> {
    let expected = "expected an object from class numbers to names";
    let labels = labels
        .as_object()
        .ok_or_else(|| format!("its `id2label` is {labels}, {expected}"))?;
    let mut names = vec![None; labels.len()];
    for (number, name) in labels {
        let place = number.parse().ok().and_then(|n: usize| names.get_mut(n));
        match (place.filter(|place| place.is_none()), name.as_str()) {
            (Some(place), Some(name)) => *place = Some(name.to_owned()),
            _ => {
                return Err(format!(
                    "its `id2label` has {number:?}: {name}, {expected} of 0 to {}, each once",
                    labels.len() - 1
                ));
            }
        }
    }
    Ok(names.into_iter().flatten().collect())
}
