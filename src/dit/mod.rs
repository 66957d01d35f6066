//! The Diffusion Transformer (Peebles & Xie, arXiv 2212.09748).
//!
//! [`Block`] follows the paper's figure: its attention and MLP branches are
//! callable one by one, since caching decides about each of them.

mod block;
mod config;
mod embed;
mod model;

pub use block::{Block, Branch, Modulation};
pub use config::{ConfigError, DitConfig, MLP_RATIO, NORM_EPS, PUBLISHED, TIMESTEP_CHANNELS};
pub use embed::{ConditionEmbedder, sincos_positions, timestep_features};
pub use model::{Conditioning, Dit};
