//! Containers of named tensors: safetensors files and folders, PyTorch's zip archives with their pickles.
//!
//! Everything is checked before anything large is allocated. What the tensors mean is not known here.

mod error;
mod header;
mod json;
mod pickle;
mod source;
mod torch;
mod weight_file;

pub use error::CheckpointError;
pub(crate) use json::read_json;
pub use pickle::{Pickle, Problem, Value, ValueId};
pub use source::{
    Dtype, Format, TensorEntry, TensorSource, open, open_bytes, open_part, read_named_tensors,
};
pub use torch::TorchFile;
pub use weight_file::{WeightFile, read_shard_names};
