//! A small network and a short run of it, for tests of what is trained or measured along runs.

use std::sync::Arc;

use burn::tensor::Device;

use crate::{
    checkpoint::{ModelInfo, random_model},
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    models::{
        Model,
        dit::{DitArchitecture, DitConfig},
    },
    sampler::Settings,
};

/// Two blocks of 16 dimensions over 4 tokens, images of `[4, 8, 8]`, 3 classes; weights from a seed.
pub(super) fn model(seed: u64, device: &Device) -> (Model, ModelInfo) {
    let architecture = Arc::new(DitArchitecture::shared(DitConfig {
        input_size: [8, 8],
        patch: 4,
        channels: 4,
        hidden: 16,
        blocks: 2,
        heads: 2,
        classes: 3,
        learned_sigma: true,
        timestep_shift: 0,
        mlp_norm_eps: 1e-6,
    }));
    random_model(architecture, seed, device).unwrap()
}

/// A guided run without noise between its steps.
pub(super) fn run(steps: usize) -> Settings {
    Settings {
        steps,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(1.5, GuidedChannels::Three).unwrap(),
        clip_x0: true,
    }
}
