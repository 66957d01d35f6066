//! A file checked against the network it describes, before anything large is read.

use std::{collections::HashSet, sync::Arc};

use super::{
    fingerprint::Fingerprint,
    save::METADATA_KEY,
    spec::{LoadOptions, Metadata},
};
use crate::{
    containers::{CheckpointError, TensorSource},
    diffusion::{Guidance, Process, Solver},
    models::{Architecture, FAMILIES, Naming, dit::DitFamily, family_named},
};

/// What a file holds, checked against the network it describes; nothing large is read.
#[derive(Debug, Clone)]
pub struct Description {
    pub architecture: Arc<dyn Architecture>,
    pub class_names: Vec<String>,
    pub clip_x0: bool,
    /// What the network was trained on.
    pub process: Process,
    /// How its pictures are usually drawn, where the files say so.
    pub solver: Option<Solver>,
    /// Under which guidance, where they say so.
    pub guidance: Option<Guidance>,
    /// What the files ask of a run and runs here do otherwise.
    pub notes: Vec<String>,
    /// The fingerprint that the file itself names.
    pub fingerprint: Option<Fingerprint>,
    pub naming: Naming,
}

impl Description {
    /// Whose names the tensors have.
    pub fn naming_of(&self) -> String {
        match self.naming {
            Naming::Release => format!("the {} release's", self.architecture.outline().family),
            Naming::Diffusers => "diffusers'".into(),
        }
    }
}

/// Whose names the file uses.
pub(super) fn naming(source: &TensorSource) -> Naming {
    let theirs = |name: &str| name.starts_with("transformer_blocks.");
    match source.entries().any(|e| theirs(&e.name)) {
        true => Naming::Diffusers,
        false => Naming::Release,
    }
}

/// Checks a file as loading would, without reading weights.
///
/// # Errors
/// [`CheckpointError`].
pub fn describe(
    source: &TensorSource,
    options: LoadOptions,
) -> Result<Description, CheckpointError> {
    let naming = naming(source);
    let metadata = read_metadata(source)?;
    let description = match metadata {
        Some(m) => {
            let path = source.path();
            let family = family_named(&m.family).ok_or_else(|| other_family(source, &m))?;
            let architecture = family.read(m.config, Some(source), options, path)?;
            let classes = architecture.outline().conditioning.classes();
            if !m.classes.is_empty() && Some(m.classes.len()) != classes {
                return Err(CheckpointError::Config {
                    path: path.into(),
                    problem: format!(
                        "it names {} classes of {}",
                        m.classes.len(),
                        classes.unwrap_or(0)
                    ),
                });
            }
            Description {
                architecture,
                class_names: m.classes,
                clip_x0: m.clip_x0,
                process: m.process,
                solver: m.solver,
                guidance: m.guidance,
                notes: Vec::new(),
                fingerprint: Some(m.fingerprint),
                naming,
            }
        }
        None => {
            let mut families = FAMILIES.into_iter();
            // What nobody recognises is measured against a DiT, whose errors say what is missing.
            let family = families
                .find(|family| family.recognises(source))
                .unwrap_or(&DitFamily);
            Description {
                architecture: family.infer(source, naming, options)?,
                class_names: Vec::new(),
                clip_x0: false,
                process: Process::default(),
                solver: None,
                guidance: None,
                notes: Vec::new(),
                fingerprint: None,
                naming,
            }
        }
    };
    check_tensors(source, naming, &*description.architecture)?;
    Ok(description)
}

fn read_metadata(source: &TensorSource) -> Result<Option<Metadata>, CheckpointError> {
    let Some(text) = source.metadata().get(METADATA_KEY) else {
        return Ok(None);
    };
    let metadata: Metadata = serde_json::from_str(text).map_err(|e| CheckpointError::Config {
        path: source.path().into(),
        problem: format!("its model description is not valid: {e}"),
    })?;
    match metadata.format {
        1 => Ok(Some(metadata)),
        _ => Err(other_family(source, &metadata)),
    }
}

fn other_family(source: &TensorSource, metadata: &Metadata) -> CheckpointError {
    let known: Vec<_> = FAMILIES.iter().map(|family| family.name()).collect();
    CheckpointError::Config {
        path: source.path().into(),
        problem: format!(
            "it was written for format {} of family {}, this program reads format 1 of family {}",
            metadata.format,
            metadata.family,
            known.join(" or ")
        ),
    }
}

/// Names and shapes of the file against those of the network.
fn check_tensors(
    source: &TensorSource,
    naming: Naming,
    architecture: &dyn Architecture,
) -> Result<(), CheckpointError> {
    let path = source.path();
    let mut known = HashSet::new();
    let mut missing: Vec<(String, Vec<usize>)> = Vec::new();
    for spec in architecture.tensors() {
        let stored = spec.stored(naming);
        let mut part = spec.shape.clone();
        part[0] /= stored.len().max(1);
        for name in stored {
            match source.get(&name) {
                Some(entry) if entry.shape != part => {
                    return Err(CheckpointError::Shape {
                        path: path.into(),
                        name,
                        found: entry.shape.clone(),
                        expected: part,
                    });
                }
                Some(entry) if !entry.dtype.is_float() => {
                    return Err(CheckpointError::Dtype {
                        path: path.into(),
                        name,
                        dtype: entry.dtype.to_string(),
                    });
                }
                Some(_) => drop(known.insert(name)),
                None if spec.is_positions() => {}
                None => missing.push((name, part.clone())),
            }
        }
    }
    if let Some((name, expected)) = missing.first() {
        return Err(source.missing(name, expected, missing.len()));
    }
    let needless = |name: &str| architecture.ignored().contains(&name);
    let extra: Vec<_> = source
        .entries()
        .filter(|e| !known.contains(&e.name) && !needless(&e.name))
        .collect();
    if let Some(first) = extra.first() {
        return Err(CheckpointError::Unexpected {
            path: path.into(),
            name: first.name.clone(),
            shape: first.shape.clone(),
            model: architecture.outline().name,
            count: extra.len(),
        });
    }
    Ok(())
}
