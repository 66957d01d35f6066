//! Containers of named tensors: safetensors files and folders, PyTorch's zip archives with their pickles.
//!
//! Everything is checked before anything large is allocated. What the tensors mean is not known here.

mod error;
mod header;
mod pickle;
mod source;
mod torch;

pub use error::CheckpointError;
pub use pickle::{Pickle, Problem, Value, ValueId};
pub use source::{Dtype, Format, TensorEntry, TensorSource, open, open_bytes, read_named_tensors};
pub use torch::TorchFile;
