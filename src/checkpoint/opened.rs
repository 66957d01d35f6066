//! From a spec to open weights, and the pipeline folder around them.

use std::path::Path;

use super::{
    describe::{Description, describe},
    folder::{Part, PipelineFolder},
    spec::{LoadOptions, ModelSpec},
};
use crate::{
    containers::{self, CheckpointError, TensorSource, open_part},
    diffusion::{Guidance, GuidedChannels},
};

#[cfg(feature = "bundled")]
static BUNDLED: &[u8] = include_bytes!("../../assets/dit-emoji32.safetensors");

/// A model's weights, of which nothing large is read yet.
pub struct Opened {
    pub source: TensorSource,
    /// Where the model is a whole pipeline.
    pub folder: Option<PipelineFolder>,
    /// The usual guidance, where it is known and the file does not say it.
    guidance: Option<Guidance>,
}

impl Opened {
    /// Checks the model as loading would, without reading weights.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn describe(&self, options: LoadOptions) -> Result<Description, CheckpointError> {
        let mut description = describe(&self.source, options)?;
        if let Some(folder) = &self.folder {
            folder.complete(&mut description)?;
        }
        description.guidance = description.guidance.or(self.guidance);
        Ok(description)
    }
}

/// Opens the files of a model, or of the repository in the cache.
///
/// # Errors
/// [`CheckpointError`]: nothing there, or nothing that holds weights, as random ones do.
pub fn open_model(spec: &ModelSpec) -> Result<Opened, CheckpointError> {
    match spec {
        ModelSpec::Path(path) => open_path(path, None),
        ModelSpec::Variant { folder, variant } => open_path(folder, Some(variant)),
        ModelSpec::Hub { name, variant } => open_path(&name.snapshot()?, variant.as_deref()),
        ModelSpec::Bundled => Ok(Opened {
            source: bundled()?,
            folder: None,
            guidance: Guidance::new(3.0, GuidedChannels::Three).ok(),
        }),
        ModelSpec::Memory(file) => Ok(Opened {
            source: containers::open_bytes(file.name().as_ref(), file.clone())?,
            folder: None,
            guidance: None,
        }),
        ModelSpec::Random { .. } => Err(CheckpointError::Settings {
            path: spec.to_string().into(),
            problem: "random weights lie in no file".into(),
        }),
    }
}

fn open_path(path: &Path, variant: Option<&str>) -> Result<Opened, CheckpointError> {
    let folder = PipelineFolder::read(path)?;
    let source = match (&folder, variant) {
        (Some(folder), _) => open_part(folder.transformer()?, variant)?,
        (None, None) => containers::open(path)?,
        (None, Some(_)) => {
            let inner = path.join(Part::Transformer.name());
            open_part(if inner.is_dir() { &inner } else { path }, variant)?
        }
    };
    Ok(Opened {
        source,
        folder,
        guidance: None,
    })
}

#[cfg(feature = "bundled")]
fn bundled() -> Result<TensorSource, CheckpointError> {
    containers::open_bytes("the bundled model".as_ref(), BUNDLED)
}

#[cfg(not(feature = "bundled"))]
fn bundled() -> Result<TensorSource, CheckpointError> {
    Err(CheckpointError::UnknownFormat {
        path: "the bundled model".into(),
        found: "this build was made without the `bundled` feature".into(),
    })
}
