//! Training an AutoencoderKL from pictures, for DiTs that draw its latents.
//!
//! - [`VaeLearner`]: both halves, their optimizer and moving average; learns from a [`VaeBatch`]
//! - [`VaeRun`]: a resumable run in a folder that `--vae` takes

mod feeder;
mod learner;
mod objective;
mod run;
mod saved;
mod settings;

pub use learner::{VaeBatch, VaeLearned, VaeLearner, VaeStart};
pub use run::{VaeEvent, VaeOptions, VaeRun, VaeStep};
pub use saved::{SavedVae, VaeFolder};
pub use settings::VaeSettings;
