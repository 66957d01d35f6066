//! What can be wrong with a weight file.

use std::path::{Path, PathBuf};

/// Why a file was refused. Every text says what was expected, what came and, where there is one, what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused to read or write.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },

    /// Neither safetensors, nor a PyTorch zip, nor a diffusers folder.
    #[error("{} is no model file: {found}; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder", path.display())]
    UnknownFormat { path: PathBuf, found: String },

    /// The container itself is broken.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },

    /// A pickle that uses something a list of tensors has no need of.
    #[error("{} was refused: {problem}", path.display())]
    Refused { path: PathBuf, problem: String },

    /// A JSON document (`config.json`, shard index, metadata) that does not say what it must.
    #[error("{} cannot be understood: {problem}", path.display())]
    Config { path: PathBuf, problem: String },

    /// An index of shards that names one that is not there.
    #[error("{} names the shard `{shard}`, which does not lie beside it; was the folder copied or downloaded wholly?", path.display())]
    MissingShard { path: PathBuf, shard: String },

    /// A tensor that the index of shards places where it is not.
    #[error("{} places tensor `{name}` in `{shard}`, which does not hold it; was the folder copied or downloaded wholly?", path.display())]
    NotInShard {
        path: PathBuf,
        name: String,
        shard: String,
    },

    /// A part that a pipeline folder says it has.
    #[error("{} has no `{part}/`, though its model_index.json names it; expected the whole pipeline folder, or at least its transformer and scheduler (of a folder of the hub, `harmonica pull` fetches parts)", path.display())]
    MissingPart { path: PathBuf, part: &'static str },

    /// A name that is neither a file or folder nor a repository of the cache.
    #[error("`{name}` is neither a file or folder nor in the cache of the hub, {}; `harmonica pull {name}` downloads it", cache.display())]
    NotCached { name: String, cache: PathBuf },

    /// A repository whose name the hub would not give.
    #[error(
        "`{name}` is no name of the hub: {problem}; expected OWNER/NAME or OWNER/NAME@REVISION, such as facebook/DiT-XL-2-256"
    )]
    HubName { name: String, problem: &'static str },

    /// The file holds tensors, but not those of a DiT.
    #[error("{} holds no DiT: {problem}", path.display())]
    NotADit { path: PathBuf, problem: String },

    /// A tensor that the network needs is not there.
    #[error("{}: tensor `{name}` {expected:?} is missing ({count} missing in all)", path.display())]
    Missing {
        path: PathBuf,
        name: String,
        expected: Vec<usize>,
        count: usize,
    },

    /// A tensor that the network has no place for.
    #[error("{}: tensor `{name}` {shape:?} belongs to no part of {model} ({count} such tensors in all)", path.display())]
    Unexpected {
        path: PathBuf,
        name: String,
        shape: Vec<usize>,
        model: String,
        count: usize,
    },

    /// A tensor of another shape than the network's.
    #[error("{}: tensor `{name}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        path: PathBuf,
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },

    /// A tensor of a type that weights do not come in.
    #[error("{}: tensor `{name}` is {dtype}, expected F32, F16, BF16 or F64", path.display())]
    Dtype {
        path: PathBuf,
        name: String,
        dtype: String,
    },

    /// Shapes cannot tell the number of attention heads.
    #[error("{}: the number of attention heads cannot be told from shapes, and hidden size {hidden} is none of the published ones (384, 768, 1024, 1152){hint}", path.display())]
    HeadsNeeded {
        path: PathBuf,
        hidden: usize,
        hint: String,
    },

    /// Nothing says how large the images are, or how the grid of tokens lies.
    #[error("{}: {problem}", path.display())]
    SizeNeeded { path: PathBuf, problem: String },

    /// Settings that contradict each other or the file.
    #[error("{}: {problem}", path.display())]
    Settings { path: PathBuf, problem: String },

    /// The weights are not those the file says it holds.
    #[error("{} is damaged: its weights have fingerprint {found}, but it was written with {expected}", path.display())]
    Fingerprint {
        path: PathBuf,
        found: String,
        expected: String,
    },

    /// A weight that is not a number.
    #[error("{}: tensor `{name}` holds a value that is not finite at position {position}; the model cannot be used", path.display())]
    NotFinite {
        path: PathBuf,
        name: String,
        position: usize,
    },

    /// Weights that cannot be kept as was asked.
    #[error("{}: {source}", path.display())]
    Residence {
        path: PathBuf,
        source: crate::checkpoint::ResidenceError,
    },

    /// A `random:SIZE/PATCH@TOKENS` spec that names no network.
    #[error(
        "cannot build `{spec}`: {problem}; expected random:SIZE/PATCH@TOKENS such as random:DiT-S/2@256"
    )]
    RandomSpec { spec: String, problem: String },
}

impl CheckpointError {
    /// That a tensor, of whatever shape, is not there.
    pub(crate) fn missing(path: &Path, name: &str) -> Self {
        Self::Missing {
            path: path.into(),
            name: name.into(),
            expected: Vec::new(),
            count: 1,
        }
    }
}
