//! Reading published weight files and writing ours.
//!
//! Everything is checked before anything large is allocated: the container (zip, pickle or
//! safetensors header), then names and shapes against the network they describe. A model loads
//! wholly or not at all.

mod describe;
mod fingerprint;
mod load;
mod router;
mod save;
mod spec;
mod state;
mod weights;

pub use crate::containers::{CheckpointError, TensorEntry, TensorSource, open, read_named_tensors};
pub use describe::{Description, describe};
pub use fingerprint::Fingerprint;
pub use load::{fresh_state, load_model, load_state, model_info, random_model};
pub use router::ReleasedRouter;
pub(crate) use save::write_safetensors;
pub use save::{
    ClassNames, METADATA_KEY, NamedTensor, SaveOptions, StoredDtype, save_model, save_state,
    write_tensors, write_tensors_with_metadata,
};
pub use spec::{LoadOptions, ModelInfo, ModelSpec};
pub use state::StateDict;
