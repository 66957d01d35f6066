//! Where a schedule came from, as far as comparisons care.

/// What a schedule is a case of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Everything is computed at every step.
    Uncached,
    /// Everything is computed, at fewer steps or by another solver.
    FewerSteps,
    /// A rule that knows nothing of the weights.
    Policy,
    /// Learned for these weights.
    Learned,
}

impl Origin {
    /// In reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uncached => "uncached",
            Self::FewerSteps => "fewer steps",
            Self::Policy => "policy",
            Self::Learned => "learned",
        }
    }
}
