//! Reuse of the whole network's output (EasyCache, arXiv 2507.02860).
//!
//! The output `v` is taken for the state `x` and what it was off it at the last computed step: `x + (v − x)`. Channels without
//! a counterpart in the state, those of a learned sigma, stay as they were. Whether it is reused is judged by the channels that
//! predict, of the conditional half.

use burn::tensor::{Tensor, TensorData};

use super::{SampleError, execute::read_one};
use crate::{
    device::read,
    kernels::output_patches_of,
    models::Latents,
    schedule::{Decisions, Rule},
};

/// What is known of a batch's output.
#[derive(Debug)]
pub(super) struct KnownOutput {
    latents: Latents,
    /// Elements of the network's batch an image.
    copies: usize,
    /// The state at the step before, `[B, C, H, W]`.
    before: Option<Tensor<4>>,
    computed: Option<Computed>,
    /// `v − x` of the last computed step, `[copies·B, tokens, p²·C_out]`.
    off: Option<Tensor<3>>,
    /// `k = mean|Δv| / mean|Δx|` of the last two computed steps, `[1]`.
    rate: Option<Tensor<1>>,
}

/// The last computed step.
#[derive(Debug, Clone)]
struct Computed {
    /// `[B, C, H, W]`
    x: Tensor<4>,
    /// What the conditional half of the output predicts, `[B, tokens·p², C]`.
    v: Tensor<3>,
}

impl KnownOutput {
    pub fn new(latents: Latents, copies: usize) -> Self {
        Self {
            latents,
            copies,
            before: None,
            computed: None,
            off: None,
            rate: None,
        }
    }

    /// Bytes that it comes to for so many images.
    pub fn bytes(latents: &Latents, copies: usize, images: usize) -> usize {
        let [height, width] = latents.size;
        let channels = 3 * latents.channels + copies * latents.out_channels;
        4 * images * channels * height * width
    }

    /// Whether a step in state `x` reuses.
    pub async fn reuses(
        &self,
        x: &Tensor<4>,
        rule: &Rule,
        decisions: &mut Decisions,
    ) -> Result<bool, SampleError> {
        let (Some(before), Some(computed), Some(rate)) = (&self.before, &self.computed, &self.rate)
        else {
            return Ok(false);
        };
        let moved = (x.clone() - before.clone()).abs().mean();
        let change = rate.clone() * moved / computed.v.clone().abs().mean();
        Ok(rule.reuses(read_one(change).await?, decisions))
    }

    /// Remembers the state `x` of a step, whatever it did.
    pub fn note_state(&mut self, x: Tensor<4>) {
        self.before = Some(x);
    }

    /// The output for state `x`, as of [`crate::models::Denoiser::end`]; none where nothing is known.
    pub fn again(&self, x: Tensor<4>) -> Option<Tensor<3>> {
        let off = self.off.clone()?;
        Some(self.widened(x) + off)
    }

    /// Remembers what a step in state `x` computed, `[copies·B, tokens, p²·C_out]`.
    pub fn note(&mut self, x: Tensor<4>, output: Tensor<3>) {
        let v = self.predicted(output.clone());
        self.off = Some(output - self.widened(x.clone()));
        let now = Computed { x, v };
        self.rate = self.computed.take().map(|last| {
            let moved = (now.v.clone() - last.v).abs().mean();
            moved / (now.x.clone() - last.x).abs().mean()
        });
        self.computed = Some(now);
    }

    /// `x` as an output of all channels and copies.
    fn widened(&self, x: Tensor<4>) -> Tensor<3> {
        let [batch, channels, height, width] = x.dims();
        let more = self.latents.out_channels - channels;
        let x = match more {
            0 => x,
            _ => {
                let rest = Tensor::zeros([batch, more, height, width], &x.device());
                Tensor::cat(vec![x, rest], 1)
            }
        };
        let patches = output_patches_of(x, self.latents.patch);
        Tensor::cat(vec![patches; self.copies], 0)
    }

    /// The channels that predict, of the first copy.
    fn predicted(&self, output: Tensor<3>) -> Tensor<3> {
        let [elements, tokens, numbers] = output.dims();
        let Latents {
            channels,
            out_channels,
            ..
        } = self.latents;
        let (images, places) = (elements / self.copies, numbers / out_channels);
        output
            .narrow(0, 0, images)
            .reshape([images, tokens * places, out_channels])
            .narrow(2, 0, channels)
    }

    /// The last computed step, on the host: what a resumed run needs.
    pub async fn carried(&self) -> Result<Vec<f32>, SampleError> {
        let Some(computed) = &self.computed else {
            return Ok(Vec::new());
        };
        let mut values = read(computed.x.clone()).await?;
        values.extend(read(computed.v.clone()).await?);
        Ok(values)
    }

    /// The same before a run goes on in a state like `x`.
    ///
    /// # Errors
    /// [`SampleError::State`] for values that are not those of such a batch.
    pub fn restore(&mut self, values: &[f32], x: &Tensor<4>) -> Result<(), SampleError> {
        let dims = x.dims();
        let numbers: usize = dims.iter().product();
        if values.len() != 2 * numbers {
            return Err(SampleError::State);
        }
        let [images, channels, height, width] = dims;
        let (state, v) = values.split_at(numbers);
        let data = TensorData::new(v.to_vec(), [images, height * width, channels]);
        self.computed = Some(Computed {
            x: Tensor::from_data(TensorData::new(state.to_vec(), dims), &x.device()),
            v: Tensor::from_data(data, &x.device()),
        });
        Ok(())
    }
}
