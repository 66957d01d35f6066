//! The facade: a model on an open device, and what is usually done with it. The command, the C interface and the examples
//! come in here. In a browser it is what of it needs no files.

mod choice;
#[cfg(not(target_family = "wasm"))]
mod decoder;
#[cfg(not(target_family = "wasm"))]
mod facade;
#[cfg(not(target_family = "wasm"))]
mod memory;
#[cfg(not(target_family = "wasm"))]
mod prompts;
#[cfg(not(target_family = "wasm"))]
mod texts;

pub use choice::{Chosen, calibrated_run, choose_schedule, chosen_file, schedule_file};
#[cfg(not(target_family = "wasm"))]
pub use {
    decoder::Decoder,
    facade::{OpenError, Pipeline},
    memory::{Memory, MemoryPart, MemoryRequest},
    prompts::{
        CutPrompt, PromptRequest, encoder_beside, encoder_for, tokenizer_in, usual_text_cache,
    },
    texts::{read_texts, texts_named},
};

use crate::{checkpoint::ModelInfo, sampler::Settings};

/// Steps of a run that names none.
pub const USUAL_STEPS: usize = 20;

/// The usual run: 20 steps of the model's usual solver under its usual guidance.
pub fn usual_settings(info: &ModelInfo) -> Settings {
    Settings {
        steps: USUAL_STEPS,
        spacing: info.usual_spacing(),
        solver: info.usual_solver(),
        guidance: info.usual_guidance(),
        clip_x0: info.clip_x0,
    }
}
