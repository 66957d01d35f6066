//! Where the time of a run goes.

use std::time::Instant;

use burn::tensor::Device;
use serde::Serialize;

use crate::{device::LaunchCount, graph::SiteKind};

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Timestep and label embeddings and adaLN vectors.
    Conditioning,
    /// Patches to tokens.
    Embedding,
    /// Computed branches of a kind, their residual add and cache write included.
    Branch(SiteKind),
    /// Spans of reused branches.
    Reuse,
    /// Whether to reuse, where that is decided step by step, and what the decision is about.
    Decision,
    /// Last layer, guidance and the solver's step.
    Solver,
}

impl Part {
    /// All parts, in the order of a step.
    pub const ALL: [Self; 8] = [
        Self::Conditioning,
        Self::Embedding,
        Self::Branch(SiteKind::SelfAttention),
        Self::Branch(SiteKind::CrossAttention),
        Self::Branch(SiteKind::Mlp),
        Self::Reuse,
        Self::Decision,
        Self::Solver,
    ];

    fn place(self) -> usize {
        Self::ALL.iter().position(|part| *part == self).unwrap_or(0)
    }

    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conditioning => "conditioning",
            Self::Embedding => "embedding",
            Self::Branch(SiteKind::SelfAttention) => "attention",
            Self::Branch(SiteKind::CrossAttention) => "cross-attention",
            Self::Branch(SiteKind::Mlp) => "mlp",
            Self::Reuse => "reuse",
            Self::Decision => "decision",
            Self::Solver => "solver",
        }
    }
}

/// Time and dispatches a part, measured with a wait for the device after each: slower in sum than an undisturbed run.
#[derive(Debug)]
pub struct PartTimes {
    parts: [PartTotal; Part::ALL.len()],
    launches: LaunchCount,
    last: Instant,
    last_launches: u64,
}

/// What a part took over a run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct PartTotal {
    pub seconds: f64,
    /// How often it ran.
    pub count: u64,
    /// Kernel dispatches; 0 on the CPU.
    pub dispatches: u64,
}

impl PartTimes {
    #[cfg(not(target_family = "wasm"))]
    pub(super) fn start() -> Self {
        Self {
            parts: Default::default(),
            launches: LaunchCount::start(),
            last: Instant::now(),
            last_launches: 0,
        }
    }

    /// What ran since the last mark was this part.
    pub(super) fn mark(&mut self, part: Part, device: &Device) {
        // A device that fails here fails its results too, which are reported where they are read.
        let _ = device.sync();
        let (now, launches) = (Instant::now(), self.launches.so_far());
        let total = &mut self.parts[part.place()];
        total.seconds += (now - self.last).as_secs_f64();
        total.dispatches += launches - self.last_launches;
        total.count += 1;
        (self.last, self.last_launches) = (now, launches);
    }

    /// What a part took.
    pub fn of(&self, part: Part) -> PartTotal {
        self.parts[part.place()]
    }
}
