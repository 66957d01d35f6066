//! From words to what a network of texts is conditioned on: a tokenizer and T5's encoder.

mod config;
mod encoder;
mod spiece;
mod tokenizer;

use std::path::PathBuf;

pub use config::{FeedForward, T5Config};
pub use encoder::T5Encoder;
pub use tokenizer::{TextTokenizer, TokenIds};

use super::ConditionError;
use crate::{containers::CheckpointError, device::DeviceFault};

/// Why texts could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A folder that lacks what it should hold.
    #[error("{} holds no {what}: expected {expected} in it", folder.display())]
    NotThere {
        folder: PathBuf,
        what: &'static str,
        expected: &'static str,
    },
    /// A tokenizer that is damaged, or of a kind that T5 does not use.
    #[error("the tokenizer {} cannot be used: {problem}", path.display())]
    Tokenizer { path: PathBuf, problem: String },
    /// A token beyond the encoder's vocabulary.
    #[error(
        "token {token} is none of the encoder's {vocabulary}: its tokenizer belongs to another encoder"
    )]
    Token { token: u32, vocabulary: usize },
    /// An encoder of another width than the network's texts.
    #[error(
        "the encoder in {} makes tokens of {found} numbers, the model takes tokens of {expected}: it belongs to another model",
        folder.display()
    )]
    Width {
        folder: PathBuf,
        found: usize,
        expected: usize,
    },
    /// Texts for a model of classes.
    #[error("the model draws classes, not texts")]
    Classes,
    /// A text of no tokens.
    #[error(transparent)]
    Condition(#[from] ConditionError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceFault),
    /// Whoever watched broke off.
    #[error("stopped before all texts were encoded")]
    Stopped,
}
