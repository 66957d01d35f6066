//! Training a DiT from pictures, on machines that people have; and an autoencoder for it ([`autoencoder`]).
//!
//! - [`Dataset`]: folders, atlases and latents, read whole before training
//! - [`Objective`]: the public release's loss, with its formulas
//! - [`Learner`]: network, optimizer and moving average; learns from a [`Batch`]
//! - [`PretrainRun`]: a resumable run in a folder
//!
//! ```no_run
//! use harmonica::{
//!     checkpoint::StoredDtype,
//!     device::{DeviceChoice, Engine},
//!     models::dit::DitConfig,
//!     training::network::{
//!         DataOptions, Dataset, Length, PretrainEvent, PretrainFolder, PretrainOptions, PretrainRun,
//!         PretrainSettings, PretrainStart,
//!     },
//! };
//! use std::{ops::ControlFlow, path::Path, time::Duration};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::open(DeviceChoice::Auto)?.engine;
//! let options = DataOptions { image_size: Some(32), ..Default::default() };
//! let data = Dataset::open(Path::new("pictures"), &options, &mut |_, _| ControlFlow::Continue(()))?;
//! let config = DitConfig {
//!     channels: 3,
//!     classes: data.classes(),
//!     ..DitConfig::published("DiT-S/4", [32, 32])?
//! };
//! let options = PretrainOptions {
//!     folder: PretrainFolder::new("run"),
//!     settings: PretrainSettings { length: Length::Minutes(60.0), ..Default::default() },
//!     resume: false,
//!     save_every: Duration::from_secs(600),
//!     sample_every: None,
//!     dtype: StoredDtype::F32,
//!     vae: None,
//! };
//! for event in PretrainRun::open(&data, PretrainStart::Fresh(config), options, engine.device())? {
//!     if let PretrainEvent::Step(step) = event? {
//!         println!("{}: {:.4}", step.step, step.mse);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use super::data;

pub mod autoencoder;
mod feeder;
mod forward;
mod gradient;
mod history;
mod learner;
mod objective;
mod optimizer;
mod order;
mod random;
mod run;
mod saved;
mod session;
mod settings;
mod state;

pub use data::{
    Augmentation, DEFAULT_IMAGE_SIZE, DataError, DataOptions, Dataset, Skipped, center_crop,
};
pub use history::PretrainStep;
pub use learner::{Learned, Learner};
pub use objective::{Batch, Objective};
pub use run::{PretrainEvent, PretrainOptions, PretrainRun, PretrainStart};
pub use saved::{PretrainFolder, SavedRun};
pub use settings::{
    Length, Optimizer, Precision, PretrainSettings, USUAL_WARMUP, WARMUP_SHARE, ema_decay,
    learning_rate,
};
