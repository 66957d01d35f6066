//! One pass through the network under a step of a plan.

use burn::tensor::Tensor;

use crate::{
    dit::{Branch, Conditioning, Dit},
    plan::{Op, Slot},
};

/// The stored features of a batch, in the slots that a plan names.
#[derive(Debug, Default)]
pub struct FeatureStore {
    slots: Vec<Option<Tensor<3>>>,
    bytes: usize,
    peak_bytes: usize,
}

impl FeatureStore {
    /// An empty store of `slots` slots.
    pub fn new(slots: usize) -> Self {
        Self {
            slots: vec![None; slots],
            bytes: 0,
            peak_bytes: 0,
        }
    }

    /// Bytes that the stored features took at most.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    fn write(&mut self, slot: Slot, feature: Tensor<3>) {
        self.release(slot);
        self.bytes += size(&feature);
        self.peak_bytes = self.peak_bytes.max(self.bytes);
        self.slots[slot] = Some(feature);
    }

    fn read(&mut self, slot: Slot, last: bool) -> Option<Tensor<3>> {
        let feature = self.slots[slot].clone();
        if last {
            self.release(slot);
        }
        feature
    }

    fn release(&mut self, slot: Slot) {
        if let Some(old) = self.slots[slot].take() {
            self.bytes -= size(&old);
        }
    }
}

fn size(feature: &Tensor<3>) -> usize {
    4 * feature.dims().iter().product::<usize>()
}

/// The network's output `[B, C_out, H, W]` for `x` `[B/copies, C, H, W]` under one step's ops.
///
/// A reused branch issues no work but `x + gate ⊙ feature`.
pub(super) fn planned_forward(
    model: &Dit,
    ops: &[Op],
    x: Tensor<4>,
    copies: usize,
    conditioning: &Conditioning,
    store: &mut FeatureStore,
) -> Tensor<4> {
    let mut x = model.embed(x);
    if copies > 1 {
        x = x.repeat_dim(0, copies);
    }
    for op in ops {
        match op {
            Op::Compute { branch: n, write } => {
                let branch = Branch::BLOCK[n % 2];
                let modulation = conditioning.branch(n / 2, branch);
                let feature = model.blocks[n / 2].branch(branch, x.clone(), &modulation);
                if let Some(slot) = write {
                    store.write(*slot, feature.clone());
                }
                x = modulation.add(x, feature);
            }
            Op::Reuse(span) => {
                for read in span {
                    let n = read.branch;
                    let branch = Branch::BLOCK[n % 2];
                    let modulation = conditioning.branch(n / 2, branch);
                    // A plan reads no slot before it is written (a property test of the compiler); were one
                    // empty, the branch would be computed.
                    let feature = store.read(read.slot, read.last).unwrap_or_else(|| {
                        model.blocks[n / 2].branch(branch, x.clone(), &modulation)
                    });
                    x = modulation.add(x, feature);
                }
            }
        }
    }
    model.unembed(x, conditioning)
}
