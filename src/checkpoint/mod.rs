//! Reading published weight files, pipeline folders and the hub's cache, and writing our own files.
//!
//! Everything is checked before anything large is allocated: the container (zip, pickle or
//! safetensors header), then names and shapes against the network they describe. A model loads
//! wholly or not at all.

mod describe;
mod fingerprint;
mod folder;
mod hub;
mod load;
mod opened;
mod residence;
mod router;
mod save;
mod scheduler;
mod spec;
mod state;
mod weights;

pub use crate::containers::{
    CheckpointError, TensorEntry, TensorSource, open, open_part, read_named_tensors,
};
pub use describe::{Description, describe};
pub use fingerprint::Fingerprint;
pub use folder::{FolderPart, MODEL_INDEX, Part, PipelineFolder};
pub use hub::{HubName, hub_cache, hub_home};
pub use load::{
    fresh_state, load_model, load_model_in, load_model_onto, load_state, model_info, model_outline,
    random_model,
};
pub use opened::{Opened, open_model};
pub use residence::{Kept, Residence, ResidenceError, Resident};
pub use router::ReleasedRouter;
pub(crate) use save::write_safetensors;
pub use save::{
    ClassNames, METADATA_KEY, NamedTensor, SaveOptions, StoredDtype, save_model, save_state,
    write_tensors, write_tensors_with_metadata,
};
pub use scheduler::SchedulerConfig;
pub use spec::{LoadOptions, MemoryFile, ModelInfo, ModelSpec, synonyms};
pub use state::StateDict;
