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

use crate::{
    files::{lock_folder, read_up_to},
    ranks::Ranks,
};

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

/// A run that begins in a folder, or goes on.
pub(super) struct Begun {
    /// Its state, where it goes on.
    pub state: Option<Vec<u8>>,
    /// Keeps other processes out of the folder.
    pub held: Option<File>,
}

/// Begins a run, or goes on with the one whose state, of `most` bytes, has the name `state`. The first rank looks into the folder and
/// holds it; all get what it found.
///
/// # Errors
/// As [`check_folder`] and [`hold_folder`]; [`TrainingError::Io`]; [`TrainingError::Ranks`].
pub(super) fn begin(
    path: &Path,
    (state, most): (&'static str, u64),
    resume: bool,
    ranks: &Ranks,
) -> Result<Begun, TrainingError> {
    let (mut found, mut held) = (None, None);
    if ranks.leads() {
        let there = check_folder(path, state, resume)?;
        held = hold_folder(path)?;
        if there {
            let path = path.join(state);
            let bytes = read_up_to(&path, most).map_err(|source| TrainingError::Io {
                action: "read",
                path,
                source,
            })?;
            found = Some(bytes);
        }
    }
    Ok(Begun {
        state: ranks.of_first(found)?,
        held,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::threads::together;

    /// A state of no bytes is a damaged one, and nobody's to begin anew on.
    #[test]
    fn all_ranks_go_on_from_what_the_first_finds() {
        let folder = tempfile::tempdir().unwrap();
        let state = |resume| {
            together(2, |ranks| {
                let begun = begin(folder.path(), (ROUTER_STATE, 9), resume, ranks).unwrap();
                assert!(ranks.leads() || begun.held.is_none());
                begun.state
            })
        };
        assert_eq!(state(false), [None, None]);
        for bytes in ["", "router"] {
            std::fs::write(folder.path().join(ROUTER_STATE), bytes).unwrap();
            assert_eq!(state(true), vec![Some(bytes.as_bytes().to_vec()); 2]);
        }
        std::fs::write(folder.path().join(ROUTER_STATE), "more than nine").unwrap();
        let refused = begin(folder.path(), (ROUTER_STATE, 9), true, &Ranks::alone());
        assert!(matches!(refused, Err(TrainingError::Io { .. })));
    }
}
