//! Why a repository could not be downloaded.

use std::path::PathBuf;

use hf_hub::api::sync::ApiError;

use crate::checkpoint::CheckpointError;

/// Every text says what to do, where there is something.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum PullError {
    #[error("there is no folder for downloads: set HF_HOME to one")]
    NoCache,

    #[error("HF_HUB_OFFLINE is set, so nothing is downloaded")]
    Offline,

    /// No answer.
    #[error(
        "cannot reach {endpoint}: {problem}; check the network (HF_ENDPOINT names another server)"
    )]
    Unreachable { endpoint: String, problem: String },

    /// 401 and 403.
    #[error(
        "{endpoint} does not let this user read {name} (status {status}): it is private or gated, or there is no such repository; accept its terms on its page, and set HF_TOKEN to a token that may read it"
    )]
    Forbidden {
        endpoint: String,
        name: String,
        status: u16,
    },

    /// 404.
    #[error("{endpoint} has no {name}: check the spelling and the revision")]
    Unknown { endpoint: String, name: String },

    /// Any other status.
    #[error("{endpoint} answered with status {status}; try again later")]
    Status { endpoint: String, status: u16 },

    /// An answer that is none of the hub's.
    #[error("{endpoint} does not answer as the hub does: {problem}")]
    Answer { endpoint: String, problem: String },

    /// A repository without what is needed.
    #[error("{name} {problem}")]
    Content { name: String, problem: String },

    /// A file that is not what the hub says it is.
    #[error(
        "{file} came damaged: its sha256 is {found}, the hub says {expected}; it was thrown away, the same command downloads it anew"
    )]
    Checksum {
        file: String,
        found: String,
        expected: String,
    },

    /// A connection that broke again and again.
    #[error(
        "{file} broke off after {got} bytes: {problem}; what has come is kept, the same command goes on from there"
    )]
    Interrupted {
        file: String,
        got: u64,
        problem: String,
    },

    #[error("another `harmonica pull` of {name} is running")]
    Busy { name: String },

    /// The file system refused.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },

    /// A shard index that came, and makes no sense.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// What an error of the client means for a repository.
pub(super) fn of_api(error: &ApiError, endpoint: &str, name: &str) -> PullError {
    let endpoint = endpoint.to_owned();
    let answer = |problem: String| PullError::Answer {
        endpoint: endpoint.clone(),
        problem,
    };
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status @ (401 | 403)) => PullError::Forbidden {
                endpoint,
                name: name.into(),
                status,
            },
            ureq::Error::StatusCode(404) => PullError::Unknown {
                endpoint,
                name: name.into(),
            },
            ureq::Error::StatusCode(status) => PullError::Status { endpoint, status },
            ureq::Error::Json(_) => answer(error.to_string()),
            _ => PullError::Unreachable {
                endpoint,
                problem: error.to_string(),
            },
        },
        ApiError::IoError(error) => PullError::Unreachable {
            endpoint,
            problem: error.to_string(),
        },
        other => answer(other.to_string()),
    }
}
