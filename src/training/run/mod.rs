//! What trainings of routers and of networks share: why they end, what they know of their device, what they draw, logs that are
//! cut back, metadata that is compared, and folders that hold one of them.

#[cfg(not(target_family = "wasm"))]
mod device;
mod draws;
mod error;
mod log;
mod metadata;

use std::{fs::File, io::ErrorKind, path::Path};

#[cfg(not(target_family = "wasm"))]
pub(super) use device::{DeviceWatch, guarded, guarded_telling};
pub(super) use draws::{Drawn, check_draws, check_pool};
pub use error::TrainingError;
pub(super) use log::Log;
pub(super) use metadata::{Difference, difference, read_metadata};

use crate::files::lock_folder;

/// Name of a router's training state.
pub(super) const ROUTER_STATE: &str = "router.safetensors";
/// Name of the state of a search for schedules.
pub(super) const LADDER_STATE: &str = "ladder.json";
/// Name of a network's training state.
pub(super) const NETWORK_STATE: &str = "checkpoint.safetensors";
/// Name of an autoencoder's training state.
pub(super) const AUTOENCODER_STATE: &str = "autoencoder.safetensors";

/// Whether a folder holds the run whose state has the name `state`, which must be so exactly when it is to be resumed.
///
/// # Errors
/// [`TrainingError::OtherRun`] where it holds a training of the other kind, whose log has the same name;
/// [`TrainingError::Exists`]; [`TrainingError::NothingToResume`].
pub(super) fn check_folder(
    path: &Path,
    state: &'static str,
    resume: bool,
) -> Result<bool, TrainingError> {
    let path = path.to_path_buf();
    let others = [ROUTER_STATE, LADDER_STATE, NETWORK_STATE, AUTOENCODER_STATE];
    let mut others = others.into_iter().filter(|other| *other != state);
    if let Some(file) = others.find(|other| path.join(other).exists()) {
        return Err(TrainingError::OtherRun { path, file });
    }
    match (path.join(state).exists(), resume) {
        (true, false) => Err(TrainingError::Exists { path }),
        (false, true) => Err(TrainingError::NothingToResume { path, file: state }),
        (there, _) => Ok(there),
    }
}

/// Keeps other processes from training in a folder, which is made, while the result lives.
///
/// # Errors
/// [`TrainingError::Busy`]; [`TrainingError::Io`].
pub(super) fn hold_folder(path: &Path) -> Result<Option<File>, TrainingError> {
    lock_folder(path).map_err(|source| match source.kind() {
        ErrorKind::WouldBlock => TrainingError::Busy { path: path.into() },
        _ => TrainingError::Io {
            action: "write",
            path: path.into(),
            source,
        },
    })
}
