//! Where the time of a run goes.

use std::time::{Duration, Instant};

use burn::tensor::Device;
use serde::Serialize;

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Timestep and label embeddings and adaLN vectors.
    Conditioning,
    /// Patches to tokens.
    Embedding,
    /// Computed attention branches, their residual add and cache write included.
    Attention,
    /// Computed MLP branches, likewise.
    Mlp,
    /// Spans of reused branches.
    Reuse,
    /// Last layer, guidance and the solver's step.
    Solver,
}

impl Part {
    /// All parts, in the order of a step.
    pub const ALL: [Self; 6] = [
        Self::Conditioning,
        Self::Embedding,
        Self::Attention,
        Self::Mlp,
        Self::Reuse,
        Self::Solver,
    ];
}

/// Seconds a part, measured with a wait for the device after each: slower in sum than an undisturbed run.
#[derive(Debug, Clone)]
pub struct PartTimes {
    times: [Duration; 6],
    counts: [usize; 6],
    last: Instant,
}

impl PartTimes {
    pub(super) fn start() -> Self {
        Self {
            times: [Duration::ZERO; 6],
            counts: [0; 6],
            last: Instant::now(),
        }
    }

    /// What ran since the last mark was this part.
    pub(super) fn mark(&mut self, part: Part, device: &Device) {
        // A device that fails here fails its results too, which are reported where they are read.
        let _ = device.sync();
        let now = Instant::now();
        self.times[part as usize] += now - self.last;
        self.counts[part as usize] += 1;
        self.last = now;
    }

    /// Seconds of a part.
    pub fn seconds(&self, part: Part) -> f64 {
        self.times[part as usize].as_secs_f64()
    }

    /// How often the part ran.
    pub fn count(&self, part: Part) -> usize {
        self.counts[part as usize]
    }
}
