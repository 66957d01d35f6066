//! One pass through the network under a row of a schedule.

use burn::tensor::Tensor;

use crate::{
    dit::{Branch, Conditioning, Dit},
    schedule::Schedule,
};

/// The stored features of a batch: at most one a branch, present only while a later step will read it.
#[derive(Debug, Default)]
pub struct FeatureStore {
    features: Vec<Option<Tensor<3>>>,
    bytes: usize,
    peak_bytes: usize,
}

impl FeatureStore {
    /// An empty store for `branches` branches.
    pub fn new(branches: usize) -> Self {
        Self {
            features: vec![None; branches],
            bytes: 0,
            peak_bytes: 0,
        }
    }

    /// Bytes that the stored features took at most.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    fn write(&mut self, n: usize, feature: Tensor<3>) {
        self.release(n);
        self.bytes += size(&feature);
        self.peak_bytes = self.peak_bytes.max(self.bytes);
        self.features[n] = Some(feature);
    }

    fn read(&self, n: usize) -> Option<Tensor<3>> {
        self.features[n].clone()
    }

    fn release(&mut self, n: usize) {
        if let Some(old) = self.features[n].take() {
            self.bytes -= size(&old);
        }
    }
}

fn size(feature: &Tensor<3>) -> usize {
    4 * feature.dims().iter().product::<usize>()
}

/// The network's output `[B, C_out, H, W]` for `x` `[B, C, H, W]` at step `s` of a schedule.
///
/// A branch that the schedule reuses issues no work but `x + gate ⊙ feature`.
pub(super) fn scheduled_forward(
    model: &Dit,
    schedule: &Schedule,
    s: usize,
    x: Tensor<4>,
    copies: usize,
    conditioning: &Conditioning,
    store: &mut FeatureStore,
) -> Tensor<4> {
    let mut x = model.embed(x);
    if copies > 1 {
        x = x.repeat_dim(0, copies);
    }
    for (b, block) in model.blocks.iter().enumerate() {
        for (kind, branch) in Branch::BLOCK.into_iter().enumerate() {
            let n = 2 * b + kind;
            let modulation = conditioning.branch(b, branch);
            let stored = if schedule.computes(s, n) {
                None
            } else {
                store.read(n)
            };
            let feature = match stored {
                Some(feature) => feature,
                None => {
                    let feature = block.branch(branch, x.clone(), &modulation);
                    if schedule.is_reused_after(s, n) {
                        store.write(n, feature.clone());
                    }
                    feature
                }
            };
            if !schedule.is_reused_after(s, n) {
                store.release(n);
            }
            x = modulation.add(x, feature);
        }
    }
    model.unembed(x, conditioning)
}
