//! Reading published weight files and writing ours.
//!
//! Everything is checked before anything large is allocated: the container (zip, pickle or
//! safetensors header), then names and shapes against the network they describe. A model loads
//! wholly or not at all.

mod assemble;
mod describe;
mod error;
mod fingerprint;
mod header;
mod infer;
mod layout;
mod load;
mod pickle;
mod router;
mod save;
mod source;
mod spec;
mod state;
mod torch;
mod weights;

pub(crate) use assemble::{Parameter, Supply, assemble, parameters};
pub use describe::{Description, describe};
pub use error::CheckpointError;
pub use fingerprint::Fingerprint;
pub use load::{fresh_state, load_model, load_state, model_info, random_model};
pub use pickle::{Pickle, Problem, Value, ValueId};
pub use router::ReleasedRouter;
pub(crate) use save::write_safetensors;
pub use save::{
    ClassNames, METADATA_KEY, NamedTensor, SaveOptions, StoredDtype, save_model, save_state,
    write_tensors, write_tensors_with_metadata,
};
pub use source::{Dtype, Format, TensorEntry, TensorSource, open, open_bytes, read_named_tensors};
pub use spec::{LoadOptions, ModelInfo, ModelSpec};
pub use state::StateDict;
pub use torch::TorchFile;
