//! Multiply-accumulates, from shapes alone.

use super::Schedule;

/// What the cost of a network depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    pub blocks: usize,
    pub hidden: usize,
    pub tokens: usize,
    /// MLP width over hidden width.
    pub mlp_ratio: usize,
    /// Inputs of the patch embedding, `C·p²`.
    pub patch_inputs: usize,
    /// Outputs of the last layer, `C_out·p²`.
    pub patch_outputs: usize,
    /// Channels of the timestep embedding.
    pub timestep_channels: usize,
}

/// Multiply-accumulates of one image in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Macs {
    /// One attention branch: projections, scores and mixing.
    pub attention: u64,
    /// One MLP branch.
    pub mlp: u64,
    /// All that a schedule cannot skip: embeddings, adaLN vectors, last layer.
    pub fixed: u64,
}

impl ModelShape {
    /// `N = 2·blocks`.
    pub fn branches(&self) -> usize {
        2 * self.blocks
    }

    /// Multiply-accumulates of the parts of one pass over one image.
    pub fn macs(&self) -> Macs {
        let [n, d] = [self.tokens as u64, self.hidden as u64];
        let embeddings =
            n * self.patch_inputs as u64 * d + self.timestep_channels as u64 * d + d * d;
        let last = n * d * self.patch_outputs as u64 + 2 * d * d;
        Macs {
            attention: 4 * n * d * d + 2 * n * n * d,
            mlp: 2 * self.mlp_ratio as u64 * n * d * d,
            fixed: embeddings + last + self.blocks as u64 * 6 * d * d,
        }
    }

    /// Multiply-accumulates of a whole run for one image and one half of the guidance batch.
    pub fn run_macs(&self, schedule: &Schedule) -> u64 {
        let macs = self.macs();
        let branch = |n: usize| {
            if n.is_multiple_of(2) {
                macs.attention
            } else {
                macs.mlp
            }
        };
        (0..schedule.steps())
            .map(|s| {
                let computed = schedule.row(s).iter().enumerate().filter(|(_, c)| **c);
                macs.fixed + computed.map(|(n, _)| branch(n)).sum::<u64>()
            })
            .sum()
    }

    /// Multiply-accumulates of `steps` passes that reuse nothing.
    pub fn full_macs(&self, steps: usize) -> u64 {
        let macs = self.macs();
        steps as u64 * (macs.fixed + self.blocks as u64 * (macs.attention + macs.mlp))
    }

    /// "Theoretical speed-up": MACs of the full run over those of the scheduled one.
    pub fn macs_ratio(&self, schedule: &Schedule) -> f64 {
        self.full_macs(schedule.steps()) as f64 / self.run_macs(schedule) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XL_2: ModelShape = ModelShape {
        blocks: 28,
        hidden: 1152,
        tokens: 256,
        mlp_ratio: 4,
        patch_inputs: 16,
        patch_outputs: 32,
        timestep_channels: 256,
    };

    #[test]
    fn xl_2_costs_what_the_paper_says() {
        // The DiT paper's table 4 lists 118.64 "Gflops" (multiply-accumulates) for DiT-XL/2 at 256².
        let giga = XL_2.full_macs(1) as f64 / 1e9;
        assert!((giga - 118.64).abs() < 0.2, "{giga}");
    }

    #[test]
    fn nothing_reused_costs_the_full_run() {
        let full = Schedule::full(20, XL_2.branches()).unwrap();
        assert_eq!(XL_2.run_macs(&full), XL_2.full_macs(20));
        assert_eq!(XL_2.macs_ratio(&full), 1.0);
    }
}
